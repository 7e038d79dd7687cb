"""What `compare_unfreezing` refuses, all of it before any training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import tfkit
from tests import models
from tfkit.errors import (
    ArgumentError,
    ArgumentTypeError,
    LayerNotFoundError,
    OutputPathError,
    UnbuiltModelError,
)

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(12, 6)).astype("float32"), RANDOM.normal(size=(12, 2)).astype("float32")


def build():
    model = models.dense_net()
    model.compile(optimizers.Adam(0.01), "mse")
    return model


class Refuse(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        raise AssertionError("training began")


def refused(error, message, **options):
    given = {"build_model": build, "stages": ["head", "*"], "train": (X, Y), "validation": (X, Y)}
    given |= {"callbacks": lambda: [Refuse()], "epochs": 2, **options}
    with pytest.raises(error, match=message):
        tfkit.compare_unfreezing(**given)


@pytest.mark.parametrize("count", [0, -1, 1.5, "2", True, None], ids=repr)
@pytest.mark.parametrize("name", ["epochs", "batch_size"])
def test_counts_must_be_whole(name, count):
    refused(
        ArgumentError,
        rf"`{name}` must be a whole number of at least 1\. Received: {name}={count!r}",
        **{name: count},
    )


@pytest.mark.parametrize("seed", [-1, 0.5, "0", True], ids=repr)
def test_a_seed_must_be_whole(seed):
    refused(ArgumentError, r"`seed` must be a whole number of at least 0\. Received: seed=", seed=seed)


def test_an_unknown_mode_is_refused():
    refused(ArgumentError, r"`mode` must be 'auto', 'min' or 'max'\. Received: mode='low'", mode="low")


@pytest.mark.parametrize("given", ["model", None, keras.layers.Dense(1)], ids=str)
def test_build_model_must_be_a_function(given):
    refused(ArgumentTypeError, r"`build_model` must be a function.*Received: build_model=", build_model=given)


def test_build_model_must_return_a_model():
    refused(
        ArgumentTypeError,
        r"`build_model` must return a Keras 3 model.*Received: None of type",
        build_model=lambda: None,
    )


def test_build_model_must_return_a_built_model():
    raw = keras.Sequential([layers.Dense(1)], name="raw")
    refused(UnbuiltModelError, r"must be built.*Received: model='raw'", build_model=lambda: raw)


def test_build_model_must_return_a_compiled_model():
    message = r"`build_model` must return a compiled model\. Received: model='sequential.*', not compiled"
    refused(ArgumentError, message, build_model=models.dense_net)


def test_build_model_must_return_a_model_with_an_optimizer():
    def build_bare():
        model = models.dense_net()
        model.compile(optimizer=None, loss="mse")
        return model

    refused(ArgumentError, r"`build_model` must return a compiled.*without optimizer", build_model=build_bare)


def test_build_model_must_make_new_weights():
    base = layers.Dense(4, name="base")

    def build_shared():
        model = keras.Sequential([keras.Input((6,)), base, layers.Dense(2, name="head")])
        model.compile("sgd", "mse")
        return model

    message = r"must make everything anew.*twice with the same \S*base/kernel, \S*base/bias\. Load or clone"
    refused(ArgumentError, message, build_model=build_shared, stages=["head"])


def test_build_model_must_make_a_new_optimizer():
    optimizer = optimizers.Adam(0.01)

    def build_shared():
        model = models.dense_net()
        model.compile(optimizer, "mse")
        return model

    message = r"must make everything anew.*twice with the same optimizer 'adam\S*'\. Load or clone"
    refused(ArgumentError, message, build_model=build_shared)


@pytest.mark.parametrize("given", ["head", [], {}, None, 3], ids=repr)
def test_stages_must_be_named(given):
    refused(ArgumentError, r"`stages` must name at least one choice.*Received: stages=", stages=given)


def test_stages_must_differ():
    refused(
        ArgumentError,
        r"The stages must differ\. Received: stages=\['head', 'head'\]",
        stages=["head", "head"],
    )


def test_a_misspelt_pattern_of_the_last_stage_is_found_first():
    refused(LayerNotFoundError, r"Received: pattern='hed'\. Nearest names: head", stages=["head", "*", "hed"])


def test_a_stage_that_trains_nothing_is_refused():
    message = r"must train at least one weight\. Received: stage 'none', which selects no layer"
    refused(ArgumentError, message, stages={"top": "head", "none": []})


def test_a_stage_of_frozen_batch_norm_is_refused():
    def build_conv():
        model = models.conv_net()
        model.compile("sgd", "mse")
        return model

    message = r"Received: stage 'bn1', which selects bn1 under batch_norm='frozen'"
    refused(ArgumentError, message, build_model=build_conv, stages=["bn1"])


def test_an_unknown_batch_norm_is_refused():
    refused(ArgumentError, r"`batch_norm` must be 'frozen' or 'train'", batch_norm="off")


@pytest.mark.parametrize("name", ["train", "validation"])
@pytest.mark.parametrize(
    "data", [None, X, [X, Y], (X,), (X, Y, Y, Y), iter([])], ids=lambda data: type(data).__name__
)
def test_data_of_another_kind_is_refused(name, data):
    message = rf"`{name}` must be \(x, y\), .* or a tf\.data\.Dataset.*Received: {name} of type"
    refused(ArgumentTypeError, message, **{name: data})


@pytest.mark.parametrize("name", ["train", "validation"])
@pytest.mark.parametrize(("data", "counts"), [((X, Y[:3]), "12, 3"), ((X[:0], Y[:0]), "0, 0")])
def test_arrays_must_hold_as_many_samples(name, data, counts):
    message = rf"`{name}` must hold as many samples.*Received: {name} with {counts} samples"
    refused(ArgumentError, message, **{name: data})


@pytest.mark.parametrize(
    ("change", "batches"), [(lambda d: d.repeat(), "endless"), (lambda d: d.take(0), "0")]
)
def test_a_dataset_must_end_and_hold_something(change, batches):
    message = rf"`train` must end, and hold at least one batch\. Received: train=.* with {batches} batches"
    refused(ArgumentError, message, train=change(tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)))


@pytest.mark.parametrize("given", [[Refuse()], Refuse(), "log"], ids=lambda each: type(each).__name__)
def test_callbacks_must_be_a_function(given):
    refused(ArgumentTypeError, r"`callbacks` must be a function.*Write callbacks=lambda", callbacks=given)


@pytest.mark.parametrize("made", [Refuse(), None, [1]], ids=lambda made: type(made).__name__)
def test_callbacks_must_return_a_list_of_callbacks(made):
    refused(ArgumentTypeError, r"`callbacks` must return a list of Keras callbacks", callbacks=lambda: made)


def test_callbacks_must_be_new_each_time():
    one = Refuse()
    message = r"`callbacks` must make new callbacks each time.*which an earlier stage has used"
    refused(ArgumentError, message, callbacks=lambda: [one])


@pytest.mark.parametrize("name", ["missing/depth.png", "depth.xyz", "depth"])
def test_an_image_that_cannot_be_written_is_refused(name, tmp_path):
    refused(
        OutputPathError,
        r"`plot` must be an image in a folder that exists.*Received: plot=",
        plot=tmp_path / name,
    )
