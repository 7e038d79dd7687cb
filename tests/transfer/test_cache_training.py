"""`fit_cached` whatever the optimizer, the precision, the penalties and the devices are."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfkit
from tests import models
from tests.transfer.caching import GOES_ON, IMAGES, X, Y, compiled, dense, train_both
from tests.transfer.test_cache import branches, residual, siamese
from tfkit.frozen import halves

# --- how the model was compiled --------------------------------------------------------------------

SGD, Adam = keras.optimizers.SGD, keras.optimizers.Adam
COMPILED = {
    "a traced step": {"jit_compile": False},
    "XLA": {"jit_compile": True},
    "several steps an execution": {"jit_compile": False, "steps_per_execution": 2},
    "metrics": {"metrics": ["mae", "root_mean_squared_error"], "weighted_metrics": ["mse"]},
}
OPTIMIZERS = {
    "adam": lambda: Adam(0.01),
    "ema": lambda: SGD(0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
    "ema at the end": lambda: SGD(0.05, use_ema=True, ema_momentum=0.5),
    "accumulation": lambda: SGD(0.05, gradient_accumulation_steps=2),
    "loss scaling": lambda: keras.optimizers.LossScaleOptimizer(SGD(0.05), initial_scale=8.0),
    "schedule": lambda: SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)),
}


@pytest.mark.parametrize("name", COMPILED)
def test_however_the_model_was_compiled_training_equals_fit(name):
    train_both(lambda: dense(**COMPILED[name]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_whatever_the_optimizer_training_equals_fit(name):
    train_both(lambda: dense(optimizer=OPTIMIZERS[name]()))


@pytest.fixture
def policy():
    yield keras.config.set_dtype_policy
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(("name", "budget"), [("mixed_float16", 4), ("mixed_bfloat16", 0)])
def test_mixed_precision_equals_fit(name, budget, policy):
    policy(name)
    train_both(
        lambda: compiled(branches(), ["trained*", "head"]),
        cached={"memory_budget_gb": budget},
        tolerance={"mixed_float16": 1e-3, "mixed_bfloat16": 1e-2}[name],  # fused kernels round once less
    )


def test_a_mixed_precision_graph_with_loose_operations_equals_fit(policy):
    policy("mixed_float16")
    train_both(lambda: compiled(residual(), ["trained1", "head"]), tolerance=1e-3)


def test_a_nested_sequential_of_mixed_precision_equals_fit(policy):
    policy("mixed_float16")
    # the tower takes float32 and is given float16, so it runs as a whole
    with pytest.warns(UserWarning, match=f"{GOES_ON}.*tower/t1 stands inside tower, which trains"):
        train_both(
            lambda: compiled(siamese(), ["tower/t2", "head"]), cached={"strict": False}, tolerance=1e-3
        )


def test_double_precision_equals_fit(policy):
    policy("float64")
    train_both(lambda: compiled(branches(), ["trained*", "head"]), tolerance=1e-10)


@pytest.mark.parametrize("most", [0, 2**28], ids=["variables", "constants"])
def test_a_convolution_with_its_normalisation_in_one_graph_equals_fit(most, monkeypatch):
    monkeypatch.setattr(halves, "CONSTANT_BYTES", most)

    def build():
        model, random = models.conv_net(), np.random.default_rng(0)
        for layer in model.layers:
            if isinstance(layer, layers.BatchNormalization):  # as after training
                layer.set_weights([random.uniform(0.5, 2.0, size=w.shape) for w in layer.weights])
        return compiled(model, "head", run_eagerly=False)

    train_both(build, IMAGES, Y, validation_data=(IMAGES[:3], Y[:3]))


# --- penalties, decay, pruning ----------------------------------------------------------------------


def regularized():
    keras.utils.set_random_seed(0)
    stack = [layers.Dense(5, kernel_regularizer="l2", bias_regularizer="l1", name=n) for n in ("one", "two")]
    return keras.Sequential([keras.Input((6,)), *stack, layers.Dense(2, name="head")])


def test_regularizers_of_frozen_and_of_trained_layers_equal_fit():
    train_both(lambda: compiled(regularized(), ["two", "head"]))


def test_a_penalty_equals_fit():
    train_both(lambda: tfkit.add_weight_penalty(dense(), l2=0.1, layers="d2"))


def test_decay_and_rates_by_layer_equal_fit():
    def build():
        model = dense(optimizer=Adam(0.01))
        tfkit.set_weight_decay(model, 0.5)
        tfkit.set_learning_rate_multipliers(model, {"d2": 0.1})
        return model

    train_both(build)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_pruned_model_equals_fit(when):
    def build():
        schedule = tfkit.PolynomialDecay(0.0, 0.75, 0, 4, frequency=1)
        model = models.dense_net()
        if when == "before":
            tfkit.prune_low_magnitude(model, schedule)
        compiled(model, ["d2", "head"])
        return model if when == "before" else tfkit.prune_low_magnitude(model, schedule)

    model, oracle = train_both(build)
    table = tfkit.sparsity_table(model)
    assert table.sparsity.max() > 0.5
    assert table.sparsity.tolist() == tfkit.sparsity_table(oracle).sparsity.tolist()


def test_an_activity_regularizer_of_a_trained_layer_equals_fit():
    def build():
        keras.utils.set_random_seed(0)
        stack = [layers.Dense(5, name="one"), layers.Dense(5, activity_regularizer="l2", name="two")]
        return compiled(
            keras.Sequential([keras.Input((6,)), *stack, layers.Dense(2, name="head")]), ["two", "head"]
        )

    train_both(build)


class Endpoint(layers.Layer):
    """Takes the targets as an input and adds the loss itself."""

    def call(self, predicted, wanted):
        self.add_loss(ops.mean((predicted - wanted) ** 2))
        return predicted


def test_a_model_without_targets_that_adds_its_loss_equals_fit():
    def build():
        keras.utils.set_random_seed(0)
        inputs, wanted = keras.Input((6,), name="x"), keras.Input((2,), name="wanted")
        x = layers.Dense(2, name="head")(layers.Dense(4, name="frozen")(inputs))
        return compiled(keras.Model([inputs, wanted], Endpoint(name="end")(x, wanted)), "head", loss=None)

    train_both(build, lambda: [X, Y], None, batch_size=4)


# --- randomness in the trained part ------------------------------------------------------------------


def test_dropout_in_the_trained_part_equals_fit_with_the_same_seed():
    def build():
        keras.utils.set_random_seed(0)
        stack = [layers.Dense(8, name="one"), layers.Dropout(0.5), layers.Dense(2, name="head")]
        return compiled(keras.Sequential([keras.Input((6,)), *stack]), "head")

    train_both(build, shuffle=True)


# --- several devices ----------------------------------------------------------------------------------

MIRRORED = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np
from tests.transfer.caching import X, Y, compiled
from tests import models
from tfkit.transfer import fit_cached
strategy = tf.distribute.MirroredStrategy(["cpu:0", "cpu:1"])
trained = []
for fit in (keras.Model.fit, fit_cached):
    with strategy.scope():
        model = compiled(models.dense_net(), ["d2", "head"], jit_compile=False, metrics=["mae"])
    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, "validation_split": 0.2}
    history = fit(model, X, Y, **options)
    trained.append((model.get_weights(), history.history))
assert strategy.num_replicas_in_sync == 2
for one, other in zip(trained[0][0], trained[1][0], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
for name, wanted in trained[0][1].items():
    np.testing.assert_allclose(trained[1][1][name], wanted, rtol=1e-5)
print("equal")
"""


@pytest.mark.slow
def test_mirrored_on_two_devices_training_equals_fit():
    # Devices are chosen before TensorFlow starts, so in a process of its own.
    done = subprocess.run([sys.executable, "-c", MIRRORED], capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]
