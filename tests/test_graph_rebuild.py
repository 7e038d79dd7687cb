import keras
import numpy as np
import pytest
from keras import layers

from tests import models
from tfkit import graph


def remade(model, **options):
    return graph.rebuild(model, lambda operation: graph.copy_operation(operation, {}), **options)


def branching_net():
    inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((6,), name="b")}
    x = layers.Dense(4, name="one")(inputs["a"]) * 2 + layers.Dense(4, name="two")(inputs["b"])
    return keras.Model(inputs, {"sum": x, "loud": keras.ops.relu(x)}, name="branching")


NETS = [
    models.dense_net,
    models.conv_net,
    models.nested_net,
    models.deep_net,
    models.shared_net,
    models.sequence_net,
    models.gated_net,
    branching_net,
]


def sample(model):
    random = np.random.default_rng(0)
    return keras.tree.map_structure(
        lambda x: random.normal(size=(2, *x.shape[1:])).astype("float32"), graph.input_structure(model)
    )


@pytest.fixture(params=NETS, ids=lambda build: build.__name__)
def model(request):
    return request.param()


def test_the_new_model_computes_the_same_with_the_same_weights(model):
    twin = remade(model)
    twin.set_weights(model.get_weights())
    x = sample(model)
    answers = zip(keras.tree.flatten(model(x)), keras.tree.flatten(twin(x)), strict=True)
    for old, new in answers:
        np.testing.assert_array_equal(old, new)


def test_names_and_structure_stay(model):
    twin = remade(model)
    paths = [
        [node.path for node in graph.descend(graph.walk(each)) if graph.own_variables(node.layer)]
        for each in (model, twin)
    ]
    assert paths[0] == paths[1]
    assert twin.name == model.name
    assert [layer.name for layer in twin.layers] == [layer.name for layer in model.layers]
    assert getattr(twin, "output_names", None) == getattr(model, "output_names", None)


def test_nothing_is_shared_with_the_old_model(model):
    old = {id(each) for each in graph.sublayers(model)} | {id(each) for each in model.weights}
    twin = remade(model)
    assert not old & {id(each) for each in graph.sublayers(twin)}
    assert not old & {id(each) for each in twin.weights}


def test_the_old_model_is_not_touched(model):
    calls = graph.read_flow(model).calls
    before = [len(call.operation._inbound_nodes) for call in calls]
    remade(model)
    assert [len(call.operation._inbound_nodes) for call in calls] == before


@pytest.mark.parametrize("build", [each for each in NETS if each is not models.shared_net])
def test_the_new_model_goes_through_a_file(build, tmp_path):
    """Keras itself cannot load a layer that two inner models share."""
    model = build()
    twin = remade(model)
    twin.save(tmp_path / "twin.keras")
    custom = {"Gate": models.Gate}
    loaded = keras.models.load_model(tmp_path / "twin.keras", custom_objects=custom)
    x = sample(model)
    answers = zip(keras.tree.flatten(twin(x)), keras.tree.flatten(loaded(x)), strict=True)
    for old, new in answers:
        np.testing.assert_array_equal(old, new)


def test_a_shared_layer_stays_one_layer():
    twin = remade(models.shared_net())
    first, second = twin.layers
    assert first.layers[0] is second.layers[0]
    assert first.layers[1] is not second.layers[1]


def test_the_layers_of_a_chain_have_one_place():
    twin = remade(models.conv_net())
    features = keras.Model(twin.inputs, twin.get_layer("relu1").output)  # fails where a layer has two
    assert features(np.zeros((1, 8, 8, 3))).shape == (1, 8, 8, 4)


def test_a_frozen_model_inside_stays_frozen_and_its_layers_keep_their_own_flags():
    model = models.nested_net()
    inner = model.get_layer("wrapper").get_layer("backbone")
    inner.trainable = False
    inner.get_layer("conv2").trainable = True
    model.get_layer("head").trainable = False
    twin = remade(model)
    inner = twin.get_layer("wrapper").get_layer("backbone")
    assert not inner.trainable
    assert inner.get_layer("conv2").trainable
    assert not inner.get_layer("conv1").trainable
    assert not twin.get_layer("head").trainable
    assert len(twin.trainable_variables) == len(model.trainable_variables)


def test_other_layers_change_the_sizes_behind_them():
    model = models.nested_net()

    def narrower(operation):
        changes = {"filters": 3} if operation.name == "conv2" else {}
        return graph.copy_operation(operation, changes)

    twin = graph.rebuild(model, narrower)
    wrapper = twin.get_layer("wrapper")
    assert wrapper.get_layer("backbone").output_shape == (None, 8, 8, 3)
    assert wrapper.get_layer("project").kernel.shape == (1, 1, 3, 5)
    assert twin.output_shape == model.output_shape


def test_a_model_inside_declares_the_size_that_it_is_given():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="inside")], name="inner")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, inner(layers.Dense(4, name="before")(inputs)))
    twin = graph.rebuild(
        model, lambda each: graph.copy_operation(each, {"units": 3} if each.name == "before" else {})
    )
    assert twin.get_layer("inner").input_shape == (None, 3)
    assert twin.get_layer("inner").get_layer("inside").kernel.shape == (3, 2)


def test_open_sizes_can_be_fixed():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 3, padding="same")(inputs))
    assert remade(model, shapes=[(None, 8, 6, 3)]).output_shape == (None, 8, 6, 2)


def test_a_lambda_is_called_as_it_is():
    factor = {"value": 3.0}
    inputs = keras.Input((4,))
    function = layers.Lambda(lambda x, plus: x * factor["value"] + plus, arguments={"plus": 1.0}, name="mine")
    twin = remade(keras.Model(inputs, function(inputs)))
    np.testing.assert_array_equal(twin(np.ones((1, 4))), np.full((1, 4), 4.0))
    assert [layer.name for layer in twin.layers][-1] == "mine"
