"""Tiny seeded models that the tests share."""

import functools

import keras
import tensorflow as tf
from keras import layers


@functools.cache
def runs_channels_first():
    """Tells whether TensorFlow has convolutions of channels first for this processor; not all have them."""
    try:
        tf.nn.conv2d(tf.zeros((1, 1, 1, 1)), tf.zeros((1, 1, 1, 1)), 1, "VALID", data_format="NCHW")
    except tf.errors.UnimplementedError:
        return False
    return True


def dense_net(units=(8, 4), inputs=6, outputs=2, seed=0):
    """A chain of Dense layers d1, d2, … and a linear head."""
    keras.utils.set_random_seed(seed)
    stack = [layers.Dense(width, activation="relu", name=f"d{i}") for i, width in enumerate(units, 1)]
    return keras.Sequential([keras.Input((inputs,)), *stack, layers.Dense(outputs, name="head")])


def conv_net(seed=0):
    """Convolution, BatchNormalization, convolution, pooling, Dense."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3, padding="same", name="conv1"),
            layers.BatchNormalization(name="bn1"),
            layers.ReLU(name="relu1"),
            layers.Conv2D(6, 3, padding="same", name="conv2"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(2, name="head"),
        ],
        name="conv_net",
    )


def backbone(seed=0):
    """A functional model with BatchNormalization, to be nested."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="conv1")(inputs)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.Conv2D(4, 3, padding="same", name="conv2")(x)
    return keras.Model(inputs, x, name="backbone")


def nested_net(seed=0):
    """Two levels of nesting: outer / wrapper / backbone, and a head."""
    inner = backbone(seed)
    middle_in = keras.Input((8, 8, 3))
    middle = keras.Model(middle_in, layers.Conv2D(5, 1, name="project")(inner(middle_in)), name="wrapper")
    inputs = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D(name="pool")(middle(inputs))
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name="outer")


class Block(layers.Layer):
    """A layer composed by a user, as subclassed models have them."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.conv = layers.Conv2D(width, 3, padding="same", name="conv")
        self.norm = layers.BatchNormalization(name="norm")

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build(self.conv.compute_output_shape(shape))

    def call(self, x, training=None):
        return self.norm(self.conv(x), training=training)


class SubclassedNet(keras.Model):
    """A subclassed model: two blocks and a head."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.block1 = Block(4, name="block1")
        self.block2 = Block(4, name="block2")
        self.pool = layers.GlobalAveragePooling2D(name="pool")
        self.head = layers.Dense(2, name="head")

    def call(self, x, training=None):
        return self.head(self.pool(self.block2(self.block1(x, training=training), training=training)))


def subclassed_net(seed=0):
    keras.utils.set_random_seed(seed)
    model = SubclassedNet(name="subclassed")
    model(keras.ops.zeros((1, 8, 8, 3)))
    return model


def deep_net(seed=0):
    """Sequential in Sequential in Sequential, so without input layers; `a` stands at two depths."""
    keras.utils.set_random_seed(seed)
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(4, name="b")], name="inner"
    )
    middle = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), inner, layers.Dense(4, name="c")], name="middle"
    )
    stack = [layers.Dense(4, name="stem"), middle, layers.Dense(2, name="head")]
    return keras.Sequential([keras.Input((4,)), *stack], name="deep")


def shared_net(seed=0):
    """One Dense layer used inside two nested models, `first` and `second`."""
    keras.utils.set_random_seed(seed)
    shared = layers.Dense(4, name="shared")

    def part(name):
        own = layers.Dense(4, name=f"{name}_own")
        return keras.Sequential([keras.Input((4,)), shared, own], name=name)

    return keras.Sequential([keras.Input((4,)), part("first"), part("second")], name="sharing")


def sequence_net(seed=0):
    """Keras's own composites: LSTM, Bidirectional, MultiHeadAttention, TimeDistributed."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5, 4), name="tokens")
    x = layers.LSTM(3, return_sequences=True, name="lstm")(inputs)
    x = layers.Bidirectional(layers.GRU(2, return_sequences=True, name="gru"), name="both")(x)
    x = layers.MultiHeadAttention(num_heads=2, key_dim=3, name="mha")(x, x)
    x = layers.TimeDistributed(layers.Dense(2, name="inside"), name="each")(x)
    x = layers.Flatten(name="flat")(x)
    return keras.Model(inputs, layers.Dense(1, name="head")(x), name="sequence")


class Gate(layers.Layer):
    """A layer with a weight of its own and a layer inside, as LayerScale blocks have."""

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.mix = layers.Dense(width, name="mix")
        self.width = width

    def build(self, shape):
        self.gain = self.add_weight(shape=(self.width,), initializer="ones", name="gain")
        self.mix.build(shape)

    def call(self, x):
        return self.gain * self.mix(x)


def gated_net(seed=0):
    """Two gates and a head."""
    keras.utils.set_random_seed(seed)
    stack = [Gate(4, name="gate1"), Gate(4, name="gate2"), layers.Dense(2, name="head")]
    return keras.Sequential([keras.Input((6,)), *stack], name="gated")


class RootWeightNet(keras.Model):
    """A subclassed model with a weight of its own, as a class token is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale = self.add_weight(shape=(2,), initializer="ones", name="scale")
        self.head = layers.Dense(2, name="head")

    def call(self, x):
        return self.scale * self.head(x)


def root_weight_net(seed=0):
    keras.utils.set_random_seed(seed)
    model = RootWeightNet(name="root_weight")
    model(keras.ops.zeros((1, 6)))
    return model


class TwinsNet(keras.Model):
    """A subclassed model whose two layers have the same name, which Keras allows."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.one = layers.Dense(6, name="twin")
        self.two = layers.Dense(6, name="twin")
        self.head = layers.Dense(2, name="head")

    def call(self, x):
        return self.head(self.two(self.one(x)))


def twins_net(seed=0):
    keras.utils.set_random_seed(seed)
    model = TwinsNet(name="twins")
    model(keras.ops.zeros((1, 6)))
    return model


class HybridNet(keras.Model):
    """A functional model that holds one more layer outside its graph."""

    def __init__(self, **kwargs):
        inputs = keras.Input((6,), name="features")
        super().__init__(inputs, layers.Dense(3, name="inside")(inputs), **kwargs)
        self.extra = layers.Dense(2, name="extra")
        self.extra.build((None, 3))


def hybrid_net(seed=0):
    keras.utils.set_random_seed(seed)
    return HybridNet(name="hybrid")


class TiedOutput(layers.Layer):
    """Multiplies by the transpose of a kernel that belongs to another layer."""

    def __init__(self, kernel, **kwargs):
        super().__init__(**kwargs)
        self.kernel = kernel

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.kernel))


class TiedNet(keras.Model):
    """Two layers, one kernel."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embed = layers.Dense(3, use_bias=False, name="embed")
        self.embed.build((None, 6))
        self.out = TiedOutput(self.embed.kernel, name="out")

    def call(self, x):
        return self.out(self.embed(x))


def tied_net(seed=0):
    keras.utils.set_random_seed(seed)
    model = TiedNet(name="tied")
    model(keras.ops.zeros((1, 6)))
    return model
