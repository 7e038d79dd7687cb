"""What the tests of `fit_cached` share: two equal models, one of which `model.fit` trains."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tfkit.errors import ArgumentError
from tfkit.transfer import fit_cached

GOES_ON = "fit_cached goes on as far as it can: "
BATCH = 7  # of 10 samples, so the last batch is smaller
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(10, 6)).astype("float32")
Y = RANDOM.normal(size=(10, 2)).astype("float32")
IMAGES = RANDOM.normal(size=(10, 8, 8, 3)).astype("float32")
TOKENS = np.array([[1, 2, 0], [4, 0, 0], [2, 5, 1], [3, 0, 0], [5, 4, 3]] * 2)


def compiled(model, patterns, optimizer=None, loss="mse", batch_norm="frozen", **arguments):
    """Freezes all but the patterns and compiles; eager steps are quicker than a trace for so few."""
    tfkit.configure_base_model(model, patterns, batch_norm=batch_norm)
    if not {"run_eagerly", "jit_compile"} & set(arguments):
        arguments["run_eagerly"] = True
    model.compile(optimizer or keras.optimizers.SGD(0.05, momentum=0.9), loss, **arguments)
    return model


def dense(patterns=("d2", "head"), **arguments):
    """d1 is frozen, d2 and head train."""
    return compiled(models.dense_net(), list(patterns), **arguments)


def classifier(**arguments):
    """Three classes, for integer targets."""
    return compiled(
        models.dense_net(outputs=3),
        ["d2", "head"],
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        **arguments,
    )


def numbers(variables):
    return [variable.value.numpy().copy() for variable in variables]


def snapshot(model):
    """All that training moves, as named lists of arrays."""
    return {
        "weights": numbers(model.weights),
        "optimizer": numbers(model.optimizer.variables),
        "metrics": numbers(model.metrics_variables),
    }


def require_same(model, oracle, tolerance=1e-5):
    """Compares two models' weights, optimizers and metrics."""
    mine, theirs = snapshot(model), snapshot(oracle)
    for name, wanted in theirs.items():
        assert len(mine[name]) == len(wanted), name
        for place, (one, other) in enumerate(zip(mine[name], wanted)):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=f"{name} {place}")


def require_same_history(mine, theirs, tolerance=1e-5):
    assert list(mine.history) == list(theirs.history)
    assert mine.epoch == theirs.epoch
    for name, wanted in theirs.history.items():
        np.testing.assert_allclose(mine.history[name], wanted, rtol=tolerance, atol=tolerance, err_msg=name)


def train_both(build, x=X, y=Y, *, cached=None, tolerance=1e-5, seed=1, **arguments):
    """Trains two models that `build` returns, one by `fit`, and compares everything.

    Args:
        build: Returns a compiled model, every time an equal one.
        x: The data, or a function that returns new data for each of the two; `callbacks` too.
        y: The targets; None where `x` holds them.
        cached: Arguments of `fit_cached` alone.
        tolerance: Of the comparison.
        seed: Of Keras, set before each training.
        arguments: Of both.

    Returns:
        The model that `fit_cached` trained, and its oracle.
    """
    options = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0} | arguments
    if y is None:
        options.pop("batch_size")
    made = x if callable(x) else lambda: x
    callbacks = options.pop("callbacks", lambda: None)
    oracle, model = build(), build()
    require_same(model, oracle, 0)
    before = numbers(oracle.trainable_variables)
    keras.utils.set_random_seed(seed)
    wanted = oracle.fit(made(), y, callbacks=callbacks(), **options)
    keras.utils.set_random_seed(seed)
    got = fit_cached(
        model, made(), y, callbacks=callbacks(), **options, **({"strict": True} | (cached or {}))
    )
    moved = [not np.array_equal(old, new) for old, new in zip(before, numbers(oracle.trainable_variables))]
    assert any(moved)  # or nothing would be compared
    require_same(model, oracle, tolerance)
    require_same_history(got, wanted, tolerance)
    assert model.history is got
    return model, oracle


def fit_quietly(model, x=X, y=Y, **arguments):
    """Calls `fit_cached`, which may not fall back."""
    return fit_cached(model, x, y, **({"verbose": 0, "strict": True, "batch_size": BATCH} | arguments))


def require_refused(model, message, x=X, y=Y, **arguments):
    """Checks that `fit_cached` raises before anything changes."""
    before, built = snapshot(model), model.optimizer.built
    with pytest.raises(ArgumentError, match=message):
        fit_quietly(model, x, y, **arguments)
    assert model.optimizer.built == built
    for name, wanted in before.items():
        for one, other in zip(snapshot(model)[name], wanted, strict=True):
            np.testing.assert_array_equal(one, other)


TRIAL = 3 * 2  # samples: a layer that is not Keras's own runs on two, twice, and on one of them doubled


class Counter(layers.Layer):
    """Counts the samples that pass, whenever a step runs, not when it is traced."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")
        self.seen = []

    def call(self, x):
        if not isinstance(x, keras.KerasTensor):
            tf.py_function(lambda each: self.seen.append(len(each)), [x], [])
        return x * self.scale


def counting(patterns=("d2", "head"), **arguments):
    """A model whose frozen layer `counter` counts samples, behind the frozen layer `d1`."""
    keras.utils.set_random_seed(0)
    names = ("d2", "head")
    stack = [layers.Dense(4, activation="tanh", name="d1"), Counter(name="counter")]
    stack += [layers.Dense(width, name=name) for width, name in zip((3, 2), names)]
    return compiled(keras.Sequential([keras.Input((6,)), *stack]), list(patterns), **arguments)
