"""`add_weight_penalty` against NumPy, against Keras's own regularizers, and through a file."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, optimizers, regularizers

import tfkit
from tests import models

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(8, 6)).astype("float32"), RANDOM.normal(size=(8, 2)).astype("float32")


def net(rate=0.1, penalty=None, **options):
    """Two Dense layers, with a regularizer from the start if one is given."""
    keras.utils.set_random_seed(0)
    stack = [
        layers.Dense(4, kernel_regularizer=penalty, name="d1"),
        layers.Dense(2, kernel_regularizer=penalty, name="head"),
    ]
    model = keras.Sequential([keras.Input((6,)), *stack])
    model.compile(optimizers.SGD(rate), "mse", **options)
    return model


def fit(model, epochs=1, **options):
    return model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, **options).history


def penalty(model):
    return float(sum(model.losses))


def by_numpy(weights, l1=0.0, l2=0.0):
    return sum(l1 * np.abs(w).sum() + l2 * np.square(w).sum() for w in np.array(weights, dtype=object))


@pytest.fixture(scope="module")
def plain():
    return net()


# --- the formula -----------------------------------------------------------------------------------------


@given(l1=st.floats(0.0, 2.0), l2=st.floats(1e-4, 2.0), layer=st.sampled_from(["d1", "head"]))
@settings(deadline=None, max_examples=15)
def test_is_the_sum_of_magnitudes_and_squares_of_the_kernels(plain, l1, l2, layer):
    kernel = plain.get_layer(layer).kernel
    kernel.regularizer = None
    tfkit.add_weight_penalty(plain, l1=l1, l2=l2, layers=layer)
    value = float(kernel.regularizer(kernel))
    assert value == pytest.approx(by_numpy([kernel.numpy()], l1, l2), rel=1e-5)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (regularizers.L1(0.5), (0.6, 0.2)),
        (regularizers.L2(0.5), (0.1, 0.7)),
        (regularizers.L1L2(1, 2), (1.1, 2.2)),
    ],
    ids=["L1", "L2", "L1L2"],
)
def test_adds_to_what_a_layer_has(own, expected):
    table = tfkit.training_table(tfkit.add_weight_penalty(net(penalty=own), l1=0.1, l2=0.2, layers="d1"))
    found = table[(table.path == "d1") & (table.variable == "kernel")][["l1", "l2"]].values[0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_added_twice_counts_twice():
    model = net()
    for _ in range(2):
        tfkit.add_weight_penalty(model, l2=0.1)
    assert penalty(model) == pytest.approx(by_numpy(model.get_weights()[::2], l2=0.2), rel=1e-6)


def test_a_layer_in_two_places_pays_once():
    model = models.shared_net()
    shared = tfkit.select_layers(model, "second/shared").layers[0]
    tfkit.add_weight_penalty(model, l2=1.0, layers="second/shared")
    assert penalty(model) == pytest.approx(by_numpy([shared.kernel.numpy()], l2=1.0), rel=1e-6)


def test_a_layer_that_is_unfrozen_pays_again():
    model = tfkit.configure_base_model(tfkit.add_weight_penalty(net(), l2=1.0), "head")
    assert penalty(model) == pytest.approx(by_numpy([model.get_layer("head").kernel.numpy()], l2=1.0))
    tfkit.configure_base_model(model, "*")
    assert penalty(model) == pytest.approx(by_numpy(model.get_weights()[::2], l2=1.0))


def test_a_model_need_not_be_compiled():
    model = models.dense_net()
    assert tfkit.add_weight_penalty(model, l2=1.0) is model
    assert penalty(model) == pytest.approx(by_numpy(model.get_weights()[::2], l2=1.0))


@pytest.mark.parametrize("layer", ["both", "mha", "lstm"], ids=["GRU", "attention", "LSTM"])
def test_biases_pay_nothing(layer):
    table = tfkit.training_table(tfkit.add_weight_penalty(models.sequence_net(), l2=1.0, layers=layer))
    mine = table[table.path.str.startswith(layer)]
    assert {*mine.variable} > {"bias"}
    assert (mine[mine.variable == "bias"].l2 == 0).all()
    assert (mine[mine.variable != "bias"].l2 == 1).all()


# --- training ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ({"l2": 0.1}, regularizers.L2(0.1)),
        ({"l1": 0.1}, regularizers.L1(0.1)),
        ({"l1": 0.1, "l2": 0.2}, None),
    ],
    ids=["l2", "l1", "both"],
)
def test_trains_bit_for_bit_as_with_regularizers_of_keras(given, own):
    mine, theirs = net(), net(penalty=own or regularizers.L1L2(**given))
    tfkit.add_weight_penalty(mine, **given)
    assert fit(mine, epochs=3) == fit(theirs, epochs=3)
    for one, other in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_reaches_the_loss_of_a_model_that_has_trained():
    model = net(rate=0.0)
    [before] = fit(model)["loss"]
    tfkit.add_weight_penalty(model, l2=1.0)
    [after] = fit(model)["loss"]
    assert after - before == pytest.approx(by_numpy(model.get_weights()[::2], l2=1.0), rel=1e-4)


@pytest.mark.parametrize("how", ["validation", "evaluate"])
def test_reaches_the_validation_loss_of_a_model_that_has_trained(how):
    model = net(rate=0.0)

    def measure():
        if how == "validation":
            return fit(model, validation_data=(X, Y))["val_loss"][0]
        return model.evaluate(X, Y, verbose=0)

    before = measure()
    tfkit.add_weight_penalty(model, l2=1.0)
    assert measure() - before == pytest.approx(by_numpy(model.get_weights()[::2], l2=1.0), rel=1e-4)


def test_a_layer_that_is_frozen_after_training_leaves_the_validation_loss():
    model = tfkit.add_weight_penalty(net(rate=0.0), l2=1.0)
    before = model.evaluate(X, Y, verbose=0)
    tfkit.configure_base_model(model, "head")
    d1 = by_numpy([model.get_layer("d1").kernel.numpy()], l2=1.0)
    assert before - model.evaluate(X, Y, verbose=0) == pytest.approx(d1, rel=1e-4)


def test_keeps_the_optimizers_state():
    model = net()
    model.compile(optimizers.Adam(0.01), "mse", run_eagerly=True)
    fit(model)
    before = [np.array(v.numpy()) for v in model.optimizer.variables]
    tfkit.add_weight_penalty(model, l2=1.0)
    for old, variable in zip(before, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), old)


# --- through a file -----------------------------------------------------------------------------------

IMAGE, SERIES, WORDS = (8, 8, 3), (5, 4), (5,)
LAYERS = {
    "Dense": (SERIES, lambda **k: layers.Dense(3, **k), ["kernel"]),
    "EinsumDense": (SERIES, lambda **k: layers.EinsumDense("abc,cd->abd", (5, 3), **k), ["kernel"]),
    "Conv1D": (SERIES, lambda **k: layers.Conv1D(3, 2, **k), ["kernel"]),
    "Conv2D": (IMAGE, lambda **k: layers.Conv2D(3, 2, **k), ["kernel"]),
    "Conv2DTranspose": (IMAGE, lambda **k: layers.Conv2DTranspose(3, 2, **k), ["kernel"]),
    "DepthwiseConv1D": (SERIES, lambda **k: layers.DepthwiseConv1D(2, **k), ["depthwise"]),
    "DepthwiseConv2D": (IMAGE, lambda **k: layers.DepthwiseConv2D(2, **k), ["depthwise"]),
    "SeparableConv1D": (SERIES, lambda **k: layers.SeparableConv1D(3, 2, **k), ["depthwise", "pointwise"]),
    "SeparableConv2D": (IMAGE, lambda **k: layers.SeparableConv2D(3, 2, **k), ["depthwise", "pointwise"]),
    "Embedding": (WORDS, lambda **k: layers.Embedding(9, 3, **k), ["embeddings"]),
    "SimpleRNN": (SERIES, lambda **k: layers.SimpleRNN(3, **k), ["kernel", "recurrent"]),
    "LSTM": (SERIES, lambda **k: layers.LSTM(3, **k), ["kernel", "recurrent"]),
    "GRU": (SERIES, lambda **k: layers.GRU(3, **k), ["kernel", "recurrent"]),
    "ConvLSTM1D": ((3, 5, 4), lambda **k: layers.ConvLSTM1D(3, 2, **k), ["kernel", "recurrent"]),
    "Bidirectional": (SERIES, lambda **k: layers.Bidirectional(layers.GRU(3, **k)), ["kernel", "recurrent"]),
    "TimeDistributed": (SERIES, lambda **k: layers.TimeDistributed(layers.Dense(3, **k)), ["kernel"]),
    "PReLU": (SERIES, lambda **k: layers.PReLU(alpha_initializer="ones", **k), ["alpha"]),
}
ATTENTION = {
    "MultiHeadAttention": lambda **k: layers.MultiHeadAttention(2, 3, **k),
    "GroupQueryAttention": lambda **k: layers.GroupQueryAttention(3, 4, 2, **k),
}


EVERY = [*LAYERS, *ATTENTION]


def around(name, **options):
    """A model of one layer, and twice the same attention."""
    keras.utils.set_random_seed(0)
    if name in ATTENTION:
        inputs = keras.Input(SERIES)
        x = ATTENTION[name](**options, name="one")(inputs, inputs)
        return keras.Model(inputs, ATTENTION[name](**options, name="two")(x, x))
    shape, make, _ = LAYERS[name]
    return keras.Sequential([keras.Input(shape), make(**options)])


def explicit(name, regularizer):
    """The same with the regularizer given when it was made."""
    names = ["kernel"] if name in ATTENTION else LAYERS[name][2]
    return around(name, **{f"{each}_regularizer": regularizer for each in names})


@pytest.mark.filterwarnings("error:The penalty")
@pytest.mark.parametrize("name", EVERY)
def test_is_what_keras_would_take_from_the_layers_own_arguments(name):
    model = tfkit.add_weight_penalty(around(name), l1=0.1, l2=0.2)
    expected = penalty(explicit(name, regularizers.L1L2(0.1, 0.2)))
    assert expected > 0
    assert penalty(model) == pytest.approx(expected, rel=1e-6)


@pytest.mark.filterwarnings("error:The penalty")
@pytest.mark.parametrize("name", EVERY)
def test_comes_back_with_the_model(name, tmp_path):
    model = tfkit.add_weight_penalty(around(name), l1=0.1, l2=0.2)
    assert penalty(model) > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert penalty(loaded) == pytest.approx(penalty(model), rel=1e-6)


@pytest.mark.filterwarnings("error:The penalty")
@pytest.mark.parametrize("part", ["one/query", "one/attention_output"])
def test_on_a_part_of_an_attention_comes_back_as_it_was_or_warns(part, tmp_path):
    model = around("MultiHeadAttention")
    try:
        tfkit.add_weight_penalty(model, l2=1.0, layers=part)
    except UserWarning:
        return
    assert penalty(model) > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert penalty(loaded) == pytest.approx(penalty(model), rel=1e-6)


@pytest.mark.filterwarnings("error:The penalty")
def test_on_half_of_a_bidirectional_layer_comes_back_as_it_was(tmp_path):
    model = tfkit.add_weight_penalty(models.sequence_net(), l2=1.0, layers="both/forward_gru")
    assert penalty(model) > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert penalty(loaded) == pytest.approx(penalty(model), rel=1e-6)


def test_two_attentions_keep_each_its_own(tmp_path):
    model = around("MultiHeadAttention")
    tfkit.add_weight_penalty(model, l2=1.0, layers="one")
    tfkit.add_weight_penalty(model, l2=3.0, layers="two")
    model.save(tmp_path / "model.keras")
    table = tfkit.training_table(keras.models.load_model(tmp_path / "model.keras"))
    kernels = table[table.variable == "kernel"]
    assert kernels.l2.tolist() == [1.0] * 4 + [3.0] * 4


@keras.saving.register_keras_serializable("tfkit.tests")
class Own(layers.Layer):
    """A layer with a matrix and no argument for its regularizer."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 2), name="matrix")

    def call(self, x):
        return x @ self.matrix


