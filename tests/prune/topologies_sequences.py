"""More `topologies`: sequences, attention, recurrence, and operations that nothing is known of."""

import keras
from keras import layers, ops

from tests.prune.topologies import conv, ended, image, topology


def pooled(inputs, x):
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x)))


# sequences


def encoder_block(x, memory, width, name, heads=4):
    """Attention and two Dense layers, each added to what it read."""
    y = layers.LayerNormalization(name=f"{name}_ln1")(x)
    memory = y if memory is None else memory
    x = layers.Add()([x, layers.MultiHeadAttention(heads, 3, name=f"{name}_mha")(y, memory)])
    y = layers.LayerNormalization(name=f"{name}_ln2")(x)
    y = layers.Dense(2 * width, activation="gelu", name=f"{name}_up")(y)
    return layers.Add()([x, layers.Dense(width, name=f"{name}_down")(y)])


@topology
def transformer():
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(10, 12, name="words")(inputs)
    for name in ("one", "two"):
        x = encoder_block(x, None, 12, name)
    return pooled(inputs, layers.LayerNormalization(name="ln")(x))


@topology
def cross_attention():
    inputs = [keras.Input((7, 4), name="query"), keras.Input((5, 6), name="memory")]
    memory = layers.Dense(16, activation="relu", name="m")(inputs[1])
    x = encoder_block(layers.Dense(12, name="q")(inputs[0]), memory, 12, "block")
    return pooled(inputs, x)


@topology
def attention_without_a_residual():
    """Its output is as wide as its query was, whatever the query loses."""
    inputs = keras.Input((7, 4))
    q, v = layers.Dense(12, name="q")(inputs), layers.Dense(10, name="v")(inputs)
    x = layers.MultiHeadAttention(4, 3, value_dim=2, use_bias=False, name="mha")(query=q, value=v, key=q)
    return pooled(inputs, layers.Dense(8, activation="relu", name="d")(x))


@topology
def attention_goes_out():
    """The output must stay as wide as the query was before it lost channels."""
    inputs = keras.Input((7, 4))
    x = layers.Dense(12, name="q")(inputs)
    return keras.Model(inputs, layers.MultiHeadAttention(4, 3, name="mha")(x, x))


@topology
def tokens_and_patches():
    """A vision transformer's start: patches from a convolution, a token beside them."""
    inputs = [image(), keras.Input((1, 5), name="token")]
    x = layers.Reshape((16, 12))(conv(12, "patches", size=2, strides=2)(inputs[0]))
    x = layers.Concatenate(axis=1)([layers.Dense(12, name="token_dense")(inputs[1]), x])
    return pooled(inputs, encoder_block(x, None, 12, "block"))


@topology
def recurrences():
    inputs = keras.Input((7,), dtype="int32")
    x = layers.Embedding(10, 12, mask_zero=True, name="words")(inputs)
    x = layers.LSTM(8, return_sequences=True, name="lstm")(x)
    x = layers.GRU(10, return_sequences=True, go_backwards=True, name="gru")(x)
    x = layers.GRU(6, return_sequences=True, reset_after=False, use_bias=False, name="old_gru")(x)
    x = layers.SimpleRNN(12, name="rnn")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@topology
def recurrence_with_states():
    inputs = keras.Input((7, 4))
    x, h, c = layers.LSTM(10, return_sequences=True, return_state=True, name="lstm")(inputs)
    x = layers.Concatenate()([layers.GlobalMaxPooling1D()(x), layers.Add()([h, c])])
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Dense(12, "relu", name="d")(x)))


@topology
def shared_embedding():
    inputs = [keras.Input((7,), dtype="int32", name="one"), keras.Input((5,), dtype="int32", name="two")]
    words = layers.Embedding(10, 12, name="words")
    x = layers.Concatenate(axis=1)([words(each) for each in inputs])
    return pooled(inputs, layers.Conv1D(8, 3, activation="relu", name="c")(x))


# what nothing is known of


class Swish3(layers.Layer):
    """A layer of a user that tells nothing of how it treats its channels."""

    def call(self, x):
        return x * ops.sigmoid(3.0 * x)


