"""`fit_cached` on graphs of every form: what it leaves behind is what `model.fit` leaves behind."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers, ops

from tests import models
from tests.transfer.caching import (
    IMAGES,
    RANDOM,
    TOKENS,
    TRIAL,
    Counter,
    X,
    Y,
    compiled,
    counting,
    fit_quietly,
    train_both,
)

LABELS = RANDOM.integers(0, 3, size=10)
SEQUENCES = RANDOM.normal(size=(10, 5, 4)).astype("float32")
ONE = RANDOM.normal(size=(10, 1)).astype("float32")


# --- graphs --------------------------------------------------------------------------------------


def u_net():
    """An encoder whose two stages reach the decoder over skips as well."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    first = layers.Conv2D(4, 3, padding="same", activation="relu", name="encoder1")(inputs)
    second = layers.Conv2D(5, 3, padding="same", name="encoder2")(layers.MaxPooling2D()(first))
    x = layers.Conv2D(6, 3, padding="same", name="encoder3")(layers.MaxPooling2D()(second))
    for skip, name in ((second, "decoder2"), (first, "decoder1")):
        x = layers.Concatenate()([layers.UpSampling2D()(x), skip])
        x = layers.Conv2D(4, 3, padding="same", activation="relu", name=name)(x)
    return keras.Model(inputs, layers.Conv2D(3, 1, name="out")(x))


def branches():
    """Frozen branches of different depths beside a trained one, all from one input."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    deep = layers.Dense(4, name="frozen2")(layers.Dense(5, activation="tanh", name="frozen1")(inputs))
    mixed = layers.Dense(4, name="trained2")(layers.Dense(4, name="frozen3")(inputs))
    own = layers.Dense(4, name="trained1")(inputs)
    x = layers.Concatenate()([deep, mixed, own, inputs])
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def residual():
    """Sums over the boundary: one summand frozen, one trained; and the frozen sum is an output too."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    frozen = layers.Add()([layers.Dense(6, name="frozen1")(inputs), inputs])
    frozen = layers.Dense(6, activation="tanh", name="frozen2")(frozen) + frozen * 0.5
    x = frozen + layers.Dense(6, name="trained1")(frozen)
    return keras.Model(inputs, layers.Dense(2, name="head")(ops.tanh(x)))


def siamese():
    """A nested model used twice, once in the frozen part and once behind a trained layer."""
    keras.utils.set_random_seed(0)
    tower = keras.Sequential(
        [keras.Input((6,)), layers.Dense(6, activation="tanh", name="t1"), layers.Dense(6, name="t2")],
        name="tower",
    )
    inputs = keras.Input((6,))
    x = layers.Dense(6, name="between")(inputs)
    x = layers.Subtract()([tower(inputs), tower(x)])
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def shared_layer():
    """One layer at two places of the frozen part, which a trained layer follows."""
    keras.utils.set_random_seed(0)
    twice = layers.Dense(6, activation="tanh", name="twice")
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(2, name="head")(twice(twice(inputs))))


def frozen_output():
    """The frozen part's own output counts in the loss."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    features = layers.Dense(2, name="features")(inputs)
    return keras.Model(inputs, {"features": features, "head": layers.Dense(2, name="head")(features)})


def single_output():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    return keras.Model([inputs], [layers.Dense(2, name="head")(layers.Dense(4, name="one")(inputs))])


def unneeded():
    keras.utils.set_random_seed(0)
    inputs = [keras.Input((6,)), keras.Input((2,))]
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.Dense(4, name="one")(inputs[0])))


def translation():
    """Two recurrent layers: the frozen one hands sequence and states over to the trained one."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5, 4))
    x, hidden, cell = layers.LSTM(3, return_sequences=True, return_state=True, name="reader")(inputs)
    x = layers.LSTM(3, name="writer")(x, initial_state=[hidden, cell])
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def masked(sequences, **recurrent):
    """Tokens of which zeros are masked; the mask goes through layers that only hand it on."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype="int32")
    x = layers.Embedding(6, 4, mask_zero=True, name="embedding")(inputs)
    x = layers.Activation("tanh")(x)
    x = layers.LSTM(3, return_sequences=sequences, name="lstm")(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def attention():
    """Attention over masked tokens, with values and keys from two branches."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype="int32")
    x = layers.Embedding(6, 4, mask_zero=True, name="embedding")(inputs)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, layers.Dense(4, name="values")(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling1D()(x)))


