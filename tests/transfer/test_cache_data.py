"""`fit_cached` on data of every kind, its arguments, and the places where features are kept."""

import pathlib
import random

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers

from tests.transfer.caching import (
    RANDOM,
    X,
    Y,
    classifier,
    compiled,
    dense,
    fit_quietly,
    train_both,
)

LABELS = RANDOM.integers(0, 3, size=10)
WEIGHTS = np.linspace(0, 2, 10)
BUDGETS = pytest.mark.parametrize("budget", [4, 0], ids=["memory", "disk"])


def dataset(*arrays, size=7):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(size)


class Batches(keras.utils.PyDataset):
    """Arrays in batches, the last one smaller."""

    def __init__(self, *arrays, size=7, **kwargs):
        super().__init__(**kwargs)
        self.arrays, self.size = arrays, size

    @property
    def num_batches(self):
        return -(-len(self.arrays[0]) // self.size)

    def __getitem__(self, number):
        return tuple(array[number * self.size : (number + 1) * self.size] for array in self.arrays)


# --- arguments of fit ------------------------------------------------------------------------------

ARGUMENTS = {
    "sample weights": {"sample_weight": WEIGHTS},
    "held-out sample weights": {"validation_split": 0.3, "sample_weight": WEIGHTS},
    "validation arrays": {"validation_data": (X[:5], Y[:5])},
    "weighted validation arrays": {"validation_data": (X[:5], Y[:5], WEIGHTS[:5])},
    "validation batches of their own": {"validation_data": (X[:5], Y[:5]), "validation_batch_size": 2},
    "validation data before the split": {"validation_data": (X[:5], Y[:5]), "validation_split": 0.3},
    "validation every second epoch": {
        "validation_data": (X[:5], Y[:5]),
        "validation_freq": 2,
        "epochs": 4,
    },
    "validation in chosen epochs": {"validation_split": 0.3, "validation_freq": [1, 3], "epochs": 3},
    "some validation steps": {
        "validation_data": (X[:7], Y[:7]),
        "validation_steps": 1,
        "validation_batch_size": 3,
        "epochs": 3,
    },
    "a later start": {"initial_epoch": 1, "epochs": 3},
    "nothing left to train": {"initial_epoch": 3, "epochs": 4},
    "some steps an epoch": {"steps_per_epoch": 2, "epochs": 3, "batch_size": 4},
    "a batch size that steps decide": {"steps_per_epoch": 2, "batch_size": None},
    "validation steps that decide the batch size": {
        "validation_data": (X, Y),
        "validation_steps": 5,
        "batch_size": None,
    },
    "one batch": {"batch_size": 64},
}


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_with_arguments_of_fit_training_equals_it(name):
    train_both(lambda: dense(weighted_metrics=["mae"]), **ARGUMENTS[name])


@BUDGETS
def test_class_weights_equal_fit(budget):
    train_both(
        classifier,
        X,
        LABELS,
        class_weight={0: 0.1, 1: 2.0, 2: 0.5},
        cached={"memory_budget_gb": budget},
    )


def test_class_weights_of_one_hot_targets_equal_fit():
    targets = np.eye(2, dtype="float32")[LABELS % 2]
    train_both(dense, X, targets, class_weight={0: 0.1, 1: 2.0})


def test_class_weights_of_a_data_set_equal_fit():
    train_both(classifier, dataset(X, LABELS), None, class_weight={0: 0.1, 1: 2.0, 2: 0.5})


# --- kinds of data ----------------------------------------------------------------------------------

FRAME, SERIES = pd.DataFrame(X), pd.Series(LABELS, index=range(5, 15))
KINDS = {
    "double precision": (X.astype("float64"), Y.astype("float64")),
    "bytes": (RANDOM.integers(0, 256, size=(10, 6)).astype("uint8") // 64, Y),
    "booleans": (X > 0, Y),
    "data frames": (FRAME, pd.DataFrame(Y)),
    "tensors": (tf.constant(X), tf.constant(Y)),
    "a list of one": ([X], Y),
}


@pytest.mark.parametrize("name", KINDS)
def test_on_any_kind_of_array_training_equals_fit(name):
    train_both(dense, *KINDS[name])


def test_a_series_of_targets_equals_fit():
    train_both(classifier, FRAME, SERIES, sample_weight=pd.Series(WEIGHTS), validation_split=0.3)


def columns():
    """A model that takes each column of a table as an input of its own."""
    keras.utils.set_random_seed(0)
    inputs = {name: keras.Input((1,), name=name) for name in "abcdef"}
    x = layers.Dense(4, activation="tanh", name="frozen")(layers.Concatenate()(list(inputs.values())))
    return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), "head")


def test_series_as_inputs_equal_fit():
    train_both(columns, {name: pd.Series(X[:, place]) for place, name in enumerate("abcdef")}, Y)


def test_vectors_as_inputs_equal_fit():
    train_both(columns, {name: X[:, place] for place, name in enumerate("abcdef")}, Y)


