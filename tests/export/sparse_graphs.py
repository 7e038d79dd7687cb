"""Small networks and what XNNPACK makes of each once its weights are sparse-encoded.

The verdicts were not derived from its rules: `test_corpus` measures every one of them.
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import tfkit
from tfkit.export.sparse import make_sparse_ready


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, the verdict on it, and whether its weights are stored as float16."""

    build: Callable[[], keras.Model]
    verdict: str
    float16: bool = False


CASES: dict[str, Case] = {}


def case(verdict, *, size=48, zeros=0.9, float16=False):
    """Adds the network that a function makes of a picture."""

    def add(function):
        def build():
            keras.utils.set_random_seed(0)
            inputs = keras.Input((size, size, 3))
            return thinned(keras.Model(inputs, function(inputs)), zeros)

        CASES[function.__name__] = Case(build, verdict, float16)
        return function

    return add


def rewritten(verdict, *, before=None):
    """Adds the network that `make_sparse_ready` makes of another; with `before` the other as well."""

    def add(function):
        def build():
            keras.utils.set_random_seed(0)
            return enlivened(thinned(function(), 0.9))

        CASES[function.__name__] = Case(lambda: make_sparse_ready(build()), verdict)
        if before:
            CASES[f"{function.__name__}_as_it_was"] = Case(build, before)
        return function

    return add


def thinned(model, zeros):
    """Sets a share of the weights of each 1x1 convolution to zero, and makes up for it in the others."""
    generator = np.random.default_rng(0)
    for layer in tfkit.select_layers(model, lambda layer: type(layer) is layers.Conv2D).layers:
        if layer.kernel_size == (1, 1):
            kernel = np.asarray(layer.kernel)
            kept = generator.random(kernel.shape) >= zeros
            layer.kernel.assign(np.where(kept, kernel / np.sqrt(1 - zeros), 0))
    return model


def enlivened(model):
    """Gives each BatchNormalization factors of its own, and the statistics of seeded pictures."""
    generator = np.random.default_rng(1)
    norms = tfkit.select_layers(model, lambda layer: isinstance(layer, layers.BatchNormalization)).layers
    for norm in norms:
        norm.gamma.assign(generator.uniform(0.8, 1.2, norm.gamma.shape))
        norm.beta.assign(generator.normal(0, 0.2, norm.beta.shape))
        norm.momentum = 0.0
    pictures = generator.random((8, *model.input_shape[1:]), dtype="float32")
    model(pictures * 255 if model.name.startswith("Mobile") else pictures, training=True)
    return model


def stem(x, filters=32):
    x = layers.ZeroPadding2D(1)(x)
    return layers.ReLU(6)(layers.Conv2D(filters, 3, 2)(x))


