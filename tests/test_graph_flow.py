"""`graph.read_flow`: a model as calls which, run one after another, compute what the model computes."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests import models
from tfkit import graph

RANDOM = np.random.default_rng(0)


def batch(model, size=3):
    """Random inputs in the model's own structure."""

    def make(tensor):
        shape = [size if axis is None else axis for axis in tensor.shape]
        if "int" in tensor.dtype:
            return RANDOM.integers(0, 4, size=shape).astype(tensor.dtype)
        return RANDOM.normal(size=shape).astype(tensor.dtype)

    return keras.tree.map_structure(make, graph.input_structure(model))


def run(flow, x, training):
    values = dict(zip(flow.inputs, flow.read(x), strict=True))
    for call in flow.calls:
        call.run(values, training)
    return flow.pack([values[key] for key in flow.outputs])


def require_equal(model, enter=lambda inner: True, x=None, training=(False, True)):
    """Checks values, structure and masks against the model's own call."""
    x = batch(model) if x is None else x
    x = keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    flow, weights = graph.read_flow(model, enter), model.get_weights()
    for mode in training:
        wanted = model(x, training=mode)
        model.set_weights(weights)  # statistics move in training
        got = run(flow, x, mode)
        model.set_weights(weights)
        keras.tree.assert_same_structure(got, wanted)
        for one, other in zip(keras.tree.flatten(got), keras.tree.flatten(wanted), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
            masks = [graph.read_mask(each) for each in (one, other)]
            assert [mask is None for mask in masks] in ([True, True], [False, False])
            if masks[0] is not None:
                np.testing.assert_array_equal(*masks)
    return flow


def paths(model, **arguments):
    return [call.path for call in graph.read_flow(model, **arguments).calls]


FUNCTIONAL = (
    models.dense_net,
    models.conv_net,
    models.backbone,
    models.nested_net,
    models.deep_net,
    models.shared_net,
    models.sequence_net,
    models.gated_net,
    models.hybrid_net,
)
SUBCLASSED = (models.subclassed_net, models.root_weight_net, models.twins_net, models.tied_net)
each_model = pytest.mark.parametrize("build", FUNCTIONAL, ids=lambda build: build.__name__)


# --- what the calls compute ---------------------------------------------------------------------


@each_model
@pytest.mark.parametrize("enter", [True, False])
def test_the_calls_compute_what_the_model_computes(build, enter):
    require_equal(build(), lambda inner: enter)


def structured(wrap, outputs):
    """A model with two inputs and two outputs in a structure."""
    keras.utils.set_random_seed(0)
    inputs = wrap(keras.Input((4,), name="zeta"), keras.Input((3,), name="alpha"))
    zeta, alpha = (inputs["zeta"], inputs["alpha"]) if isinstance(inputs, dict) else inputs
    one, two = layers.Dense(3)(zeta), layers.Dense(3)(alpha)
    return keras.Model(inputs, outputs(layers.Add()([one, two]), one), name="inner")


STRUCTURES = {
    "list": lambda one, two: [one, two],
    "tuple": lambda one, two: (one, two),
    "dict": lambda one, two: {"zeta": one, "alpha": two},
}
NESTED = {"dict in list": lambda one, two: [{"a": one}, (two, one)], "list of one": lambda one, two: [one]}


@pytest.mark.parametrize("outputs", STRUCTURES | NESTED)
@pytest.mark.parametrize("inputs", STRUCTURES)
def test_inputs_and_outputs_may_have_any_structure(inputs, outputs):
    require_equal(structured(STRUCTURES[inputs], (STRUCTURES | NESTED)[outputs]))


@pytest.mark.parametrize("enter", [True, False])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_nested_models_may_have_any_structure(kind, enter):
    inner = structured(STRUCTURES[kind], STRUCTURES[kind])
    one, two = keras.Input((3,), name="one"), keras.Input((4,), name="two")
    given = {"alpha": one, "zeta": two} if kind == "dict" else STRUCTURES[kind](two, one)
    outer = keras.Model([one, two], inner(given))
    assert len(require_equal(outer, lambda model: enter).calls) == (3 if enter else 1)


def test_a_list_model_called_by_names_computes_the_same():
    inner = structured(STRUCTURES["list"], STRUCTURES["list"])
    one, two = keras.Input((3,)), keras.Input((4,))
    require_equal(keras.Model([one, two], inner({"alpha": one, "zeta": two})))


def test_a_list_model_called_with_a_tuple_computes_the_same():
    inner = structured(STRUCTURES["list"], STRUCTURES["list"])
    one, two = keras.Input((3,)), keras.Input((4,))
    require_equal(keras.Model([one, two], inner((two, one))))


def test_a_batch_by_names_fits_a_list_model():
    model = structured(STRUCTURES["list"], STRUCTURES["list"])
    zeta, alpha = batch(model)
    require_equal(model, x={"alpha": alpha, "zeta": zeta})


def test_a_nested_model_that_takes_other_ranks_stays_whole():
    inner = keras.Sequential([keras.Input((1,)), layers.Dense(2)], name="inner")
    inputs = keras.Input(())
    outer = keras.Model(inputs, inner(inputs))
    assert [call.path for call in require_equal(outer).calls] == ["inner"]


def test_a_nested_model_that_takes_another_dtype_stays_whole():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="inner")
    inputs = keras.Input((3,), dtype="int32")
    outer = keras.Model(inputs, inner(inputs))
    assert [call.path for call in require_equal(outer).calls] == ["inner"]


