"""Layers that take each channel by itself, with a weight a channel or none."""

import keras
import numpy as np
from keras import layers

from tfkit.prune.coupling import Labels, placed
from tfkit.prune.passing.site import ONE_EACH, Site, is_elementwise, rule, rule_by_name, share


@rule(layers.BatchNormalization)
def _batch_norm(site: Site) -> Labels:
    layer = site.operation
    axis = layer.axis - 1 if layer.axis > 0 else layer.axis
    line = site.coupling.along(site.given[0], axis, site.shapes[0][axis])
    for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
        site.use(variable, 0, line, "accompanies")
    return placed(line, axis, len(site.shapes[0]))


@rule(layers.LayerNormalization, layers.RMSNormalization)
def _layer_norm(site: Site) -> Labels | list[Labels]:
    layer, rank = site.operation, len(site.shapes[0])
    axes = {axis % (rank + 1) for axis in keras.tree.flatten(layer.axis)}
    if axes != {rank} or getattr(layer, "rms_scaling", False):
        return site.stop("normalises over other axes than the last, or in a way of its own")
    line = site.coupling.along(site.given[0], -1, site.shapes[0][-1])
    for name in ("gamma", "beta", "scale"):
        variable = getattr(layer, name, None)
        if isinstance(variable, keras.Variable):
            site.use(variable, 0, line, "accompanies")
    site.coupling.crowd(layer, line)
    return placed(line, -1, rank)


@rule(layers.GroupNormalization)
def _group_norm(site: Site) -> Labels | list[Labels]:
    layer, rank = site.operation, len(site.shapes[0])
    if layer.axis % (rank + 1) != rank:
        return site.stop("normalises another axis than the last")
    line = site.coupling.along(site.given[0], -1, site.shapes[0][-1])
    if layer.groups not in (-1, len(line)):
        share(site.coupling, line, layer.groups)
        site.coupling.crowd(layer, line)
    elif layer.get_config()["groups"] != -1:
        site.size("groups", line)
    site.use(layer.gamma, 0, line, "accompanies")
    site.use(layer.beta, 0, line, "accompanies")
    return placed(line, -1, rank)


@rule(layers.PReLU)
def _prelu(site: Site) -> Labels:
    layer = site.operation
    labels = site.coupling.tied(site.given[0])
    for axis, size in enumerate(labels.shape):
        if size > 1 and layer.alpha.shape[axis] > 1:
            site.use(layer.alpha, axis, labels.reshape(-1), "accompanies")
    return labels


@rule_by_name("LayerScale")
def _layer_scale(site: Site) -> Labels:
    line = site.coupling.along(site.given[0], -1, site.shapes[0][-1])
    site.use(site.operation.gamma, 0, line, "accompanies")
    site.size("projection_dim", line)
    return placed(line, -1, len(site.shapes[0]))


# Layers that take each channel as it is


@rule(
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Identity,
    layers.Dropout,
    layers.AlphaDropout,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.ActivityRegularization,
)
@rule_by_name("StochasticDepth")
def _elementwise(site: Site) -> Labels | list[Labels]:
    if len(site.given) != 1:
        return site.stop()
    if any(size not in (None, 1) for size in getattr(site.operation, "noise_shape", None) or ()):
        return site.stop("draws noise of a fixed shape")
    return site.given[0]


@rule(layers.Activation)
def _activation(site: Site) -> Labels | list[Labels]:
    if not is_elementwise(site.operation.activation):
        name = getattr(site.operation.activation, "__name__", "its own")
        return site.stop(f"has the activation {name}, which {ONE_EACH}")
    return site.given[0]


@rule(layers.Rescaling)
def _rescaling(site: Site) -> Labels | list[Labels]:
    if np.ndim(site.operation.scale) or np.ndim(site.operation.offset):
        return site.stop("has a number for each channel in its configuration")
    return site.given[0]


@rule(
    *(
        getattr(layers, name.format(rank))
        for rank in (1, 2, 3)
        for name in (
            "MaxPooling{}D",
            "AveragePooling{}D",
            "UpSampling{}D",
            "ZeroPadding{}D",
            "Cropping{}D",
            "AdaptiveAveragePooling{}D",
            "AdaptiveMaxPooling{}D",
        )
    ),
    layers.Resizing,
)
def _spatial(site: Site) -> Labels:
    line = site.coupling.along(site.given[0], site.axis, site.shapes[0][site.axis])
    return placed(line, site.axis, len(site.results[0]))


@rule(*(getattr(layers, f"Global{kind}Pooling{rank}D") for rank in (1, 2, 3) for kind in ("Max", "Average")))
def _global_pooling(site: Site) -> Labels:
    line = site.coupling.along(site.given[0], site.axis, site.shapes[0][site.axis])
    return placed(line, site.axis if site.operation.keepdims else 0, len(site.results[0]))