def block(x, filters=64, kernel=3, strides=1):
    x = layers.ReLU()(layers.Conv2D(filters, 1)(x))
    if strides == 2:
        x = layers.ZeroPadding2D(kernel // 2)(x)
    padding = "same" if strides == 1 else "valid"
    x = layers.ReLU()(layers.DepthwiseConv2D(kernel, strides, padding=padding)(x))
    return layers.Conv2D(filters, 1)(x)


def pooled(x, **options):
    return layers.GlobalAveragePooling2D(**options)(x)


def gated(x, filters=64, rest=None):
    gate = layers.Conv2D(16, 1, activation="relu")(pooled(x, keepdims=True) if rest is None else rest)
    return layers.Multiply()([x, layers.Conv2D(filters, 1, activation="sigmoid")(gate)])


# --- what the sparse kernels take -----------------------------------------------------------------


@case("sparse")
def plain(x):
    return pooled(block(block(stem(x)), strides=2))


@case("sparse")
def dense_head(x):
    return layers.Dense(10)(pooled(block(stem(x))))


@case("sparse")
def large_dense_head(x):
    """Its weights would outweigh the zeros if they counted."""
    return layers.Dense(2000)(pooled(block(stem(x))))


@case("sparse")
def residual(x):
    x = block(stem(x))
    return pooled(layers.Add()([x, block(x)]))


@case("sparse")
def large_depthwise(x):
    return pooled(block(block(stem(x), kernel=5), kernel=5, strides=2))


@case("sparse")
def squeeze_excite(x):
    return pooled(block(gated(block(stem(x)))))


@case("sparse")
def squeeze_excite_reshaped(x):
    x = block(stem(x))
    return pooled(block(gated(x, rest=layers.Reshape((1, 1, 64))(pooled(x)))))


@case("sparse")
def swish(x):
    return pooled(block(layers.Activation("swish")(layers.Conv2D(64, 1)(stem(x)))))


@case("sparse")
def hard_swish(x):
    return pooled(block(layers.Activation("hard_silu")(layers.Conv2D(64, 1)(stem(x)))))


@case("sparse")
def leaky(x):
    return pooled(block(layers.LeakyReLU(0.1)(layers.Conv2D(64, 1)(stem(x)))))


@case("sparse")
def rescaled(x):
    return pooled(block(layers.Rescaling(2.0, 1.0)(layers.ReLU()(layers.Conv2D(64, 1)(stem(x))))))


@case("sparse")
def upsampled(x):
    return pooled(block(layers.UpSampling2D(interpolation="bilinear")(block(stem(x)))))


@case("sparse")
def two_pools(x):
    x = block(stem(x))
    return [pooled(x), pooled(block(x))]


@case("sparse", size=47)
def odd_picture(x):
    """Keras pads by itself, but the converter writes SAME, which comes to the same here."""
    return pooled(block(block(stem(x)), strides=2))


@case("sparse", size=47)
def odd_picture_large_depthwise(x):
    return pooled(block(stem(x), kernel=5, strides=2))


@case("sparse", size=47)
def odd_picture_padded_same(x):
    x = layers.ReLU()(layers.Conv2D(32, 3, 2, padding="same")(x))
    x = layers.DepthwiseConv2D(3, 1, padding="same")(layers.Conv2D(64, 1)(x))
    return pooled(layers.Conv2D(64, 1)(x))


@case("sparse", float16=True)
def half_precision(x):
    return pooled(block(block(stem(x)), strides=2))


@case("sparse", zeros=0.7)
def just_enough_zeros(x):
    return pooled(block(block(stem(x))))


def exactly(zeros):
    """A network whose 1x1 convolution has 72 weights, of which so many are zero."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    convolution = layers.Conv2D(6, 1)
    model = keras.Model(inputs, pooled(convolution(stem(inputs, 12))))
    kernel = np.asarray(convolution.kernel).copy()
    kernel.reshape(-1)[np.random.default_rng(0).permutation(72)[:zeros]] = 0
    convolution.kernel.assign(kernel)
    return model


CASES["one_more_than_two_thirds"] = Case(lambda: exactly(49), "sparse")
CASES["two_thirds"] = Case(lambda: exactly(48), "dense")


# --- what they do not take --------------------------------------------------------------------------


@case("dense", zeros=0.6)
def too_few_zeros(x):
    return pooled(block(block(stem(x))))


@case("dense", zeros=0.6, float16=True)
def too_few_zeros_half_precision(x):
    return pooled(block(block(stem(x))))


@case("dense")
def same_stem(x):
    return pooled(block(layers.Conv2D(32, 3, 2, padding="same")(x)))


@case("dense")
def large_stem(x):
    return pooled(block(layers.Conv2D(32, 5, 2)(layers.ZeroPadding2D(2)(x))))


@case("dense")
def stem_of_four_channels(x):
    return pooled(block(stem(layers.Conv2D(4, 1)(x))))


@case("dense")
def concatenated(x):
    x = block(stem(x))
    return pooled(block(layers.Concatenate()([x, block(x)])))


@case("dense")
def subtracted(x):
    x = block(stem(x))
    return pooled(block(layers.Subtract()([x, block(x)])))


@case("dense")
def flattened(x):
    return layers.Dense(5)(layers.Flatten()(block(stem(x), filters=8)))


@case("dense")
def max_pooled_at_the_end(x):
    return layers.GlobalMaxPooling2D()(block(stem(x)))


@case("dense")
def picture_out(x):
    return layers.Conv2D(3, 1)(layers.UpSampling2D(interpolation="bilinear")(block(stem(x))))


# --- what they take and get wrong ---------------------------------------------------------------------


@case("wrong")
def max_pooling(x):
    x = layers.DepthwiseConv2D(3, padding="same")(layers.Conv2D(64, 1)(stem(x)))
    return pooled(layers.Conv2D(64, 1)(layers.MaxPooling2D()(x)))


@case("wrong")
def average_pooling(x):
    return pooled(block(layers.AveragePooling2D(2)(block(stem(x)))))


@case("wrong")
def convolution_3x3(x):
    return pooled(block(layers.Conv2D(64, 3, padding="same")(block(stem(x)))))


@case("wrong")
def depthwise_7x7(x):
    return pooled(block(block(stem(x)), kernel=7))


@case("wrong")
def dilated(x):
    return pooled(block(layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)(block(stem(x)))))


@case("wrong")
def strided_1x1(x):
    return pooled(block(layers.Conv2D(64, 1, strides=2)(block(stem(x)))))


@case("wrong")
def prelu(x):
    return pooled(block(layers.PReLU(shared_axes=(1, 2))(layers.Conv2D(64, 1)(stem(x)))))


@case("wrong")
def softmax(x):
    return pooled(block(layers.Softmax()(block(stem(x)))))


@case("wrong")
def depthwise_strided_same(x):
    return pooled(block(layers.DepthwiseConv2D(3, 2, padding="same")(block(stem(x)))))


@case("wrong")
def feature_map_out(x):
    x = block(stem(x))
    return [pooled(block(x)), x]


@case("wrong")
def pool_keeps_dimensions(x):
    return pooled(block(stem(x)), keepdims=True)


@case("wrong")
def pool_then_1x1(x):
    return layers.Flatten()(layers.Conv2D(32, 1)(pooled(block(stem(x)), keepdims=True)))


# --- what the rewrite makes of known networks ---------------------------------------------------------


@rewritten("sparse")
def mobilenet():
    return keras.applications.MobileNet(
        (96, 96, 3), 0.25, weights=None, classes=10, classifier_activation=None
    )


@rewritten("sparse", before="dense")
def mobilenet_v2():
    return keras.applications.MobileNetV2(
        (96, 96, 3), 0.35, weights=None, classes=10, classifier_activation=None
    )


@rewritten("sparse")
def mobilenet_v3():
    return keras.applications.MobileNetV3Small(
        (96, 96, 3), weights=None, classes=10, classifier_activation=None
    )


@rewritten("sparse")
def efficient_blocks():
    """EfficientNet's stem and its blocks, at a tenth of its depth."""

    def norm(x, activation="swish"):
        x = layers.BatchNormalization()(x)
        return layers.Activation(activation)(x) if activation else x

    inputs = keras.Input((64, 64, 3))
    x = layers.Normalization(mean=[0.5, 0.4, 0.3], variance=[0.1, 0.2, 0.3])(
        layers.Rescaling(1 / 255)(inputs)
    )
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = norm(layers.Conv2D(32, 3, 2, use_bias=False)(x))
    for filters, kernel, strides in ((16, 3, 1), (24, 3, 2), (24, 3, 1), (40, 5, 2)):
        before = x
        wide = 4 * x.shape[-1]
        x = norm(layers.Conv2D(wide, 1, padding="same", use_bias=False)(x))
        if strides == 2:
            margin = (kernel // 2 - 1 + x.shape[1] % 2, kernel // 2)
            x = layers.ZeroPadding2D((margin, margin))(x)
        padding = "valid" if strides == 2 else "same"
        x = norm(layers.DepthwiseConv2D(kernel, strides, padding=padding, use_bias=False)(x))
        gate = layers.Reshape((1, 1, wide))(pooled(x))
        gate = layers.Conv2D(8, 1, padding="same", activation="swish")(gate)
        x = layers.Multiply()([x, layers.Conv2D(wide, 1, padding="same", activation="sigmoid")(gate)])
        x = norm(layers.Conv2D(filters, 1, padding="same", use_bias=False)(x), None)
        if before.shape == x.shape:
            x = layers.Add()([layers.Dropout(0.2)(x), before])
    x = norm(layers.Conv2D(128, 1, padding="same", use_bias=False)(x))
    return keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.2)(pooled(x))))