def test_a_nested_model_used_twice_has_its_calls_twice():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(4)], name="inner")
    inputs = keras.Input((4,))
    flow = require_equal(keras.Model(inputs, layers.Add(name="add")([inner(inputs), inner(inner(inputs))])))
    assert [call.path for call in flow.calls].count("inner/a") == 3
    assert len({key for call in flow.calls for key in call.outputs}) == len(flow.calls)


def test_a_nested_model_that_hands_its_input_on_computes_the_same():
    inside = keras.Input((4,))
    inner = keras.Model(inside, [inside, layers.Dense(2)(inside)])
    inputs = keras.Input((4,))
    require_equal(keras.Model(inputs, inner(inputs)))


def test_a_model_that_hands_its_input_on_computes_the_same():
    inputs = keras.Input((4,))
    require_equal(keras.Model(inputs, {"raw": inputs, "out": layers.Dense(2)(inputs)}))


def test_arguments_besides_tensors_reach_the_layer():
    inputs = keras.Input((4,))
    x = ops.concatenate([inputs, layers.Dense(3)(inputs)], axis=-1)
    x = ops.clip(ops.expand_dims(x, 1), -0.5, 0.5)
    require_equal(keras.Model(inputs, ops.split(x, 7, axis=2)))


def test_tensors_in_keyword_arguments_reach_the_layer():
    inputs, mask = keras.Input((5, 4)), keras.Input((5, 5), dtype="bool")
    x = layers.MultiHeadAttention(2, 3)(inputs, inputs, attention_mask=mask)
    x, *state = layers.GRU(3, return_sequences=True, return_state=True)(x)
    model = keras.Model([inputs, mask], layers.GRU(3)(x, initial_state=state))
    require_equal(model, x=[RANDOM.normal(size=(3, 5, 4)), RANDOM.random((3, 5, 5)) > 0.3])


def masked(recurrent):
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(4, 3, mask_zero=True)(inputs)
    return inputs, recurrent(x)


@pytest.mark.parametrize("sequences", [True, False])
def test_masks_go_through(sequences):
    require_equal(keras.Model(*masked(layers.LSTM(3, return_sequences=sequences))))


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("kind", ["functional", "sequential"])
@pytest.mark.parametrize("sequences", [True, False])
def test_masks_go_through_nested_models(sequences, kind):
    stack = [layers.Dense(3), layers.LSTM(3, return_sequences=sequences)]
    inner = keras.Sequential([keras.Input((4, 3)), *stack])
    if kind == "functional":
        inner = keras.Model(inner.inputs, inner.outputs[0])
    require_equal(keras.Model(*masked(inner)))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("build", [models.nested_net, models.deep_net, models.sequence_net])
def test_dtypes_are_those_of_the_model(build, policy):
    keras.config.set_dtype_policy(policy)
    try:
        require_equal(build())
    finally:
        keras.config.set_dtype_policy("float32")


