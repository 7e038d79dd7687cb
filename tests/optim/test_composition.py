"""Several rate callbacks in one fit: a plateau over a curve, two plateaus, and what is refused.

`rates` makes the calls of `fit` without training, for a `val_loss` that is fixed beforehand.
How often a plateau reduces is asked of Keras's own, which knows no curve.
"""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfkit
from tests import models
from tests.optim.test_callbacks import RATE, Crash, Metric, Trace, one_weight, train
from tfkit import curves

BATCHES = 3
WORSE = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
FALL = curves.linear(1.0, 0.0, 100)


@pytest.fixture(scope="module")
def optimizer_of():
    return one_weight()


def rates(model, callbacks, values):
    """The rate of each batch."""
    model.optimizer.learning_rate = RATE
    listeners = keras.callbacks.CallbackList(
        callbacks, add_history=True, model=model, epochs=len(values), steps=BATCHES
    )
    seen = []
    listeners.on_train_begin()
    for epoch, value in enumerate(values):
        listeners.on_epoch_begin(epoch)
        for batch in range(BATCHES):
            listeners.on_train_batch_begin(batch)
            seen.append(float(model.optimizer.learning_rate))
            model.optimizer.iterations.assign_add(1)
            listeners.on_train_batch_end(batch)
        listeners.on_epoch_end(epoch, {"val_loss": value})
    listeners.on_train_end()
    return np.array(seen)


def scales(model, values, **options):
    """What Keras's plateau makes of a constant rate, batch by batch."""
    return rates(model, [keras.callbacks.ReduceLROnPlateau("val_loss", **options)], values) / RATE


