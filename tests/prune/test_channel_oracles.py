"""Smaller models against weights sliced by hand, NumPy, TensorFlow's profiler and random graphs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from tensorflow.python.framework import ops as framework_ops

import tfkit
from tests.prune import topologies_sequences, topologies_shapes  # noqa: F401 (they add to TOPOLOGIES)
from tests.prune.test_channel_equality import RANDOM, difference
from tests.prune.topologies import batch, made, outputs, randomize

# --- weights, sliced by hand ---------------------------------------------------------------------


def every(count):
    return np.arange(count)


def residual_add(kept):
    stem, inner = kept["stem"], kept["inner"]
    return {
        "stem": [(..., stem), (stem,)],
        "stem_bn": [(stem,)] * 4,
        "inner": [np.ix_(every(3), every(3), stem, inner), (inner,)],
        "outer": [np.ix_(every(3), every(3), inner, stem), (stem,)],
        "head": [(stem,), ()],
    }


def concatenation_then_add(kept):
    both = np.concatenate([kept["a"], 8 + kept["b"]])
    return {
        "a": [(..., kept["a"]), (kept["a"],)],
        "wide": [(..., both), (both,)],
        "c": [np.ix_(every(3), every(3), both, kept["c"]), (kept["c"],)],
    }


def depthwise_multipliers(kept):
    a = kept["a"]
    doubled = np.stack([2 * a, 2 * a + 1], 1).ravel()
    return {
        "dw1": [(slice(None), slice(None), a), (a,)],
        "dw2": [(slice(None), slice(None), a), (doubled,)],
        "bn": [(doubled,)] * 4,
        "b": [np.ix_([0], [0], doubled, kept["b"]), (kept["b"],)],
    }


def grouped(kept):
    """Unit i is the i-th channel of each half, of each quarter."""
    a = np.concatenate([8 * half + kept["a"] for half in range(2)])
    g2 = np.concatenate([6 * quarter + kept["g2"] for quarter in range(4)])
    g4 = np.concatenate([4 * quarter + kept["g4"] for quarter in range(4)])
    return {
        "a": [(..., a), (a,)],
        "g2": [np.ix_(every(3), every(3), kept["a"], g2), (g2,)],
        "g4": [np.ix_(every(3), every(3), kept["g2"], g4), (g4,)],
        "b": [np.ix_([0], [0], g4, kept["b"]), (kept["b"],)],
    }


def flatten_into_dense(kept):
    rows = np.concatenate([12 * place + kept["a"] for place in range(4 * 4)])
    return {"d": [np.ix_(rows, kept["d"]), (kept["d"],)], "head": [(kept["d"],), ()]}


def decoder_from_dense(kept):
    columns = np.concatenate([12 * place + kept["d"] for place in range(4 * 4)])
    return {
        "d": [(..., columns), (columns,)],
        "t": [np.ix_(every(3), every(3), kept["t"], kept["d"]), (kept["t"],)],
    }


def recurrence_with_states(kept):
    u = kept["lstm"]
    gates = np.concatenate([10 * gate + u for gate in range(4)])
    return {
        "lstm": [(..., gates), np.ix_(u, gates), (gates,)],
        "d": [np.ix_(np.concatenate([u, 10 + u]), kept["d"]), (kept["d"],)],
    }


def attention_without_a_residual(kept):
    heads, out = kept["mha"], kept["mha#2"]
    return {
        "mha": [
            np.ix_(kept["q"], heads, every(3)),
            np.ix_(kept["q"], heads, every(3)),
            np.ix_(kept["v"], heads, every(2)),
            np.ix_(heads, every(2), out),
        ]
    }


SLICES = (
    residual_add,
    concatenation_then_add,
    depthwise_multipliers,
    grouped,
    flatten_into_dense,
    decoder_from_dense,
    recurrence_with_states,
    attention_without_a_residual,
)


@pytest.mark.parametrize("by_hand", SLICES, ids=lambda each: each.__name__)
def test_weights_sliced_by_hand(by_hand):
    model = made(by_hand.__name__)
    plan = tfkit.plan_channel_pruning(model, **RANDOM)
    smaller = plan.apply(model)
    kept = {group.name: np.array(group.kept) for group in plan.groups if group.kept is not None}
    for name, places in by_hand(kept).items():
        old, new = model.get_layer(name).get_weights(), smaller.get_layer(name).get_weights()
        for before, after, place in zip(old, new, places, strict=True):
            np.testing.assert_array_equal(before[place], after, err_msg=name)


def test_the_units_with_the_smallest_norms_go():
    """For a chain: rows of the kernel, sorted by their norm, and the fraction asked for of each."""
    model = made("dense_chain")
    plan = tfkit.plan_channel_pruning(model, ratio=0.5, scope="uniform", multiple_of=1)
    for group, name in zip(plan.groups, ("d24", "d16", "d12")):
        norms = np.linalg.norm(model.get_layer(name).get_weights()[0], axis=0)
        assert set(group.kept) == {*np.argsort(norms)[len(norms) // 2 :].tolist()}


def test_a_chain_computed_by_numpy():
    model = made("dense_chain")
    plan = tfkit.plan_channel_pruning(model, **RANDOM)
    x = values = batch(model)
    rows = every(6)
    for layer, group in zip(model.layers, plan.groups, strict=True):
        kernel, bias = layer.get_weights()
        columns = every(2) if group.kept is None else np.array(group.kept)
        values = values @ kernel[np.ix_(rows, columns)] + bias[columns]
        rows = columns
        if layer.name != "head":
            values = values / (1 + np.exp(-values))
    np.testing.assert_allclose(outputs(plan.apply(model), x)[0], values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs(plan.mask(model), x)[0], values, rtol=1e-5, atol=1e-6)


# --- work ----------------------------------------------------------------------------------------


def flops_by_profiler(model):
    """What TensorFlow's own cost functions give for the kernels of one sample."""
    run = tf.function(lambda *x: model(list(x) if len(x) > 1 else x[0], training=False))
    graph = run.get_concrete_function(
        *[tf.TensorSpec((1, *x.shape[1:]), x.dtype) for x in model.inputs]
    ).graph
    kernels = {"Conv2D", "DepthwiseConv2dNative", "MatMul"}
    found = [op for op in graph.get_operations() if op.type in kernels]
    return sum(framework_ops.get_stats_for_node_def(graph, op.node_def, "flops").value for op in found)


