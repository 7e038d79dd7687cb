"""The model is one weight under a loss whose gradient is 1, so each update's fall is the rate it used."""

import copy
import functools
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfkit
from tfkit import curves

FALL = curves.linear(1.0, 0.0, 100)  # 1.00, 0.99, 0.98, …: a rate that names its step
RATE = 0.5


@keras.saving.register_keras_serializable("tfkit.tests")
def mean_output(_, output):
    return keras.ops.mean(output)


def one_weight(*, accumulation=None, per_execution=1, scaled=False, rate=RATE):
    optimizer = keras.optimizers.SGD(rate, gradient_accumulation_steps=accumulation)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=4.0)
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile(optimizer, mean_output, steps_per_execution=per_execution)
    return model


class Trace(keras.callbacks.Callback):
    """The optimizer's rate, and the weight, after each execution; `updates` are the weight's falls."""

    def __init__(self):
        super().__init__()
        self.rates, self.weights = [], [0.0]

    def on_train_begin(self, logs=None):
        self.weights[-1] = self.weight()

    def weight(self):
        return float(self.model.get_weights()[0][0, 0])

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))
        self.weights.append(self.weight())

    @property
    def updates(self):
        return -np.diff(self.weights)


class Metric(keras.callbacks.Callback):
    """Reports a `val_loss` that is fixed beforehand, one value an epoch."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["val_loss"] = self.values[epoch]


class Crash(keras.callbacks.Callback):
    """Raises before one batch of one epoch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.place, self.epoch = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.place:
            raise RuntimeError("crash")


def train(model, *callbacks, batches=4, trace=None, **options):
    """Fits and returns the trace."""
    trace = trace or Trace()
    x = np.ones((batches, 1), "float32")
    model.fit(x, x, batch_size=1, verbose=0, callbacks=[*callbacks, trace], **options)
    return trace


def resumed(
    path, make_model, make_callbacks, crash, *, backup_first, batches=4, save_freq="epoch", **options
):
    """A fit that crashed and one that took its place in a fresh model, with fresh callbacks."""

    def callbacks():
        backup = keras.callbacks.BackupAndRestore(path, save_freq=save_freq)
        return [backup, *make_callbacks()] if backup_first else [*make_callbacks(), backup]

    before = Trace()
    with pytest.raises(RuntimeError, match="crash"):
        train(make_model(), *callbacks(), Crash(*crash), batches=batches, trace=before, **options)
    return before, train(make_model(), *callbacks(), batches=batches, **options)


def expected(curve, steps):
    return [curve(step) for step in steps]


