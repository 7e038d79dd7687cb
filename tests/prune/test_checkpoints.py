"""Checkpoints while pruning: sparse, plain Keras's, and enough to go on as if nothing had happened."""

import os
import pathlib
import signal
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tests.prune.test_magnitude import RULER, X, Y, at_step, compiled, count, fit, net, python

ROOT = pathlib.Path(__file__).parents[2]
ONCE = tfkit.ConstantSparsity(0.75, begin_step=1, end_step=1, frequency=1)

# --- killed and resumed ---------------------------------------------------------------------------

RUN = """
import json, os, signal, sys
import keras, numpy as np, tfkit
from tests import models
folder, kill_at, result = sys.argv[1], int(sys.argv[2]), sys.argv[3]
random = np.random.default_rng(0)
x, y = random.normal(size=(24, 8, 8, 3)).astype("float32"), random.normal(size=(24, 2)).astype("float32")
model = models.conv_net()
model.get_layer("head").kernel.assign(np.zeros((6, 2)))  # zeros that have not been pruned
model.compile(keras.optimizers.Adam(0.01), "mse", jit_compile=False)
schedule = tfkit.PolynomialDecay(0.1, 0.8, begin_step=1, end_step=11, frequency=2)
tfkit.prune_low_magnitude(model, schedule, scope="global")

class Kill(keras.callbacks.Callback):
    steps = 0
    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

backup = keras.callbacks.BackupAndRestore(folder, double_checkpoint=True)
model.fit(x, y, 8, epochs=5, shuffle=False, verbose=0, callbacks=[backup, Kill()])
weights = model.get_weights() + [np.array(v) for v in model.optimizer.variables]
np.savez(result, model.history.epoch, *weights)
"""


