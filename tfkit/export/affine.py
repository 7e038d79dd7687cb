"""Factors and summands for each channel, as BatchNormalization has them."""

from typing import Any

import keras
import numpy as np

from tfkit.graph import Call

layers = keras.layers


def affine(call: Call) -> tuple[Any, Any] | None:
    """Returns factor and summand for each channel, if that is all that a call does in inference."""
    operation = call.operation
    if type(operation) is layers.BatchNormalization:
        return _of_norm(operation) if operation.axis in (-1, len(call.results[0].shape) - 1) else None
    if type(operation) is layers.Rescaling:
        scale, offset = np.asarray(operation.scale, "float32"), np.asarray(operation.offset, "float32")
        return (scale, offset) if max(scale.ndim, offset.ndim) < 2 else None
    name, args = type(operation).__name__, call.arguments.args
    numbers = [each for each in args if isinstance(each, int | float) and not isinstance(each, bool)]
    if isinstance(operation, keras.Layer) or len(args) != 2 or len(numbers) != 1:
        return None
    (number,), behind = numbers, args[1] is numbers[0]
    if name == "Add":
        return 1.0, number
    if name == "Multiply":
        return number, 0.0
    if name == "Subtract":
        return (1.0, -number) if behind else (-1.0, number)
    return (1 / number, 0.0) if name in ("Divide", "TrueDivide") and behind else None


def _of_norm(norm: keras.Layer) -> tuple[Any, Any]:
    read = keras.ops.convert_to_numpy
    mean, variance = read(norm.moving_mean), read(norm.moving_variance)
    scale = 1 / np.sqrt(variance + norm.epsilon)
    scale = scale * read(norm.gamma) if norm.scale else scale
    return scale, (read(norm.beta) if norm.center else 0.0) - mean * scale


def scaled(x: Any, scale: Any, shift: Any, *, name: str, dtype: str) -> Any:
    """Multiplies and adds for each channel, by a depthwise convolution whose middle alone counts."""
    layer = layers.DepthwiseConv2D(3, padding="same", name=name, dtype=dtype)
    y = layer(x)
    kernel = np.zeros(layer.kernel.shape, "float32")
    kernel[1, 1, :, 0] = scale
    layer.set_weights([kernel, np.broadcast_to(np.asarray(shift, "float32"), kernel.shape[2:3])])
    return y
