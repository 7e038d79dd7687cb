"""Small networks for the rewrite: each has in it something that a rewrite could get wrong."""

import keras
import numpy as np
from keras import layers

from tests import models

MODELS = {}


def example(function):
    MODELS[function.__name__] = function
    return function


def norm(x, **options):
    return layers.BatchNormalization(**options)(x)


def start(x, filters=8):
    return norm(layers.Conv2D(filters, 3, 2, padding="same")(x))


def bottleneck(x, filters=8, strides=1):
    x = layers.ReLU(6)(norm(layers.Conv2D(filters, 1, use_bias=False)(x)))
    x = layers.ReLU(6)(norm(layers.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(x)))
    return norm(layers.Conv2D(filters, 1, use_bias=False)(x))


def pool(x, **options):
    return layers.GlobalAveragePooling2D(**options)(x)


def on_picture(function, size=(24, 20)):
    inputs = keras.Input((*size, 3))
    return keras.Model(inputs, function(inputs))


@example
def residual():
    def net(x):
        x = bottleneck(start(x))
        return layers.Dense(4)(pool(layers.Add()([x, bottleneck(x)])))

    return on_picture(net)


@example
def sequential():
    stack = [layers.Conv2D(8, 3, 2, padding="same"), layers.BatchNormalization(), layers.ReLU()]
    head = [layers.Conv2D(8, 1), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    return keras.Sequential([keras.Input((17, 17, 3)), layers.Rescaling(2, -1), *stack, *head])


@example
def nested():
    inner_in = keras.Input((12, 10, 8))
    inner = keras.Model(inner_in, bottleneck(inner_in, strides=2), name="inner")
    return on_picture(lambda x: pool(inner(start(x))))


@example
def nested_called_twice():
    inner_in = keras.Input((12, 10, 8))
    inner = keras.Model(inner_in, layers.Multiply()([bottleneck(inner_in), inner_in * 0.5]), name="inner")
    return on_picture(lambda x: pool(inner(inner(start(x)))))


@example
def shared_convolution_with_two_paddings():
    shared = layers.DepthwiseConv2D(3, 2, name="shared")

    def net(x):
        x = start(x)
        one = shared(layers.ZeroPadding2D(1)(x))
        other = shared(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
        return pool(layers.Add()([one, other]))

    return on_picture(net)


@example
def shared_convolution_folded_and_not():
    shared = layers.Conv2D(8, 1)

    def net(x):
        x = start(x)
        return [pool(norm(shared(x))), pool(layers.ReLU()(shared(x)))]

    return on_picture(net)


@example
def several_inputs_and_outputs():
    left, right, size = keras.Input((16, 16, 3)), keras.Input((16, 16, 3)), keras.Input((4,))
    x = layers.Concatenate()([start(left), start(right)])
    y = pool(bottleneck(x, strides=2))
    merged = layers.Concatenate()([y, layers.Dense(3)(size)])
    return keras.Model({"b": left, "a": right, "c": size}, {"y": layers.Dense(2)(merged), "x": x})


@example
def an_input_given_out():
    inputs = keras.Input((16, 16, 3))
    x = start(inputs)
    return keras.Model(inputs, [inputs, x, x, pool(x)])


@example
def sequence_beside_picture():
    picture, sequence = keras.Input((16, 16, 3)), keras.Input((5, 4))
    turned = layers.Conv1D(3, 2)(sequence)
    return keras.Model([picture, sequence], [pool(start(picture)), turned])


@example
def u_net():
    def net(x):
        one = layers.ReLU()(start(x))
        two = bottleneck(one, strides=2)
        up = layers.UpSampling2D(interpolation="bilinear")(two)
        x = layers.Concatenate()([up, one])
        x = layers.Conv2DTranspose(4, 3, 2, padding="same")(layers.Conv2D(8, 3, padding="same")(x))
        return layers.Conv2D(2, 1, activation="sigmoid")(x)

    return on_picture(net)


@example
def separable():
    def net(x):
        x = norm(layers.SeparableConv2D(8, 3, strides=2, padding="same", depth_multiplier=2)(start(x)))
        x = layers.SeparableConv2D(6, (3, 5), padding="same", activation="relu", use_bias=False)(x)
        return pool(layers.SeparableConv2D(5, 2, padding="valid", dilation_rate=2)(x))

    return on_picture(net, (31, 24))


@example
def dilated():
    def net(x):
        x = layers.Conv2D(8, 3, padding="same", dilation_rate=2)(start(x))
        return pool(layers.DepthwiseConv2D(3, dilation_rate=(3, 3))(layers.ReLU()(x)))

    return on_picture(net, (33, 28))


@example
def leftover_pixels():
    def net(x):
        x = layers.Conv2D(8, 2, 3)(start(x))
        return pool(layers.DepthwiseConv2D(2, 2)(layers.ReLU()(x)))

    return on_picture(net, (46, 41))


@example
def paddings_of_all_kinds():
    def net(x):
        x = layers.Conv2D(8, 3, 2)(layers.ZeroPadding2D(1)(x))  # PyTorch's
        x = layers.ReLU()(layers.DepthwiseConv2D(3, 2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(x)))
        x = layers.Conv2D(8, 3)(layers.ZeroPadding2D(((2, 0), (1, 3)))(x))
        x = layers.MaxPooling2D(2)(layers.ZeroPadding2D(((1, 0), (0, 1)))(layers.ReLU()(x)))
        padded = layers.ZeroPadding2D(((1, 0), (2, 1)))(x)
        return [pool(layers.Conv2D(4, 2, 2)(padded)), padded]

    return on_picture(net, (32, 35))


@example
def padding_that_two_take():
    def net(x):
        padded = layers.ZeroPadding2D(((0, 1), (0, 1)))(start(x))
        return pool(
            layers.Add()([layers.Conv2D(4, 3, 2)(padded), layers.DepthwiseConv2D(3, 2)(padded)[..., :4]])
        )

    return on_picture(net, (32, 32))


@example
def preprocessing_in_front():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).random((4, 16, 16, 3)) * [1, 2, 3])
    return on_picture(lambda x: pool(bottleneck(start(normalization(layers.Rescaling([1, 2, 3.0])(x))))))