def test_a_layer_that_cannot_save_it_is_named_once_with_all_others():
    model = keras.Sequential([keras.Input((6,)), Own(name="first"), layers.Dense(2), Own(name="second")])
    message = (
        r"^The penalty on first/matrix, second/matrix will not be saved with the model, "
        r"for the layer has no argument that holds it\.$"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        tfkit.add_weight_penalty(model, l2=1.0)
    assert len(caught) == 1
    assert caught[0].filename == __file__


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own", [regularizers.OrthogonalRegularizer(), lambda w: 0.1 * keras.ops.sum(w)], ids=["class", "function"]
)
def test_a_regularizer_that_nothing_can_be_added_to_is_refused_before_anything_changes(own):
    model = net()
    model.get_layer("head").kernel.regularizer = own
    rule = (
        r"L1 and L2 can be added to a weight that has none or one of them\. Received: head/kernel with .*\. "
        r"Leave the layer out: layers=\['\*', '!head'\]\."
    )
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.add_weight_penalty(model, l2=1.0)
    assert model.get_layer("d1").kernel.regularizer is None


def test_the_way_out_that_the_refusal_names_works():
    model = net()
    model.get_layer("head").kernel.regularizer = regularizers.OrthogonalRegularizer()
    tfkit.add_weight_penalty(model, l2=1.0, layers=["*", "!head"])
    assert model.get_layer("d1").kernel.regularizer.l2 == 1.0