def test_a_nested_model_of_another_precision_computes_the_same():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, dtype="mixed_float16"), layers.Dense(3)])
    inputs = keras.Input((4,))
    require_equal(keras.Model(inputs, layers.Dense(2)(inner(inputs))))


class Louder(layers.Layer):
    """Doubles in training."""

    def call(self, x, training=None):
        return x * 2 if training else x


@pytest.mark.parametrize("fixed", [True, False, None])
def test_a_fixed_training_argument_of_a_nested_model_means_what_keras_means(fixed):
    inner = keras.Sequential([keras.Input((4,)), Louder(), layers.Dense(3)])
    inputs = keras.Input((4,))
    require_equal(keras.Model(inputs, inner(inputs, training=fixed)))


@pytest.mark.parametrize("fixed", [True, False])
def test_a_fixed_training_argument_of_a_layer_means_what_keras_means(fixed):
    inputs = keras.Input((4,))
    require_equal(keras.Model(inputs, Louder()(inputs, training=fixed)), training=(False, True, None))


APPLICATIONS = {
    "MobileNetV2": lambda: keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=3),
    "MobileNetV3Small": lambda: keras.applications.MobileNetV3Small(
        (32, 32, 3), alpha=0.75, minimalistic=True, weights=None, classes=3, include_preprocessing=False
    ),
    "EfficientNetB0": lambda: keras.applications.EfficientNetB0(
        input_shape=(32, 32, 3), weights=None, classes=3
    ),
}


@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications_compute_the_same(name):
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, APPLICATIONS[name]()(inputs))
    require_equal(model, training=(False,))  # they draw random numbers in training


# --- which calls there are ----------------------------------------------------------------------------


def test_paths_lead_into_nested_models():
    assert paths(models.nested_net()) == [
        "wrapper/backbone/conv1",
        "wrapper/backbone/bn1",
        "wrapper/backbone/conv2",
        "wrapper/project",
        "pool",
        "head",
    ]


def test_nested_models_stay_whole_where_they_are_not_entered():
    assert paths(models.nested_net(), enter=lambda inner: False) == ["wrapper", "pool", "head"]


def test_each_nested_model_is_asked_about():
    assert paths(models.nested_net(), enter=lambda inner: inner.name == "wrapper") == [
        "wrapper/backbone",
        "wrapper/project",
        "pool",
        "head",
    ]


def test_paths_are_those_of_the_walk():
    model = models.deep_net()
    leaves = [node.path for node in graph.descend(graph.walk(model)) if not node.children]
    assert paths(model) == leaves


def test_operations_are_the_models_own_layers():
    model = models.dense_net()
    assert [call.operation for call in graph.read_flow(model).calls] == model.layers


def test_a_layer_outside_the_graph_is_not_called():
    assert paths(models.hybrid_net()) == ["inside"]


def test_a_branch_that_leads_to_no_output_is_not_called():
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="used")(inputs)
    layers.Dense(3, name="unused")(x)
    assert paths(keras.Model(inputs, x)) == ["used"]


def test_a_part_of_a_larger_model_begins_at_its_own_inputs():
    model = models.backbone()
    part = keras.Model(model.get_layer("conv1").output, model.output)
    assert [call.path for call in require_equal(part).calls] == ["bn1", "conv2"]


def test_every_call_takes_what_earlier_calls_gave():
    flow = graph.read_flow(models.nested_net())
    known = set(flow.inputs)
    for call in flow.calls:
        assert set(call.inputs) <= known
        assert not set(call.outputs) & known
        known |= set(call.outputs)
    assert set(flow.outputs) <= known


@pytest.mark.parametrize("build", SUBCLASSED, ids=lambda build: build.__name__)
def test_a_subclassed_model_has_no_graph(build):
    assert graph.read_flow(build()) is None


class OwnCall(keras.Sequential):
    """Computes something else than its layers in a row."""

    def call(self, x, training=None, mask=None):
        return -super().call(x, training=training, mask=mask)


class OwnFunctional(keras.Model):
    """A functional model with a call of its own."""

    def call(self, x, training=None, mask=None):
        return -super().call(x, training=training, mask=mask)


def own_functional():
    inputs = keras.Input((4,))
    return OwnFunctional(inputs, layers.Dense(2)(inputs))


