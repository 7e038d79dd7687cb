"""Statistics of BatchNormalization measured anew: against NumPy, against Keras, and all else as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype("float32")
IMAGES = RNG.normal(size=(12, 8, 8, 3)).astype("float32")


def norms_of(model):
    return [
        each for each in model._flatten_layers() if isinstance(each, layers.BatchNormalization) and each.built
    ]


def statistics(model):
    return [np.asarray(v) for each in norms_of(model) for v in (each.moving_mean, each.moving_variance)]


def by_keras(model, batches):
    """What Keras moves with momentum 0, a batch at a time, averaged over samples by hand."""
    norms = norms_of(model)
    for each in norms:
        each.momentum, each.trainable = 0.0, True
    total, means, squares = 0, 0, 0
    for x in batches:
        model(x, training=True)
        found = [(np.asarray(each.moving_mean), np.asarray(each.moving_variance)) for each in norms]
        total += len(x)
        means = means + len(x) * np.array([m for m, _ in found], object)
        squares = squares + len(x) * np.array([v + m**2 for m, v in found], object)
    return [each for m, s in zip(means / total, squares / total) for each in (m, s - m**2)]


def equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, np.asarray(b, "float64"), rtol=1e-3, atol=1e-5)


def first(shape=(3,), **options):
    """A normalisation at the input, and a Dense layer behind it."""
    keras.utils.set_random_seed(0)
    norm = layers.BatchNormalization(name="bn", **options)
    return keras.Sequential([keras.Input(shape), norm, layers.Dense(2, name="d")])


def chain(dropout=0.0):
    """Two normalisations, so that the second sees what the first has made of a batch."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((3,)), layers.Dense(5, name="a"), layers.BatchNormalization(name="bn1"),
         layers.ReLU(), layers.Dropout(dropout, seed=1), layers.Dense(4, name="b"),
         layers.BatchNormalization(name="bn2"), layers.Dense(2, name="head")]
    )  # fmt: skip


def split(x, sizes):
    """A dataset of batches of these sizes."""
    parts = np.split(x, np.cumsum(sizes)[:-1])
    spec = tf.TensorSpec((None, *x.shape[1:]), "float32")
    return tf.data.Dataset.from_generator(lambda: iter(parts), output_signature=spec)


# --- at the input: all samples at once -------------------------------------------------------------


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99), st.floats(-5, 5))
@settings(max_examples=25, deadline=None)
def test_any_split_into_batches_gives_mean_and_variance_of_all_samples(sizes, seed, shift):
    x = np.random.default_rng(seed).normal(shift, 2, (sum(sizes), 3)).astype("float32")
    model = tfkit.recalibrate_batch_norm(FIRST, split(x, sizes))
    equal(statistics(model), [x.mean(0, "float64"), x.var(0, dtype="float64")])


FIRST = first()


@pytest.mark.parametrize("batch_size", [1, 5, 12, 100])
def test_images_are_counted_over_all_places(batch_size):
    model = tfkit.recalibrate_batch_norm(first((8, 8, 3)), IMAGES, batch_size=batch_size)
    equal(statistics(model), [IMAGES.mean((0, 1, 2)), IMAGES.var((0, 1, 2))])


def test_another_axis():
    model = tfkit.recalibrate_batch_norm(first((8, 8, 3), axis=1), IMAGES)
    equal(statistics(model), [IMAGES.mean((0, 2, 3)), IMAGES.var((0, 2, 3))])


def test_a_channel_that_never_changes_has_no_variance():
    x = np.full((7, 3), 1000.1, "float32")
    mean, variance = statistics(tfkit.recalibrate_batch_norm(first(), x, batch_size=3))
    np.testing.assert_allclose(mean, [1000.1] * 3, rtol=1e-6)
    assert (variance >= 0).all()
    assert variance.max() < 1e-2