def masked_nested():
    """A nested model that takes and gives masked sequences; part of it trains."""
    keras.utils.set_random_seed(0)
    inside = keras.Input((3, 4))
    x = layers.LSTM(4, return_sequences=True, name="one")(inside)
    inner = keras.Model(inside, layers.LSTM(4, return_sequences=True, name="two")(x), name="inner")
    inputs = keras.Input((3,), dtype="int32")
    x = inner(layers.Embedding(6, 4, mask_zero=True, name="embedding")(inputs))
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.LSTM(3, name="three")(x)))


STEPS = RANDOM.normal(size=(10, 3, 2)).astype("float32")
GRAPHS = {
    "u-net": (u_net, ["decoder*", "out"], IMAGES, IMAGES),
    "branches": (branches, ["trained*", "head"], X, Y),
    "residual": (residual, ["trained1", "head"], X, Y),
    "sequential": (models.conv_net, "head", IMAGES, Y),
    "nested, boundary behind": (models.nested_net, ["wrapper/project", "head"], IMAGES, Y),
    "shared nested model, frozen": (siamese, "head", X, Y),
    "shared nested model, trained inside": (siamese, ["tower/t2", "head"], X, Y),
    "frozen output": (frozen_output, "head", X, {"features": Y, "head": Y}),
    "an input that nothing needs": (unneeded, "head", [X, Y], Y),
    "outputs in a list of one": (single_output, "head", X, [Y]),
    "shared layer": (shared_layer, "head", X, Y),
    "layer shared by nested models": (models.shared_net, "second_own", X[:, :4], SEQUENCES[:, 0]),
    "composed layers": (models.gated_net, ["gate2", "head"], X, Y),
    "states of a recurrent layer": (translation, ["writer", "head"], SEQUENCES, Y),
    "mask to the loss": (lambda: masked(True), "head", TOKENS, STEPS),
    "mask to a trained LSTM and the loss": (lambda: masked(True), ["lstm", "head"], TOKENS, STEPS),
    "mask to a trained attention": (attention, ["attention", "head"], TOKENS, Y),
}


PARTLY = {  # frozen layers stand behind trained ones as well, or in a model that is called as one
    "mask through a nested model": (masked_nested, ["inner/two", "three", "head"], TOKENS, Y),
    "nested, boundary two levels inside": (models.nested_net, ["wrapper/backbone/conv2", "head"], IMAGES, Y),
    "nested, only an inner layer trains": (models.nested_net, "wrapper/project", IMAGES, Y),
    "nested sequentials": (models.deep_net, ["middle/inner/b", "head"], X[:, :4], Y),
    "part of a composed layer": (models.gated_net, ["gate2/mix"], X, Y),
    "part of an attention": (models.sequence_net, ["mha/query"], SEQUENCES, ONE),
    "mask to a trained value": (attention, ["values", "head"], TOKENS, Y),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_training_equals_fit(name):
    build, patterns, x, y = GRAPHS[name]
    train_both(lambda: compiled(build(), patterns), x, y)


@pytest.mark.parametrize("name", PARTLY)
def test_training_equals_fit_with_frozen_layers_behind_trained_ones(name):
    build, patterns, x, y = PARTLY[name]
    with pytest.warns(UserWarning, match="stands (behind|inside) .*, which trains"):
        train_both(lambda: compiled(build(), patterns), x, y, cached={"strict": False})


@pytest.mark.parametrize("batch_norm", ["frozen", "train"])
def test_batch_normalization_in_the_trained_part_equals_fit(batch_norm):
    train_both(
        lambda: compiled(models.conv_net(), ["bn1", "conv2", "head"], batch_norm=batch_norm), IMAGES, Y
    )


def test_frozen_statistics_behind_a_trained_layer_stay_as_in_fit():
    with pytest.warns(UserWarning, match="bn1 stands behind conv1, which trains"):
        train_both(
            lambda: compiled(u_net_with_norm(), ["conv1", "head"]), IMAGES, Y, cached={"strict": False}
        )


def u_net_with_norm():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 1, name="conv0")(inputs)
    x = layers.BatchNormalization(name="bn1")(layers.Conv2D(3, 3, name="conv1")(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)))