OWN = {"sequential": lambda: OwnCall([keras.Input((4,)), layers.Dense(2)]), "functional": own_functional}


@pytest.mark.parametrize("kind", OWN)
def test_a_model_with_a_call_of_its_own_has_no_graph(kind):
    assert graph.functional_graph(OWN[kind]()) is None


@pytest.mark.parametrize("kind", OWN)
def test_a_nested_model_with_a_call_of_its_own_stays_whole(kind):
    inputs = keras.Input((4,))
    assert len(require_equal(keras.Model(inputs, OWN[kind]()(inputs))).calls) == 1


def test_a_plain_layer_has_no_graph():
    assert graph.functional_graph(layers.Dense(2)) is None


def test_a_functional_models_graph_is_itself():
    model = models.backbone()
    assert graph.functional_graph(model) is model


# --- chance ----------------------------------------------------------------------------------------------


class Seeded(layers.Layer):
    """Has a seed generator, as layers have that draw random numbers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rate = 0.0  # says nothing about a layer that is not Keras's
        self.seed_generator = keras.random.SeedGenerator(1)


RANDOM_LAYERS = {
    "dropout": (lambda: layers.Dropout(0.1), True),
    "dropout of nothing": (lambda: layers.Dropout(0.0), False),
    "spatial dropout": (lambda: layers.SpatialDropout1D(0.1), True),
    "alpha dropout": (lambda: layers.AlphaDropout(0.1), True),
    "noise": (lambda: layers.GaussianNoise(0.1), True),
    "flip": (lambda: layers.RandomFlip(), True),
    "rotation": (lambda: layers.RandomRotation(0.1), True),
    "mixing": (lambda: layers.MixUp(), True),
    "attention without dropout": (lambda: layers.Attention(), False),
    "attention with dropout": (lambda: layers.Attention(dropout=0.1), True),
    "cell without dropout": (lambda: layers.LSTMCell(3), False),
    "cell with dropout": (lambda: layers.LSTMCell(3, dropout=0.1), True),
    "cell with recurrent dropout": (lambda: layers.GRUCell(3, recurrent_dropout=0.1), True),
    "dense": (lambda: layers.Dense(3), False),
    "norm": (lambda: layers.BatchNormalization(), False),
    "custom": (Seeded, True),
}


@pytest.mark.parametrize("name", RANDOM_LAYERS)
def test_layers_that_draw_random_numbers_are_known(name):
    make, wanted = RANDOM_LAYERS[name]
    assert graph.draws_random_numbers(make()) is wanted


COMPOSED = {
    "LSTM": (lambda rate: layers.LSTM(3, dropout=rate), (None, 4, 3)),
    "recurrent": (lambda rate: layers.GRU(3, recurrent_dropout=rate), (None, 4, 3)),
    "ConvLSTM": (lambda rate: layers.ConvLSTM1D(3, 2, dropout=rate), (None, 4, 5, 3)),
    "bidirectional": (lambda rate: layers.Bidirectional(layers.LSTM(3, dropout=rate)), (None, 4, 3)),
    "attention": (lambda rate: layers.MultiHeadAttention(2, 3, dropout=rate), ((None, 4, 3),) * 2),
    "grouped attention": (
        lambda rate: layers.GroupQueryAttention(4, 2, 2, dropout=rate),
        ((None, 4, 3),) * 2,
    ),
}


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("name", COMPOSED)
def test_dropout_inside_a_composite_is_known(name, rate):
    make, shape = COMPOSED[name]
    layer = make(rate)
    layer.build(*(shape if isinstance(shape[0], tuple) else [shape]))
    drawing = [graph.draws_random_numbers(each) for each in graph.sublayers(layer)]
    assert any(drawing) is (rate > 0)


# --- masks ----------------------------------------------------------------------------------------------


def test_a_written_mask_is_read():
    tensor, mask = keras.ops.zeros((2, 3)), keras.ops.ones((2, 3), dtype="bool")
    graph.write_mask(tensor, mask)
    assert graph.read_mask(tensor) is mask


def test_a_tensor_has_no_mask_by_itself():
    assert graph.read_mask(keras.ops.zeros((2, 3))) is None
