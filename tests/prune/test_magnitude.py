"""Pruning while training: exact counts after every update, resumption, and nothing left behind."""

import functools
import json
import math
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow_model_optimization.sparsity import keras as tfmot

import tfkit
from tests import models
from tests.arrays import expect_equal

ROOT = pathlib.Path(__file__).parents[2]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 24)).astype("float32")
Y = RNG.normal(size=(24, 2)).astype("float32")
# d1 has 48 weights; with 10% more zeros a step, its count tells which step the schedule was asked for.
RULER = tfkit.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=8, power=1, frequency=1)


def net():
    """One kernel of 48 weights, d1: it traces faster than several."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((24,)), layers.Dense(2, name="d1")])


def kept(size, sparsity):
    return max(int(np.round(np.float32(size) * (np.float32(1) - np.float32(sparsity)))), 1)


def at_step(step, size=48):
    """How many of d1's weights RULER keeps at a step."""
    return kept(size, 0.1 * min(step, 8))


def count(layer):
    return int(np.count_nonzero(layer.kernel))


def always(sparsity):
    return tfkit.ConstantSparsity(sparsity, begin_step=0, frequency=1)


def compiled(model, optimizer="sgd", **options):
    if optimizer == "sgd":
        optimizer = keras.optimizers.SGD(0.01)
    model.compile(optimizer, "mse", **({"jit_compile": False} | options))
    return model


class Counts(keras.callbacks.Callback):
    """Records the non-zero weights of one kernel, or of all, after every batch."""

    def __init__(self, layer=None):
        super().__init__()
        self.layer, self.seen = layer, []

    def on_train_batch_end(self, batch, logs=None):
        if self.layer:
            self.seen.append(count(self.model.get_layer(self.layer)))
        else:
            self.seen.append({v.path: int(np.count_nonzero(v)) for v in self.model.trainable_variables})


def inputs_of(model):
    return X[:, : model.inputs[0].shape[1]]


def fit(model, epochs=1, batch_size=8, callbacks=(), layer="d1"):
    """Trains without shuffling; returns the counts of `layer` after every batch."""
    counts = Counts(layer)
    model.fit(
        inputs_of(model), Y, batch_size, epochs, verbose=0, shuffle=False, callbacks=[*callbacks, counts]
    )
    return counts.seen


def take_step(model, optimizer):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(inputs_of(model), training=True) - Y) ** 2)
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


# Every kind of kernel, in one model: name -> input shape, layer.
ZOO = {
    "dense": ((5,), layers.Dense, (7,)),
    "conv1d": ((8, 2), layers.Conv1D, (4, 3)),
    "conv2d": ((6, 6, 2), layers.Conv2D, (3, 3)),
    "conv3d": ((4, 4, 4, 2), layers.Conv3D, (3, 2)),
    "conv1d_transpose": ((8, 2), layers.Conv1DTranspose, (4, 3)),
    "conv2d_transpose": ((6, 6, 2), layers.Conv2DTranspose, (3, 3)),
    "conv3d_transpose": ((4, 4, 4, 2), layers.Conv3DTranspose, (3, 2)),
    "depthwise_conv1d": ((8, 4), layers.DepthwiseConv1D, (3,)),
    "depthwise_conv2d": ((6, 6, 3), layers.DepthwiseConv2D, (3,)),
    "separable_conv1d": ((8, 4), layers.SeparableConv1D, (5, 3)),
    "separable_conv2d": ((6, 6, 3), layers.SeparableConv2D, (5, 3)),
    "lstm": ((4, 3), layers.LSTM, (5,)),
    "attention": ((4, 3), layers.MultiHeadAttention, (2, 3)),
}
SIZES = {
    "dense/kernel": 5 * 7,
    "conv1d/kernel": 3 * 2 * 4,
    "conv2d/kernel": 9 * 2 * 3,
    "conv3d/kernel": 8 * 2 * 3,
    "conv1d_transpose/kernel": 3 * 2 * 4,
    "conv2d_transpose/kernel": 9 * 2 * 3,
    "conv3d_transpose/kernel": 8 * 2 * 3,
    "depthwise_conv1d/kernel": 3 * 4,
    "depthwise_conv2d/kernel": 9 * 3,
    "separable_conv1d/depthwise_kernel": 3 * 4,
    "separable_conv1d/pointwise_kernel": 4 * 5,
    "separable_conv2d/depthwise_kernel": 9 * 3,
    "separable_conv2d/pointwise_kernel": 3 * 5,
    "lstm/lstm_cell/kernel": 3 * 20,
    "lstm/lstm_cell/recurrent_kernel": 5 * 20,
    "attention/query/kernel": 3 * 2 * 3,
    "attention/attention_output/kernel": 2 * 3 * 3,
}
STEPS = 12
SCHEDULES = {
    "constant": (tfmot.ConstantSparsity, {"target_sparsity": 0.8}, lambda step: 0.8),
    "polynomial": (
        tfmot.PolynomialDecay,
        {"initial_sparsity": 0.2, "final_sparsity": 0.9, "power": 3},
        lambda step: 0.9 + (0.2 - 0.9) * (1 - min(max((step - 2) / 8, 0), 1)) ** 3,
    ),
}


