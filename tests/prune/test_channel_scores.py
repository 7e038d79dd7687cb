"""What a channel is worth: every criterion against NumPy or a gradient by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from scipy.spatial.distance import cdist

import tfkit
from tests import models
from tests.arrays import expect_equal
from tfkit.prune.groups import Wiring
from tfkit.prune.score import CRITERIA, score_units

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(10, 4, 4, 2)).astype("float32")
Y = RNG.normal(size=(10, 2)).astype("float32")


def randomized(model, seed=1):
    """The model with random weights, also where Keras begins with zeros and ones."""
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if "seed" not in variable.path:
            variable.assign(
                generator.uniform(0.2, 2, variable.shape) * generator.choice([-1, 1], variable.shape)
            )
        if "variance" in variable.path:
            variable.assign(np.abs(variable))
    return model


def conv(filters, name, **options):
    return layers.Conv2D(filters, 3, **({"padding": "same", "name": name} | options))


def chain(*stack):
    """A Sequential model for IMAGES with a head of two outputs."""
    keras.utils.set_random_seed(0)
    return randomized(keras.Sequential([keras.Input((4, 4, 2)), *stack, layers.Dense(2, name="head")]))


def normed():
    return chain(
        conv(3, "a"), layers.BatchNormalization(name="bn"), layers.ReLU(name="relu"),
        conv(5, "b", activation="relu"), layers.GlobalAveragePooling2D(name="pool"),
    )  # fmt: skip


def flat():
    return chain(conv(3, "a", activation="tanh"), layers.Flatten(name="flat"), layers.Dense(4, name="d"))


def residual():
    """`a` and `b` make the channels of an addition together."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4, 4, 2))
    x = conv(4, "a")(inputs)
    x = layers.Activation("tanh", name="sum")(layers.Add()([x, conv(4, "b")(x)]))
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return randomized(keras.Model(inputs, layers.Dense(2, name="head")(x)))


def depthwise():
    return chain(
        conv(4, "a"), layers.DepthwiseConv2D(3, name="dw"), conv(3, "b"),
        layers.GlobalAveragePooling2D(name="pool"),
    )  # fmt: skip


def grouped():
    """Two groups: the channels at the same place of both are one unit."""
    return chain(conv(8, "a"), conv(6, "g", groups=2), layers.GlobalAveragePooling2D(name="pool"))


def scores(model, criterion, **options):
    """The scores by the name of each group."""
    wiring = Wiring(model)
    found = score_units(wiring, criterion, **options)
    return dict(zip([group.name for group in wiring.groups], found, strict=True))


def relative(*parts):
    """Each divided by its mean, and their mean."""
    return np.mean([part / np.mean(part) for part in map(np.asarray, parts)], axis=0)


def filters(model, name):
    """The kernel of a layer, a row a channel."""
    kernel = np.asarray(model.get_layer(name).kernel, "float64")
    return kernel.reshape(-1, kernel.shape[-1]).T


def l1(rows):
    return np.abs(rows).sum(1)


def l2(rows):
    return np.linalg.norm(rows, axis=1)


def fpgm(rows):
    return cdist(rows, rows).sum(1)


NORMS = {"l1": l1, "l2": l2, "fpgm": fpgm}

# --- norms of weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("criterion", NORMS)
@pytest.mark.parametrize(
    ("build", "names"), [(normed, "ab"), (flat, "ad"), (depthwise, "ab")], ids=["conv", "flat", "depthwise"]
)
def test_a_norm_is_of_the_weights_that_make_the_channel(criterion, build, names):
    model = build()
    found = scores(model, criterion)
    assert list(found) == list(names)
    for name in names:
        np.testing.assert_allclose(found[name], relative(NORMS[criterion](filters(model, name))), rtol=1e-5)


@pytest.mark.parametrize("criterion", NORMS)
def test_a_group_of_two_makers_has_the_mean_of_both(criterion):
    model, norm = residual(), NORMS[criterion]
    expected = relative(norm(filters(model, "a")), norm(filters(model, "b")))
    np.testing.assert_allclose(scores(model, criterion)["a"], expected, rtol=1e-5)


@pytest.mark.parametrize("criterion", NORMS)
def test_channels_that_groups_of_a_convolution_tie_are_scored_together(criterion):
    model, norm = grouped(), NORMS[criterion]
    found = scores(model, criterion)
    a = filters(model, "a").reshape(2, 4, -1).swapaxes(0, 1).reshape(4, -1)  # channels i and i + 4
    g = filters(model, "g").reshape(2, 3, -1).swapaxes(0, 1).reshape(3, -1)
    np.testing.assert_allclose(found["a"], relative(norm(a)), rtol=1e-5)
    np.testing.assert_allclose(found["g"], relative(norm(g)), rtol=1e-5)