def test_raw_bytes_and_a_rescaling_inside_the_model_equal_fit():
    def build():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((8, 8, 3), dtype="uint8")
        x = layers.Conv2D(4, 3, activation="relu", name="frozen")(layers.Rescaling(1 / 255)(inputs))
        x = layers.Concatenate()([layers.Flatten()(x), layers.Flatten()(layers.Rescaling(0.1)(inputs))])
        return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), "head")

    train_both(build, RANDOM.integers(0, 256, size=(10, 8, 8, 3)).astype("uint8"), Y)


DATASETS = {
    "tf.data": lambda: dataset(X, Y),
    "weighted tf.data": lambda: dataset(X, Y, WEIGHTS),
    "tf.data of unknown length": lambda: dataset(X, Y).filter(lambda x, y: True),
    "tf.data with batches of 3, 2 and 5": lambda: dataset(X[:5], Y[:5], size=3).concatenate(
        dataset(X[5:], Y[5:], size=5)
    ),
    "tf.data with a larger last batch": lambda: dataset(X[:2], Y[:2], size=2).concatenate(
        dataset(X[2:], Y[2:], size=8)
    ),
    "tf.data twice over": lambda: dataset(X, Y).repeat(2),
    "PyDataset": lambda: Batches(X, Y),
    "weighted PyDataset": lambda: Batches(X, Y, WEIGHTS),
    "PyDataset with threads": lambda: Batches(X, Y, workers=2),
}


@pytest.mark.parametrize("name", DATASETS)
def test_on_any_data_set_training_equals_fit(name):
    train_both(dense, DATASETS[name], None)


@pytest.mark.parametrize("name", ["weighted tf.data", "tf.data with batches of 3, 2 and 5", "PyDataset"])
def test_on_a_data_set_kept_on_disk_training_equals_fit(name):
    train_both(dense, DATASETS[name], None, cached={"memory_budget_gb": 0})


@pytest.mark.parametrize(
    "name", ["weighted tf.data", "tf.data with a larger last batch", "weighted PyDataset"]
)
def test_on_any_validation_data_set_training_equals_fit(name):
    def build():
        return dense(weighted_metrics=["mae"])

    train_both(build, validation_data=DATASETS[name]())


@pytest.mark.filterwarnings("ignore:.*ran out of data")
def test_a_data_set_with_fewer_steps_an_epoch_equals_fit():
    train_both(dense, DATASETS["tf.data twice over"], None, steps_per_epoch=3, epochs=2)


def test_a_data_set_of_dicts_equals_fit():
    def build():
        keras.utils.set_random_seed(0)
        inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((2,), name="b")}
        x = layers.Concatenate()([layers.Dense(3, name="frozen")(inputs["a"]), inputs["b"]])
        outputs = {"out": layers.Dense(2, name="head")(x)}
        return compiled(keras.Model(inputs, outputs), "head", loss={"out": "mse"})

    train_both(build, lambda: dataset({"a": X, "b": Y}, {"out": Y}), None)


# --- order -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [True, "batch"])
def test_arrays_are_shuffled_as_fit_shuffles_them(how):
    train_both(dense, shuffle=how)


class Order(layers.Layer):
    """Trained; notes the first number of every sample that reaches it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.seen = []

    def call(self, x, training=None):
        if training and not isinstance(x, keras.KerasTensor):
            tf.py_function(lambda each: self.seen.extend(each[:, 0].numpy().round().astype(int)), [x], [])
        return x * self.scale


NUMBERS = np.arange(12, dtype="float32")[:, None]


def orders(x, y=None, epochs=3, seed=None, **cached):
    """Returns for each epoch the order in which samples reach the trained part."""
    np.random.seed(seed)
    tf.random.set_seed(seed)
    frozen = layers.Dense(1, use_bias=False, kernel_initializer="ones", name="frozen")
    model = keras.Sequential([keras.Input((1,)), frozen, Order(name="order"), layers.Dense(1, name="head")])
    compiled(model, ["order", "head"], optimizer=keras.optimizers.SGD(0.0))
    fit_quietly(model, x, y, epochs=epochs, batch_size=4 if y is not None else None, **cached)
    seen = model.get_layer("order").seen
    return [seen[start : start + 12] for start in range(0, len(seen), 12)]


def shuffled():
    return tf.data.Dataset.from_tensor_slices((NUMBERS, NUMBERS)).shuffle(12).batch(4)


@BUDGETS
def test_every_epoch_brings_each_sample_once(budget):
    epochs = orders(shuffled(), memory_budget_gb=budget)
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 3


@BUDGETS
@pytest.mark.parametrize("seed", [None, 0])
def test_a_data_set_that_shuffles_comes_in_a_new_order_every_epoch(seed, budget):
    epochs = orders(shuffled(), seed=seed, memory_budget_gb=budget)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@BUDGETS
def test_arrays_come_in_a_new_order_every_epoch(budget):
    # With a seed Keras repeats the order of the first epoch, see test_arrays_are_shuffled_as_fit.
    epochs = orders(NUMBERS, NUMBERS, memory_budget_gb=budget)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@BUDGETS
def test_samples_are_mixed_over_the_borders_of_batches(budget):
    epochs = orders(shuffled(), epochs=6, memory_budget_gb=budget)
    assert len({tuple(sorted(epoch[:4])) for epoch in epochs}) > 2


@BUDGETS
@pytest.mark.parametrize("kind", ["arrays", "tf.data"])
def test_samples_keep_their_order_without_shuffling(kind, budget):
    data = (NUMBERS, NUMBERS) if kind == "arrays" else (dataset(NUMBERS, NUMBERS),)
    epochs = orders(*data, shuffle=False, memory_budget_gb=budget)
    assert epochs == [list(range(12))] * 3


def test_a_seed_repeats_the_order_on_disk():
    runs = [orders(NUMBERS, NUMBERS, seed=0, memory_budget_gb=0) for _ in range(2)]
    assert runs[0] == runs[1]


def test_targets_stay_with_their_samples_on_disk():
    # y = x throughout and the head is the identity: every loss is 0, whatever the order.
    keras.utils.set_random_seed(0)
    ones = {"use_bias": False, "kernel_initializer": "ones"}
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(1, name="frozen", **ones), layers.Dense(1, name="head", **ones)]
    )
    data = tf.data.Dataset.from_tensor_slices((NUMBERS, NUMBERS)).shuffle(12).batch(4)
    history = fit_quietly(compiled(model, "head"), data, None, epochs=3, memory_budget_gb=0)
    assert history.history["loss"] == [0.0, 0.0, 0.0]


class Shuffling(Batches):
    """Shuffles itself after every epoch, as Keras's guide does."""

    def on_epoch_end(self):
        order = np.random.permutation(len(self.arrays[0]))
        self.arrays = tuple(array[order] for array in self.arrays)