def curve_rates(curve, unit, epochs):
    steps = np.arange(epochs * BATCHES)
    return np.array([curve(step if unit == "step" else step // BATCHES) for step in steps])


def either_way(*callbacks):
    """Both orders, each with callbacks of its own."""
    return [[make() for make in order] for order in (callbacks, callbacks[::-1])]


orders = pytest.mark.parametrize("plateau_first", [True, False], ids=["plateau first", "curve first"])


def together(curve, plateau, plateau_first):
    return [plateau, curve] if plateau_first else [curve, plateau]


class TestPlateauOverACurve:
    @given(
        values=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=10),
        unit=st.sampled_from(["step", "epoch"]),
        plateau_first=st.booleans(),
        options=st.fixed_dictionaries(
            {
                "factor": st.sampled_from([0.1, 0.5, 0.9]),
                "patience": st.integers(1, 3),
                "cooldown": st.integers(0, 2),
                "min_delta": st.sampled_from([0.0, 0.3]),
            }
        ),
    )
    @settings(deadline=None, max_examples=40)
    def test_the_rate_is_the_curves_times_the_factor_for_each_reduction(
        self, optimizer_of, values, unit, plateau_first, options
    ):
        callbacks = together(
            tfkit.LearningRateCurve(FALL, unit=unit), tfkit.ReduceLROnPlateau(**options), plateau_first
        )
        expected = curve_rates(FALL, unit, len(values)) * scales(optimizer_of, values, **options)
        np.testing.assert_allclose(rates(optimizer_of, callbacks, values), expected, rtol=1e-5)

    @orders
    @pytest.mark.parametrize("unit", ["step", "epoch"])
    def test_a_warmup_rises_to_the_curve_and_judges_nothing(self, optimizer_of, unit, plateau_first):
        callbacks = together(
            tfkit.LearningRateCurve(FALL, unit=unit),
            tfkit.ReduceLROnPlateau(factor=0.5, patience=1, warmup_steps=7),
            plateau_first,
        )
        ramp = np.minimum(np.arange(6 * BATCHES) / 7, 1)
        # epochs 0 and 1 end in the warmup, 2 is the first that is judged, each after it is worse
        falls = np.repeat([1, 1, 1, 1, 0.5, 0.25], BATCHES)
        expected = ramp * falls * curve_rates(FALL, unit, 6)
        np.testing.assert_allclose(rates(optimizer_of, callbacks, WORSE), expected, rtol=1e-5, atol=1e-9)

    @orders
    def test_does_not_push_the_rate_below_the_floor(self, optimizer_of, plateau_first):
        callbacks = together(
            tfkit.LearningRateCurve(FALL),
            tfkit.ReduceLROnPlateau(factor=0.5, patience=1, min_lr=0.3),
            plateau_first,
        )
        falls = np.repeat([1, 1, 0.5, 0.25, 0.125, 0.0625], BATCHES)
        expected = np.maximum(falls * curve_rates(FALL, "step", 6), 0.3)
        np.testing.assert_allclose(rates(optimizer_of, callbacks, WORSE), expected, rtol=1e-5)

    def test_does_not_lift_a_curve_that_is_below_the_floor_by_itself(self, optimizer_of):
        callbacks = [tfkit.LearningRateCurve(lambda step: 0.01), tfkit.ReduceLROnPlateau(min_lr=0.3)]
        np.testing.assert_allclose(rates(optimizer_of, callbacks, WORSE), 0.01)

    def test_does_not_go_on_reducing_at_the_floor(self, optimizer_of):
        # Keras: 1, 0.5, then 0.3 instead of 0.25, and no reduction from there; the rise is to 8 / 4
        curve = tfkit.LearningRateCurve(lambda epoch: 1.0 if epoch < 5 else 8.0, unit="epoch")
        plateau = tfkit.ReduceLROnPlateau(factor=0.5, patience=1, min_lr=0.3)
        assert rates(optimizer_of, [curve, plateau], WORSE)[-1] == 2.0

    def test_a_curve_that_rises_again_keeps_the_reductions(self, optimizer_of):
        curve = curves.cosine_restarts(1.0, 6)
        callbacks = [tfkit.LearningRateCurve(curve), tfkit.ReduceLROnPlateau(factor=0.5, patience=1)]
        values = [1.0, 2.0, 0.5, 0.4, 0.3, 0.2]
        expected = curve_rates(curve, "step", 6) * np.repeat([1, 1, 0.5, 0.5, 0.5, 0.5], BATCHES)
        np.testing.assert_allclose(rates(optimizer_of, callbacks, values), expected, rtol=1e-5, atol=1e-9)

    @orders
    def test_a_second_fit_starts_anew(self, optimizer_of, plateau_first):
        callbacks = together(
            tfkit.LearningRateCurve(FALL),
            tfkit.ReduceLROnPlateau(factor=0.5, patience=1, warmup_steps=4),
            plateau_first,
        )
        first = rates(optimizer_of, callbacks, WORSE)
        np.testing.assert_array_equal(rates(optimizer_of, callbacks, WORSE), first)

    @orders
    def test_the_weights_fall_by_these_rates_in_a_fit(self, plateau_first):
        callbacks = together(
            tfkit.LearningRateCurve(FALL), tfkit.ReduceLROnPlateau(factor=0.5, patience=1), plateau_first
        )
        trace = train(one_weight(), Metric(WORSE), *callbacks, epochs=4, batches=BATCHES)
        expected = curve_rates(FALL, "step", 4) * np.repeat([1, 1, 0.5, 0.25], BATCHES)
        np.testing.assert_allclose(trace.updates, expected, rtol=1e-4)

    def test_says_what_it_did_when_asked(self, optimizer_of, capsys):
        plateau = tfkit.ReduceLROnPlateau(factor=0.5, patience=1, verbose=1)
        rates(optimizer_of, [tfkit.LearningRateCurve(FALL), plateau], WORSE[:3])
        expected = "Epoch 3: ReduceLROnPlateau scales the curve's learning rate by 0.25."
        assert capsys.readouterr().out.strip().splitlines()[-1] == expected

    def test_a_plateau_alone_is_free_of_the_curve_of_an_earlier_fit(self, optimizer_of):
        plateau = tfkit.ReduceLROnPlateau(factor=0.5, patience=1)
        rates(optimizer_of, [tfkit.LearningRateCurve(FALL), plateau], WORSE)
        expected = RATE * scales(optimizer_of, WORSE, factor=0.5, patience=1)
        np.testing.assert_array_equal(rates(optimizer_of, [plateau], WORSE), expected)

    def test_a_plateau_alone_is_free_of_the_curve_of_a_fit_that_crashed(self):
        model = one_weight()
        plateau = tfkit.ReduceLROnPlateau(factor=0.5, patience=1)
        with pytest.raises(RuntimeError, match="crash"):
            train(model, tfkit.LearningRateCurve(FALL), plateau, Crash(0, 1))
        expected = RATE * scales(model, WORSE, factor=0.5, patience=1)
        np.testing.assert_array_equal(rates(model, [plateau], WORSE), expected)


class TestOneListForSeveralFits:
    @pytest.mark.parametrize("callback", [tfkit.LearningRateCurve, None], ids=["curve", "plateau"])
    def test_a_callback_list_begins_anew_with_every_fit(self, callback):
        model, trace = one_weight(), Trace()
        own = (
            tfkit.LearningRateCurve(FALL)
            if callback
            else tfkit.ReduceLROnPlateau("loss", min_delta=1e9, patience=1, warmup_steps=BATCHES)
        )
        listeners = keras.callbacks.CallbackList([own, trace], add_history=True, model=model, epochs=3)
        x = np.zeros((BATCHES, 1), "float32")
        seen = []
        for _ in range(2):
            model.optimizer.learning_rate = RATE
            model.fit(x, x, batch_size=1, epochs=3, verbose=0, callbacks=listeners)
            seen.append(list(trace.rates))
            trace.rates.clear()
        assert len(set(seen[0])) > 2
        assert seen[0] == seen[1]


class TestTwoPlateaus:
    SLOW, FAST = {"factor": 0.5, "patience": 3}, {"factor": 0.9, "patience": 1}

    def test_give_the_rates_of_two_of_keras(self, optimizer_of):
        mine = [tfkit.ReduceLROnPlateau(**options) for options in (self.SLOW, self.FAST)]
        theirs = [keras.callbacks.ReduceLROnPlateau(**options) for options in (self.SLOW, self.FAST)]
        np.testing.assert_array_equal(rates(optimizer_of, mine, WORSE), rates(optimizer_of, theirs, WORSE))

    def test_both_scale_a_curve(self, optimizer_of):
        plateaus = [tfkit.ReduceLROnPlateau(**options) for options in (self.SLOW, self.FAST)]
        seen = rates(optimizer_of, [plateaus[0], tfkit.LearningRateCurve(FALL), plateaus[1]], WORSE)
        both = scales(optimizer_of, WORSE, **self.SLOW) * scales(optimizer_of, WORSE, **self.FAST)
        np.testing.assert_allclose(seen, curve_rates(FALL, "step", 6) * both, rtol=1e-5)

    @pytest.mark.parametrize("warm_first", [True, False])
    def test_a_warmup_of_one_is_not_ended_by_the_other(self, optimizer_of, warm_first):
        pair = [tfkit.ReduceLROnPlateau(warmup_steps=9), tfkit.ReduceLROnPlateau()]
        expected = RATE * np.minimum(np.arange(18) / 9, 1)
        seen = rates(optimizer_of, pair if warm_first else pair[::-1], WORSE[::-1])
        np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-9)

    def test_a_warmup_of_one_counts_over_a_curve(self, optimizer_of):
        for pair in either_way(
            lambda: tfkit.ReduceLROnPlateau(warmup_steps=9), lambda: tfkit.ReduceLROnPlateau(patience=20)
        ):
            seen = rates(optimizer_of, [*pair, tfkit.LearningRateCurve(FALL)], WORSE[::-1])
            expected = curve_rates(FALL, "step", 6) * np.minimum(np.arange(18) / 9, 1)
            np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-9)