@functools.cache
def zoo_counts(schedule, frequency):
    keras.utils.set_random_seed(0)
    inputs, outputs = [], []
    for name, (shape, kind, arguments) in ZOO.items():
        each = keras.Input(shape)
        layer = kind(*arguments, name=name)
        inputs.append(each)
        outputs.append(layers.Flatten()(layer(each, each) if name == "attention" else layer(each)))
    model = keras.Model(inputs, layers.Concatenate()(outputs))
    make, options, _ = SCHEDULES[schedule]
    tfkit.prune_low_magnitude(model, make(**options, begin_step=2, end_step=10, frequency=frequency))
    x = [RNG.normal(size=(2 * STEPS, *each.shape[1:])) for each in inputs]
    counts = Counts()
    compiled(model).fit(
        x, RNG.normal(size=(2 * STEPS, model.output.shape[1])), 2, verbose=0, callbacks=counts
    )
    return counts.seen


@pytest.mark.parametrize("kernel", SIZES)
@pytest.mark.parametrize("frequency", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_after_every_update_a_kernel_has_exactly_the_schedules_count(schedule, frequency, kernel):
    size, sparsity, now, expected = SIZES[kernel], SCHEDULES[schedule][2], SIZES[kernel], []
    for step in range(1, STEPS + 1):
        if 2 <= step <= 10 and (step - 2) % frequency == 0:
            now = kept(size, sparsity(step))
        expected.append(now)
    assert [counts[kernel] for counts in zoo_counts(schedule, frequency)] == expected


@pytest.mark.parametrize(
    "options", [{"jit_compile": True}, {"jit_compile": False}, {"run_eagerly": True}], ids=str
)
def test_the_count_follows_the_schedule_however_the_step_is_compiled(options):
    model = tfkit.prune_low_magnitude(net(), RULER)
    assert fit(compiled(model, **options)) == [at_step(1), at_step(2), at_step(3)]


def test_weights_follow_masked_gradient_descent():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, use_bias=False, name="d1")])
    weights = np.asarray(model.get_layer("d1").kernel).astype("float64")
    tfkit.prune_low_magnitude(model, always(0.5))
    compiled(model, keras.optimizers.SGD(0.1)).fit(X[:, :6], Y, 8, epochs=2, shuffle=False, verbose=0)
    for start in [0, 8, 16] * 2:
        x, y = X[start : start + 8, :6], Y[start : start + 8]
        weights -= 0.1 * x.T @ (2 * (x @ weights - y) / y.size)
        weights[np.abs(weights) < np.sort(np.abs(weights), axis=None)[6]] = 0
    np.testing.assert_allclose(model.get_layer("d1").kernel, weights, atol=1e-6)