def test_the_filter_at_the_median_is_the_first_that_fpgm_gives():
    model = models.dense_net((3,), inputs=1)
    model.get_layer("d1").kernel.assign([[0.0, 10.0, 4.0]])
    np.testing.assert_allclose(scores(model, "fpgm")["d1"], relative([14.0, 16.0, 10.0]), rtol=1e-6)


def test_half_precision_is_scored_in_single():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, dtype="float16", name="d"), layers.Dense(2)])
    model.layers[0].kernel.assign(np.full((6, 8), 200.0) * np.arange(1, 9))  # whose squares overflow
    np.testing.assert_allclose(scores(model, "l2")["d"], np.arange(1, 9) / 4.5, rtol=1e-3)


def test_channels_that_are_all_zero_have_the_score_zero():
    model = models.dense_net((4,))
    model.get_layer("d1").kernel.assign(np.zeros((6, 4)))
    assert scores(model, "l2")["d1"].tolist() == [0, 0, 0, 0]


# --- the scale of a normalisation ------------------------------------------------------------------


def test_bn_scale_is_the_size_of_gamma_and_says_nothing_without_one():
    model = normed()
    model.get_layer("bn").gamma.assign([1.0, -4.0, 2.5])
    found = scores(model, "bn_scale")
    np.testing.assert_allclose(found["a"], [0.4, 1.6, 1.0], rtol=1e-6)
    assert found["b"] is None


def test_a_group_without_a_scale_is_left_whole_and_the_table_says_why():
    plan = tfkit.plan_channel_pruning(normed(), ratio=0.3, criterion="bn_scale", multiple_of=1)
    row = plan.table.set_index("group").loc["b"]
    assert row.channels_after == row.channels_before == 5
    assert row.reason == "no layer in it has what bn_scale looks at"


# --- activations -----------------------------------------------------------------------------------


def outputs_of(model, name, x=IMAGES):
    """Mean size of what a layer gives, a number a channel."""
    values = np.asarray(keras.Model(model.inputs, model.get_layer(name).output)(x), "float64")
    return np.abs(values).mean(tuple(range(values.ndim - 1)))


@pytest.mark.parametrize("batch_size", [3, 10, 32])
@pytest.mark.parametrize(
    ("build", "readers"),
    [(normed, {"a": ["relu"], "b": ["pool"]}), (residual, {"a": ["a", "pool"]}), (flat, {"d": ["d"]}),
     (depthwise, {"a": ["dw"], "b": ["pool"]})],
    ids=["conv", "residual", "flat", "depthwise"],
)  # fmt: skip
def test_activation_is_the_mean_size_of_what_the_next_layer_reads(build, readers, batch_size):
    model = build()
    found = scores(model, "activation", data=IMAGES, batch_size=batch_size)
    for group, names in readers.items():
        expected = relative(*(outputs_of(model, name) for name in names))
        np.testing.assert_allclose(found[group], expected, rtol=1e-4)


def test_activation_of_a_flattened_channel_is_the_mean_over_its_places():
    model = flat()
    expected = relative(outputs_of(model, "a"))
    np.testing.assert_allclose(scores(model, "activation", data=IMAGES)["a"], expected, rtol=1e-4)


def test_activation_of_tied_channels_is_their_mean():
    model = grouped()
    expected = relative(outputs_of(model, "a").reshape(2, 4).mean(0))
    np.testing.assert_allclose(scores(model, "activation", data=IMAGES)["a"], expected, rtol=1e-4)


# --- taylor ----------------------------------------------------------------------------------------


def loss_of(y, answer):
    return tf.reduce_mean(tf.square(answer - y) * [1.0, 3.0])


def by_hand(model, weights, tie=lambda line: line, batch_size=10):
    """Sum over batches of (sum over a channel's weights of gradient times weight)²."""
    total = 0.0
    for start in range(0, len(IMAGES), batch_size):
        part = slice(start, start + batch_size)
        with tf.GradientTape() as tape:
            value = loss_of(Y[part], model(IMAGES[part], training=False))
        gradients = tape.gradient(value, [weight.value for weight in weights])
        lines = [
            tie(np.sum(np.asarray(g) * np.asarray(w), tuple(range(g.ndim - 1)), dtype="float64"))
            for g, w in zip(gradients, weights, strict=True)
        ]
        total = total + np.square(np.sum(lines, axis=0))
    return total