def test_a_py_dataset_that_shuffles_itself_is_refused():
    with pytest.raises(ValueError, match="the data set changes itself after every epoch"):
        orders(Shuffling(NUMBERS, NUMBERS))


def test_the_batches_of_a_py_dataset_are_shuffled_as_in_fit():
    random.seed(3)
    epochs = orders(Batches(NUMBERS, NUMBERS), epochs=6, shuffle=True)
    assert len({tuple(epoch) for epoch in epochs}) > 1


# --- where features are kept -----------------------------------------------------------------------------


class Look(keras.callbacks.Callback):
    """Notes the files in a folder while the model trains, and may end the training by an error."""

    def __init__(self, folder, error=None):
        super().__init__()
        self.folder, self.error, self.files = pathlib.Path(folder), error, []

    def on_epoch_end(self, epoch, logs=None):
        self.files = [path for path in self.folder.rglob("*") if path.is_file()]
        if self.error is not None:
            raise self.error


def test_features_beyond_the_budget_lie_in_the_given_folder(tmp_path):
    look = Look(tmp_path)
    fit_quietly(dense(), callbacks=[look], memory_budget_gb=0, cache_directory=tmp_path)
    assert len(look.files) == 2  # features and targets


def test_features_within_the_budget_make_no_files(tmp_path):
    look = Look(tmp_path)
    fit_quietly(dense(), callbacks=[look], memory_budget_gb=1, cache_directory=tmp_path)
    assert look.files == []


def test_the_budget_counts_training_and_validation_features_together(tmp_path):
    look = Look(tmp_path)
    both = 10 * (8 + 2) * 4  # bytes of one set
    fit_quietly(
        dense(),
        callbacks=[look],
        validation_data=(X, Y),
        memory_budget_gb=1.5 * both / 2**30,
        cache_directory=tmp_path,
    )
    assert len(look.files) == 2  # the validation set's alone


def test_the_files_are_deleted_at_the_end(tmp_path):
    fit_quietly(dense(), memory_budget_gb=0, cache_directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=repr)
def test_the_files_are_deleted_after_an_error(error, tmp_path):
    look = Look(tmp_path, error)
    with pytest.raises(type(error)):
        fit_quietly(dense(), callbacks=[look], memory_budget_gb=0, cache_directory=tmp_path)
    assert look.files
    assert list(tmp_path.iterdir()) == []


def test_the_files_are_deleted_after_an_error_in_the_data(tmp_path):
    class Broken(Batches):
        def __getitem__(self, number):
            if number == 1:
                raise RuntimeError("a broken file")
            return super().__getitem__(number)

    with pytest.raises(RuntimeError, match="a broken file"):
        fit_quietly(dense(), Broken(X, Y), None, memory_budget_gb=0, cache_directory=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [{}, {"sample_weight": WEIGHTS, "validation_split": 0.3}], ids=str)
def test_on_disk_training_equals_fit(arguments, tmp_path):
    cached = {"memory_budget_gb": 0, "cache_directory": tmp_path}
    train_both(lambda: dense(weighted_metrics=["mae"]), cached=cached, **arguments)


def test_texts_equal_fit():
    def build():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((2,), dtype="string")
        x = layers.StringLookup(vocabulary=["a", "b", "c"])(inputs)
        x = layers.Flatten()(layers.Embedding(5, 4, name="embedding")(x))
        return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), "head", run_eagerly=False)

    texts = tf.constant(np.array(list("abcabcabca") * 2).reshape(10, 2))
    train_both(build, texts, Y)