class TestLearningRateCurve:
    def test_each_update_uses_the_rate_of_its_step(self):
        trace = train(one_weight(), tfkit.LearningRateCurve(FALL), epochs=2)
        np.testing.assert_allclose(trace.updates, expected(FALL, range(8)), rtol=1e-4)

    def test_the_optimizer_holds_the_rate_of_each_step(self):
        trace = train(one_weight(), tfkit.LearningRateCurve(FALL), epochs=2)
        np.testing.assert_allclose(trace.rates, expected(FALL, range(8)), rtol=1e-6)

    def test_each_epoch_uses_the_rate_of_its_number(self):
        trace = train(one_weight(), tfkit.LearningRateCurve(FALL, unit="epoch"), epochs=3)
        np.testing.assert_allclose(trace.updates, np.repeat(expected(FALL, range(3)), 4), rtol=1e-4)

    @pytest.mark.parametrize(("unit", "steps"), [("step", [3, 7, 11]), ("epoch", [0, 1, 2])])
    def test_the_history_has_each_epochs_last_rate(self, unit, steps):
        model = one_weight()
        train(model, tfkit.LearningRateCurve(FALL, unit=unit), epochs=3)
        rates = model.history.history["learning_rate"]
        np.testing.assert_allclose(rates, expected(FALL, steps), rtol=1e-6)

    def test_takes_a_keras_schedule_as_its_curve(self):
        schedule = keras.optimizers.schedules.CosineDecay(0.5, 8)
        trace = train(one_weight(), tfkit.LearningRateCurve(schedule), epochs=2)
        np.testing.assert_allclose(trace.rates, schedule(np.arange(8)), rtol=1e-5, atol=1e-7)

    def test_equals_a_keras_schedule_inside_the_optimizer(self):
        mine, theirs = one_weight(), one_weight()
        theirs.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.5, 8)), mean_output)
        trace = train(mine, tfkit.LearningRateCurve(curves.cosine(0.5, 8)), epochs=2)
        np.testing.assert_allclose(trace.weights, train(theirs, epochs=2).weights, rtol=1e-5)

    @pytest.mark.parametrize("unit", ["step", "epoch"])
    def test_a_second_fit_starts_anew(self, unit):
        model, callback = one_weight(), tfkit.LearningRateCurve(FALL, unit=unit)
        first, second = train(model, callback, epochs=2), train(model, callback, epochs=2)
        assert second.rates == first.rates

    def test_serves_a_second_model(self):
        callback = tfkit.LearningRateCurve(FALL)
        first, second = train(one_weight(), callback), train(one_weight(), callback)
        assert second.rates == first.rates

    @pytest.mark.parametrize("used", [False, True])
    def test_a_deep_copy_serves_another_model(self, used):
        callback = tfkit.LearningRateCurve(FALL)
        if used:
            train(one_weight(), callback)
        trace = train(one_weight(), copy.deepcopy(callback), epochs=2)
        np.testing.assert_allclose(trace.rates, expected(FALL, range(8)), rtol=1e-6)

    def test_sets_the_inner_optimizer_of_a_loss_scale_optimizer(self):
        trace = train(one_weight(scaled=True), tfkit.LearningRateCurve(FALL), epochs=2)
        np.testing.assert_allclose(trace.updates, expected(FALL, range(8)), rtol=1e-4)

    def test_counts_from_the_first_epoch_of_a_fresh_model_with_initial_epoch(self):
        trace = train(one_weight(), tfkit.LearningRateCurve(FALL), initial_epoch=2, epochs=4)
        np.testing.assert_allclose(trace.rates, expected(FALL, range(8, 16)), rtol=1e-6)

    @pytest.mark.parametrize("unit", ["step", "epoch"])
    @pytest.mark.parametrize("accumulation", [None, 2])
    def test_goes_on_at_initial_epoch(self, unit, accumulation):
        def callback():
            return tfkit.LearningRateCurve(FALL, unit=unit)

        whole = train(one_weight(accumulation=accumulation), callback(), epochs=4, batches=5)
        model = one_weight(accumulation=accumulation)
        first = train(model, callback(), epochs=2, batches=5)
        second = train(model, callback(), epochs=4, initial_epoch=2, batches=5)
        assert first.rates + second.rates == whole.rates


class TestStepsPerExecution:
    def test_all_updates_of_an_execution_use_the_rate_of_its_first_step(self):
        trace = train(one_weight(per_execution=3), tfkit.LearningRateCurve(FALL), batches=7, epochs=2)
        lengths, firsts = [3, 3, 1] * 2, [0, 3, 6, 7, 10, 13]
        np.testing.assert_allclose(trace.updates, np.multiply(lengths, expected(FALL, firsts)), rtol=1e-4)

    def test_each_epoch_uses_the_rate_of_its_number(self):
        callback = tfkit.LearningRateCurve(FALL, unit="epoch")
        trace = train(one_weight(per_execution=3), callback, batches=6, epochs=2)
        np.testing.assert_allclose(trace.updates, [3.0, 3.0, 2.97, 2.97], rtol=1e-4)

    def test_goes_on_with_accumulation(self):
        model = one_weight(per_execution=4, accumulation=2)
        trace = train(model, tfkit.LearningRateCurve(FALL), batches=8, epochs=2)
        np.testing.assert_allclose(trace.updates, np.multiply(2, expected(FALL, [0, 2, 4, 6])), rtol=1e-4)

    def test_a_plateau_warmup_is_read_at_the_first_step_of_each_execution(self):
        callback = tfkit.ReduceLROnPlateau(warmup_steps=10)
        trace = train(one_weight(per_execution=3), Metric([1.0] * 3), callback, batches=6, epochs=3)
        np.testing.assert_allclose(trace.rates, RATE * np.minimum([0, 0.3, 0.6, 0.9, 1, 1], 1), rtol=1e-5)