PROFILED = ["plain_chain", "residual_add", "depthwise_residual", "dense_block", "flatten_into_dense",
            "depthwise_multipliers", "squeeze_and_excite_by_convolution", "add_of_three"]  # fmt: skip


@pytest.mark.parametrize("name", PROFILED)
def test_flops_are_those_of_tensorflows_profiler(name):
    model = made(name)
    plan = tfkit.plan_channel_pruning(model, **RANDOM)
    assert plan.before["flops"] == flops_by_profiler(model)
    assert plan.after["flops"] == flops_by_profiler(plan.apply(model))


def flops_by_shapes(model, transposed=()):
    """Two for every weight of a kernel at every place that it is laid on."""
    total = 0
    for layer in model.layers:
        tensor = layer.input if layer.name in transposed else layer.output
        for weight in layer.weights:
            if "kernel" in weight.name:
                total += 2 * int(np.prod(weight.shape)) * int(np.prod(tensor.shape[1:-1]))
    return total


@pytest.mark.parametrize(
    "name",
    ["grouped", "groups_equal_to_channels", "separable", "three_dimensions", "unet", "decoder_from_dense",
     "convnext_block"],
)  # fmt: skip
def test_flops_by_the_shapes_of_kernels(name):
    model, transposed = made(name), ("t", "up1", "up2")
    plan = tfkit.plan_channel_pruning(model, **RANDOM)
    smaller = plan.apply(model)
    assert plan.before["flops"] == flops_by_shapes(model, () if name == "convnext_block" else transposed)
    assert plan.after["flops"] == flops_by_shapes(smaller, () if name == "convnext_block" else transposed)


def test_flops_of_attention_and_recurrence_by_hand():
    """Query, key and value of 7 tokens, 7 x 7 scores of 4 heads, their sums, the output."""
    plan = tfkit.plan_channel_pruning(made("attention_goes_out"), **RANDOM)
    dense, project = 7 * 4 * 12, 7 * 12 * 4 * 3
    assert plan.before["flops"] == 2 * (dense + 3 * project + 2 * 7 * 7 * 4 * 3 + project)
    plan = tfkit.plan_channel_pruning(made("recurrence_with_states"), **RANDOM)
    assert plan.before["flops"] == 2 * (7 * (4 * 40 + 10 * 40) + 20 * 12 + 12 * 3)


# --- random graphs -------------------------------------------------------------------------------


def grown(draw, steps):
    """A graph of steps that each take earlier tensors: convolutions, norms, merges, gates."""
    inputs = keras.Input((4, 4, 2))
    tensors = [layers.Conv2D(draw(st.integers(3, 9)), 3, padding="same")(inputs)]
    for _ in range(steps):
        x, y = (tensors[draw(st.integers(0, len(tensors) - 1))] for _ in range(2))
        kind = draw(st.sampled_from(["conv", "norm", "depthwise", "add", "concat", "gate", "layernorm"]))
        if kind == "conv":
            x = layers.Conv2D(draw(st.integers(3, 9)), 3, padding="same", activation="relu")(x)
        elif kind == "norm":
            x = layers.ReLU()(layers.BatchNormalization()(x))
        elif kind == "layernorm":
            x = layers.LayerNormalization()(x)
        elif kind == "depthwise":
            x = layers.DepthwiseConv2D(3, depth_multiplier=draw(st.integers(1, 2)), padding="same")(x)
        elif kind == "concat":
            x = layers.Concatenate()([x, y])
        else:
            if x.shape != y.shape:
                y = layers.Conv2D(x.shape[-1], 1)(y)
            x = (
                layers.Add()([x, y])
                if kind == "add"
                else layers.Multiply()([x, layers.Activation("sigmoid")(y)])
            )
        tensors.append(x)
    x = layers.Conv2D(draw(st.integers(3, 9)), 1)(tensors[-1])
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.data())
def test_random_graphs_keep_the_promise(data):
    model = randomize(grown(data.draw, data.draw(st.integers(2, 9))), data.draw(st.integers(0, 99)))
    options = {"criterion": "random", "seed": data.draw(st.integers(0, 99)), "multiple_of": 1}
    plan = tfkit.plan_channel_pruning(model, ratio=data.draw(st.floats(0.05, 0.45)), **options)
    smaller = plan.apply(model)
    assert difference(plan.mask(model), smaller, batch(model)) <= 1e-5
    assert plan.after["parameters"] == smaller.count_params() < model.count_params()
