"""Nearest upsampling as the one operation that runtimes have for it."""

import contextlib
import functools
from collections.abc import Iterator

import keras
import tensorflow as tf

from tfkit import graph


@contextlib.contextmanager
def as_resizing(model: keras.Model) -> Iterator[None]:
    """Lets a model's `UpSampling2D` layers resize, while it is traced, where they else repeat.

    The values are the same. Repeated rows and columns become RESHAPE and TILE in five dimensions, which GPUs
    do not take, and lose the number of channels where height and width are open.
    """
    layers = [
        layer
        for layer in graph.sublayers(model)
        if type(layer) is keras.layers.UpSampling2D
        and (layer.interpolation, layer.data_format) == ("nearest", "channels_last")
    ]
    for layer in layers:
        layer.call = functools.partial(_resized, layer.size)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call  # the class's own shows again


def _resized(factors: tuple[int, int], x: tf.Tensor) -> tf.Tensor:
    known, open_ = x.shape[1:3], tf.shape(x)[1:3]
    sizes = [(known[axis] or open_[axis]) * factors[axis] for axis in (0, 1)]
    return tf.image.resize(x, sizes, method="nearest")