def run(folder, kill_at=-1):
    result = folder / f"result{kill_at}.npz"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder / "backup"), str(kill_at), str(result)],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if kill_at > 0:
        assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
        return None
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(result) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Weights and optimizer state of a run that nothing disturbed."""
    return run(tmp_path_factory.mktemp("whole"))[1:]


@pytest.mark.slow
@pytest.mark.parametrize(("kill_at", "epoch"), [(2, 0), (7, 2), (12, 3)])  # of 3 steps an epoch
def test_a_run_that_is_killed_and_resumed_ends_bit_for_bit_as_the_whole_one(kill_at, epoch, whole, tmp_path):
    run(tmp_path, kill_at)
    epochs, *resumed = run(tmp_path)
    assert epochs.tolist() == [*range(epoch, 5)]
    expect_equal(resumed, whole)
    assert any(np.count_nonzero(array) < array.size for array in whole)


# --- zeros that were not pruned -------------------------------------------------------------------


def zero_net():
    """A kernel of zeros of which the data moves the first rows only."""
    model = keras.Sequential([keras.Input((24,)), layers.Dense(2, kernel_initializer="zeros", name="d1")])
    return compiled(tfkit.prune_low_magnitude(model, ONCE))


def halves():
    return X * (np.arange(24) < 12), X * (np.arange(24) >= 12)


@pytest.mark.parametrize("how", ["weights", "checkpoint"])
def test_a_weight_that_is_zero_by_itself_still_learns_after_a_restore(how, tmp_path):
    first, second = halves()
    old, new = zero_net(), zero_net()
    old.optimizer.build(old.trainable_variables)
    new.optimizer.build(new.trainable_variables)
    old.layers[0].kernel.constraint.family.pruning.step.assign(5)  # beyond the schedule: the mask stays full
    old.fit(first, Y, 8, verbose=0)
    assert count(old.layers[0]) == 24
    if how == "weights":
        old.save_weights(tmp_path / "model.weights.h5")
        new.load_weights(tmp_path / "model.weights.h5")
    else:
        tf.train.Checkpoint(old).restore(tf.train.Checkpoint(old).save(tmp_path / "c"))
        tf.train.Checkpoint(new).restore(tf.train.latest_checkpoint(tmp_path)).assert_consumed()
    new.fit(second, Y, 8, verbose=0)
    assert count(new.layers[0]) == 48


# --- files ----------------------------------------------------------------------------------------


def pruned_net(seed=0, units=(8,)):
    schedule = tfkit.ConstantSparsity(0.75, begin_step=1, end_step=2, frequency=1)
    return compiled(tfkit.prune_low_magnitude(models.dense_net(units, seed=seed), schedule), "adam")


def test_tensorflows_own_checkpoint_carries_masks_and_count(tmp_path):
    old, new = pruned_net(), pruned_net(seed=1)
    fit(old)
    path = tf.train.Checkpoint(model=old).save(tmp_path / "c")
    new.optimizer.build(new.trainable_variables)
    tf.train.Checkpoint(model=new).restore(path).assert_consumed()
    assert int(np.asarray(new.layers[0].kernel.constraint.family.pruning.step)) == 3
    assert fit(old) == fit(new) == [12, 12, 12]
    expect_equal(old.get_weights(), new.get_weights())


def test_a_checkpoint_at_every_step_is_sparse(tmp_path):
    files = str(tmp_path / "{epoch}.weights.h5")
    checkpoint = keras.callbacks.ModelCheckpoint(files, save_weights_only=True)
    model = compiled(tfkit.prune_low_magnitude(net(), RULER))
    fit(model, epochs=3, batch_size=24, callbacks=[checkpoint])
    plain = compiled(net())
    for step in (1, 2, 3):
        plain.load_weights(tmp_path / f"{step}.weights.h5")
        assert count(plain.layers[0]) == at_step(step)


def test_the_masks_take_a_bit_a_weight(tmp_path):
    model = pruned_net()
    fit(model)
    model.save_weights(tmp_path / "model.weights.h5")
    sizes = {}
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visititems(lambda name, item: sizes.update({name: getattr(item, "nbytes", 0)}))
    masks = {name: size for name, size in sizes.items() if name.split("/")[-1] in ("mask_0", "mask_1")}
    assert sorted(masks.values()) == [2, 6]  # 16 and 48 weights


def test_a_file_without_masks_gives_them_by_its_zeros(tmp_path):
    plain = compiled(tfkit.prune_now(models.dense_net((8,)), 0.75), "adam")
    fit(plain, epochs=0)
    plain.save_weights(tmp_path / "model.weights.h5")
    model = compiled(
        tfkit.prune_low_magnitude(models.dense_net((8,), seed=1), tfkit.ConstantSparsity(0.9, 50))
    )
    model.load_weights(tmp_path / "model.weights.h5")
    assert fit(model) == [12, 12, 12]


def test_a_file_with_masks_loads_into_a_model_that_is_not_pruned(tmp_path):
    model = pruned_net()
    fit(model)
    model.save_weights(tmp_path / "model.weights.h5")
    plain = compiled(models.dense_net((8,), seed=1), "adam")
    plain.load_weights(tmp_path / "model.weights.h5")
    expect_equal(plain.get_weights(), model.get_weights())


def test_an_inner_models_file_carries_the_masks_of_its_layers(tmp_path):
    first, second = (
        tfkit.prune_low_magnitude(models.nested_net(), tfkit.ConstantSparsity(0.75, 0, frequency=1))
        for _ in range(2)
    )
    compiled(first).fit(np.ones((2, 8, 8, 3)), np.ones((2, 2)), verbose=0)
    inner = first.get_layer("wrapper").get_layer("backbone")
    inner.save_weights(tmp_path / "inner.weights.h5")
    other = second.get_layer("wrapper").get_layer("backbone")
    other.load_weights(tmp_path / "inner.weights.h5")
    for name in ("conv1", "conv2"):
        ours, theirs = inner.get_layer(name).kernel, other.get_layer(name).kernel
        np.testing.assert_array_equal(ours.constraint.mask, theirs.constraint.mask)
        assert np.asarray(theirs.constraint.mask).mean() == 0.25


def test_a_keras_file_goes_on_when_its_weights_are_loaded_after_pruning(tmp_path):
    model = compiled(tfkit.prune_low_magnitude(net(), RULER))
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    tfkit.prune_low_magnitude(loaded, RULER).load_weights(tmp_path / "model.keras")
    expected = [at_step(4), at_step(5), at_step(6)]
    assert fit(loaded) == fit(model) == expected


def test_a_file_of_another_shape_is_refused_by_keras(tmp_path):
    small, large = pruned_net(), pruned_net(units=(16,))
    small.save_weights(tmp_path / "model.weights.h5")
    with pytest.raises(ValueError, match="shape"):
        large.load_weights(tmp_path / "model.weights.h5")


def test_a_mask_of_another_shape_stays_out_with_the_weight_it_belongs_to(tmp_path):
    small, large = pruned_net(units=(8,)), pruned_net(units=(16,), seed=1)
    fit(small)
    small.save_weights(tmp_path / "model.weights.h5")
    with pytest.warns(UserWarning, match="shape"):
        large.load_weights(tmp_path / "model.weights.h5", skip_mismatch=True)
    assert np.asarray(large.layers[0].kernel.constraint.mask).all()


LOAD = """
import json, sys
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
print(json.dumps([sorted(vars(model.layers[0])), float(np.sum(model(np.ones((1, 6)))))]))
"""


def test_after_a_strip_the_file_loads_where_tfkit_is_not_installed(tmp_path):
    model = pruned_net()
    fit(model)
    model.save(tmp_path / "pruning.keras")
    tfkit.strip_pruning(model)
    model.save(tmp_path / "stripped.keras")
    with_tfkit = sorted(vars(keras.models.load_model(tmp_path / "stripped.keras").layers[0]))
    for name in ("pruning.keras", "stripped.keras"):
        attributes, total = python(LOAD, tmp_path / name, blocked=["tfkit", "tensorflow_model_optimization"])
        assert attributes == with_tfkit
        assert total == pytest.approx(float(np.sum(model(np.ones((1, 6))))), rel=1e-5)


def test_after_a_strip_no_file_holds_a_mask(tmp_path):
    model = pruned_net()
    fit(model)
    tfkit.strip_pruning(model)
    model.save_weights(tmp_path / "model.weights.h5")
    names = []
    with h5py.File(tmp_path / "model.weights.h5") as file:
        file.visit(names.append)
    assert not any("mask" in name or "pruning" in name for name in names)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "c")
    assert not any("mask" in name or "pruning" in name for name, _ in tf.train.list_variables(path))


def test_a_saved_model_of_a_model_in_training_holds_no_masks(tmp_path):
    model = pruned_net()
    fit(model)
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    assert [tuple(v.shape) for v in loaded.variables] == [tuple(v.shape) for v in model.variables]
