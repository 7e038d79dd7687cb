"""More `topologies`: reshapes, nesting, several inputs and outputs, normalisations, keras.ops."""

import keras
from keras import layers, ops
from keras.src.applications.convnext import LayerScale

from tests import models
from tests.prune.topologies import conv, ended, head, image, normed, topology

# channels that move


@topology
def flatten_into_dense():
    inputs = image()
    x = layers.MaxPooling2D(2)(normed(inputs, 12, "a"))
    x = layers.Dense(16, activation="relu", name="d")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@topology
def flattens_side_by_side():
    inputs = image()
    x = layers.Concatenate()([layers.Flatten()(conv(6, "a")(inputs)), layers.Flatten()(conv(8, "b")(inputs))])
    x = layers.Dense(12, name="d")(layers.BatchNormalization(name="bn")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.ReLU()(x)))


@topology
def decoder_from_dense():
    inputs = keras.Input((6,))
    x = layers.Dense(4 * 4 * 12, activation="relu", name="d")(inputs)
    x = layers.Conv2DTranspose(8, 3, strides=2, padding="same", name="t")(layers.Reshape((4, 4, 12))(x))
    return keras.Model(inputs, conv(3, "map")(layers.ReLU()(x)))


@topology
def reshape_with_an_open_axis():
    inputs = image()
    x = layers.Reshape((-1, 12))(conv(12, "a")(inputs))
    x = layers.Reshape((8, 8, 8))(layers.Dense(8, name="d")(x))
    return ended(inputs, conv(6, "b")(x))


@topology
def permuted():
    inputs = image()
    x = layers.Permute((2, 1, 3))(conv(12, "a")(inputs))
    x = layers.Permute((3, 1, 2))(conv(10, "b")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


@topology
def token_mixing():
    """Dense along the places: it serves all channels alike, which ties them."""
    inputs = image(size=4)
    x = layers.Reshape((16, 12))(conv(12, "a")(inputs))
    y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
    y = layers.Dense(16, name="mix2")(layers.Dense(20, activation="gelu", name="mix1")(y))
    x = layers.Add()([x, layers.Permute((2, 1))(y)])
    x = layers.GlobalAveragePooling1D()(layers.Dense(14, activation="relu", name="after")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@topology
def channel_shuffle():
    inputs = image()
    x = conv(16, "g1", groups=2, activation="relu")(conv(16, "a")(inputs))
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((8, 8, 2, 8))(x))
    x = conv(12, "g2", groups=2)(layers.Reshape((8, 8, 16))(x))
    return ended(inputs, x)


@topology
def repeat_vector():
    inputs = keras.Input((6,))
    x = layers.RepeatVector(5)(layers.Dense(12, activation="relu", name="d")(inputs))
    x = layers.Conv1D(8, 3, name="c")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x)))