class TestAccumulation:
    def test_the_curve_counts_updates_and_not_batches(self):
        trace = train(one_weight(accumulation=2), tfkit.LearningRateCurve(FALL), epochs=2)
        falls = [fall for update in expected(FALL, range(4)) for fall in (0.0, update)]
        np.testing.assert_allclose(trace.updates, falls, rtol=1e-4)

    def test_an_update_that_straddles_two_epochs_counts_once(self):
        trace = train(one_weight(accumulation=2), tfkit.LearningRateCurve(FALL), batches=5, epochs=2)
        np.testing.assert_allclose(trace.updates[1::2], expected(FALL, range(5)), rtol=1e-4)

    def test_a_second_fit_starts_anew_after_an_unfinished_accumulation(self):
        model = one_weight(accumulation=2)
        train(model, tfkit.LearningRateCurve(FALL), batches=5)
        trace = train(model, tfkit.LearningRateCurve(FALL), batches=5)
        np.testing.assert_allclose(trace.updates[::2], expected(FALL, range(3)), rtol=1e-4)

    def test_a_loss_scale_optimizer_counts_the_updates_of_its_inner_optimizer(self):
        model = one_weight(accumulation=2, scaled=True)
        trace = train(model, tfkit.LearningRateCurve(FALL), epochs=2)
        np.testing.assert_allclose(trace.updates[1::2], expected(FALL, range(4)), rtol=1e-4)

    def test_a_plateau_warmup_counts_updates_and_not_batches(self):
        callback = tfkit.ReduceLROnPlateau(warmup_steps=4)
        trace = train(one_weight(accumulation=2), Metric([1.0] * 3), callback, epochs=3)
        np.testing.assert_allclose(
            trace.updates[1::2], np.multiply(RATE, [0, 0.25, 0.5, 0.75, 1, 1]), rtol=1e-4, atol=1e-7
        )