@example
def norms_that_stand_alone():
    def net(x):
        x = norm(start(norm(x)))  # two in a chain, and one before any convolution
        x = norm(layers.ReLU()(x))
        x = norm(layers.Add()([x, bottleneck(x)]))
        return layers.Dense(3)(norm(pool(x)))

    return on_picture(net)


@example
def operations_for_each_channel():
    def net(x):
        x = layers.Rescaling(0.5, 0.1)(norm(start(x)))
        y = (3 - layers.Conv2D(8, 1)(x)) / 2 + 1
        x = layers.ReLU()(x) * 0.3 - 0.2
        return pool(layers.Multiply()([x, y]) * np.arange(8, dtype="float32"))

    return on_picture(net)


@example
def what_knows_places():
    """All of it differs when a picture is turned."""
    ramp = np.linspace(0, 1, 12 * 10, dtype="float32").reshape(1, 12, 10, 1)

    def net(x):
        x = start(x) * ramp
        x = layers.PReLU(alpha_initializer="random_normal")(x)
        x = layers.BatchNormalization(axis=1)(x)
        x = layers.Concatenate(axis=2)([x, layers.ReLU()(x)])
        x = layers.Softmax(axis=1)(layers.Conv2D(4, 1)(x))
        x = layers.LayerNormalization(axis=(1, 2))(x)
        return layers.Dense(3)(layers.Flatten()(layers.Cropping2D(((1, 0), (0, 2)))(x)))

    return on_picture(net)


