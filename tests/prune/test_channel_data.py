"""Calibration data: every form in which they may come, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tfkit.prune.groups import Wiring
from tfkit.prune.score import score_units

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 6)).astype("float32")
Y = RNG.normal(size=(10, 2)).astype("float32")
B = RNG.normal(size=(10, 3)).astype("float32")


def scores(model, criterion="activation", **options):
    wiring = Wiring(model)
    found = score_units(wiring, criterion, **options)
    return dict(zip([group.name for group in wiring.groups], found, strict=True))


def hidden(x, layer):
    """Mean size of a hidden ReLU layer, a number a channel, divided by their mean."""
    values = np.maximum(x @ np.asarray(layer.kernel) + np.asarray(layer.bias), 0).mean(0)
    return values / values.mean()


def two_inputs(structure):
    """Inputs `b` of 3 and `a` of 6 numbers, in that order, as a list or a dict."""
    keras.utils.set_random_seed(0)
    b, a = keras.Input((3,), name="b"), keras.Input((6,), name="a")
    x = [layers.Dense(4, "relu", name="of_a")(a), layers.Dense(5, "relu", name="of_b")(b)]
    head = layers.Dense(2, name="head")(layers.Concatenate()(x))
    return keras.Model({"b": b, "a": a} if structure == "dict" else [b, a], head)


class Batches(keras.utils.PyDataset):
    """Four samples a batch; the last holds two."""

    def __init__(self, *arrays, endless=False):
        super().__init__()
        self.arrays, self.endless = arrays, endless

    @property
    def num_batches(self):
        return None if self.endless else 3

    def __getitem__(self, number):
        return tuple(each[4 * number : 4 * number + 4] for each in self.arrays)


# --- every form gives the same ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [X, (X, Y), (X, None), tf.constant(X), tf.data.Dataset.from_tensor_slices(X).batch(4),
     tf.data.Dataset.from_tensor_slices((X, Y)).batch(4), Batches(X, Y), Batches(X),
     tf.data.Dataset.from_tensor_slices((X, Y, Y[:, 0])).batch(4)],
    ids=["array", "pair", "no targets", "tensor", "dataset", "dataset of pairs", "PyDataset",
         "PyDataset of inputs", "with sample weights"],
)  # fmt: skip
def test_one_input(data):
    model = models.dense_net((8,))
    np.testing.assert_allclose(
        scores(model, data=data, batch_size=4)["d1"], hidden(X, model.get_layer("d1")), rtol=1e-4
    )


@pytest.mark.parametrize(
    "data",
    [(X, Y), tf.data.Dataset.from_tensor_slices((X, Y)).batch(4), Batches(X, Y)],
    ids=["pair", "dataset", "PyDataset"],
)
def test_targets_reach_the_loss(data):
    """Against the gradient of each batch, for a batch size of 4."""
    model, total = models.dense_net((8,)), 0
    weights = model.get_layer("d1").weights
    for start in (0, 4, 8):
        part = slice(start, start + 4)
        with tf.GradientTape() as tape:
            value = tf.reduce_mean(tf.square(model(X[part]) - Y[part]))
        slopes = tape.gradient(value, [each.value for each in weights])
        kernel, bias = (np.asarray(a) * np.asarray(b) for a, b in zip(slopes, weights))
        total = total + np.square(kernel.sum(0) + bias)
    loss = keras.losses.MeanSquaredError()
    found = scores(model, "taylor", data=data, batch_size=4, loss=loss)["d1"]
    np.testing.assert_allclose(found, total / total.mean(), rtol=1e-3)


@pytest.mark.parametrize("structure", ["list", "dict"])
@pytest.mark.parametrize("form", ["list", "dict", "dataset of dicts", "pair of dict"])
def test_several_inputs(structure, form):
    by_name = {"a": X, "b": B}
    data = {
        "list": [B, X] if structure == "list" else [X, B],  # a dict's inputs are in the order of its keys
        "dict": by_name,
        "dataset of dicts": tf.data.Dataset.from_tensor_slices(by_name).batch(4),
        "pair of dict": (by_name, Y),
    }[form]
    model = two_inputs(structure)
    found = scores(model, data=data, batch_size=4)
    np.testing.assert_allclose(found["of_a"], hidden(X, model.get_layer("of_a")), rtol=1e-4)
    np.testing.assert_allclose(found["of_b"], hidden(B, model.get_layer("of_b")), rtol=1e-4)


@pytest.mark.parametrize("structure", ["list", "dict"])
def test_several_inputs_with_targets(structure):
    model = two_inputs(structure)
    loss = keras.losses.MeanSquaredError()
    by_name = scores(model, "taylor", data=({"a": X, "b": B}, Y), loss=loss)
    with tf.GradientTape() as tape:
        inputs = [B, X] if structure == "list" else {"a": X, "b": B}
        value = tf.reduce_mean(tf.square(model(inputs) - Y))
    weights = model.get_layer("of_a").weights
    slopes = tape.gradient(value, [each.value for each in weights])
    kernel, bias = (np.asarray(a) * np.asarray(b) for a, b in zip(slopes, weights))
    expected = np.square(kernel.sum(0) + bias)
    np.testing.assert_allclose(by_name["of_a"], expected / expected.mean(), rtol=1e-3)


def test_targets_may_be_a_dict_of_several_outputs():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu", name="d1")(inputs)
    one, two = layers.Dense(1, name="one")(x), layers.Dense(1, name="two")(x)
    model = keras.Model(inputs, {"one": one, "two": two})
    model.compile("sgd", {"one": "mse", "two": "mse"})
    found = scores(model, "taylor", data=(X, {"one": Y[:, :1], "two": Y[:, 1:]}))["d1"]

    def loss(y, answer):
        return keras.ops.square(answer["one"] - y[:, :1]) + keras.ops.square(answer["two"] - y[:, 1:])

    np.testing.assert_allclose(found, scores(model, "taylor", data=(X, Y), loss=loss)["d1"], rtol=1e-4)


def test_images_of_several_sizes_for_a_model_that_leaves_them_open():
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(4, 1, name="a"), layers.GlobalAveragePooling2D(), layers.Dense(2)]
    model = keras.Sequential([keras.Input((None, None, 3)), *stack])
    small, large = RNG.normal(size=(2, 4, 4, 3)), RNG.normal(size=(3, 8, 8, 3))
    data = tf.data.Dataset.from_generator(lambda: iter([small, large]), output_types=tf.float32)
    layer = model.get_layer("a")
    pooled = [
        np.abs((each @ np.asarray(layer.kernel)[0, 0] + np.asarray(layer.bias)).mean((1, 2)))
        for each in (small, large)
    ]
    expected = np.concatenate(pooled).mean(0)
    np.testing.assert_allclose(scores(model, data=data)["a"], expected / expected.mean(), rtol=1e-4)


# --- what is refused -------------------------------------------------------------------------------

SLICES = tf.data.Dataset.from_tensor_slices


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (7, tfkit.ArgumentTypeError, r"must be an array, a pair.*tf\.data\.Dataset.*Received: data=7"),
        (iter([X]), tfkit.ArgumentTypeError, r"must be an array, a pair.*Received: data=<list_iterator"),
        (X.tolist(), tfkit.ArgumentTypeError, r"must be an array, a pair.*Received: data=\[\[0\.12"),
        ((X, Y[:7]), tfkit.ArgumentError, r"as many targets as inputs.*Received: data.*\[7, 10\] samples"),
        (X[:0], tfkit.ArgumentError, r"at least one sample.*Received: data that is empty"),
        (SLICES(X).batch(4).take(0), tfkit.ArgumentError, r"at least one sample.*Received: data that is"),
        (SLICES(X).batch(4).repeat(), tfkit.ArgumentError, r"come to an end.*Received: data=<.*\.take\(10\)"),
        (Batches(X, endless=True), tfkit.ArgumentError, r"come to an end.*Received: data=<.*Batches"),
        (B, tfkit.ArgumentError, r"are \[\(6,\)\].*Received: data with .* \[\(3,\)\].*pair: data=\(x, y\)"),
        (SLICES(X), tfkit.ArgumentError, r"are \[\(6,\)\].*Received: data with samples of shape \[\(\)\]"),
        ([X, X], tfkit.ArgumentError, r"Received: data with samples of shape \[\(6,\), \(6,\)\]"),
    ],
    ids=["number", "iterator", "list of numbers", "lengths", "empty", "no batch", "endless", "endless too",
         "shape", "not batched", "two"],
)  # fmt: skip
def test_data_that_do_not_fit_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        tfkit.plan_channel_pruning(models.dense_net(), ratio=0.5, criterion="activation", data=data)


def test_a_dict_without_an_input_is_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"names.*\['b', 'a'\].*Received: data with \['a'\]\."):
        scores(two_inputs("list"), data={"a": X})


@pytest.mark.parametrize("criterion", ["activation", "taylor"])
def test_a_criterion_that_needs_data_says_so(criterion):
    message = rf"{criterion}.*measured on data.*Received: criterion='{criterion}', data=None.*Pass data="
    with pytest.raises(tfkit.ArgumentError, match=message):
        tfkit.plan_channel_pruning(models.dense_net(), ratio=0.5, criterion=criterion)


def test_taylor_needs_targets():
    with pytest.raises(tfkit.ArgumentError, match=r"needs targets.*Received: data without.*data=\(x, y\)"):
        tfkit.plan_channel_pruning(
            models.dense_net(), ratio=0.5, criterion="taylor", data=X, loss=keras.losses.MeanSquaredError()
        )


def test_taylor_needs_a_loss():
    message = r"differentiates a loss.*Received: loss=None and a model that is not compiled.*Compile it, or"
    with pytest.raises(tfkit.ArgumentError, match=message):
        tfkit.plan_channel_pruning(models.dense_net(), ratio=0.5, criterion="taylor", data=(X, Y))
