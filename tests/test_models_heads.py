"""`models.attach_head`: new layers on a base, in one flat graph."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tfkit.errors import ArgumentError, ArgumentTypeError, UnbuiltModelError

attach = tfkit.models.attach_head


def base_of_rank(rank, size=3):
    """A base whose output has the given rank, on a random convolution or Dense."""
    keras.utils.set_random_seed(rank)
    inputs = keras.Input((size,) * (rank - 2) + (2,), name="data")
    outputs = inputs
    for number in (1, 2):
        outputs = layers.Dense(4, name=f"mix{number}")(outputs)
    return keras.Model(inputs, outputs, name="base")


def data_for(model, count=2):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, *(size or 6 for size in model.input_shape[1:]))).astype("float32")


def dense(x, layer):
    return x @ np.asarray(layer.kernel) + np.asarray(layer.bias)


# --- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize(("pooling", "pool"), [("avg", np.mean), ("max", np.max)])
def test_positions_are_pooled_before_the_output_layer(rank, pooling, pool):
    base = base_of_rank(rank)
    model = attach(base, 5, pooling=pooling)
    x = data_for(base)
    features = pool(np.asarray(base(x)), axis=tuple(range(1, rank - 1)))
    np.testing.assert_allclose(model(x), dense(features, model.get_layer("head")), rtol=1e-5, atol=1e-6)
    assert type(model.get_layer("head_pool")).__name__.endswith(f"{rank - 2}D")


@pytest.mark.parametrize("rank", [3, 4, 5])
def test_positions_are_flattened_when_asked(rank):
    base = base_of_rank(rank)
    model = attach(base, 5, pooling="flatten")
    x = data_for(base)
    features = np.asarray(base(x)).reshape(2, -1)
    np.testing.assert_allclose(model(x), dense(features, model.get_layer("head")), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten", None])
def test_features_are_taken_as_they_are(pooling):
    base = base_of_rank(2)
    model = attach(base, 3, pooling=pooling)
    x = data_for(base)
    expected = dense(np.asarray(base(x)), model.get_layer("head"))
    np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in model.layers] == ["data", "mix1", "mix2", "head"]


def test_hidden_layers_are_relu_layers_in_order():
    base = base_of_rank(2)
    model = attach(base, 3, hidden=(7, 6), dropout=0.5)
    x = data_for(base)
    features = np.asarray(base(x))
    for number in (1, 2):
        features = np.maximum(dense(features, model.get_layer(f"head_hidden{number}")), 0)
    np.testing.assert_allclose(model(x), dense(features, model.get_layer("head")), rtol=1e-5, atol=1e-6)


def test_the_activation_is_the_output_layers():
    base = base_of_rank(2)
    model = attach(base, 3, activation="softmax")
    x = data_for(base)
    scores = np.exp(dense(np.asarray(base(x)), model.get_layer("head")))
    np.testing.assert_allclose(model(x), scores / scores.sum(1, keepdims=True), rtol=1e-5)


def test_an_activation_may_be_a_function():
    model = attach(base_of_rank(2), 3, activation=keras.ops.tanh)
    assert model.get_layer("head").activation is keras.ops.tanh


def test_dropout_works_in_training_alone():
    base = base_of_rank(2)
    model = attach(base, 4, dropout=0.75)
    model.get_layer("head").set_weights([np.eye(4), np.zeros(4)])
    x = data_for(base, count=50)
    features = np.asarray(base(x))
    np.testing.assert_allclose(model(x), features, rtol=1e-5)
    dropped = np.asarray(model(x, training=True))
    assert 0.6 < (dropped == 0).mean() < 0.9
    np.testing.assert_allclose(dropped[dropped != 0], 4 * features[dropped != 0], rtol=1e-5)


def test_open_sizes_stay_open():
    base = tfkit.models.build_encoder_decoder((None, None, 3), filters=(4,), output_channels=6)
    model = attach(base, 2)
    assert model.input_shape == (None, None, None, 3)
    assert model(np.zeros((1, 5, 9, 3), "float32")).shape == (1, 2)


@pytest.mark.parametrize(
    ("policy", "expected"), [("mixed_float16", "float32"), ("mixed_bfloat16", "float32")]
)
def test_the_output_is_float32_under_mixed_precision(policy, expected):
    keras.config.set_dtype_policy(policy)
    try:
        base = base_of_rank(4)
        model = attach(base, 3, hidden=(4,))
    finally:
        keras.config.set_dtype_policy("float32")
    assert base.output.dtype == model.get_layer("head_hidden1").output.dtype == policy.removeprefix("mixed_")
    assert model(data_for(base)).dtype == model.output.dtype == expected


def test_the_output_is_float64_under_that_policy():
    keras.config.set_dtype_policy("float64")
    try:
        assert attach(base_of_rank(2), 3).output.dtype == "float64"
    finally:
        keras.config.set_dtype_policy("float32")


# --- the graph -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "builder", [models.backbone, models.conv_net, models.nested_net, models.sequence_net]
)
def test_the_bases_layers_keep_their_paths_and_are_shared(builder):
    base = builder()
    model = attach(base, 3, name="top")
    before, after = (
        [(entry.path, entry.layer) for entry in tfkit.select_layers(each, "*").entries if entry.weights]
        for each in (base, model)
    )
    assert after == [*before, ("top", model.get_layer("top"))]


def test_the_head_comes_after_the_base_in_one_flat_graph():
    model = attach(models.backbone(), 3, hidden=(8,), dropout=0.1, name="top")
    names = [layer.name for layer in model.layers][1:]
    assert names == ["conv1", "bn1", "conv2", "top_pool", "top_hidden1", "top_dropout", "top"]


def test_a_base_of_nested_sequentials_works():
    base = models.deep_net()
    assert attach(base, 3, name="top").layers[-1].name == "top"


def test_a_base_built_on_data_works():
    base = keras.Sequential([layers.Conv2D(4, 3, name="conv")], name="late")
    base(np.zeros((1, 8, 8, 3), "float32"))
    assert attach(base, 3).output_shape == (1, 3)


def test_a_base_with_several_inputs_keeps_their_structure():
    inputs = {"left": keras.Input((3,), name="left"), "right": keras.Input((3,), name="right")}
    base = keras.Model(inputs, layers.Dense(4)(layers.Add()(list(inputs.values()))))
    x = {"left": np.ones((2, 3), "float32"), "right": np.zeros((2, 3), "float32")}
    assert attach(base, 2)(x).shape == (2, 2)


def test_an_application_is_a_base():
    base = tfkit.models.load_base_model("MobileNetV2", input_shape=(32, 32, 3), alpha=0.35)
    model = attach(base, 2)
    assert tfkit.select_layers(model, "block_1_expand").layers == (base.get_layer("block_1_expand"),)
    assert model.output_shape == (None, 2)


@pytest.mark.parametrize("trained", [[], ["conv2"], ["*"]], ids=str)
def test_the_bases_trainable_flags_are_kept(trained):
    base = models.backbone()
    tfkit.configure_base_model(base, trained)
    before = {layer.name: layer.trainable for layer in base.layers}
    model = attach(base, 3)
    assert {layer.name: layer.trainable for layer in model.layers if layer.name in before} == before
    expected = [id(variable) for variable in base.trainable_variables]
    assert [id(variable) for variable in model.trainable_variables][:-2] == expected


def test_a_base_frozen_as_a_whole_stays_frozen():
    base = models.conv_net()
    base.trainable = False
    model = attach(base, 3, name="top")
    assert [variable.path for variable in model.trainable_variables] == ["top/kernel", "top/bias"]


def test_training_the_new_model_trains_the_base():
    base = models.backbone()
    model = attach(base, 1)
    before = base.get_layer("conv1").kernel.numpy()
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3))
    model.fit(x, np.ones((4, 1)), verbose=0)
    assert not np.array_equal(base.get_layer("conv1").kernel.numpy(), before)


def test_the_base_is_not_changed():
    base = models.backbone()
    names, weights = [layer.name for layer in base.layers], base.get_weights()
    attach(base, 3)
    assert [layer.name for layer in base.layers] == names
    for old, new in zip(weights, base.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_two_heads_share_one_base():
    base = models.backbone()
    first, second = attach(base, 2), attach(base, 3)
    assert first.get_layer("conv1") is second.get_layer("conv1")
    assert (first.output_shape, second.output_shape) == ((None, 2), (None, 3))


def test_a_head_goes_on_a_head():
    model = attach(attach(models.backbone(), 4), 2, name="second")
    assert [layer.name for layer in model.layers][-3:] == ["head_pool", "head", "second"]


def test_the_model_is_named_after_base_and_head_and_not_compiled():
    model = attach(models.backbone(), 3, name="top")
    assert (model.name, model.compiled) == ("backbone_top", False)


def test_the_model_survives_its_file(tmp_path):
    base = models.conv_net()
    model = attach(base, 3, hidden=(4,), dropout=0.2, name="top")
    model.save(tmp_path / "model.keras")
    x = data_for(base)
    np.testing.assert_array_equal(tfkit.models.load_base_model(tmp_path / "model.keras")(x), model(x))


def test_a_model_with_a_training_step_of_its_own_is_a_base():
    class OwnStep(keras.Model):
        def train_step(self, data):
            return {}

    plain = models.backbone()
    base = OwnStep(plain.inputs, plain.outputs, name="own")
    assert attach(base, 3).output_shape == (None, 3)


# --- what it refuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("units", [0, -1, 2.5, None, "10", True])
def test_units_that_are_no_count_are_refused(units):
    message = rf"`units` must be a whole number of at least 1\. Received: units={units!r}\."
    with pytest.raises(ArgumentError, match=message):
        attach(models.backbone(), units)


def test_counts_may_be_numpy_integers():
    assert attach(models.backbone(), np.int64(3), hidden=np.array([4, 5])).output_shape == (None, 3)


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.0, float("nan"), None, "0.5", True])
def test_dropout_outside_its_range_is_refused(dropout):
    message = rf"`dropout` must be a fraction in \[0, 1\)\. Received: dropout={dropout!r}\."
    with pytest.raises(ArgumentError, match=message):
        attach(models.backbone(), 3, dropout=dropout)


@pytest.mark.parametrize("hidden", [16, "16", None])
def test_hidden_that_is_no_sequence_is_refused(hidden):
    message = rf"`hidden` must be a sequence of widths.* Received: hidden={hidden!r}\. Write hidden=\(128,\)"
    with pytest.raises(ArgumentTypeError, match=message):
        attach(models.backbone(), 3, hidden=hidden)


@pytest.mark.parametrize("hidden", [(0,), (8, 2.5), ("8",)], ids=str)
def test_hidden_widths_that_are_no_counts_are_refused(hidden):
    message = r"`hidden` must hold whole numbers of at least 1\. Received: hidden=\("
    with pytest.raises(ArgumentError, match=message):
        attach(models.backbone(), 3, hidden=hidden)


@pytest.mark.parametrize("pooling", ["sum", "AVG", 1])
def test_an_unknown_pooling_is_refused(pooling):
    message = rf"`pooling` must be 'avg', 'max', 'flatten' or None\. Received: pooling={pooling!r}\."
    with pytest.raises(ArgumentError, match=message):
        attach(models.backbone(), 3, pooling=pooling)


@pytest.mark.parametrize("name", ["", "a/b", None, 3])
def test_a_bad_name_is_refused(name):
    message = rf"`name` must be a layer name without '/'\. Received: name={name!r}\."
    with pytest.raises(ArgumentError, match=message):
        attach(models.backbone(), 3, name=name)


@pytest.mark.parametrize("activation", ["softmaxx", 3])
def test_an_unknown_activation_is_refused(activation):
    message = (
        rf"`activation` must be a name from keras\.activations, .* Received: activation={activation!r}\."
    )
    with pytest.raises(ArgumentError, match=message):
        attach(models.backbone(), 3, activation=activation)


def test_positions_without_pooling_are_refused():
    message = (
        r"A base whose output has positions must be pooled\. "
        r"Received: base_model='backbone' with output shape \(None, 8, 8, 4\), pooling=None\. "
        r"Pass pooling='avg', 'max' or 'flatten'\."
    )
    with pytest.raises(ArgumentError, match=message):
        attach(models.backbone(), 3, pooling=None)


def test_flattening_open_sizes_is_refused():
    message = (
        r"pooling='flatten' must have fixed sizes\. "
        r"Received: base_model='encoder_decoder' with output shape \(None, None, 8, 3\)\. Pass pooling='avg'"
    )
    base = tfkit.models.build_encoder_decoder((None, 8, 3), filters=(4,), output_channels=3)
    with pytest.raises(ArgumentError, match=message):
        attach(base, 3, pooling="flatten")


@pytest.mark.parametrize("rank", [1, 6])
def test_an_output_of_another_rank_is_refused(rank):
    inputs = keras.Input((2,) * 5)
    x = keras.ops.sum(inputs, axis=(1, 2, 3, 4, 5)) if rank == 1 else layers.Dense(2)(inputs)
    with pytest.raises(
        ArgumentError, match=r"output must have rank 2, 3, 4 or 5\. Received: base_model='odd'"
    ):
        attach(keras.Model(inputs, x, name="odd"), 3)


def test_several_outputs_are_refused():
    inputs = keras.Input((3,))
    base = keras.Model(inputs, [layers.Dense(2)(inputs), layers.Dense(2)(inputs)], name="pair")
    message = (
        r"`base_model` must have one output\. Received: base_model='pair' with 2 outputs\. "
        r"Pass keras\.Model\(base\.inputs, base\.outputs\[0\]\)"
    )
    with pytest.raises(ArgumentError, match=message):
        attach(base, 3)


def test_one_output_in_a_list_is_one_output():
    inputs = keras.Input((3,))
    assert attach(keras.Model(inputs, [layers.Dense(2)(inputs)]), 4).output_shape == (None, 4)


class CallsItself(keras.Model):
    """Has a graph, but computes something else."""

    def call(self, x):
        return 2 * super().call(x)


@pytest.mark.parametrize(
    "build",
    [models.subclassed_net, lambda: CallsItself(*[keras.Input((3,), name="x")] * 2)],
    ids=["no graph", "call"],
)
def test_a_model_whose_graph_is_not_what_it_computes_is_refused(build):
    base = build()
    message = (
        r"`base_model` must be a functional or Sequential model, so that its graph can be extended\. "
        rf"Received: base_model='{base.name}' of class {type(base).__name__}, whose own `call` computes\. "
    )
    with pytest.raises(ArgumentError, match=message):
        attach(base, 3)


def test_weights_beside_the_graph_are_refused():
    message = (
        r"Every weight of `base_model` must belong to its graph\. "
        r"Received: base_model='hybrid', whose output does not use extra/kernel, extra/bias\. "
    )
    with pytest.raises(ArgumentError, match=message):
        attach(models.hybrid_net(), 3)


@pytest.mark.parametrize(
    ("builder", "options", "clash"),
    [
        (models.dense_net, {}, "head"),
        (models.conv_net, {"name": "conv1"}, "conv1"),
        (models.backbone, {"name": "wrapped", "hidden": (3,)}, "wrapped_hidden1"),
    ],
)
def test_names_that_the_base_has_already_are_refused(builder, options, clash):
    base = builder()
    if builder is models.backbone:
        base = keras.Model(base.inputs, layers.Dense(3, name=clash)(base.output), name="base")
    message = (
        r"The head's layers must have names of their own\. "
        rf"Received: base_model='{base.name}', which already has {clash}\. Pass another name=\."
    )
    with pytest.raises(ArgumentError, match=message):
        attach(base, 3, **options)


def test_the_names_of_inputs_and_operations_count_too():
    inputs = keras.Input((3,), name="features")
    base = keras.Model(inputs, keras.ops.relu(layers.Dense(2)(inputs)), name="base")
    taken = [each.name for each in base.operations if each not in base.layers]
    for name in ("features", *taken):
        with pytest.raises(ArgumentError, match=rf"which already has {name}\."):
            attach(base, 3, name=name)


def test_something_that_is_no_model_is_refused():
    with pytest.raises(ArgumentTypeError, match=r"must be a Keras 3 model.*Received: model='net'"):
        attach("net", 3)


def test_an_unbuilt_model_is_refused():
    with pytest.raises(UnbuiltModelError, match=r"must be built.*Received: model='raw'"):
        attach(keras.Sequential([layers.Dense(1)], name="raw"), 3)