def test_no_penalty_at_all():
    rule = r"A penalty must have `l1` or `l2` above 0\. Received: l1=0\.0, l2=0\.0\."
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.add_weight_penalty(net())


@pytest.mark.parametrize("name", ["l1", "l2"])
@pytest.mark.parametrize("value", [-1, float("nan"), "1", True])
def test_a_factor_that_is_none(name, value):
    rule = rf"`{name}` must be .*Received: {name}={value!r}\."
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.add_weight_penalty(net(), **{name: value})


def test_a_refused_factor_is_not_called_a_learning_rate():
    with pytest.raises(tfkit.ArgumentError, match=r"Received: l1=-1\.") as refusal:
        tfkit.add_weight_penalty(net(), l1=-1)
    assert "learning rate" not in str(refusal.value)


def test_layers_without_a_kernel():
    rule = r"A penalty needs a weight of two or more dimensions\. Received: layers='bn1', which have none\."
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.add_weight_penalty(models.conv_net(), l2=1.0, layers="bn1")


def test_a_misspelt_layer():
    with pytest.raises(tfkit.LayerNotFoundError, match=r"pattern='haed'\. Nearest names: head"):
        tfkit.add_weight_penalty(net(), l2=1.0, layers="haed")


def test_something_that_is_no_model():
    with pytest.raises(tfkit.ArgumentTypeError, match=r"`model` must be a Keras 3 model .*Received: model=3"):
        tfkit.add_weight_penalty(3, l2=1.0)