def test_an_applications_model_with_a_head_equals_fit():
    def build():
        keras.utils.set_random_seed(0)
        base = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, include_top=False)
        for layer in base.layers:  # fresh statistics would hide whether they are used
            if isinstance(layer, layers.BatchNormalization):
                layer.moving_mean.assign(np.linspace(-0.1, 0.1, layer.moving_mean.shape[0]))
        inputs = keras.Input((32, 32, 3))
        x = layers.GlobalAveragePooling2D()(base(layers.Rescaling(1 / 127.5, -1)(inputs), training=False))
        model = keras.Model(inputs, layers.Dense(2, name="head")(x))
        return compiled(model, ["Conv_1", "head"])

    images = RANDOM.integers(0, 256, size=(4, 32, 32, 3)).astype("uint8")
    with pytest.warns(UserWarning, match=r"/Conv_1_bn stands behind .*/Conv_1, which trains\.$"):
        train_both(build, images, Y[:4], cached={"strict": False})


# --- several inputs and outputs -----------------------------------------------------------------


def two_and_two(kind, **arguments):
    """Two inputs and two outputs as a dict, a list or a tuple, and compiled in that structure."""
    keras.utils.set_random_seed(0)
    left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right")
    first, second = layers.Dense(5, name="frozen1")(left), layers.Dense(5, name="frozen2")(right)
    both = layers.Concatenate()([first, layers.Dense(3, name="trained1")(second)])
    sums, classes = layers.Dense(2, name="sums")(both), layers.Dense(3, name="classes")(first)
    cross = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if kind == "dict":
        model = keras.Model({"left": left, "right": right}, {"sums": sums, "classes": classes})
        options = {"loss": {"sums": "mse", "classes": cross}, "loss_weights": {"sums": 2.0, "classes": 0.5}}
        options |= {
            "metrics": {"classes": ["accuracy"], "sums": ["mae"]},
            "weighted_metrics": {"sums": "mse"},
        }
    else:
        wrap = tuple if kind == "tuple" else list
        model = keras.Model(wrap([left, right]), wrap([sums, classes]))
        options = {"loss": ["mse", cross], "loss_weights": [2.0, 0.5], "metrics": [["mae"], ["accuracy"]]}
    return compiled(model, ["trained1", "sums", "classes"], **options, **arguments)


RIGHT = RANDOM.normal(size=(10, 4)).astype("float32")
PAIRS = {
    "dict": ({"right": RIGHT, "left": X}, {"classes": LABELS, "sums": Y}),
    "list": ([X, RIGHT], [Y, LABELS]),
    "tuple": ((X, RIGHT), (Y, LABELS)),
}


@pytest.mark.parametrize(("kind", "budget"), [("dict", 4), ("list", 0), ("tuple", 4)])
def test_several_inputs_and_outputs_equal_fit(kind, budget):
    x, y = PAIRS[kind]
    train_both(lambda: two_and_two(kind), x, y, cached={"memory_budget_gb": budget})


def test_inputs_by_name_for_a_model_with_a_list_equal_fit():
    train_both(lambda: two_and_two("list"), {"left": X, "right": RIGHT}, [Y, LABELS])


def test_sample_weights_for_each_output_equal_fit():
    x, y = PAIRS["dict"]
    weights = {"sums": np.linspace(0, 2, 10), "classes": np.linspace(1, 0, 10)}
    train_both(lambda: two_and_two("dict"), x, y, sample_weight=weights)


@pytest.mark.parametrize("budget", [4, 0], ids=["memory", "disk"])
def test_one_array_of_sample_weights_for_several_outputs_equals_fit(budget):
    x, y = PAIRS["dict"]
    weights = np.linspace(0, 2, 10)
    train_both(lambda: two_and_two("dict"), x, y, sample_weight=weights, cached={"memory_budget_gb": budget})


def test_validation_with_several_inputs_and_outputs_equals_fit():
    x, y = PAIRS["dict"]
    train_both(lambda: two_and_two("dict"), x, y, validation_split=0.3)


# --- layers that behave differently in training --------------------------------------------------------