@pytest.mark.parametrize(
    "data",
    [X, (X, X[:, :2]), tf.data.Dataset.from_tensor_slices((X, X)).batch(5), split(X, [12])],
    ids=["array", "pair", "dataset of pairs", "dataset"],
)
def test_data_in_every_form(data):
    equal(statistics(tfkit.recalibrate_batch_norm(first(), data)), [X.mean(0), X.var(0)])


def test_data_of_a_model_of_two_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([b, a], layers.BatchNormalization()(layers.Subtract()([a, b])))
    tfkit.recalibrate_batch_norm(model, {"a": X, "b": 3 * X})
    equal(statistics(model), [-2 * X.mean(0), 4 * X.var(0)])


def test_half_precision_is_added_up_in_full():
    model = first(dtype="mixed_bfloat16")
    x = RNG.normal(3, 1, (400, 3)).astype("float32")
    mean, variance = statistics(tfkit.recalibrate_batch_norm(model, x, batch_size=4))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-2)
    np.testing.assert_allclose(variance, x.var(0), rtol=3e-2)


# --- behind each other: against Keras --------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [7, 5], [1, 2, 9]], ids=str)
def test_a_chain_is_what_keras_measures_batch_by_batch(sizes):
    expected = by_keras(chain(), np.split(X, np.cumsum(sizes)[:-1]))
    equal(statistics(tfkit.recalibrate_batch_norm(chain(), split(X, sizes))), expected)


@pytest.mark.parametrize(
    "build", [models.conv_net, models.nested_net, models.subclassed_net], ids=lambda each: each.__name__
)
def test_nested_and_subclassed_models(build):
    expected = by_keras(build(), np.split(IMAGES, 3))
    equal(statistics(tfkit.recalibrate_batch_norm(build(), IMAGES, batch_size=4)), expected)


def test_dropout_is_off():
    expected = statistics(tfkit.recalibrate_batch_norm(chain(), X))
    equal(statistics(tfkit.recalibrate_batch_norm(chain(dropout=0.9), X)), expected)


@pytest.mark.parametrize("what", ["layer", "model"])
def test_what_is_frozen_is_measured_and_stays_frozen(what):
    model = chain()
    (model.get_layer("bn1") if what == "layer" else model).trainable = False
    flags = [(layer.trainable, [v.trainable for v in layer.weights]) for layer in model.layers]
    tfkit.recalibrate_batch_norm(model, X)
    equal(statistics(model), by_keras(chain(), [X]))
    assert [(layer.trainable, [v.trainable for v in layer.weights]) for layer in model.layers] == flags