IMPROVING = [7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
WORSENING = IMPROVING[::-1]
STALLED_ONCE = [5.0, 6.0, 7.0, 4.0, 3.0, 2.0, 1.0]
#: How to make the callbacks, and where the fit crashes: epoch and batch.
RESUMABLE = {
    "curve": (lambda: [tfkit.LearningRateCurve(FALL)], (2, 2)),
    "epoch curve": (lambda: [tfkit.LearningRateCurve(FALL, unit="epoch")], (2, 0)),
    "warmup cosine": (lambda: [tfkit.WarmupCosine(1.0, warmup_steps=6, total_steps=24)], (1, 3)),
    "plateau after a reduction": (
        lambda: [Metric(STALLED_ONCE), tfkit.ReduceLROnPlateau(factor=0.5, patience=2)],
        (5, 2),
    ),
}


@functools.cache
def uninterrupted(name):
    return train(one_weight(), *RESUMABLE[name][0](), epochs=7).rates


@pytest.mark.parametrize("backup_first", [True, False], ids=["backup first", "backup last"])
class TestResume:
    """BackupAndRestore keeps whole epochs, so the crashed one is trained again from its first batch."""

    @pytest.mark.parametrize("name", RESUMABLE)
    def test_the_rates_are_those_of_an_uninterrupted_fit(self, name, backup_first, tmp_path):
        make, crash = RESUMABLE[name]
        before, after = resumed(tmp_path / "b", one_weight, make, crash, backup_first=backup_first, epochs=7)
        assert before.rates[: 4 * crash[0]] + after.rates == uninterrupted(name)

    @pytest.mark.parametrize("name", ["curve", "warmup cosine"])
    def test_goes_on_amid_an_accumulation(self, name, backup_first, tmp_path):
        def model():
            return one_weight(accumulation=2)

        make, _ = RESUMABLE[name]
        whole = train(model(), *make(), epochs=5, batches=5)
        before, after = resumed(
            tmp_path / "b", model, make, (3, 1), backup_first=backup_first, epochs=5, batches=5
        )
        assert before.rates[:15] + after.rates == whole.rates

    def test_goes_on_with_steps_per_execution(self, backup_first, tmp_path):
        def model():
            return one_weight(per_execution=3)

        make, _ = RESUMABLE["curve"]
        whole = train(model(), *make(), epochs=4, batches=6)
        before, after = resumed(
            tmp_path / "b", model, make, (2, 3), backup_first=backup_first, epochs=4, batches=6
        )
        assert before.rates[:4] + after.rates == whole.rates

    def test_an_epoch_that_was_saved_in_its_midst_begins_at_its_own_rate(self, backup_first, tmp_path):
        _, after = resumed(
            tmp_path / "b",
            one_weight,
            RESUMABLE["curve"][0],
            (1, 3),
            backup_first=backup_first,
            epochs=2,
            save_freq=2,
        )
        np.testing.assert_allclose(after.rates, expected(FALL, range(4, 8)), rtol=1e-6)


class TestWarmupCosine:
    @given(
        peak=st.floats(1e-4, 1.0),
        warmup=st.integers(1, 200),
        rest=st.integers(1, 500),
        start=st.floats(0.0, 1e-4),
        alpha=st.floats(0.0, 1.0),
    )
    @settings(deadline=None, max_examples=30)
    def test_is_keras_cosine_decay_with_warmup(self, peak, warmup, rest, start, alpha):
        theirs = keras.optimizers.schedules.CosineDecay(
            start, rest, alpha=alpha, warmup_target=peak, warmup_steps=warmup
        )
        callback = tfkit.WarmupCosine(
            peak, warmup_steps=warmup, total_steps=warmup + rest, start=start, final=alpha * peak
        )
        for step in (0, warmup // 2, warmup, warmup + rest // 2, warmup + rest, 2 * (warmup + rest)):
            assert callback.curve(step) == pytest.approx(float(theirs(step)), rel=1e-3, abs=1e-6)

    def test_each_update_uses_the_rate_of_its_step(self):
        trace = train(one_weight(), tfkit.WarmupCosine(0.8, warmup_steps=4, total_steps=12), epochs=4)
        steps = np.arange(16)
        fall = 0.4 * (1 + np.cos(np.pi * np.clip((steps - 4) / 8, 0, 1)))
        np.testing.assert_allclose(
            trace.updates, np.where(steps < 4, 0.8 * steps / 4, fall), rtol=1e-4, atol=1e-6
        )

    def test_of_no_warmup_is_a_cosine(self):
        callback = tfkit.WarmupCosine(0.8, warmup_steps=0, total_steps=10)
        assert [callback.curve(step) for step in (0, 5, 10)] == pytest.approx([0.8, 0.4, 0.0])


class FakeTraining:
    """Drives a plateau callback through epochs by hand; much faster than `fit`, with a real optimizer."""

    def __init__(self):
        self.model = one_weight()

    def rates(self, callback, metric, values):
        self.model.optimizer.learning_rate = RATE
        callback.set_model(self.model)
        callback.set_params({"steps": 1, "epochs": len(values)})
        callback.on_train_begin()
        rates = []
        for epoch, value in enumerate(values):
            callback.on_epoch_begin(epoch)
            callback.on_train_batch_begin(0)
            rates.append(float(self.model.optimizer.learning_rate))
            callback.on_train_batch_end(0)
            callback.on_epoch_end(epoch, {metric: value})
        return rates


@pytest.fixture(scope="module")
def fake():
    return FakeTraining()


class TestPlateauWithoutWarmup:
    @given(
        values=st.lists(st.one_of(st.floats(0.0, 2.0), st.just(math.nan)), min_size=1, max_size=20),
        options=st.fixed_dictionaries(
            {
                "factor": st.floats(0.05, 0.95),
                "patience": st.integers(0, 4),
                "mode": st.sampled_from(["auto", "min", "max"]),
                "min_delta": st.sampled_from([0.0, 1e-4, 0.3]),
                "cooldown": st.integers(0, 3),
                "min_lr": st.sampled_from([0.0, 1e-3, 0.2]),
            }
        ),
    )
    @settings(deadline=None, max_examples=60)
    def test_gives_the_rates_of_keras(self, fake, values, options):
        theirs = fake.rates(keras.callbacks.ReduceLROnPlateau("val_loss", **options), "val_loss", values)
        assert fake.rates(tfkit.ReduceLROnPlateau("val_loss", **options), "val_loss", values) == theirs

    @pytest.mark.parametrize("values", [IMPROVING, WORSENING, STALLED_ONCE])
    def test_gives_the_rates_of_keras_inside_fit(self, values):
        def trained(kind):
            return train(one_weight(), Metric(values), kind(factor=0.5, patience=2), epochs=7)

        mine, theirs = trained(tfkit.ReduceLROnPlateau), trained(keras.callbacks.ReduceLROnPlateau)
        assert (mine.rates, mine.weights) == (theirs.rates, theirs.weights)

    def test_takes_the_arguments_of_keras_by_position(self):
        arguments = ("loss", 0.5, 3, 1, "min", 1e-3, 2, 1e-5)
        mine, theirs = tfkit.ReduceLROnPlateau(*arguments), keras.callbacks.ReduceLROnPlateau(*arguments)
        names = ("monitor", "factor", "patience", "verbose", "mode", "min_delta", "cooldown", "min_lr")
        assert [getattr(mine, name) for name in names] == [getattr(theirs, name) for name in names]

    def test_is_a_keras_plateau(self):
        assert isinstance(tfkit.ReduceLROnPlateau(), keras.callbacks.ReduceLROnPlateau)


def plateau(warmup_steps, patience=1):
    return tfkit.ReduceLROnPlateau(factor=0.5, patience=patience, warmup_steps=warmup_steps)


class TestPlateauWithWarmup:
    def test_rises_in_a_straight_line_from_zero_to_the_rate_of_the_optimizer(self):
        trace = train(one_weight(), Metric(IMPROVING), plateau(10), epochs=4)
        np.testing.assert_allclose(
            trace.updates, RATE * np.minimum(np.arange(16) / 10, 1), rtol=1e-4, atol=1e-7
        )

    def test_never_reduces_within_the_warmup(self):
        trace = train(one_weight(), Metric(WORSENING), plateau(20), epochs=5)
        np.testing.assert_allclose(trace.rates, RATE * np.arange(20) / 20, rtol=1e-5)

    def test_no_epoch_of_the_warmup_counts_towards_patience(self):
        # epochs 0 and 1 end inside the warmup, 2 is the first one judged, 3 and 4 are worse
        trace = train(one_weight(), Metric(WORSENING), plateau(10, patience=2), epochs=6)
        np.testing.assert_allclose(trace.rates[10:20], [RATE] * 10)
        np.testing.assert_allclose(trace.rates[20:], [RATE / 2] * 4)

    def test_no_epoch_of_the_warmup_sets_the_best_value(self):
        values = [0.0, 9.0, 8.0, 7.0, 6.0, 5.0]  # the warmup's 0.0 would make every later epoch a bad one
        trace = train(one_weight(), Metric(values), plateau(6), epochs=6)
        np.testing.assert_allclose(trace.rates[6:], [RATE] * 18)

    def test_after_the_warmup_gives_the_rates_of_keras(self):
        values = [3.0, 1.0, 2.0, 2.0, 1.5, 1.6, 0.5]
        theirs = train(
            one_weight(),
            Metric(values[1:]),
            keras.callbacks.ReduceLROnPlateau(factor=0.5, patience=2),
            epochs=6,
        )
        mine = train(one_weight(), Metric(values), plateau(5, patience=2), epochs=7)
        assert mine.rates[8:] == theirs.rates[4:]

    def test_the_history_has_the_rate_of_every_epoch(self):
        model = one_weight()
        train(model, Metric(IMPROVING), plateau(8), epochs=3)
        rates = model.history.history["learning_rate"]
        assert len(rates) == 3
        assert 0 < rates[0] < rates[2] == RATE

    def test_a_second_fit_warms_up_again_to_the_rate_it_finds(self):
        model, callback = one_weight(), plateau(4)
        train(model, Metric([1.0, 2.0]), callback, epochs=2)  # ends with the rate halved
        trace = train(model, Metric(IMPROVING), callback, epochs=2)
        np.testing.assert_allclose(
            trace.rates, RATE / 2 * np.minimum(np.arange(8) / 4, 1), rtol=1e-5, atol=1e-7
        )

    def test_a_second_fit_after_one_that_ended_in_its_warmup_rises_to_the_same_peak(self):
        model, callback = one_weight(), plateau(8)
        first = train(model, Metric(IMPROVING), callback)
        second = train(model, Metric(IMPROVING), callback)
        assert second.rates == first.rates

    def test_goes_on_with_its_warmup_at_initial_epoch(self):
        model, callback = one_weight(), plateau(8)
        first = train(model, Metric(IMPROVING), callback, epochs=1)
        second = train(model, Metric(IMPROVING), callback, epochs=3, initial_epoch=1)
        whole = train(one_weight(), Metric(IMPROVING), plateau(8), epochs=3)
        assert first.rates + second.rates == whole.rates

    def test_a_fresh_model_at_initial_epoch_stands_where_the_warmup_would(self):
        trace = train(one_weight(), Metric(IMPROVING), plateau(8), epochs=3, initial_epoch=1)
        np.testing.assert_allclose(trace.rates, RATE * np.minimum(np.arange(4, 12) / 8, 1), rtol=1e-5)

    def test_a_deep_copy_serves_another_model(self):
        callback = plateau(4)
        first = train(one_weight(), Metric(WORSENING), callback, epochs=4)
        second = train(one_weight(), Metric(WORSENING), copy.deepcopy(callback), epochs=4)
        assert second.rates == first.rates

    def test_sets_the_inner_optimizer_of_a_loss_scale_optimizer(self):
        trace = train(one_weight(scaled=True), Metric(IMPROVING), plateau(4), epochs=2)
        np.testing.assert_allclose(
            trace.updates, RATE * np.minimum(np.arange(8) / 4, 1), rtol=1e-4, atol=1e-7
        )


class TestRefusals:
    @pytest.mark.parametrize(
        "callback",
        [
            lambda: tfkit.LearningRateCurve(FALL),
            lambda: tfkit.WarmupCosine(0.1, warmup_steps=1, total_steps=2),
            lambda: tfkit.ReduceLROnPlateau(),
        ],
        ids=["curve", "warmup cosine", "plateau"],
    )
    @pytest.mark.parametrize("rate", ["schedule", "function"])
    @pytest.mark.parametrize("scaled", [False, True])
    def test_an_optimizer_that_owns_a_schedule(self, callback, rate, scaled):
        owned = keras.optimizers.schedules.CosineDecay(0.1, 10) if rate == "schedule" else (lambda: 0.1)
        rule = (
            r"must be made with a number as its learning rate.*Received: learning_rate=<.*"
            r"Pass a float to the optimizer"
        )
        with pytest.raises(tfkit.ArgumentError, match=rule):
            train(one_weight(rate=owned, scaled=scaled), callback())

    @pytest.mark.parametrize("curve", [0.1, None, "cosine"])
    def test_a_curve_that_is_no_function(self, curve):
        rule = r"`curve` must be a function .*Received: curve=.* Use tfkit\.curves\.constant\(rate\)"
        with pytest.raises(tfkit.ArgumentTypeError, match=rule):
            tfkit.LearningRateCurve(curve)

    def test_an_unknown_unit(self):
        rule = r"`unit` must be 'step' or 'epoch'\. Received: unit='batch'"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            tfkit.LearningRateCurve(FALL, unit="batch")

    @pytest.mark.parametrize("warmup", [10, 11])
    def test_a_warmup_that_leaves_no_step_for_the_cosine(self, warmup):
        rule = rf"`warmup_steps` must be below `total_steps`.*Received: warmup_steps={warmup}, total_steps=10"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            tfkit.WarmupCosine(0.1, warmup_steps=warmup, total_steps=10)

    @pytest.mark.parametrize("name", ["peak", "start", "final"])
    def test_a_negative_rate(self, name):
        options = {"peak": 0.1, "warmup_steps": 1, "total_steps": 5, name: -1.0}
        rule = rf"`{name}` must be a learning rate of at least 0\. Received: {name}=-1\.0"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            tfkit.WarmupCosine(**options)

    @pytest.mark.parametrize(("name", "value"), [("warmup_steps", -1), ("total_steps", 9.5)])
    def test_a_broken_count_by_the_name_it_was_given_under(self, name, value):
        options = {"warmup_steps": 1, "total_steps": 10, name: value}
        with pytest.raises(tfkit.ArgumentError, match=rf"`{name}` must be .*Received: {name}={value}"):
            tfkit.WarmupCosine(0.1, **options)

    @pytest.mark.parametrize("factor", [0, 1, 1.5, -0.1, math.nan])
    def test_a_factor_that_does_not_reduce(self, factor):
        rule = rf"`factor` must .*Received: factor={factor}"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            tfkit.ReduceLROnPlateau(factor=factor)

    @pytest.mark.parametrize("steps", [-1, 2.5, "10", None])
    def test_a_plateau_warmup_that_is_no_count(self, steps):
        rule = r"`warmup_steps` must be a .*number.* Received: warmup_steps="
        with pytest.raises(tfkit.ArgumentError, match=rule):
            tfkit.ReduceLROnPlateau(warmup_steps=steps)

    def test_a_misspelt_argument_of_the_plateau(self):
        with pytest.raises((tfkit.ArgumentError, TypeError), match="patiense"):
            tfkit.ReduceLROnPlateau(patiense=3)

    @pytest.mark.filterwarnings("ignore:ReduceLROnPlateau mode")
    def test_a_misspelt_mode_of_the_plateau(self):
        with pytest.raises(tfkit.ArgumentError, match=r"`mode` must be .*Received: mode='minn'"):
            tfkit.ReduceLROnPlateau(mode="minn")


@pytest.mark.parametrize("rate", [float("nan"), -1.0, float("inf"), "a", None])
def test_a_curve_that_returns_no_rate_stops_the_fit(rate):
    rule = r"must return a finite learning rate of at least 0\. Received: .* at step 0"
    with pytest.raises(tfkit.ArgumentError, match=rule):
        train(one_weight(), tfkit.LearningRateCurve(lambda step: rate), epochs=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patience", -1),
        ("patience", "x"),
        ("cooldown", 1.5),
        ("min_lr", -1.0),
        ("min_delta", "a"),
        ("factor", "a"),
    ],
)
def test_a_plateau_checks_each_of_its_numbers(name, value):
    with pytest.raises(tfkit.ArgumentError, match=rf"`{name}` must .*Received: {name}={value!r}"):
        tfkit.ReduceLROnPlateau(**{name: value})
