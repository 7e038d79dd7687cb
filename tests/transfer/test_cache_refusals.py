"""`fit_cached` on data that cannot be gone through twice, and the arguments that it refuses."""

import itertools

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tests.transfer.caching import GOES_ON, X, Y, compiled, dense, fit_quietly, require_refused, train_both
from tfkit.errors import ArgumentError, ArgumentTypeError, UnbuiltModelError
from tfkit.transfer import fit_cached

# --- data --------------------------------------------------------------------------------------------


class Endless(keras.utils.PyDataset):
    """Never ends."""

    num_batches = None

    def __getitem__(self, number):
        return X[:4], Y[:4]


class Drawing(keras.utils.PyDataset):
    """Draws new samples after every epoch, as augmentation does."""

    def __init__(self):
        super().__init__()
        self.random = np.random.default_rng(0)
        self.noise = self.random.normal(size=X.shape)

    num_batches = 1

    def __getitem__(self, number):
        return X + self.noise, Y

    def on_epoch_end(self):
        self.noise = self.random.normal(size=X.shape)


def batches(repeat=False):
    rounds = itertools.count() if repeat else range(2)
    for _ in rounds:
        for start in range(0, 10, 5):
            yield X[start : start + 5], Y[start : start + 5]


def ragged():
    def generate():
        for length in (5, 7, 6):
            yield np.ones((4, length, 3), "float32"), np.ones((4, 2), "float32")

    kinds = (tf.TensorSpec((None, None, 3)), tf.TensorSpec((None, 2)))
    return tf.data.Dataset.from_generator(generate, output_signature=kinds)


def pooled():
    keras.utils.set_random_seed(0)
    stack = [layers.Dense(4, name="one"), layers.GlobalAveragePooling1D(), layers.Dense(2, name="head")]
    return compiled(keras.Sequential([keras.Input((None, 3)), *stack]), ["head"])


def before_pooling():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 3))
    x = layers.Conv1D(4, 1, name="trained")(layers.Dense(4, name="one")(inputs))
    x = layers.Dense(2, name="head")(layers.GlobalAveragePooling1D()(x))
    return compiled(keras.Model(inputs, x), ["trained", "head"])


ENDLESS = tf.data.Dataset.from_tensor_slices((X, Y)).batch(5).repeat()
DATA = {
    "infinite tf.data": (dense, lambda: ENDLESS, "the data set has no end"),
    "infinite PyDataset": (dense, Endless, "the data set has no end"),
    "generator": (dense, lambda: batches(True), "data of type generator can be gone through only once"),
    "samples of different shapes": (before_pooling, ragged, "the samples have different shapes"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_differ_are_named_and_trained_on_as_by_fit(name):
    build, make, reason = DATA[name]
    steps = {} if name == "samples of different shapes" else {"steps_per_epoch": 2}
    with pytest.warns(UserWarning, match=f"{GOES_ON}{reason}"):
        train_both(build, make, None, cached={"strict": False}, **steps)


@pytest.mark.parametrize("name", DATA)
def test_strict_refuses_data_that_differ_before_anything_changes(name):
    build, make, reason = DATA[name]
    message = rf"With `strict`.*Received: a case where it cannot be, for {reason}.*or use arrays\."
    require_refused(build(), message, make(), None, batch_size=None)


def test_samples_of_different_shapes_may_become_alike_in_the_frozen_part():
    train_both(pooled, ragged, None)


def drawn(batches_alike):
    """Data of which all batches but the first few differ at every pass."""

    def generate():
        for number in range(4):
            noise = np.random.normal(size=(3, 6)) if number >= batches_alike else np.zeros((3, 6))
            yield (X[:3] + noise).astype("float32"), Y[:3]

    kinds = (tf.TensorSpec((None, 6)), tf.TensorSpec((None, 2)))
    return tf.data.Dataset.from_generator(generate, output_signature=kinds)


@pytest.mark.parametrize("alike", [0, 1, 3])
def test_augmentation_in_the_input_pipeline_is_found(alike):
    model = dense()
    with pytest.warns(UserWarning, match="the data set gives other samples at every pass, as augmentation"):
        fit_cached(model, drawn(alike), epochs=2, verbose=0)
    assert int(model.optimizer.iterations) == 8


def test_a_py_dataset_that_draws_new_samples_is_found():
    with pytest.warns(UserWarning, match="the data set changes itself after every epoch"):
        fit_cached(dense(), Drawing(), epochs=2, verbose=0)


POSITIVE = np.maximum(X, 0)
SPARSE = {
    "sparse tensor": lambda: tf.sparse.from_dense(POSITIVE),
    "scipy's sparse matrix": lambda: scipy.sparse.csr_matrix(POSITIVE),
    "ragged tensor": lambda: tf.RaggedTensor.from_tensor(tf.constant(POSITIVE)),
}


@pytest.mark.parametrize("name", SPARSE)
def test_on_arrays_that_numpy_does_not_know_training_equals_fit(name):
    train_both(dense, SPARSE[name], cached={"strict": False})


def test_a_generator_can_be_the_validation_data():
    with pytest.warns(UserWarning, match=f"{GOES_ON}data of type generator can be gone through only once"):
        fit_cached(dense(), X, Y, verbose=0, validation_data=batches(True), validation_steps=2)


def test_a_callback_that_moves_the_boundary_is_named_and_trained_as_by_fit():
    def gradual():
        return [tfkit.GradualUnfreezing({0: "head", 1: ["d2", "head"]})]

    build = lambda: dense(["head"])  # noqa: E731
    with pytest.warns(UserWarning, match=f"{GOES_ON}GradualUnfreezing moves the boundary while the model"):
        train_both(build, callbacks=gradual, cached={"strict": False})


def test_strict_refuses_a_callback_that_moves_the_boundary():
    gradual = tfkit.GradualUnfreezing({1: ["d2", "head"]})
    require_refused(dense(["head"]), "for GradualUnfreezing moves the boundary", callbacks=[gradual])


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-0.1, 1, 1.5, float("nan")])
def test_a_share_outside_the_range_is_refused(value):
    message = rf"`validation_split` must be at least 0 and below 1\. Received: validation_split={value}\."
    require_refused(dense(), message, validation_split=value)


