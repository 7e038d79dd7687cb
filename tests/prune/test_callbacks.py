"""UpdatePruningStep: sparsity in the logs, and every call of a TFMOT script."""

import keras
import numpy as np
import pytest
import tf_keras
from tensorflow_model_optimization.sparsity import keras as tfmot

import tfkit
from tests import models
from tests.arrays import expect_equal

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
    expect_equal(model.get_weights(), before)


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


# --- PruningSummaries ------------------------------------------------------------------------------


def scalars(folder):
    """name -> {step: value} of all event files in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util import tensor_util

    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return {
        tag: {
            event.step: float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)
        }
        for tag in events.Tags()["tensors"]
    }


def test_summaries_hold_sparsity_and_threshold_of_every_kernel_before_each_epoch(tmp_path):
    schedule = tfkit.PolynomialDecay(0.0, 0.75, begin_step=0, end_step=3, power=1, frequency=1)
    model = tfkit.prune_low_magnitude(models.dense_net(), schedule, layers="d*")
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            seen.append(
                {name: np.abs(np.asarray(self.model.get_layer(name).kernel)) for name in ("d1", "d2")}
            )

    fit(model, tfkit.PruningSummaries(str(tmp_path)), Look())
    found = scalars(tmp_path / "metrics")
    assert set(found) == {
        f"{name}/kernel/{what}" for name in ("d1", "d2") for what in ("sparsity", "threshold")
    }
    for name in ("d1", "d2"):
        for step in range(3):
            kernel = seen[step][name]
            assert found[f"{name}/kernel/sparsity"][step] == pytest.approx(np.mean(kernel == 0))
            assert found[f"{name}/kernel/threshold"][step] == pytest.approx(kernel[kernel > 0].min())
    assert found["d1/kernel/sparsity"] == pytest.approx({0: 0.0, 1: 0.25, 2: 0.5})


def test_tfmots_summaries_count_the_same_sparsity(tmp_path):
    layer = tf_keras.layers.Dense(4)
    theirs = tfmot.prune_low_magnitude(
        tf_keras.Sequential([tf_keras.Input((6,)), layer]), tfmot.ConstantSparsity(0.75, 0, frequency=1)
    )
    theirs.compile("sgd", "mse")
    callbacks = [tfmot.UpdatePruningStep(), tfmot.PruningSummaries(str(tmp_path / "theirs"))]
    theirs.fit(X, Y[:, :1].repeat(4, 1), 12, epochs=2, verbose=0, callbacks=callbacks)
    ours = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    tfkit.prune_low_magnitude(ours, tfkit.ConstantSparsity(0.75, 0, frequency=1))
    ours.compile("sgd", "mse", jit_compile=False)
    summaries = tfkit.PruningSummaries(str(tmp_path / "ours"))
    ours.fit(X, Y[:, :1].repeat(4, 1), 12, epochs=2, verbose=0, callbacks=[summaries])

    def sparsities(folder):
        found = scalars(folder / "metrics")
        return [list(values.items()) for tag, values in found.items() if tag.endswith("/sparsity")]

    assert sparsities(tmp_path / "ours") == sparsities(tmp_path / "theirs") == [[(0, 0.0), (1, 0.75)]]


def test_a_kernel_of_zeros_has_the_threshold_zero(tmp_path):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2, kernel_initializer="zeros", name="d")])
    tfkit.prune_low_magnitude(model)
    fit(model, tfkit.PruningSummaries(tmp_path), epochs=1)
    assert scalars(tmp_path / "metrics") == {"d/kernel/sparsity": {0: 1.0}, "d/kernel/threshold": {0: 0.0}}


def test_summaries_are_tensorboards_too(tmp_path):
    fit(tfkit.prune_low_magnitude(models.dense_net()), tfkit.PruningSummaries(tmp_path, write_graph=False))
    assert "epoch_loss" in scalars(tmp_path / "train")


@pytest.mark.parametrize("log_dir", [None, "", 7])
def test_summaries_need_a_folder(log_dir):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"must be the path of a folder.*Received: log_dir="):
        tfkit.PruningSummaries(log_dir)