@example
def dense_on_pictures():
    return on_picture(
        lambda x: layers.Flatten()(layers.Dense(2)(layers.Dropout(0.5)(layers.Dense(8)(start(x)))))
    )


@example
def gates_of_all_kinds():
    def gated(x, gate):
        return layers.Multiply()([x, layers.Reshape((1, 1, 8))(gate)])

    def net(x):
        x = bottleneck(start(x))
        x = gated(x, layers.Dense(8, "sigmoid")(layers.Dense(4, "relu")(pool(x))))
        x = gated(x, layers.Softmax()(layers.BatchNormalization(axis=1)(pool(x))))
        x = gated(x, layers.Concatenate()([pool(x)[:, :4], pool(layers.Conv2D(4, 1)(x))]))
        squeezed = layers.Conv2D(8, 1, activation="sigmoid")(pool(x, keepdims=True))
        x = layers.Multiply()([x, layers.Flatten()(squeezed)])
        return pool(layers.Add()([x, layers.UpSampling2D((12, 10))(pool(x, keepdims=True))]))

    return on_picture(net)


@example
def heads_of_all_kinds():
    def net(x):
        x = bottleneck(start(x))
        kept = pool(x, keepdims=True)
        mobile = layers.Reshape((4,))(layers.Conv2D(4, 1)(layers.Dropout(0.1)(layers.ReLU()(kept))))
        grouped = layers.Flatten()(layers.Conv2D(8, 1, groups=2)(kept))
        padded = layers.Conv2D(2, 1)(layers.ZeroPadding2D(1)(kept))
        wide = layers.Conv2D(2, 3, padding="same")(kept)
        grown = layers.Conv2DTranspose(2, 3, 2)(kept)
        return [mobile, grouped, padded, wide, grown, layers.GlobalMaxPooling2D()(x), norm(kept)]

    return on_picture(net)


def channels_first():
    def net(x):
        x = layers.Permute((3, 1, 2))(start(x))
        x = layers.ZeroPadding2D(1, data_format="channels_first")(x)
        x = layers.Conv2D(4, 3, 2, data_format="channels_first")(x)
        return layers.GlobalAveragePooling2D(data_format="channels_first")(x)

    return on_picture(net)


if models.runs_channels_first():
    example(channels_first)


@example
def names_that_clash():
    inner_in = keras.Input((12, 10, 8), name="x")
    inner = keras.Model(inner_in, layers.ReLU(name="b")(layers.Conv2D(8, 1, name="c")(inner_in)), name="a")
    inputs = keras.Input((24, 20, 3), name="a_c")
    x = layers.Conv2D(8, 3, 2, padding="same", name="flip")(inputs)
    shared = layers.DepthwiseConv2D(3, 2, padding="same", name="s")
    x = layers.ReLU(name="a_b")(inner(x))
    x = layers.ReLU(name="s_2")(layers.Add(name="s_padding")([shared(x), shared(layers.ReLU(name="s_3")(x))]))
    return keras.Model(inputs, pool(x, name="a_c_turned"))


class Doubled(layers.Conv2D):
    """Looks like a convolution and computes something else."""

    def call(self, x):
        return 2 * super().call(x)


@example
def layers_of_the_users_own():
    return on_picture(lambda x: pool(norm(models.Block(4)(norm(Doubled(4, 3, 2, padding="same")(start(x)))))))


@example
def lambdas():
    return on_picture(lambda x: pool(layers.Lambda(lambda y: y[:, 1:], name="cut")(start(x))))


@example
def frozen_policy():
    """Layers that compute in float64, under a policy of something else."""

    def net(x):
        x = layers.Conv2D(8, 3, 2, padding="same", dtype="float64")(x)
        x = layers.BatchNormalization(dtype="float64")(layers.ReLU(dtype="float64")(x))
        x = layers.DepthwiseConv2D(3, 2, padding="same", dtype="float64")(x)
        return layers.GlobalAveragePooling2D(dtype="float64", keepdims=True)(x)

    return on_picture(net)