class Louder(layers.Layer):
    """Doubles in training."""

    def call(self, x, training=None):
        return x * 2 if training else x


def test_a_frozen_layer_that_knows_training_from_inference_equals_fit():
    def build():
        keras.utils.set_random_seed(0)
        stack = [layers.Dense(5, name="one"), Louder(), layers.Dense(2, name="head")]
        return compiled(keras.Sequential([keras.Input((6,)), *stack]), "head")

    train_both(build, validation_data=(X[:3], Y[:3]))


# --- the frozen part runs once -------------------------------------------------------------------------


def test_the_frozen_part_sees_every_sample_once_besides_a_trial():
    model = counting()
    fit_once(model)
    assert sum(model.get_layer("counter").seen) == len(X) + TRIAL


def test_the_frozen_part_sees_validation_samples_once():
    model = counting()
    fit_once(model, validation_data=(X[:3], Y[:3]))
    assert sum(model.get_layer("counter").seen) == len(X) + TRIAL + 3


def test_the_frozen_part_of_a_nested_model_with_two_inputs_runs_once():
    keras.utils.set_random_seed(0)
    one, two = keras.Input((6,)), keras.Input((2,))
    counter = Counter(name="counter")
    x = layers.Concatenate()([counter(layers.Dense(4, name="frozen")(one)), two])
    inner = keras.Model([one, two], layers.Dense(4, name="trained")(x), name="inner")
    one, two = keras.Input((6,)), keras.Input((2,))
    model = keras.Model([one, two], layers.Dense(2, name="head")(inner([one, two])))
    compiled(model, ["inner/trained", "head"])
    fit_quietly(model, [X, Y], Y, epochs=5)
    assert sum(counter.seen) == len(X) + TRIAL


def test_plain_fit_runs_it_once_an_epoch():
    model = counting()
    model.fit(X, Y, epochs=5, verbose=0)
    assert sum(model.get_layer("counter").seen) == 5 * len(X)


def fit_once(model, **arguments):
    fit_quietly(model, epochs=5, **arguments)


def test_a_frozen_layer_that_nothing_needs_keeps_its_weights():
    model = counting()
    before = model.get_weights()[:3]
    fit_once(model)
    for old, new in zip(before, model.get_weights()[:3]):
        np.testing.assert_array_equal(old, new)


# --- any graph --------------------------------------------------------------------------------------


@st.composite
def programs(draw):
    """A list of layers, each with the places of its inputs, and which of them train."""
    steps = []
    for place in range(draw(st.integers(2, 7))):
        kind = draw(st.sampled_from(["dense", "conv", "add", "concatenate", "again", "norm"]))
        inputs = draw(st.lists(st.integers(0, place), min_size=2, max_size=2))
        steps.append((kind, inputs, draw(st.booleans())))
    return steps


def random_graph(steps):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 3))
    values, made, width = [inputs], [layers.Dense(3, name="first")], 3  # that the last layer takes
    for number, (kind, places, _) in enumerate(steps):
        one, other = (values[place] for place in places)
        if kind == "add":
            values.append(layers.Add(name=f"add_{number}")([one, other]))
            continue
        if kind == "concatenate":
            one = layers.Concatenate(name=f"concatenate_{number}")([one, other])
        if kind == "conv":
            made.append(layers.Conv1D(3, 3, padding="same", activation="tanh", name=f"layer_{number}"))
        elif kind == "norm":
            made.append(layers.LayerNormalization(name=f"layer_{number}"))
        elif kind != "again" or one.shape[-1] != width:
            made.append(layers.Dense(3, activation="tanh", name=f"layer_{number}"))
        width = one.shape[-1]
        values.append(made[-1](one))
    x = layers.Flatten()(layers.Add()([values[-1], values[len(values) // 2]]))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],
)
@given(programs())
@pytest.mark.filterwarnings("ignore:fit_cached goes on")
def test_on_any_graph_training_equals_fit(steps):
    trained = [f"layer_{number}" for number, (_, _, train) in enumerate(steps) if train]
    names = {layer.name for layer in random_graph(steps).layers}
    patterns = ["head", *(name for name in trained if name in names)]
    train_both(
        lambda: compiled(random_graph(steps), patterns), SEQUENCES[:, :4, :3], Y, cached={"strict": False}
    )
