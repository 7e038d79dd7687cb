"""UpdatePruningStep: sparsity in the logs, and every call of a TFMOT script."""

import keras
import numpy as np
import pytest
import tf_keras
from tensorflow_model_optimization.sparsity import keras as tfmot

import tfkit
from tests import models

X = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(12, 2)).astype("float32")


def fit(model, *callbacks, epochs=3, **options):
    model.compile("sgd", "mse", jit_compile=False)
    return model.fit(X, Y, 12, epochs=epochs, verbose=0, callbacks=list(callbacks), **options).history


def prepared(model, package=tfkit):
    callback = package.UpdatePruningStep()
    callback.set_model(model)
    return callback


def test_the_logs_hold_the_joint_sparsity_of_each_epoch():
    schedule = tfkit.PolynomialDecay(0.0, 0.75, begin_step=0, end_step=3, power=1, frequency=1)
    model = tfkit.prune_low_magnitude(models.dense_net(), schedule)
    sizes = [48, 32, 8]
    kept = [sum(round(size * (1 - 0.25 * epoch)) for size in sizes) for epoch in (1, 2, 3)]
    assert fit(model, tfkit.UpdatePruningStep())["sparsity"] == pytest.approx(1 - np.array(kept) / sum(sizes))


def test_kernels_that_are_not_pruned_do_not_count():
    model = tfkit.prune_low_magnitude(
        models.dense_net(), tfkit.ConstantSparsity(0.75, 0, frequency=1), layers="d2"
    )
    assert fit(model, tfkit.UpdatePruningStep(), epochs=1)["sparsity"] == [0.75]


def test_later_callbacks_can_monitor_the_sparsity():
    model = tfkit.prune_low_magnitude(models.dense_net(), tfkit.ConstantSparsity(0.5, 0, frequency=1))
    stop = keras.callbacks.EarlyStopping(monitor="sparsity", mode="max", patience=1)
    assert len(fit(model, tfkit.UpdatePruningStep(), stop, epochs=9)["sparsity"]) == 2


def test_pruning_needs_no_callback():
    model = tfkit.prune_low_magnitude(models.dense_net(), tfkit.ConstantSparsity(0.5, 0, frequency=1))
    fit(model, epochs=1)
    assert np.count_nonzero(model.get_layer("d1").kernel) == 24


@pytest.mark.parametrize(
    "prepare",
    [lambda model: model, lambda model: tfkit.strip_pruning(tfkit.prune_low_magnitude(model))],
    ids=["never pruned", "stripped"],
)
def test_a_model_without_masks_gets_no_sparsity(prepare):
    assert "sparsity" not in fit(prepare(models.dense_net()), tfkit.UpdatePruningStep(), epochs=1)


def test_the_callback_changes_no_weight():
    model = tfkit.prune_low_magnitude(models.dense_net(), tfkit.ConstantSparsity(0.5, 0, frequency=1))
    before = model.get_weights()
    callback = prepared(model)
    callback.on_train_begin()
    callback.on_epoch_end(0, {})
    assert all(map(np.array_equal, model.get_weights(), before))


# TFMOT's guide drives its callback by hand in custom loops.
CALLS = {
    "on_train_begin()": lambda callback: callback.on_train_begin(),
    "on_train_begin(logs)": lambda callback: callback.on_train_begin(logs={}),
    "on_train_batch_begin": lambda callback: callback.on_train_batch_begin(batch=-1),
    "on_epoch_end(batch=-1)": lambda callback: callback.on_epoch_end(batch=-1),
    "on_epoch_end(batch, logs)": lambda callback: callback.on_epoch_end(batch=0, logs={}),
    "on_epoch_end(0)": lambda callback: callback.on_epoch_end(0),
    "on_epoch_end(0, logs)": lambda callback: callback.on_epoch_end(0, {}),
}


def test_the_calls_below_are_tfmots():
    layer = tf_keras.layers.Dense(2)
    theirs = prepared(tfmot.prune_low_magnitude(tf_keras.Sequential([tf_keras.Input((6,)), layer])), tfmot)
    assert [call(theirs) for call in CALLS.values()] == [None] * len(CALLS)


@pytest.mark.parametrize("call", CALLS)
def test_tfmots_calls_are_accepted(call):
    assert CALLS[call](prepared(tfkit.prune_low_magnitude(models.dense_net()))) is None