@topology
def channels_first():
    inputs = keras.Input((3, 6, 4))
    x = layers.Dense(4, name="along")(inputs)
    x = layers.BatchNormalization(axis=1, name="bn")(x)
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(x)
    x = layers.Reshape((4, 6))(layers.Dense(24, activation="relu", name="d")(x))
    x = layers.BatchNormalization(axis=1, name="bn1")(x)
    x = layers.Dense(16, name="e")(layers.Flatten(data_format="channels_first")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@topology
def flatten_of_channels_first():
    inputs = image(size=4)
    x = layers.Permute((3, 1, 2))(conv(12, "a")(inputs))
    x = layers.BatchNormalization(axis=1, name="bn")(x)
    x = layers.UpSampling2D(2, data_format="channels_first")(x)
    x = layers.Cropping2D(1, data_format="channels_first")(x)
    x = layers.Dense(8, activation="relu", name="d")(layers.Flatten(data_format="channels_first")(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


def convolutions_of_channels_first():
    """Wider than it has channels, for Keras 3.15 adds a bias wrongly where the two are equal."""
    first = {"data_format": "channels_first"}
    inputs = keras.Input((3, 13, 14))
    x = conv(12, "a", activation="relu", **first)(inputs)
    y = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="dw", **first)(x)
    y = layers.BatchNormalization(axis=1, name="bn")(layers.PReLU(shared_axes=[2, 3], name="prelu")(y))
    x = layers.Concatenate(axis=1)([x, layers.Activation("relu")(y)])
    x = conv(8, "b", **first)(layers.MaxPooling2D(2, strides=1, **first)(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D(**first)(x)))


if models.runs_channels_first():
    topology(convolutions_of_channels_first)


@topology
def shuffle_added_to_itself():
    """The reshape ties 0 with 2 and 1 with 3; then 0, 2, 1, 3 meet 0, 1, 2, 3, and all are one."""
    inputs = keras.Input((6,))
    x = layers.Dense(4, activation="relu", name="d")(inputs)
    y = layers.Reshape((4,))(layers.Permute((2, 1))(layers.Reshape((2, 2))(x)))
    x = layers.Dense(10, activation="relu", name="e")(layers.Add()([x, y]))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


# layers and models that are used twice, models in models


@topology
def shared_convolution():
    inputs = image()
    shared = conv(8, "shared", activation="relu")
    x = shared(shared(conv(8, "a")(inputs)))
    return ended(inputs, conv(6, "b")(x))


@topology
def siamese():
    encoder = keras.Sequential([image(), conv(12, "a"), layers.BatchNormalization(), layers.ReLU(),
                                conv(8, "b"), layers.GlobalAveragePooling2D()], name="encoder")  # fmt: skip
    inputs = [image(name="left"), image(name="right")]
    x = layers.Subtract()([encoder(each) for each in inputs])
    return keras.Model(inputs, layers.Dense(1, name="head")(layers.Dense(12, "relu", name="d")(x)))


@topology
def nested_three_deep():
    inner_input = image(channels=8)
    inner = keras.Model(inner_input, normed(normed(inner_input, 12, "i1"), 8, "i2"), name="inner")
    middle_input = image(channels=8)
    x = layers.Add()([inner(middle_input), middle_input])
    middle = keras.Model(middle_input, conv(10, "m")(x), name="middle")
    outer = keras.Sequential([image(), conv(8, "o"), middle, conv(6, "p")], name="outer")
    inputs = image()
    return ended(inputs, outer(inputs))


@topology
def sequential_in_sequential():
    inner = keras.Sequential([conv(12, "a", activation="relu"), conv(10, "b")], name="inner")
    outer = keras.Sequential([inner, keras.Sequential([layers.ReLU(), conv(8, "c")])], name="outer")
    return keras.Sequential([image(), outer, layers.GlobalAveragePooling2D(), layers.Dense(3, name="head")])


@topology
def inputs_and_outputs_in_a_list():
    inputs = [image(name="x"), image(channels=2, name="y")]
    a, b = conv(12, "a")(inputs[0]), conv(12, "b")(inputs[1])
    x = conv(8, "c")(layers.Add()([a, b]))
    return keras.Model(inputs, [head(x), conv(4, "map", size=1)(b), x])


@topology
def inputs_and_outputs_in_a_dictionary():
    inputs = {"pixels": image(name="pixels"), "numbers": keras.Input((5,), name="numbers")}
    x = layers.GlobalAveragePooling2D()(conv(12, "a")(inputs["pixels"]))
    x = layers.Concatenate()([x, layers.Dense(10, activation="relu", name="d")(inputs["numbers"])])
    x = layers.Dense(8, name="e")(x)
    score, label = layers.Dense(1, name="s")(x), layers.Dense(4, activation="softmax", name="l")(x)
    return keras.Model(inputs, {"score": score, "label": label})


@topology
def open_size():
    inputs = keras.Input((None, None, 3))
    x = layers.UpSampling2D()(normed(inputs, 12, "a", strides=2))
    x = layers.Concatenate(axis=1)([x, conv(12, "b")(inputs)])
    return ended(inputs, conv(8, "c")(x))


# normalisations


@topology
def layer_norms():
    inputs = image()
    x = layers.LayerNormalization(name="ln")(conv(12, "a")(inputs))
    x = layers.RMSNormalization(name="rms")(conv(10, "b", activation="relu")(x))
    x = layers.LayerNormalization(center=False, scale=False, name="bare")(conv(8, "c")(x))
    return ended(inputs, conv(8, "d")(x))


@topology
def layer_norm_of_concatenation():
    inputs = image()
    x = layers.Concatenate()([conv(8, "a")(inputs), conv(12, "b")(inputs)])
    return ended(inputs, conv(8, "c")(layers.LayerNormalization(epsilon=0.1, name="ln")(x)))


@topology
def group_norms():
    inputs = image()
    x = layers.GroupNormalization(4, name="gn4")(conv(16, "a")(inputs))
    x = layers.GroupNormalization(-1, name="instance")(conv(12, "b")(layers.ReLU()(x)))
    x = layers.GroupNormalization(1, name="gn1")(conv(10, "c")(layers.ReLU()(x)))
    x = layers.GroupNormalization(8, name="gn8")(conv(8, "d")(layers.ReLU()(x)))
    return ended(inputs, conv(8, "e")(x))


@topology
def parametric_relus():
    inputs = image()
    x = layers.PReLU(name="full")(conv(12, "a")(inputs))
    x = layers.PReLU(shared_axes=[1, 2], name="channel")(conv(10, "b")(x))
    x = layers.PReLU(shared_axes=[3], name="place")(conv(8, "c")(x))
    return ended(inputs, layers.PReLU(shared_axes=[1, 2, 3], name="one")(x))


@topology(custom_objects={"LayerScale": LayerScale})
def convnext_block():
    inputs = image()
    x = conv(16, "stem", size=2, strides=2)(inputs)
    y = layers.DepthwiseConv2D(3, padding="same", name="dw")(x)
    y = layers.Dense(32, activation="gelu", name="up")(layers.LayerNormalization(epsilon=1e-6, name="ln")(y))
    y = LayerScale(0.5, 16, name="scale")(layers.Dense(16, name="down")(y))
    return ended(inputs, layers.Add()([x, y]))


# keras.ops


@topology
def operators():
    inputs = image()
    x = ops.relu(conv(12, "a")(inputs) * 2.0 + 1.0)
    y = 1.0 - x / 3.0
    x = ops.concatenate([x, ops.square(y), conv(8, "b")(inputs)], axis=-1)
    return ended(inputs, conv(8, "c")(ops.clip(ops.leaky_relu(-x), -2.0, 3.0)))


@topology
def operators_that_gate():
    inputs = image()
    x = ops.add(conv(16, "a")(inputs), conv(16, "b", size=1)(inputs))
    s = ops.mean(x, axis=(1, 2), keepdims=True)
    s = conv(16, "excite", size=1)(ops.relu(conv(4, "reduce", size=1)(s)))
    x = ops.multiply(x, ops.sigmoid(s))
    return keras.Model(inputs, layers.Dense(3, name="head")(ops.max(x, axis=[1, -2])))


@topology
def operators_that_reshape():
    inputs = image(size=4)
    x = ops.reshape(conv(12, "a")(inputs), (-1, 16, 12))
    x = ops.transpose(layers.Dense(10, activation="relu", name="d")(x), (0, 2, 1))
    x = layers.Dense(8, name="e")(ops.reshape(x, (-1, 160)))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))