def weights(model, *names):
    return [variable for name in names for variable in model.get_layer(name).trainable_variables]


@pytest.mark.parametrize("batch_size", [4, 10])
@pytest.mark.parametrize(
    ("build", "names"),
    [(normed, ["a", "bn"]), (flat, ["a"]), (flat, ["d"]), (residual, ["a", "b"])],
    ids=["normed", "conv", "dense", "residual"],
)
def test_taylor_is_the_squared_change_to_first_order(build, names, batch_size):
    """Molchanov et al. (2019), equation 8, for the weights that training moves."""
    model = build()
    found = scores(model, "taylor", data=(IMAGES, Y), batch_size=batch_size, loss=loss_of)
    expected = relative(by_hand(model, weights(model, *names), batch_size=batch_size))
    np.testing.assert_allclose(found[names[0]], expected, rtol=1e-3)


def test_taylor_counts_a_depthwise_kernel_with_the_channel_it_belongs_to():
    model = depthwise()
    kernel, bias = weights(model, "dw")
    with tf.GradientTape() as tape:
        value = loss_of(Y, model(IMAGES))
    slopes = tape.gradient(value, [each.value for each in [*weights(model, "a"), kernel, bias]])
    parts = [np.asarray(a) * np.asarray(b) for a, b in zip(slopes, [*weights(model, "a"), kernel, bias])]
    lines = [parts[0].sum((0, 1, 2)), parts[1], parts[2].sum((0, 1, 3)), parts[3]]
    expected = relative(np.square(np.sum(lines, axis=0)))
    found = scores(model, "taylor", data=(IMAGES, Y), loss=loss_of)["a"]
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_taylor_adds_up_channels_that_are_tied():
    model = grouped()
    found = scores(model, "taylor", data=(IMAGES, Y), loss=loss_of)
    expected = by_hand(model, weights(model, "a"), lambda line: line.reshape(2, 4).sum(0))
    np.testing.assert_allclose(found["a"], relative(expected), rtol=1e-3)


def test_taylor_takes_the_loss_that_the_model_is_compiled_with():
    model = flat()
    model.compile("sgd", loss_of)
    given = scores(model, "taylor", data=(IMAGES, Y), loss=loss_of)
    np.testing.assert_allclose(scores(model, "taylor", data=(IMAGES, Y))["a"], given["a"], rtol=1e-5)


def test_taylor_of_an_embedding():
    """Its gradient comes as slices; every word once, so that the sum is over all rows."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((3,), dtype="int32"), layers.Embedding(5, 4, name="e"),
         layers.GlobalAveragePooling1D(), layers.Dense(2, name="head")]
    )  # fmt: skip
    words = np.array([[0, 1, 2], [3, 4, 0]])
    table = model.get_layer("e").embeddings
    with tf.GradientTape() as tape:
        value = loss_of(Y[:2], model(words))
    slopes = np.asarray(tf.convert_to_tensor(tape.gradient(value, table.value)))
    found = scores(model, "taylor", data=(words, Y[:2]), loss=loss_of)["e"]
    np.testing.assert_allclose(found, relative(np.square((slopes * np.asarray(table)).sum(0))), rtol=1e-3)


def test_taylor_scores_frozen_weights_as_well():
    model = flat()
    before = scores(model, "taylor", data=(IMAGES, Y), loss=loss_of)["a"]
    model.trainable = False
    np.testing.assert_allclose(
        scores(model, "taylor", data=(IMAGES, Y), loss=loss_of)["a"], before, rtol=1e-5
    )


# --- chance ----------------------------------------------------------------------------------------


def test_random_is_the_same_for_a_seed_and_another_for_another():
    one, same, other = (scores(models.dense_net(), "random", seed=seed)["d1"] for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).all()


def test_random_is_about_one():
    values = scores(models.dense_net((4000,)), "random", seed=0)["d1"]
    assert values.mean() == pytest.approx(1, abs=0.05)
    assert 0 <= values.min() < values.max() <= 2


# --- what stays of the model -----------------------------------------------------------------------


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scoring_changes_no_weight(criterion):
    model = normed()
    model.compile("sgd", "mse")
    before = model.get_weights()
    scores(model, criterion, data=(IMAGES, Y))
    expect_equal(model.get_weights(), before)