class Mixer(keras.Model):
    """A subclassed model inside a functional one."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inside = layers.Conv2D(8, 1, name="inside")

    def call(self, x):
        return self.inside(x)


def around(*middle, after=None):
    """Convolutions a, b, what is unknown, and convolutions c, d behind it."""
    inputs = image()
    x = conv(8, "b", activation="relu")(conv(12, "a", activation="relu")(inputs))
    for layer in middle:
        x = layer(x)
    return ended(inputs, conv(8, "d")(conv(10, "c", activation="relu")(x)))


def tripled(x):
    return ops.flip(x, axis=-1) * 3.0


@topology(custom_objects={"tripled": tripled})
def lambda_in_the_middle():
    return around(layers.Lambda(tripled, output_shape=lambda shape: shape, name="lambda"))


@topology(custom_objects={"Swish3": Swish3})
def custom_layer_in_the_middle():
    return around(Swish3(name="custom"))


@topology(custom_objects={"Mixer": Mixer})
def subclassed_model_in_the_middle():
    return around(Mixer(name="mixer"))


@topology
def softmax_in_the_middle():
    return around(layers.Activation("softmax", name="softmax"), layers.Softmax(axis=1, name="over_rows"))


@topology
def softmax_inside_a_convolution():
    return around(conv(16, "attend", activation="softmax"))


@topology
def roll_in_the_middle():
    class Roll:
        def __call__(self, x):
            return ops.roll(x, 1, axis=-1)

    return around(Roll())


@topology
def mean_over_channels():
    inputs = image()
    x = conv(12, "a", activation="relu")(inputs)
    gate = ops.sigmoid(ops.mean(x, axis=-1, keepdims=True))
    x = conv(10, "c", activation="relu")(ops.multiply(conv(8, "b")(inputs), gate))
    return ended(inputs, x)


@topology
def dot_product():
    inputs = keras.Input((6,))
    a, b = layers.Dense(12, name="a")(inputs), layers.Dense(12, name="b")(inputs)
    x = layers.Dot(axes=1, normalize=True, name="dot")([a, b])
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Dense(10, "relu", name="c")(x)))


@topology
def wrappers():
    inputs = keras.Input((7, 4))
    x = layers.Conv1D(12, 3, activation="relu", name="b")(layers.Conv1D(10, 3, name="a")(inputs))
    x = layers.TimeDistributed(layers.Dense(8, name="each"), name="distributed")(x)
    x = layers.Conv1D(10, 1, activation="relu", name="c")(layers.Conv1D(12, 1, name="before")(x))
    x = layers.Bidirectional(layers.LSTM(4), name="both")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Dense(12, "relu", name="d")(x)))


def layer_also_inside_a_wrapper():
    """The same Dense layer is called by itself and by a TimeDistributed. Cannot be made again."""
    inputs = [keras.Input((6,), name="one"), keras.Input((5, 6), name="many")]
    shared = layers.Dense(12, activation="relu", name="shared")
    many = layers.TimeDistributed(shared, name="distributed")(inputs[1])
    x = layers.Concatenate()([shared(inputs[0]), layers.GlobalAveragePooling1D()(many)])
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Dense(10, "relu", name="d")(x)))


@topology
def model_called_in_two_ways():
    """Once with the dictionary that it is made for, once with a list, and so its inside is not read."""
    ports = {"p": keras.Input((8,), name="p"), "q": keras.Input((4,), name="q")}
    x = layers.Dense(12, activation="relu", name="i1")(layers.Concatenate()([ports["p"], ports["q"]]))
    inner = keras.Model(ports, layers.Dense(8, name="i2")(x), name="inner")
    inputs = [keras.Input((6,), name="one"), keras.Input((4,), name="two")]
    x = inner({"p": layers.Dense(8, name="a")(inputs[0]), "q": inputs[1]})
    y = inner([layers.Dense(8, name="b")(inputs[0]), inputs[1]])
    x = layers.Dense(10, activation="relu", name="d")(layers.Concatenate()([x, y]))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


@topology
def batch_that_moves():
    """Places become samples and come back: nothing is known of what lies on an axis between."""
    inputs = image(size=4)
    x = conv(10, "b", activation="relu")(conv(12, "a", activation="relu")(inputs))
    x = ops.reshape(x, (-1, 10))
    x = ops.reshape(layers.Dense(8, name="d")(layers.Dense(14, "relu", name="c")(x)), (-1, 16, 8))
    return pooled(inputs, x)


@topology
def batches_behind_each_other():
    inputs = keras.Input((6,))
    a, b = layers.Dense(12, name="a")(inputs), layers.Dense(12, name="b")(inputs)
    x = ops.concatenate([a, b], axis=0)
    x = layers.Dense(8, name="d")(layers.Dense(10, "relu", name="c")(x))
    return keras.Model(inputs, x)


class Standardized(layers.Conv2D):
    """A convolution whose kernel is centred over what it reads, which Keras lets a subclass do."""

    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel - ops.mean(kernel, axis=(0, 1, 2), keepdims=True))


@topology(custom_objects={"Standardized": Standardized})
def convolution_of_its_own():
    return around(Standardized(12, 3, name="standardized"))