def two_weights(schedule):
    """Weights 1 and 0.1; the first batch has no gradient, the second makes the lesser one 2 or more."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, use_bias=False, name="d1")])
    model.get_layer("d1").kernel.assign([[1.0], [0.1]])
    compiled(tfkit.prune_low_magnitude(model, schedule), keras.optimizers.SGD(0.1))
    model.train_on_batch(np.array([[1.0, 0.0]]), np.array([[1.0]]))
    model.train_on_batch(np.array([[0.0, 1.0]]), np.array([[10.0]]))
    return np.asarray(model.get_layer("d1").kernel).ravel()


def test_a_masked_weight_comes_back_when_it_grows():
    np.testing.assert_allclose(two_weights(always(0.5)), [0.0, 2.0], atol=1e-6)


def test_after_the_schedules_end_the_last_mask_holds():
    schedule = tfkit.ConstantSparsity(0.5, begin_step=0, end_step=1, frequency=1)
    np.testing.assert_allclose(two_weights(schedule), [1.0, 0.0], atol=1e-6)


def test_steps_per_execution_does_not_change_the_count_of_steps():
    model = compiled(tfkit.prune_low_magnitude(net(), RULER), steps_per_execution=3)
    assert fit(model, batch_size=4) == [at_step(3), at_step(6)]


def test_under_accumulation_a_step_is_an_update():
    model = tfkit.prune_low_magnitude(net(), RULER)
    compiled(model, keras.optimizers.SGD(0.01, gradient_accumulation_steps=2))
    assert fit(model, batch_size=4) == [48, at_step(1), at_step(1), at_step(2), at_step(2), at_step(3)]


def test_between_updates_under_accumulation_no_weight_changes():
    model = tfkit.prune_low_magnitude(net(), always(0.5))
    compiled(model, keras.optimizers.SGD(0.1, gradient_accumulation_steps=3))
    before = model.get_weights()
    model.train_on_batch(X, Y)
    model.train_on_batch(X, Y)
    expect_equal(model.get_weights(), before)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "tf.function"])
def test_a_custom_loop_that_only_applies_gradients_prunes(wrap):
    model, optimizer = net(), keras.optimizers.Adam(0.01)
    tfkit.prune_low_magnitude(model, RULER)
    optimizer.build(model.trainable_variables)
    step = wrap(lambda: take_step(model, optimizer))
    seen = [step() or count(model.get_layer("d1")) for _ in range(3)]
    assert seen == [at_step(1), at_step(2), at_step(3)]


def test_a_loss_scale_optimizer_prunes_and_counts():
    model = compiled(net(), keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)))
    fit(model)
    assert fit(tfkit.prune_low_magnitude(model, RULER)) == [at_step(1), at_step(2), at_step(3)]


@pytest.mark.parametrize("dtype", ["mixed_float16", "bfloat16", "float64"])
def test_the_count_is_exact_in_every_precision(dtype):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, name="d1", dtype=dtype)])
    assert fit(compiled(tfkit.prune_low_magnitude(model, always(0.75)))) == [3, 3, 3]


def test_the_last_update_is_sparse_with_averaged_weights_too():
    """Keras puts the moving average into the model when `fit` ends."""
    model = compiled(net(), keras.optimizers.SGD(0.01, use_ema=True))
    fit(tfkit.prune_low_magnitude(model, always(0.75)))
    assert count(model.get_layer("d1")) == 12


def python(script, *arguments, blocked=(), timeout=120):
    """Runs a script in a new process that cannot import the blocked packages."""
    block = f"import sys; sys.modules.update(dict.fromkeys({list(blocked)!r}))\n"
    done = subprocess.run(
        [sys.executable, "-c", block + script, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


# Counting.


def test_updates_before_pruning_do_not_count():
    model = compiled(net())
    model.fit(X[:5], Y[:5], batch_size=1, verbose=0)
    assert fit(tfkit.prune_low_magnitude(model, RULER)) == [at_step(1), at_step(2), at_step(3)]


def test_updates_before_pruning_do_not_count_in_a_custom_loop():
    model, optimizer = net(), keras.optimizers.SGD(0.01)
    for _ in range(5):
        take_step(model, optimizer)
    tfkit.prune_low_magnitude(model, RULER)
    take_step(model, optimizer)
    assert count(model.get_layer("d1")) == at_step(1)


def test_updates_before_pruning_do_not_count_with_several_optimizers():
    one, other = keras.optimizers.SGD(0.01), keras.optimizers.Adam(0.01)
    both = keras.optimizers.MultiOptimizer(lambda v: one if v.name == "kernel" else other)
    model = compiled(net(), both)
    fit(model)
    assert fit(tfkit.prune_low_magnitude(model, RULER)) == [at_step(1), at_step(2), at_step(3)]


def test_recompiling_midway_goes_on_counting():
    model = compiled(tfkit.prune_low_magnitude(net(), RULER))
    fit(model)
    assert fit(compiled(model, keras.optimizers.Adam(0.01))) == [at_step(4), at_step(5), at_step(6)]


def test_layers_pruned_later_count_from_their_own_call():
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(), always(0.5), layers="d2"))
    fit(model)
    tfkit.prune_low_magnitude(model, RULER, layers="d1")
    assert fit(model) == [at_step(1), at_step(2), at_step(3)]


def test_pruning_again_after_a_strip_counts_from_one():
    model = compiled(tfkit.prune_low_magnitude(net(), always(0.1)))
    fit(model)
    tfkit.prune_low_magnitude(tfkit.strip_pruning(model), RULER)
    assert fit(model)[1:] == [at_step(2), at_step(3)]


def test_a_model_that_was_trained_already_is_pruned_from_the_next_fit_on():
    model = compiled(net())
    assert fit(model) == [48, 48, 48]
    assert fit(tfkit.prune_low_magnitude(model, always(0.75))) == [12, 12, 12]


# What is pruned, and what else stays as it is.


@pytest.mark.parametrize(
    ("patterns", "counts"),
    [(None, [12, 8, 2]), ("d1", [12, 32, 8]), ("d*", [12, 8, 8]), (["d1..head", "!d2"], [12, 32, 2])],
    ids=str,
)
def test_only_the_named_layers_are_pruned(patterns, counts):
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(), always(0.75), layers=patterns))
    fit(model)
    assert [count(layer) for layer in model.layers] == counts


def test_each_layer_may_have_its_own_schedule():
    model = tfkit.prune_low_magnitude(models.dense_net(), always(0.75), layers="d1")
    fit(compiled(tfkit.prune_low_magnitude(model, always(0.5), layers="d2")))
    assert [count(layer) for layer in model.layers] == [12, 16, 8]


@pytest.mark.parametrize("build", [models.nested_net, models.subclassed_net])
def test_nested_and_subclassed_models_are_pruned_inside(build):
    model = tfkit.prune_low_magnitude(build(), always(0.75))
    compiled(model).fit(RNG.normal(size=(4, 8, 8, 3)), RNG.normal(size=(4, 2)), verbose=0)
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    assert [np.count_nonzero(v) for v in kernels] == [kept(math.prod(v.shape), 0.75) for v in kernels]


def test_biases_and_normalisation_stay_whole():
    model = compiled(tfkit.prune_low_magnitude(models.conv_net(), always(0.75)))
    model.fit(RNG.normal(size=(4, 8, 8, 3)), RNG.normal(size=(4, 2)), verbose=0)
    bn = model.get_layer("bn1")
    assert all(np.all(np.asarray(v) != 0) for v in [bn.gamma, bn.beta, bn.moving_mean, bn.moving_variance])


def test_a_frozen_layer_is_not_touched():
    model = models.dense_net()
    model.get_layer("d1").trainable = False
    before = np.array(model.get_layer("d1").kernel)
    fit(compiled(tfkit.prune_low_magnitude(model, always(0.75))))
    np.testing.assert_array_equal(model.get_layer("d1").kernel, before)


def test_pruning_works_in_place_and_keeps_names_and_configuration():
    model = models.nested_net()
    config = model.to_json()
    assert tfkit.prune_low_magnitude(model) is model
    assert model.to_json() == config


def test_pruning_alone_changes_no_weight():
    model = models.dense_net()
    before = model.get_weights()
    tfkit.prune_low_magnitude(model, always(0.9))
    expect_equal(model.get_weights(), before)


def test_a_kernel_of_zeros_still_learns():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, kernel_initializer="zeros", name="d1")])
    assert fit(compiled(tfkit.prune_low_magnitude(model, always(0.75)))) == [3, 3, 3]


def constrained_net():
    model = models.dense_net(units=())
    head = layers.Dense(2, kernel_constraint=keras.constraints.MaxNorm(0.1), name="d1")
    return keras.Sequential([model.inputs[0], head])


def test_the_users_own_constraint_still_holds():
    model = compiled(tfkit.prune_low_magnitude(constrained_net(), always(0.5)), keras.optimizers.SGD(1.0))
    assert fit(model) == [6, 6, 6]
    assert np.all(np.linalg.norm(model.get_layer("d1").kernel, axis=0) <= 0.1 + 1e-6)


def test_the_users_own_constraint_is_back_after_a_strip():
    model = constrained_net()
    constraint = model.get_layer("d1").kernel.constraint
    tfkit.strip_pruning(tfkit.prune_low_magnitude(model))
    assert model.get_layer("d1").kernel.constraint is constraint


# Saving and resuming.

PLAIN_KERAS = """
import json, sys
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
model.fit(np.ones((2, 6)), np.ones((2, 2)), verbose=0, epochs=0)
counts = [int(np.count_nonzero(layer.kernel)) for layer in model.layers]
print(json.dumps([counts, model(np.ones((1, 6))).numpy().tolist()]))
"""


def test_a_saved_model_loads_sparse_in_plain_keras(tmp_path):
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(), always(0.75)))
    fit(model)
    model.save(tmp_path / "model.keras")
    counts, output = python(PLAIN_KERAS, tmp_path / "model.keras", blocked=["tfkit"])
    assert counts == [12, 8, 2]
    np.testing.assert_allclose(output, model(np.ones((1, 6))), rtol=1e-5)


class Interruption(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise RuntimeError("interrupted")


@pytest.mark.parametrize(("frequency", "prune_first"), [(1, True), (3, False)])
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, frequency, prune_first):
    def run(*callbacks):
        model = models.dense_net(units=(8,))
        schedule = tfkit.PolynomialDecay(0.1, 0.8, begin_step=1, end_step=10, frequency=frequency)
        if prune_first:
            compiled(tfkit.prune_low_magnitude(model, schedule), keras.optimizers.Adam(0.01))
        else:
            tfkit.prune_low_magnitude(compiled(model, keras.optimizers.Adam(0.01)), schedule)
        fit(model, epochs=4, callbacks=callbacks)
        return model

    uninterrupted = run()
    with pytest.raises(RuntimeError, match="interrupted"):
        run(keras.callbacks.BackupAndRestore(tmp_path), Interruption())
    resumed = run(keras.callbacks.BackupAndRestore(tmp_path))
    assert resumed.history.epoch == [2, 3]
    expect_equal(resumed.get_weights(), uninterrupted.get_weights())


def test_weights_loaded_after_the_schedules_end_stay_sparse(tmp_path):
    def build():
        schedule = tfkit.ConstantSparsity(0.75, begin_step=0, end_step=2, frequency=1)
        return compiled(tfkit.prune_low_magnitude(net(), schedule))

    old, new = build(), build()
    fit(old)
    old.save_weights(tmp_path / "model.weights.h5")
    new.load_weights(tmp_path / "model.weights.h5")
    assert fit(new) == [12, 12, 12]


# strip_pruning and prune_now.


def test_strip_keeps_the_weights_and_returns_the_same_model():
    model = compiled(tfkit.prune_low_magnitude(net(), always(0.75)))
    fit(model)
    before = model.get_weights()
    assert tfkit.strip_pruning(model) is model
    expect_equal(model.get_weights(), before)


def test_after_a_strip_training_moves_the_zeros():
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(units=()), always(0.75)))
    assert fit(model, layer="head") == [3, 3, 3]
    assert fit(tfkit.strip_pruning(model), layer="head") == [12, 12, 12]


def test_strip_leaves_no_attribute_and_no_constraint_behind():
    model, plain = models.conv_net(), models.conv_net()
    tfkit.strip_pruning(tfkit.prune_low_magnitude(model))
    assert [set(vars(a)) for a in model.layers] == [set(vars(b)) for b in plain.layers]
    assert all(variable.constraint is None for variable in model.variables)


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, np.float32(0.25), 0])
def test_prune_now_zeroes_the_smallest_weights(sparsity):
    model = models.dense_net()
    kernel = np.array(model.get_layer("d1").kernel)
    threshold = np.sort(np.abs(kernel), axis=None)[::-1][kept(48, sparsity) - 1]
    assert tfkit.prune_now(model, sparsity) is model
    np.testing.assert_array_equal(
        model.get_layer("d1").kernel, np.where(np.abs(kernel) >= threshold, kernel, 0)
    )


def test_prune_now_leaves_other_layers_alone():
    model = tfkit.prune_now(models.dense_net(), 0.75, layers=["*", "!d2"])
    assert [count(layer) for layer in model.layers] == [12, 32, 2]


def test_nothing_holds_the_zeros_of_prune_now():
    model = compiled(tfkit.prune_now(models.dense_net(units=()), 0.75))
    assert fit(model, layer="head") == [12, 12, 12]


def test_prune_now_moves_the_mask_of_a_model_that_is_being_pruned():
    model = tfkit.prune_low_magnitude(net(), tfkit.ConstantSparsity(0.1, 100))
    assert fit(compiled(tfkit.prune_now(model, 0.75))) == [12, 12, 12]


# sparsity_table.


BUILDERS = [
    models.dense_net, models.conv_net, models.nested_net, models.subclassed_net, models.deep_net,
    models.shared_net, models.sequence_net, models.gated_net, models.root_weight_net, models.twins_net,
    models.hybrid_net, models.tied_net,
]  # fmt: skip


@pytest.mark.parametrize("build", BUILDERS)
def test_the_tables_parameters_sum_to_those_of_the_model(build):
    model = build()
    assert tfkit.sparsity_table(model).parameters.sum() == model.count_params()


def test_the_table_has_a_row_for_each_weight_with_its_zeros():
    model = models.dense_net(units=(4,))
    model.get_layer("d1").kernel.assign(np.eye(6, 4))
    table = tfkit.sparsity_table(model)
    assert list(table.columns) == ["path", "variable", "shape", "parameters", "sparsity", "status", "reason"]
    assert table.iloc[:, :5].values.tolist() == [
        ["d1", "kernel", (6, 4), 24, pytest.approx(20 / 24)],
        ["d1", "bias", (4,), 4, 1.0],
        ["head", "kernel", (4, 2), 8, 0.0],
        ["head", "bias", (2,), 2, 1.0],
    ]


def test_the_table_tells_what_is_pruned_and_why_the_rest_is_not():
    model = models.conv_net()
    model.get_layer("conv1").trainable = False
    tfkit.prune_low_magnitude(model, layers="conv*")
    rows = {
        f"{row.path}/{row.variable}": (row.status, row.reason)
        for row in tfkit.sparsity_table(model).itertuples()
    }
    assert rows["conv1/kernel"] == ("pruned", "frozen: the mask acts once the layer trains")
    assert rows["conv2/kernel"] == ("pruned", "")
    assert rows["head/kernel"] == ("skipped", "prunable, but carries no mask now")
    assert rows["bn1/gamma"] == ("skipped", "one-dimensional")


def test_the_tables_paths_lead_through_nested_models():
    paths = set(tfkit.sparsity_table(models.nested_net()).path)
    assert paths == {
        "wrapper/backbone/conv1",
        "wrapper/backbone/bn1",
        "wrapper/backbone/conv2",
        "wrapper/project",
        "head",
    }


# What is refused.


def outside(value):
    return lambda step: (True, value)


@pytest.mark.parametrize("call", [tfkit.prune_low_magnitude, tfkit.strip_pruning, tfkit.sparsity_table])
def test_something_that_is_no_model_is_refused(call):
    with pytest.raises(
        tfkit.ArgumentTypeError, match=r"`model` must be a Keras 3 model.*Received: model=7.*Load"
    ):
        call(7)


def test_prune_now_refuses_something_that_is_no_model():
    with pytest.raises(
        tfkit.ArgumentTypeError, match=r"`model` must be a Keras 3 model.*Received: model=7.*Load"
    ):
        tfkit.prune_now(7, 0.5)


@pytest.mark.parametrize("call", [tfkit.prune_low_magnitude, tfkit.strip_pruning, tfkit.sparsity_table])
def test_an_unbuilt_model_is_refused(call):
    with pytest.raises(tfkit.UnbuiltModelError, match=r"must be built.*Received: model='raw'.*keras\.Input"):
        call(keras.Sequential([layers.Dense(2)], name="raw"))


def test_pruning_twice_is_refused():
    model = tfkit.prune_low_magnitude(models.dense_net())
    with pytest.raises(tfkit.PruningError, match=r"pruned once.*Received: .*d1/kernel.*strip_pruning"):
        tfkit.prune_low_magnitude(model)


def test_a_refused_call_prunes_no_layer():
    model = tfkit.prune_low_magnitude(models.dense_net(), layers="head")
    with pytest.raises(tfkit.PruningError):
        tfkit.prune_low_magnitude(model)
    assert model.get_layer("d1").kernel.constraint is None


def test_stripping_an_unpruned_model_is_refused():
    with pytest.raises(tfkit.PruningError, match=r"being pruned.*Received: .*no mask.*prune_low_magnitude"):
        tfkit.strip_pruning(models.dense_net())


@pytest.mark.parametrize(
    "prune", [tfkit.prune_low_magnitude, functools.partial(tfkit.prune_now, sparsity=0.5)]
)
@pytest.mark.parametrize("patterns", ["bn1", "relu1", []], ids=str)
def test_a_selection_without_kernels_is_refused(prune, patterns):
    with pytest.raises(tfkit.PruningError, match=r"something to prune.*Received: .*layers=.*sparsity_table"):
        prune(models.conv_net(), layers=patterns)


def test_a_misspelt_layer_is_refused_with_the_nearest_names():
    with pytest.raises(
        tfkit.LayerNotFoundError, match=r"match at least one layer.*Received: .*conv_1.*conv1"
    ):
        tfkit.prune_low_magnitude(models.conv_net(), layers="conv_1")


@pytest.mark.parametrize("schedule", [0.8, None, "constant"])
def test_something_that_is_no_schedule_is_refused(schedule):
    with pytest.raises(
        tfkit.ArgumentTypeError, match=r"must be a schedule.*Received: pruning_schedule=.*ConstantSparsity"
    ):
        tfkit.prune_low_magnitude(models.dense_net(), schedule)


@pytest.mark.parametrize("answer", [0.5, (True,), None])
def test_a_schedule_that_returns_no_pair_is_refused(answer):
    with pytest.raises(
        tfkit.ArgumentTypeError, match=r"pair \(should_prune, sparsity\).*Received: .*at step 1"
    ):
        tfkit.prune_low_magnitude(models.dense_net(), lambda step: answer)


@pytest.mark.parametrize("sparsity", [None, "x", [0.5, 0.5]])
def test_a_schedule_whose_sparsity_is_no_number_is_refused(sparsity):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"number in \[0, 1\).*Received: "):
        tfkit.prune_low_magnitude(models.dense_net(), outside(sparsity))


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, math.nan, math.inf])
def test_a_schedule_outside_0_to_1_is_refused(sparsity):
    with pytest.raises(
        tfkit.ArgumentError, match=r"\[0, 1\).*Received: pruning_schedule\(1\)=.*0\.8 for 80%"
    ):
        tfkit.prune_low_magnitude(models.dense_net(), outside(sparsity))


def test_a_schedule_that_leaves_the_range_at_its_end_is_refused():
    schedule = tfkit.PolynomialDecay(0.0, 0.9, begin_step=0, end_step=50)
    schedule.final_sparsity = 1.0
    with pytest.raises(tfkit.ArgumentError, match=r"\[0, 1\).*Received: pruning_schedule\(50\)=1\.0"):
        tfkit.prune_low_magnitude(models.dense_net(), schedule)


@pytest.mark.parametrize("sparsity", [1.0, 1, -0.1, 80, math.nan, math.inf])
def test_prune_now_refuses_a_sparsity_outside_0_to_1(sparsity):
    with pytest.raises(tfkit.ArgumentError, match=r"\[0, 1\).*Received: sparsity=.*0\.8 for 80%"):
        tfkit.prune_now(models.dense_net(), sparsity)


@pytest.mark.parametrize("sparsity", ["0.5", None, True, 1j])
def test_prune_now_refuses_a_sparsity_that_is_no_number(sparsity):
    with pytest.raises(
        tfkit.ArgumentTypeError, match=r"`sparsity` must be a number in \[0, 1\).*Received: sparsity="
    ):
        tfkit.prune_now(models.dense_net(), sparsity)


def test_stripping_what_was_never_pruned_warns_of_the_schedule():
    model = tfkit.prune_low_magnitude(net(), tfkit.ConstantSparsity(0.5, begin_step=100))
    with pytest.warns(UserWarning, match=r"No zeros in .*the schedule never pruned there.*frequency"):
        tfkit.strip_pruning(model)


def test_stripping_frozen_layers_that_were_never_pruned_says_that_they_are_frozen():
    names = [f"d{number}" for number in range(8)]
    model = keras.Sequential([keras.Input((4,)), *(layers.Dense(4, name=name) for name in names)])
    tfkit.prune_low_magnitude(model, tfkit.ConstantSparsity(0.5, begin_step=1, frequency=1))
    for name in names[:7]:
        model.get_layer(name).trainable = False
    with pytest.warns(UserWarning, match=r"^No zeros in d") as caught:
        tfkit.strip_pruning(model)
    frozen, late = (str(warning.message) for warning in caught)
    assert frozen.startswith("No zeros in d0, d1, d2, d3, d4 and 2 more: they are frozen")
    assert "configure_base_model(model, '*')" in frozen
    assert late.startswith("No zeros in d7: the schedule never pruned there")


def test_stripping_before_the_schedule_has_ended_tells_both_updates():
    model = tfkit.prune_low_magnitude(
        net(), tfkit.PolynomialDecay(0.2, 0.8, begin_step=1, end_step=500, frequency=1)
    )
    optimizer = keras.optimizers.SGD(0.1)
    for _ in range(2):
        take_step(model, optimizer)
    with pytest.warns(UserWarning, match=r"^Fewer zeros .* d1: training ended at update 2 .* ends at 500\."):
        tfkit.strip_pruning(model)


def test_stripping_after_the_end_or_with_a_constant_sparsity_warns_of_nothing(recwarn):
    for schedule in (
        tfkit.PolynomialDecay(0.2, 0.8, begin_step=1, end_step=2, frequency=1),
        tfkit.ConstantSparsity(0.5, begin_step=1, end_step=500, frequency=1),
    ):
        model, optimizer = tfkit.prune_low_magnitude(net(), schedule), keras.optimizers.SGD(0.1)
        for _ in range(2):
            take_step(model, optimizer)
        tfkit.strip_pruning(model)
    assert not [each for each in recwarn if "zeros" in str(each.message)]


def test_a_schedule_class_instead_of_a_schedule_is_refused():
    with pytest.raises(tfkit.ArgumentTypeError, match=r"must be a schedule.*Received: pruning_schedule="):
        tfkit.prune_low_magnitude(net(), tfkit.ConstantSparsity)