def test_the_outputs_are_normalised_afterwards():
    model = first()
    tfkit.recalibrate_batch_norm(model, 5 * X + 3)
    outputs = np.asarray(model.get_layer("bn")(5 * X + 3))
    np.testing.assert_allclose(outputs.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(outputs.std(0), 1, rtol=1e-3)


def test_measuring_again_changes_nothing():
    model = tfkit.recalibrate_batch_norm(chain(), X)
    before = statistics(model)
    equal(statistics(tfkit.recalibrate_batch_norm(model, X)), before)


def test_a_layer_that_is_never_reached_keeps_its_statistics():
    class Idle(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.idle = layers.BatchNormalization(), layers.BatchNormalization()
            self.idle.build((None, 3))
            self.idle.moving_mean.assign([7.0, 8.0, 9.0])

        def call(self, x, training=None):
            return self.used(x, training=training)

    model = Idle()
    model(X)
    tfkit.recalibrate_batch_norm(model, X)
    equal([model.used.moving_mean, model.idle.moving_mean], [X.mean(0), [7, 8, 9]])


# --- everything else is as it was ------------------------------------------------------------------


def settings_of(model):
    return [(each.momentum, each.trainable, "call" in vars(each)) for each in norms_of(model)]


def test_only_statistics_change():
    model = chain(dropout=0.5)
    model.compile("adam", "mse", jit_compile=False)
    model.fit(X, X[:, :2], verbose=0)
    moved = {id(v) for each in norms_of(model) for v in (each.moving_mean, each.moving_variance)}
    held = [v for v in [*model.variables, *model.optimizer.variables] if id(v) not in moved]
    before, flags = [np.asarray(v) for v in held], settings_of(model)
    tfkit.recalibrate_batch_norm(model, X)
    assert all(np.array_equal(a, b) for a, b in zip(map(np.asarray, held), before, strict=True))
    assert settings_of(model) == flags


def test_what_was_traced_before_uses_the_new_statistics():
    model = chain()
    before = model.predict(X, verbose=0)
    tfkit.recalibrate_batch_norm(model, X)
    after = model.predict(X, verbose=0)
    assert np.abs(after - before).max() > 1e-2
    np.testing.assert_allclose(after, model(X), rtol=1e-4, atol=1e-5)


def test_training_moves_the_statistics_as_before():
    """moving = 0.99 moving + 0.01 batch, after the statistics were measured anew."""
    model = first()
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    tfkit.recalibrate_batch_norm(model, X)
    model.fit(2 * X, X[:, :2], 12, verbose=0)
    equal(statistics(model)[:1], [(0.99 + 0.02) * X.mean(0)])


def test_a_batch_that_fails_puts_everything_back():
    model = chain()
    model.get_layer("bn1").momentum = 0.7
    model.get_layer("bn2").trainable = False
    weights, flags = model.get_weights(), settings_of(model)
    parts = [X, X[:, :2]]  # the second does not fit
    data = tf.data.Dataset.from_generator(lambda: iter(parts), output_types="float32")
    with pytest.raises(Exception, match=r"(?i)shape|incompatible|axis"):
        tfkit.recalibrate_batch_norm(model, data)
    expect_equal(model.get_weights(), weights)
    assert settings_of(model) == flags == [(0.7, True, False), (0.99, False, False)]
    equal(statistics(tfkit.recalibrate_batch_norm(model, X)), by_keras(chain(), [X]))


def test_a_smaller_model_is_measured_as_one_of_its_size():
    model = models.conv_net()
    smaller = tfkit.prune_channels(model, ratio=0.5, multiple_of=1)
    twin = keras.models.clone_model(smaller)
    twin.set_weights(smaller.get_weights())
    equal(statistics(tfkit.recalibrate_batch_norm(smaller, IMAGES)), by_keras(twin, [IMAGES]))


def test_progress_is_shown_on_request(capsys):
    tfkit.recalibrate_batch_norm(first(), X, verbose=1)
    assert "statistics" in capsys.readouterr().err
    tfkit.recalibrate_batch_norm(first(), X)
    assert capsys.readouterr().err == ""


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"model": 7}, tfkit.ArgumentTypeError, r"must be a Keras 3 model.*Received: model=7"),
        ({"x": 7}, tfkit.ArgumentTypeError, r"`x` must be an array, a pair.*Received: x=7"),
        ({"x": X[:0]}, tfkit.ArgumentError, r"`x` must hold at least one sample.*Received: x that is empty"),
        ({"x": X[:, :2]}, tfkit.ArgumentError, r"`x` must hold samples shaped.*\[\(3,\)\].*x with.*\(2,\)"),
        ({"x": (X, X[:3])}, tfkit.ArgumentError, r"`x` must have as many.*Received: x with \[3, 12\]"),
        ({"batch_size": 0}, tfkit.ArgumentError, r"`batch_size`.*Received: batch_size=0"),
    ],
    ids=["model", "number", "empty", "shape", "lengths", "batch"],
)
def test_bad_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        tfkit.recalibrate_batch_norm(**{"model": first(), "x": X} | options)


def test_a_model_without_statistics_is_refused():
    message = r"must have statistics.*Received: model='seq.*' without BatchNormalization\. Leave this step"
    with pytest.raises(tfkit.PruningError, match=message):
        tfkit.recalibrate_batch_norm(models.dense_net(), X)
