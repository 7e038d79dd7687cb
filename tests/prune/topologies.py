"""Small models, one for each way in which channels meet: convolutions, merges, shapes, nesting.

Each is drawn from a seed; `randomize` gives every weight a value of its own, statistics,
biases and scales included, so that nothing cancels by chance.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers


@dataclasses.dataclass(frozen=True)
class Topology:
    """A model to try, and how closely two ways of computing it agree."""

    build: Callable[[], keras.Model]
    tolerance: float = 1e-5
    custom_objects: dict = dataclasses.field(default_factory=dict)


TOPOLOGIES: dict[str, Topology] = {}


def topology(build=None, **options):
    """Puts a builder among the `TOPOLOGIES`, under its name."""
    if build is None:
        return lambda build: topology(build, **options)
    TOPOLOGIES[build.__name__] = Topology(build, **options)
    return build


def made(name, seed=0):
    """Builds a topology with random weights."""
    keras.backend.clear_session(free_memory=False)  # names count from one again
    keras.utils.set_random_seed(seed)
    return randomize(TOPOLOGIES[name].build(), seed)


def randomize(model, seed=0):
    """Gives all weights distinct random values of a size that keeps activations near 1."""
    generator = np.random.default_rng(seed)
    for variable in {id(each): each for each in model.weights}.values():
        count, shape = int(np.prod(variable.shape)), tuple(variable.shape)
        values = (generator.permutation(count).reshape(shape) + generator.uniform(0.1, 0.9)) / count
        spread = (2 * values - 1).astype("float64")  # evenly in (-1, 1), no two alike
        if variable.name in ("gamma", "scale", "moving_variance"):
            variable.assign(1 + 0.5 * spread)
        elif len(shape) == 1 or variable.name in ("bias", "alpha"):
            variable.assign(0.5 * spread)
        else:
            fan = max(int(np.prod(shape[:-1])), 1) if variable.name != "embeddings" else 3
            variable.assign(spread * np.sqrt(6 / fan))
    return model


def batch(model, count=4, seed=1):
    """Returns random inputs in the structure that a model takes."""
    generator = np.random.default_rng(seed)

    def draw(x):
        shape = (count, *(size or 6 for size in x.shape[1:]))
        if "int" in x.dtype:
            return generator.integers(0, 10, shape).astype(x.dtype)
        return generator.normal(size=shape).astype("float32")

    drawn = [draw(x) for x in model.inputs]
    return keras.tree.pack_sequence_as(model.input, drawn) if len(drawn) > 1 else drawn[0]


def outputs(model, x):
    """Returns the flat outputs of a model in inference."""
    flat = keras.tree.flatten(model(x, training=False))
    return [keras.ops.convert_to_numpy(each).astype("float64") for each in flat]


def conv(filters, name=None, size=3, **options):
    return layers.Conv2D(filters, size, **{"padding": "same", "name": name} | options)


def image(channels=3, size=8, name=None):
    return keras.Input((size, size, channels), name=name)


def head(x, units=3):
    """Pools over space, and gives what a classifier would."""
    return layers.Dense(units, name="head")(layers.GlobalAveragePooling2D(name="pool")(x))


def ended(inputs, x):
    return keras.Model(inputs, head(x))


def normed(x, filters, name, **options):
    """Convolution, BatchNormalization, ReLU."""
    x = layers.BatchNormalization(name=f"{name}_bn")(conv(filters, name, **options)(x))
    return layers.ReLU(name=f"{name}_relu")(x)


# chains


@topology
def plain_chain():
    parts = [conv(12, "a", activation="relu"), conv(16, "b", activation="relu"), conv(8, "c", strides=2)]
    return keras.Sequential([image(), *parts, layers.GlobalMaxPooling2D(), layers.Dense(3, name="head")])


@topology
def no_bias_no_scale():
    inputs = image()
    x = conv(12, "a", use_bias=False)(inputs)
    x = layers.BatchNormalization(scale=False, name="a_bn")(x)
    x = conv(16, "b", use_bias=False)(layers.LeakyReLU()(x))
    x = layers.BatchNormalization(center=False, scale=False, name="b_bn")(x)
    return ended(inputs, layers.ELU()(x))


@topology
def one_dimension():
    inputs = keras.Input((16, 3))
    x = layers.Conv1D(12, 3, padding="causal", dilation_rate=2, activation="gelu", name="a")(inputs)
    x = layers.AveragePooling1D(2)(layers.ZeroPadding1D(1)(x))
    x = layers.DepthwiseConv1D(3, depth_multiplier=2, name="dw")(x)
    x = layers.SeparableConv1D(10, 3, depth_multiplier=2, padding="same", activation="relu", name="s")(x)
    x = layers.SpatialDropout1D(0.1)(layers.UpSampling1D(2)(layers.Cropping1D(1)(x)))
    x = layers.Conv1DTranspose(8, 3, strides=2, name="t")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalMaxPooling1D()(x)))


@topology
def three_dimensions():
    inputs = keras.Input((6, 6, 6, 2))
    x = layers.Conv3D(8, 3, padding="same", activation="relu", name="a")(inputs)
    x = layers.MaxPooling3D(2)(layers.BatchNormalization(name="a_bn")(x))
    x = layers.Conv3DTranspose(6, 2, strides=2, activation="tanh", name="t")(x)
    x = layers.Cropping3D(1)(layers.UpSampling3D(2)(layers.ZeroPadding3D(1)(x)))
    x = layers.Conv3D(8, 3, groups=2, strides=2, name="g")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling3D()(x)))


@topology
def dense_chain():
    parts = [layers.Dense(units, activation="silu", name=f"d{units}") for units in (24, 16, 12)]
    return keras.Sequential([keras.Input((6,)), *parts, layers.Dense(2, name="head")])


@topology
def every_pooling():
    inputs = image()
    x = layers.MaxPooling2D(2, strides=1, padding="same")(conv(12, "a")(inputs))
    x = layers.AveragePooling2D(3, strides=1)(x)
    x = layers.Resizing(10, 9)(layers.Cropping2D(1)(layers.ZeroPadding2D(2)(layers.UpSampling2D(2)(x))))
    x = conv(10, "b")(layers.AdaptiveAveragePooling2D((4, 3))(x))
    x = conv(8, "c", size=2, activation="relu")(layers.AdaptiveMaxPooling2D(2)(x))
    return keras.Model(inputs, conv(3, "head", size=1)(layers.GlobalAveragePooling2D(keepdims=True)(x)))


@topology
def noise_and_dropout():
    inputs = image()
    x = layers.GaussianNoise(0.2)(conv(12, "a")(inputs))
    x = layers.Dropout(0.4)(layers.GaussianDropout(0.3)(x))
    x = layers.SpatialDropout2D(0.2)(conv(8, "b")(layers.ActivityRegularization(0.1)(x)))
    return ended(inputs, layers.AlphaDropout(0.1)(layers.Identity()(layers.Rescaling(2.0, 0.5)(x))))


@topology(tolerance=2e-2)
def half_precision():
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    inputs = image()
    x = conv(16, "a", dtype=policy)(inputs)
    x = layers.BatchNormalization(name="a_bn", dtype=policy)(x)
    x = layers.LayerNormalization(name="ln", dtype=policy)(layers.ReLU(dtype=policy)(x))
    x = layers.GlobalAveragePooling2D(dtype=policy)(conv(12, "b", dtype=policy)(x))
    return keras.Model(inputs, layers.Dense(3, dtype="float32", name="head")(x))


# additions


@topology
def residual_add():
    inputs = image()
    x = normed(inputs, 16, "stem")
    y = normed(x, 24, "inner")
    y = layers.BatchNormalization(name="outer_bn")(conv(16, "outer")(y))
    return ended(inputs, layers.ReLU()(layers.Add()([x, y])))


@topology
def residual_blocks_with_projection():
    inputs = image()
    x = normed(inputs, 8, "stem")
    for number, filters in enumerate((8, 16, 16), 1):
        y = conv(filters, f"b{number}_2")(normed(x, filters, f"b{number}_1", strides=1 + (number == 2)))
        if number == 2:
            x = conv(filters, "project", size=1, strides=2)(x)
        x = layers.ReLU()(layers.Add()([x, layers.BatchNormalization()(y)]))
    return ended(inputs, x)


@topology
def add_of_three():
    inputs = image()
    branches = [conv(12, name, size=size)(inputs) for name, size in (("a", 1), ("b", 3), ("c", 5))]
    x = conv(8, "d")(layers.Add()(branches))
    y = conv(8, "e")(layers.Average()([branches[0], branches[2]]))
    return ended(inputs, layers.Maximum()([x, y, layers.Subtract()([y, x]), layers.Minimum()([x, y])]))


@topology
def depthwise_residual():
    """An inverted residual, as MobileNetV2 has them."""
    inputs = image()
    x = normed(inputs, 8, "stem")
    y = normed(x, 24, "expand", size=1)
    y = layers.ReLU(6.0)(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same", name="dw")(y)))
    x = layers.Add()([x, layers.BatchNormalization()(conv(8, "project", size=1)(y))])
    return ended(inputs, x)


# concatenations


@topology
def concatenation():
    inputs = image()
    x = layers.Concatenate()([conv(8, "a")(inputs), conv(12, "b", size=1)(inputs), inputs])
    return ended(inputs, conv(10, "c")(layers.BatchNormalization(name="bn")(x)))


@topology
def concatenation_of_concatenation():
    inputs = image()
    a, b, c = (conv(filters, name)(inputs) for name, filters in (("a", 6), ("b", 8), ("c", 10)))
    inner = layers.Concatenate()([a, b])
    outer = layers.Concatenate()([inner, c, inner])
    return ended(inputs, conv(8, "d")(layers.BatchNormalization(name="bn")(outer)))


@topology
def concatenation_then_add():
    """The addition couples the wide convolution piece by piece with the two narrow ones."""
    inputs = image()
    x = layers.Concatenate()([conv(8, "a")(inputs), conv(12, "b")(inputs)])
    x = layers.Add()([x, conv(20, "wide")(inputs)])
    return ended(inputs, conv(8, "c")(layers.ReLU()(x)))


@topology
def add_of_shifted_concatenations():
    """Pieces that overlap: a + d, b + d, b + e and so on are coupled in parts."""
    inputs = image()
    a, b, d, e = (conv(filters, name)(inputs) for name, filters in zip("abde", (8, 12, 14, 6)))
    x = layers.Add()([layers.Concatenate()([a, b]), layers.Concatenate()([d, e])])
    return ended(inputs, conv(8, "c")(layers.ReLU()(x)))


@topology
def dense_block():
    inputs = image()
    x = conv(8, "stem")(inputs)
    for number in range(3):
        y = layers.ReLU()(layers.BatchNormalization(name=f"bn{number}")(x))
        x = layers.Concatenate()([x, conv(6, f"grow{number}")(y)])
    return ended(inputs, conv(10, "transition", size=1)(x))


@topology
def concatenation_over_space():
    inputs = image()
    x = layers.Concatenate(axis=1)([conv(12, "a")(inputs), conv(12, "b")(inputs)])
    return ended(inputs, conv(8, "c")(layers.Concatenate(axis=2)([x, x])))


# products


@topology
def squeeze_and_excite():
    inputs = image()
    x = normed(inputs, 16, "a")
    s = layers.Reshape((1, 1, 16), name="places")(layers.GlobalAveragePooling2D(name="squeeze")(x))
    s = layers.Dense(4, activation="relu", name="reduce")(s)
    s = layers.Dense(16, activation="sigmoid", name="excite")(s)
    return ended(inputs, conv(8, "b")(layers.Multiply()([x, s])))


@topology
def squeeze_and_excite_by_convolution():
    inputs = image()
    x = layers.DepthwiseConv2D(3, padding="same", name="dw")(conv(16, "a")(inputs))
    s = layers.GlobalAveragePooling2D(keepdims=True)(layers.Activation("silu")(x))
    s = conv(16, "excite", size=1, activation="sigmoid")(conv(4, "reduce", size=1, activation="relu")(s))
    return ended(inputs, conv(8, "b")(layers.Multiply()([s, x])))


@topology
def spatial_gate():
    inputs = image()
    x = conv(12, "a", activation="relu")(inputs)
    gate = conv(1, "gate", activation="sigmoid")(x)
    y = layers.Add()([layers.Multiply()([x, gate]), x])
    return ended(inputs, conv(8, "b")(y))


# grouped, depthwise and separable convolutions


@topology
def depthwise_multipliers():
    inputs = image()
    x = layers.DepthwiseConv2D(3, name="dw1")(conv(10, "a")(inputs))
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu", name="dw2")(x)
    return ended(inputs, conv(8, "b", size=1)(layers.BatchNormalization(name="bn")(x)))


@topology
def depthwise_of_the_input():
    inputs = image()
    x = layers.DepthwiseConv2D(3, depth_multiplier=4, name="dw")(inputs)
    return ended(inputs, conv(8, "b")(conv(12, "a")(x)))


@topology
def separable():
    inputs = image()
    x = layers.SeparableConv2D(12, 3, depth_multiplier=2, activation="relu", name="s1")(inputs)
    x = layers.SeparableConv2D(16, 3, depth_multiplier=2, activation="relu", name="s2")(x)
    return ended(inputs, layers.SeparableConv2D(8, 3, use_bias=False, name="s3")(x))


@topology
def grouped():
    inputs = image()
    x = conv(16, "a", activation="relu")(inputs)
    x = conv(24, "g2", groups=2, activation="relu")(x)
    x = conv(16, "g4", groups=4, activation="relu")(x)
    return ended(inputs, conv(8, "b", size=1)(x))


@topology
def groups_equal_to_channels():
    inputs = image()
    x = conv(12, "a", activation="relu")(inputs)
    x = conv(12, "dw1", groups=12)(x)
    x = conv(24, "dw2", groups=12, activation="relu")(x)
    return ended(inputs, conv(8, "b", size=1)(x))


@topology
def resnext():
    inputs = image()
    x = conv(16, "stem")(inputs)
    y = layers.BatchNormalization()(conv(16, "grouped", groups=4)(normed(x, 16, "reduce", size=1)))
    return ended(inputs, layers.ReLU()(layers.Add()([x, conv(16, "expand", size=1)(layers.ReLU()(y))])))


@topology
def unet():
    inputs = image()
    high = normed(inputs, 8, "d1")
    low = normed(layers.MaxPooling2D()(high), 16, "d2")
    deep = normed(layers.MaxPooling2D()(low), 24, "d3")
    x = layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu", name="up1")(deep)
    x = normed(layers.Concatenate()([x, low]), 12, "u1")
    x = layers.Conv2DTranspose(8, 2, strides=2, use_bias=False, name="up2")(x)
    x = normed(layers.Concatenate()([high, x]), 8, "u2")
    return keras.Model(inputs, conv(2, "map", size=1, activation="sigmoid")(x))
