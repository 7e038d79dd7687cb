"""Small models for exports to targets: one that sparse kernels take, one that they never do."""

import keras
import numpy as np
from keras import layers

import tfkit

RNG = np.random.default_rng(0)
X = RNG.random((8, 32, 32, 3), dtype="float32")


def pruned(model, sparsity=0.9):
    """Sets the smallest weights of every 1x1 convolution to zero."""
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.kernel.shape[:2] == (1, 1):
            kernel = layer.kernel.numpy()
            cut = np.quantile(np.abs(kernel), sparsity)
            layer.kernel.assign(np.where(np.abs(kernel) <= cut, 0.0, kernel))
    return model


def eligible_net(same=False):
    """A stem, two 1x1 convolutions around a depthwise one, a mean; `same` pads as stock models do."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = inputs if same else layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(16, 3, strides=2, activation="relu", padding="same" if same else "valid")(x)
    x = layers.Conv2D(32, 1, activation="relu", name="wide")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2D(32, 1, activation="relu", name="last")(x)
    outputs = layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x))
    return pruned(keras.Model(inputs, outputs, name="eligible"))


def never_net():
    """Plain 3x3 convolutions, which no sparse kernel takes; mostly zeros all the same."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(inputs)
    x = layers.Conv2D(8, 3, activation="relu", name="second")(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="never")
    return tfkit.prune_now(model, 0.9)


def open_net():
    """Small, with sizes as they are given."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, activation="relu")(inputs)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="open")


def export(model, folder, targets, **options):
    return tfkit.export(model, folder / "out", targets=targets, verbose=0, **{"runs": 0} | options)
