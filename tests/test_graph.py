"""`graph`: where layers stand, whose weights they are, and whether a model is fit for use."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

from tests import models
from tfkit import graph
from tfkit.errors import ArgumentTypeError, NonFiniteWeightsError, UnbuiltModelError


def node_at(model, path):
    return next(node for node in graph.descend(graph.walk(model)) if node.path == path)


# --- walk and descend ----------------------------------------------------------------------------


def test_walk_returns_the_layers_directly_below_the_root_in_order():
    model = models.deep_net()
    assert [node.layer for node in graph.walk(model)] == model.layers


def test_walk_keeps_a_functional_models_input_layer():
    assert isinstance(graph.walk(models.backbone())[0].layer, layers.InputLayer)


def test_a_nodes_children_are_the_layers_inside_it():
    model = models.deep_net()
    middle = node_at(model, "middle")
    assert [node.layer for node in middle.children] == model.get_layer("middle").layers


def test_a_plain_layer_has_no_children():
    assert node_at(models.dense_net(), "d1").children == ()


def test_descend_yields_parents_before_their_children():
    assert [node.path for node in graph.descend(graph.walk(models.deep_net()))] == [
        "stem",
        "middle",
        "middle/a",
        "middle/inner",
        "middle/inner/a",
        "middle/inner/b",
        "middle/c",
        "head",
    ]


def test_a_shared_layer_has_a_node_in_each_container():
    nodes = graph.descend(graph.walk(models.shared_net()))
    assert [node.path for node in nodes if node.layer.name == "shared"] == ["first/shared", "second/shared"]


def test_walk_finds_the_layers_inside_subclassed_blocks():
    assert [node.path for node in graph.descend(graph.walk(models.subclassed_net()))] == [
        "block1",
        "block1/conv",
        "block1/norm",
        "block2",
        "block2/conv",
        "block2/norm",
        "pool",
        "head",
    ]


def test_walk_finds_a_layer_outside_a_functional_models_graph():
    assert "extra" in [node.path for node in graph.walk(models.hybrid_net())]


def test_a_node_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError, match="path"):
        node_at(models.dense_net(), "d1").path = "d2"


# --- units -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["lstm", "both", "both/forward_gru", "mha", "each"])
def test_a_composite_of_keras_is_a_unit(path):
    assert node_at(models.sequence_net(), path).is_unit


@pytest.mark.parametrize(
    ("build", "path"),
    [
        (models.sequence_net, "head"),
        (models.sequence_net, "lstm/lstm_cell"),
        (models.deep_net, "middle"),
        (models.nested_net, "wrapper/backbone"),
        (models.subclassed_net, "block1"),
        (models.gated_net, "gate1"),
    ],
)
def test_plain_layers_models_and_composed_layers_are_no_units(build, path):
    assert not node_at(build(), path).is_unit


def test_a_keras_wrapper_around_a_model_is_no_unit():
    wrapped = layers.TimeDistributed(models.dense_net(inputs=3), name="each")
    assert not node_at(keras.Sequential([keras.Input((5, 3)), wrapped]), "each").is_unit


# --- whose weights -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "path", "names"),
    [
        (models.dense_net, "d1", ["kernel", "bias"]),
        (models.conv_net, "bn1", ["gamma", "beta", "moving_mean", "moving_variance"]),
        (models.conv_net, "pool", []),
        (models.sequence_net, "lstm", []),
        (models.sequence_net, "lstm/lstm_cell", ["kernel", "recurrent_kernel", "bias"]),
        (models.sequence_net, "mha", []),
        (models.deep_net, "middle", []),
        (models.gated_net, "gate1", ["gain"]),
    ],
)
def test_own_variables_leave_out_the_sublayers(build, path, names):
    assert [v.name for v in graph.own_variables(node_at(build(), path).layer)] == names


@pytest.mark.parametrize("frozen", [True, False])
def test_own_variables_do_not_depend_on_what_trains(frozen):
    model = models.conv_net()
    before = [id(v) for v in graph.own_variables(model.get_layer("bn1"))]
    model.trainable = not frozen
    assert [id(v) for v in graph.own_variables(model.get_layer("bn1"))] == before


@pytest.mark.parametrize(
    "build",
    [models.deep_net, models.shared_net, models.subclassed_net, models.sequence_net, models.gated_net],
)
def test_the_own_variables_of_all_sublayers_are_the_models_weights(build):
    model = build()
    owned = [id(v) for layer in graph.sublayers(model) for v in graph.own_variables(layer)]
    assert sorted(owned) == sorted(id(v) for v in model.weights)


def test_sublayers_begin_with_the_layer_itself():
    model = models.deep_net()
    assert graph.sublayers(model)[0] is model


def test_sublayers_reach_every_depth():
    names = {layer.name for layer in graph.sublayers(models.deep_net())}
    assert {"deep", "stem", "middle", "inner", "a", "b", "c", "head"} <= names


def test_sublayers_hold_a_shared_layer_once():
    assert [layer.name for layer in graph.sublayers(models.shared_net())].count("shared") == 1


# --- the running optimizer -----------------------------------------------------------------------


class Recorder(keras.constraints.Constraint):
    """Notes which update runs whenever a weight is constrained."""

    def __init__(self):
        self.seen = []

    def __call__(self, w):
        self.seen.append(graph.running_update())
        return w


def recorded(optimizer, **compile_arguments):
    model = models.dense_net(units=(3,))
    recorder = Recorder()
    model.layers[0].kernel.constraint = recorder
    model.compile(optimizer, "mse", **compile_arguments)
    model.fit(np.ones((2, 6)), np.ones((2, 2)), verbose=0)
    return recorder.seen


@pytest.mark.parametrize("run_eagerly", [True, False])
def test_a_constraint_learns_which_optimizer_runs(run_eagerly):
    optimizer = keras.optimizers.SGD(0.1)
    seen = recorded(optimizer, run_eagerly=run_eagerly)
    assert seen
    assert all(each.caller is optimizer for each in seen)


def test_each_update_is_an_object_of_its_own():
    model, recorders = models.dense_net(units=(3,)), [Recorder(), Recorder()]
    for layer, recorder in zip(model.layers, recorders, strict=True):
        layer.kernel.constraint = recorder
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(np.ones((4, 6)), np.ones((4, 2)), batch_size=2, verbose=0)
    first, second = recorders[0].seen
    assert first is not second
    assert [first, second] == recorders[1].seen


def test_under_loss_scaling_the_inner_optimizer_runs():
    inner = keras.optimizers.SGD(0.1)
    (update,) = recorded(keras.optimizers.LossScaleOptimizer(inner), run_eagerly=True)
    assert update.caller is inner


def test_no_optimizer_runs_outside_an_update():
    assert graph.running_update() is None


def test_no_optimizer_runs_inside_an_ordinary_name_scope():
    with keras.name_scope("outer"):
        assert graph.running_update() is None


# --- fit for use -------------------------------------------------------------------------------


def test_a_built_model_is_returned_itself():
    model = models.dense_net()
    assert graph.require_model(model) is model


@pytest.mark.parametrize(
    "value",
    [None, 3, "model.keras", layers.Dense(1), models.dense_net],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_model_is_refused_with_its_type_and_the_fix(value):
    message = (
        r"`model` must be a Keras 3 model \(keras\.Model\)\. "
        rf"Received: model=.* of type .*{type(value).__name__}\. "
        r"Load a file with keras\.models\.load_model, and build tf_keras models with Keras 3"
    )
    with pytest.raises(ArgumentTypeError, match=message):
        graph.require_model(value)


@pytest.mark.parametrize(
    "model",
    [keras.Sequential([layers.Dense(1)], name="raw"), models.SubclassedNet(name="raw")],
    ids=["sequential", "subclassed"],
)
def test_an_unbuilt_model_is_refused_with_the_fix(model):
    message = (
        r"`model` must be built, so that its layers and weights exist\. Received: model='raw', which is "
        r"unbuilt\. Give it a keras\.Input, call model\.build\(input_shape\), or call it once on a batch"
    )
    with pytest.raises(UnbuiltModelError, match=message):
        graph.require_model(model)


@pytest.mark.parametrize("build", [models.dense_net, models.nested_net, models.sequence_net])
def test_finite_weights_pass(build):
    assert graph.require_finite(build()) is None


def test_the_largest_finite_number_passes():
    model = models.dense_net()
    model.layers[0].bias.assign(np.full(8, np.finfo("float32").max))
    assert graph.require_finite(model) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_weight_that_is_no_finite_number_is_named(bad):
    model = models.dense_net()
    kernel = np.ones((6, 8))
    kernel[2, 3] = bad
    model.layers[0].kernel.assign(kernel)
    message = (
        r"Every weight must be a finite number\. Received: model='.*' with NaN or infinity in d1/kernel\. "
        r"Train again with a lower learning rate or gradient clipping, or load an earlier checkpoint"
    )
    with pytest.raises(NonFiniteWeightsError, match=message):
        graph.require_finite(model)


@pytest.mark.parametrize(
    ("build", "path", "name"),
    [
        (models.nested_net, "wrapper/backbone/bn1", "moving_variance"),
        (models.sequence_net, "both/backward_gru/gru_cell", "recurrent_kernel"),
        (models.gated_net, "gate2", "gain"),
    ],
)
def test_a_broken_weight_is_named_with_its_whole_path(build, path, name):
    model = build()
    variable = next(v for v in graph.own_variables(node_at(model, path).layer) if v.name == name)
    variable.assign(np.full(variable.shape, np.nan))
    with pytest.raises(NonFiniteWeightsError, match=rf"infinity in {path}/{name}\. "):
        graph.require_finite(model)


def test_a_broken_weight_of_the_root_model_itself_is_found():
    model = models.root_weight_net()
    model.scale.assign([np.nan, 1.0])
    with pytest.raises(NonFiniteWeightsError, match="scale"):
        graph.require_finite(model)


def test_a_broken_weight_of_a_shared_layer_is_named_by_its_first_path():
    model = models.shared_net()
    node_at(model, "first/shared").layer.bias.assign(np.full(4, np.nan))
    with pytest.raises(NonFiniteWeightsError, match=r"infinity in first/shared/bias"):
        graph.require_finite(model)


def test_only_the_first_five_broken_weights_are_named():
    model = models.dense_net((2, 2, 2))
    for variable in model.weights:
        variable.assign(np.full(variable.shape, np.nan))
    message = r"infinity in d1/kernel, d1/bias, d2/kernel, d2/bias, d3/kernel and more\. "
    with pytest.raises(NonFiniteWeightsError, match=message):
        graph.require_finite(model)


def test_integer_weights_are_left_alone():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.quantize("int8")
    assert graph.require_finite(model) is None