CURVES = {
    "LearningRateCurve": lambda: tfkit.LearningRateCurve(FALL),
    "WarmupCosine": lambda: tfkit.WarmupCosine(0.1, warmup_steps=1, total_steps=9),
}


class TestRefusals:
    @pytest.mark.parametrize("pair", list(itertools.product(CURVES, repeat=2)), ids="+".join)
    def test_two_curves_before_the_first_step(self, pair):
        rule = (
            r"Only one curve may set the learning rate of a fit\. "
            rf"Received: {pair[0]}, {pair[1]}\. Put curves one after another with tfkit\.curves\.join\."
        )
        model = one_weight()
        with pytest.raises(tfkit.ArgumentError, match=rule):
            train(model, *(CURVES[name]() for name in pair))
        assert model.get_weights()[0] == 0

    def test_two_curves_with_a_plateau_between(self):
        callbacks = [CURVES["WarmupCosine"](), tfkit.ReduceLROnPlateau(), CURVES["LearningRateCurve"]()]
        with pytest.raises(tfkit.ArgumentError, match="Only one curve"):
            train(one_weight(), *callbacks)

    def test_a_curve_is_welcome_after_a_fit_that_was_refused_for_having_two(self):
        model = one_weight()
        with pytest.raises(tfkit.ArgumentError, match="Only one curve"):
            train(model, *(make() for make in CURVES.values()))
        assert len(train(model, tfkit.LearningRateCurve(FALL)).rates) == 4

    def test_two_warmups(self):
        rule = (
            r"Only one plateau of a fit may have a warmup, for there is one rate to raise\. "
            r"Received: warmup_steps=\[3, 0, 5\]\. Leave it to one of them\."
        )
        with pytest.raises(tfkit.ArgumentError, match=rule):
            train(one_weight(), *(tfkit.ReduceLROnPlateau(warmup_steps=steps) for steps in (3, 0, 5)))

    @pytest.mark.parametrize("scaled", [False, True], ids=["alone", "under a loss scale"])
    @pytest.mark.parametrize("name", [*CURVES, "ReduceLROnPlateau"])
    def test_several_optimizers(self, name, scaled):
        optimizers = keras.optimizers
        several = optimizers.MultiOptimizer(
            optimizers.OptimizerMap(optimizers.Adam(0.1), {".*head.*": optimizers.SGD(0.1)})
        )
        model = models.dense_net()
        model.compile(optimizers.LossScaleOptimizer(several) if scaled else several, "mse")
        rule = (
            r"One optimizer must train the model, for its learning rate is set\. "
            r"Received: optimizer=MultiOptimizer of 2 optimizers\. "
            r"Use one optimizer, with tfkit\.set_learning_rate_multipliers"
        )
        callback = {**CURVES, "ReduceLROnPlateau": tfkit.ReduceLROnPlateau}[name]()
        callback.set_model(model)
        with pytest.raises(tfkit.ArgumentError, match=rule):
            callback.on_train_begin()
