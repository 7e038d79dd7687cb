"""Losses are compared with loops written out here, suggestions with fastai's rules in plain Python."""

import math

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfkit
from tests.models import dense_net
from tfkit.optim.finder import suggest

STEPS = 30
rng = np.random.default_rng(0)
X = rng.normal(size=(48, 6)).astype("float32")
Y = (X @ rng.normal(size=(6, 2)) + 0.1 * rng.normal(size=(48, 2))).astype("float32")
WEIGHTS = rng.uniform(0.2, 2, 48).astype("float32")


def find(model, x=X, y=Y, **options):
    """A short search over rates that a small model survives, in the data's own order."""
    options = {"steps": STEPS, "stop": 0.1, "batch_size": 8, "shuffle": False} | options
    return tfkit.find_learning_rate(model, x, y, **options)


def compiled(optimizer="sgd", model=None, **options):
    model = model or dense_net()
    model.compile(optimizer, "mse", jit_compile=False, **options)
    return model


def noisy_net():
    """With BatchNormalization's statistics, Dropout's seed and a penalty."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, kernel_regularizer="l2", name="d1"),
            layers.BatchNormalization(),
            layers.Dropout(0.3, seed=1),
            layers.Dense(2, name="head"),
        ]
    )


def fit(model):
    model.fit(X, Y, batch_size=8, shuffle=False, verbose=0)


def batches(size=8):
    """The batches of X and Y in order, for ever."""
    while True:
        for begin in range(0, len(X), size):
            yield X[begin : begin + size], Y[begin : begin + size], WEIGHTS[begin : begin + size]


# --- what is recorded --------------------------------------------------------------------------


def test_rates_rise_geometrically_from_start_to_stop():
    table = find(compiled(), start=1e-5, stop=1e-2).table
    assert table.step.tolist() == list(range(STEPS))
    assert table.learning_rate.iloc[[0, -1]].tolist() == [1e-5, 1e-2]
    np.testing.assert_allclose(np.diff(np.log(table.learning_rate)), math.log(1e3) / (STEPS - 1), rtol=1e-9)


@pytest.mark.parametrize("kind", ["momentum", "adam", "accumulation"])
def test_losses_are_those_of_a_loop_of_ones_own(kind):
    def optimizer(rate):
        return {
            "momentum": lambda: keras.optimizers.SGD(rate, momentum=0.9),
            "adam": lambda: keras.optimizers.Adam(rate),
            "accumulation": lambda: keras.optimizers.SGD(rate, gradient_accumulation_steps=3),
        }[kind]()

    table = find(compiled(optimizer(0.5), noisy_net()), sample_weight=WEIGHTS).table

    model, own, losses = noisy_net(), optimizer(0.1), []
    for rate, (x, y, weight) in zip(table.learning_rate, batches(), strict=False):
        own.learning_rate = rate
        with tf.GradientTape() as tape:
            errors = tf.reduce_mean((model(x, training=True) - y) ** 2, axis=1)
            loss = tf.reduce_mean(errors * weight) + sum(model.losses)
        own.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        losses.append(float(loss))
    np.testing.assert_allclose(table.loss, losses, rtol=2e-5)


def test_losses_are_those_of_train_on_batch_in_half_precision():
    def model():
        keras.config.set_dtype_policy("mixed_float16")
        try:
            return compiled("sgd", noisy_net())
        finally:
            keras.config.set_dtype_policy("float32")

    table = find(model()).table
    twin, losses = model(), []
    for rate, (x, y, _) in zip(table.learning_rate, batches(), strict=False):
        twin.optimizer.learning_rate = rate
        losses.append(float(twin.train_on_batch(x, y)))
        twin.reset_metrics()
    np.testing.assert_allclose(table.loss, losses, rtol=1e-3)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return len(X) // 8

    def __getitem__(self, place):
        return X[8 * place : 8 * place + 8], Y[8 * place : 8 * place + 8]


DATA = {
    "dataset": lambda: tf.data.Dataset.from_tensor_slices((X, Y)).batch(8),
    "dataset of unknown length": lambda: (
        tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).filter(lambda *_: True)
    ),
    "PyDataset": Batches,
    "generator": lambda: ((x, y) for x, y, _ in batches()),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data_gives_the_losses_of_arrays(kind):
    expected = find(compiled()).table
    pd.testing.assert_frame_equal(find(compiled(), DATA[kind](), None).table, expected)


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "fresh"])
def test_a_model_that_runs_several_steps_at_once_searches_one_by_one(trained):
    several, one = compiled(steps_per_execution=4), compiled()
    if trained:
        fit(several)
        fit(one)
    pd.testing.assert_frame_equal(find(several).table, find(one).table, rtol=1e-6)


def test_inputs_and_targets_may_have_names():
    a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
    model = keras.Model({"a": a, "b": b}, {"out": layers.Dense(2, name="out")(a + b)})
    model.compile("sgd", {"out": "mse"})
    assert len(find(model, {"a": X, "b": X}, {"out": Y}).table) == STEPS


def test_arrays_are_shuffled_unless_told_otherwise():
    def losses(**options):
        keras.utils.set_random_seed(1)
        return tfkit.find_learning_rate(
            compiled(), X, Y, steps=STEPS, stop=0.1, batch_size=8, **options
        ).table

    assert (losses().loss != losses(shuffle=False).loss).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 0.98])
def test_smoothing_is_a_weighted_mean_of_the_losses_so_far(smoothing):
    table = find(compiled(), smoothing=smoothing).table
    expected = [
        np.average(table.loss[: step + 1], weights=smoothing ** np.arange(step, -1.0, -1))
        for step in range(STEPS)
    ]
    np.testing.assert_allclose(table.smoothed_loss, expected, rtol=1e-9)


# --- when it stops -----------------------------------------------------------------------------


def scripted(losses):
    """A model whose n-th batch has the n-th of these losses, whatever the rate."""

    class Scripted(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)
            self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

        def call(self, x):
            return self.dense(x)

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            self.calls.assign_add(1)
            return tf.constant(losses, "float32")[self.calls.value - 1] + 0 * tf.reduce_sum(y_pred)

    model = Scripted()
    model(X)
    model.compile("sgd", jit_compile=False)
    return model


@pytest.mark.parametrize(
    ("losses", "divergence", "length"),
    [
        ([1.0] * 50 + [3.9] * 50, 4.0, 100),
        ([1.0] * 50 + [4.1] * 50, 4.0, 51),
        ([1.0] * 50 + [2.1] * 50, 2.0, 51),
        ([-1.0] * 50 + [1.9] * 50, 4.0, 100),  # -1 + 3 · 1 is the bound
        ([-1.0] * 50 + [2.1] * 50, 4.0, 51),
        ([1.0] * 60 + [math.nan] * 40, 4.0, 61),
        ([1.0] * 60 + [math.inf] * 40, 4.0, 61),
    ],
)
def test_it_stops_once_the_loss_is_far_above_its_least_or_no_number(losses, divergence, length):
    table = find(scripted(losses), steps=100, smoothing=0.0, divergence=divergence).table
    np.testing.assert_array_equal(table.loss, np.float32(losses[:length]))


def test_smoothing_forgives_a_single_bad_batch():
    losses = [1.0] * 50 + [20.0] + [1.0] * 49
    assert len(find(scripted(losses), steps=100).table) == 100


# --- suggestions -------------------------------------------------------------------------------


def fastai(rates, losses):
    """The four rules as fastai documents them, in plain Python."""
    count = len(losses)
    lengths, start, end = [1] * count, 0, 0
    for later in range(count):
        for earlier in range(later):
            if losses[later] < losses[earlier]:
                lengths[later] = max(lengths[later], lengths[earlier] + 1)
        if lengths[later] > lengths[end]:
            start, end = later - lengths[later], later
    third = (end - start) / 3
    drops = [
        (losses[i + 1] - losses[i]) / (math.log(rates[i + 1]) - math.log(rates[i])) for i in range(count - 1)
    ]
    slopes, right, left = np.gradient(losses), count - 1, count - 16
    slide = rates[left]
    while left >= 0 and abs(slopes[right] - slopes[left]) > 0.005:
        slide, right, left = rates[left], right - 1, left - 1
    return {
        # where the fall is the first two points alone, fastai's index is -1: the highest rate
        "valley": rates[max(start + int(third) + int(third / 2), 0)],
        "steep": rates[drops.index(min(drops))],
        "minimum": rates[list(losses).index(min(losses))] / 10,
        "slide": slide,
    }


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 400), min_size=16, max_size=60), st.sampled_from([1.0, 0.01, 0.001]))
def test_suggestions_are_fastais(losses, scale):
    rates = np.geomspace(1e-6, 1.0, len(losses))
    losses = np.array(losses) * scale
    assert suggest(rates, losses) == fastai(rates, losses)


# Flat to 40, a first step of 0.1, then 0.05 a step down to 70, flat for one step, then up.
VALLEY = np.array([2.0] * 41 + [1.9 - 0.05 * i for i in range(30)] + [0.45 + 0.2 * i for i in range(10)])


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("valley", 39 + 10 + 5),  # 31 members end at 70, so begin after 39; a third is 10, a sixth 5
        ("steep", 40),
        ("minimum", 70 - 10),
        ("slide", 55),  # the slope at 70 is half that at 55; at 69 and 54 it is the same
    ],
)
def test_suggestions_of_a_straight_valley(name, index):
    rates = 1e-7 * 10 ** (np.arange(81) / 10)  # ten steps to a decade
    assert suggest(rates, VALLEY)[name] == pytest.approx(1e-7 * 10 ** (index / 10), rel=1e-6)


@pytest.mark.parametrize("losses", [np.ones(20), np.arange(20.0), -np.arange(20.0)])
def test_suggestions_of_a_curve_without_a_valley_are_among_the_rates(losses):
    rates = np.geomspace(1e-3, 1.0, 20)
    found = suggest(rates, losses)
    assert {found["valley"], found["steep"], found["slide"], 10 * found["minimum"]} <= set(rates)


def test_the_first_tenth_and_the_last_five_steps_are_not_judged():
    losses = np.array([0.1] * 10 + [2 - 0.01 * i for i in range(85)] + [0.2] * 5, "float32")
    found = find(scripted(losses.tolist()), steps=100, smoothing=0.0, divergence=100.0)
    rates = found.table.learning_rate.to_numpy()
    assert found.suggestions == fastai(rates[10:95], losses[10:95].astype(float))


def test_the_rate_of_a_quadratic_is_found():
    """Gradient descent on w² with curvature 2 shrinks w fastest at rate 0.5 and diverges above 1."""
    dense = layers.Dense(1, use_bias=False, kernel_initializer="ones")
    model = compiled(model=keras.Sequential([keras.Input((1,)), dense]))
    found = find(model, np.ones((8, 1)), np.zeros((8, 1)), start=1e-4, stop=10.0, steps=100, smoothing=0.0)
    assert 1.0 < found.table.learning_rate.iloc[-1] < 4.0
    assert all(0.003 < rate < 1.0 for rate in found.suggestions.values())


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot_writes_a_figure_with_the_suggestions_names(tmp_path, ending):
    path = tmp_path / f"rates.{ending}"
    find(compiled()).plot(path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    if ending == "svg":
        assert all(name.encode() in content for name in ("valley", "steep", "minimum", "slide"))


@pytest.mark.parametrize("end", [math.nan, math.inf])
def test_plot_leaves_out_what_is_no_number(tmp_path, end):
    found = find(scripted([4.0, 3.0, 2.0, 1.5, 3.0] + [end] * 95), steps=100, smoothing=0.0)
    found.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").is_file()
    assert found._shown_range() == pytest.approx((1.5 - 0.2, 4.0 + 0.2))


def test_the_repr_is_short():
    assert len(repr(find(compiled()))) < 300


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": 0}, "`start` must be above 0"),
        ({"stop": -1.0}, "`stop` must be above 0"),
        ({"start": 0.1, "stop": 0.1}, r"`start` must be below `stop`. Received: start=0.1, stop=0.1"),
        ({"steps": 9}, "`steps` must be a whole number of steps, at least 10. Received: steps=9"),
        ({"batch_size": 0}, "`batch_size` must be a whole number of at least 1. Received: batch_size=0"),
        ({"batch_size": 2.5}, "`batch_size` must be a whole number of at least 1. Received: batch_size=2.5"),
        ({"divergence": 1.0}, "`divergence` must be above 1. Received: divergence=1.0"),
        ({"smoothing": 1.0}, r"`smoothing` must be in \[0, 1\). Received: smoothing=1.0"),
        ({"smoothing": "much"}, r"`smoothing` must be in \[0, 1\). Received: smoothing='much'"),
    ],
)
def test_refuses_numbers_out_of_range(options, message):
    with pytest.raises(tfkit.ArgumentError, match=message):
        find(compiled(), **options)


def frozen():
    model = dense_net()
    model.trainable = False
    return compiled(model=model)


def changed_by_hand():
    model = compiled()
    fit(model)
    model.layers[0].trainable = False
    return model


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (dense_net, "must be compiled with an optimizer"),
        (lambda: compiled(model=keras.Sequential([layers.Dense(2)])), "must be built"),
        (lambda: "model", "must be a Keras 3 model"),
        (
            lambda: compiled(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 10))),
            "number as its learning rate",
        ),
        (frozen, "needs something that trains. Received: model='.*', all of it frozen"),
        (changed_by_hand, "What trains must not change by hand"),
    ],
)
def test_refuses_models_that_it_cannot_search(make_model, message):
    with pytest.raises(tfkit.TfkitError, match=message):
        find(make_model())


def test_refuses_several_optimizers():
    model = dense_net()
    parts = [keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.1)]
    several = keras.optimizers.MultiOptimizer(lambda v: parts[len(v.shape) - 1])
    with pytest.raises(tfkit.ArgumentError, match="One optimizer must train"):
        find(compiled(several, model))


def test_says_that_the_data_ended():
    short = ((x, y) for _, (x, y, _) in zip(range(26), batches(), strict=False))
    with pytest.raises(tfkit.ArgumentError, match=r"steps=30, and data that ended after 26 batches"):
        find(compiled(), short, None)


def test_says_where_the_loss_was_lost():
    losses = [1.0] * 3 + [math.nan] * 97
    message = r"for the first 4 steps.* Received: a loss that was nan at step 3, .* Lower `start`"
    with pytest.raises(tfkit.ArgumentError, match=message):
        find(scripted(losses), steps=100)


def test_judges_every_finite_loss_where_it_diverged_early():
    found = find(scripted([4.0, 3.0, 2.0, 1.5, 3.0, 5.0] + [math.nan] * 94), steps=100, smoothing=0.0)
    assert len(found.table) == 7
    assert found.suggestions["minimum"] == pytest.approx(found.table.learning_rate[3] / 10)


def test_does_not_blame_the_rate_for_the_first_loss():
    with pytest.raises(tfkit.ArgumentError, match=r"was nan at step 0, .* look for NaN or infinity"):
        find(compiled(), X, np.full_like(Y, np.nan))


def test_refuses_a_train_step_that_reports_no_loss():
    class Silent(keras.Sequential):
        def train_step(self, data):
            return {"other": super().train_step(data)["loss"]}

    model = compiled(model=Silent([keras.Input((6,)), layers.Dense(2)], name="silent"))
    message = "must report its `loss`. Received: model='silent', which reports other"
    with pytest.raises(tfkit.ArgumentError, match=message):
        find(model)
