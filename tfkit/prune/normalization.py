"""Normalisations over channels of which some do not count."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np


@keras.saving.register_keras_serializable("tfkit")
class MaskedNormalization(keras.layers.Layer):
    """A normalisation over the last axis whose statistics leave some channels out.

    A model that `ChannelPlan.mask` returns has it in the place of a LayerNormalization,
    RMSNormalization or GroupNormalization, so that it computes what the smaller model does,
    where those channels do not exist.

    Args:
        layer: The normalisation; its weights keep their shapes.
        counted: For each channel whether it counts, ``(channels,)``.
    """

    def __init__(self, layer: keras.layers.Layer, counted: Sequence[bool], **kwargs: Any):
        super().__init__(**({"dtype": layer.dtype_policy} | kwargs))
        self.layer = layer
        self.counted = [bool(each) for each in counted]
        self.supports_masking = True

    def build(self, shape: Any) -> None:
        """Builds the normalisation inside, which a model that is loaded has built already."""
        if not self.layer.built:
            self.layer.build(shape)

    def call(self, x: Any) -> Any:
        """Normalises a batch; what stands in channels that do not count is without meaning."""
        layer, ops = self.layer, keras.ops
        kind = x.dtype
        x = ops.cast(x, "float32")
        shape = ops.shape(x)
        groups = getattr(layer, "groups", 1)
        counted = np.reshape(np.array(self.counted, "float32"), (groups, -1))
        x = ops.reshape(x, (*shape[:-1], groups, shape[-1] // groups))
        over = [-1]
        if isinstance(layer, keras.layers.GroupNormalization):
            over = [*range(1, len(shape) - 1), -1]  # over the places as well

        def mean(values: Any) -> Any:
            return ops.mean(values * counted, over, keepdims=True) * (counted.shape[1] / counted[0].sum())

        rms = isinstance(layer, keras.layers.RMSNormalization)
        centred = x if rms else x - mean(x)
        x = ops.reshape(centred * ops.rsqrt(mean(ops.square(centred)) + layer.epsilon), shape)
        for name, apply in (("gamma", ops.multiply), ("scale", ops.multiply), ("beta", ops.add)):
            weight = getattr(layer, name, None)
            if isinstance(weight, keras.Variable):
                x = apply(x, ops.cast(weight, "float32"))
        return ops.cast(x, kind)

    def compute_output_shape(self, shape: Any) -> Any:
        """Returns the shape of the input."""
        return shape

    def get_config(self) -> dict[str, Any]:
        """Returns the normalisation and which channels count."""
        layer = keras.saving.serialize_keras_object(self.layer)
        return super().get_config() | {"layer": layer, "counted": self.counted}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "MaskedNormalization":
        """Makes the layer from what `get_config` returned."""
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer, **config)