@pytest.mark.parametrize("value", [-1, -0.5, float("nan")])
def test_a_budget_below_zero_is_refused(value):
    message = rf"`memory_budget_gb` must be at least 0\. Received: memory_budget_gb={value}\."
    require_refused(dense(), message, memory_budget_gb=value)


def test_a_wholly_frozen_model_is_refused():
    model = dense([])
    message = (
        rf"At least one layer must train\. Received: model='{model.name}', which is wholly frozen\. "
        r"Choose layers with tfkit\.configure_base_model\."
    )
    require_refused(model, message)


def test_a_model_that_is_not_compiled_is_refused():
    model = models.dense_net()
    message = (
        rf"`model` must be compiled with an optimizer\. Received: model='{model.name}', which is not\. "
        r"Call model\.compile\(optimizer, loss\) first\."
    )
    with pytest.raises(ArgumentError, match=message):
        fit_cached(model, X, Y)


def test_what_is_no_model_is_refused():
    message = r"`model` must be a Keras 3 model.*Received: model='net' of type builtins\.str\. .*load_model"
    with pytest.raises(ArgumentTypeError, match=message):
        fit_cached("net", X, Y)


def test_an_unbuilt_model_is_refused():
    message = r"`model` must be built.*Received: model='raw', which is unbuilt\. Give it a keras\.Input"
    with pytest.raises(UnbuiltModelError, match=message):
        fit_cached(keras.Sequential([layers.Dense(1)], name="raw"), X, Y)


@pytest.mark.parametrize("budget", [4, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("length", [9, 20])
def test_inputs_and_targets_of_different_lengths_are_refused_as_by_fit(length, budget):
    with pytest.raises(ValueError, match="cardinality"):
        dense().fit(X, np.resize(Y, (length, 2)), batch_size=4, verbose=0)
    with pytest.raises(ValueError, match=r"cardinality|length"):
        fit_quietly(dense(), X, np.resize(Y, (length, 2)), memory_budget_gb=budget)


def test_a_share_of_a_data_set_is_refused_as_by_fit():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    with pytest.raises(ValueError, match="validation_split"):
        fit_quietly(dense(), data, None, validation_split=0.3)


def test_targets_beside_a_data_set_are_refused_as_by_fit():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    with pytest.raises(ValueError, match="`y`"):
        fit_quietly(dense(), data, Y)


def test_an_empty_data_set_is_refused():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).take(0)
    require_refused(dense(), "for the data set is empty", data, None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", -1),
        ("batch_size", 2.5),
        ("validation_batch_size", 0),
        ("validation_split", "a"),
    ],
)
def test_a_number_out_of_its_range(name, value):
    require_refused(dense(), rf"`{name}` must be .*Received: {name}={value!r}", **{name: value})
