"""Layers that move channels to other places."""

import math

import numpy as np
from keras import layers

from tfkit.prune.coupling import Dimensions, Labels
from tfkit.prune.passing.site import MOVES_BATCH, Site, rule


def reshaped(site: Site, key: str | None, leading: tuple[int, ...] = ()) -> Labels | list[Labels]:
    """Returns the labels in another shape, in Keras's order: the last axis runs fastest."""
    labels, before, after = site.coupling.compact(site.given[0]), site.shapes[0], site.results[0]
    if None not in before and None not in after and math.prod(before) != math.prod(after):
        return site.stop(MOVES_BATCH)
    if labels.size == 1:
        return labels.reshape((1,) * len(after))
    if None in before or None in after:
        return site.stop("reshapes a tensor with open sizes")
    moved = site.coupling.tied(np.broadcast_to(labels, before).reshape(after))
    if key is not None:
        site.size(key, *leading, *_sizes(moved, after), scalar=False)
    return moved


def _sizes(labels: Labels, shape: Dimensions) -> list[Labels | int]:
    """Returns for each axis the labels along it, or its size where they do not differ."""
    return [
        labels.reshape(-1) if count > 1 else size for count, size in zip(labels.shape, shape, strict=True)
    ]


@rule(layers.Flatten)
def _flatten(site: Site) -> Labels | list[Labels]:
    if site.axis == 0 and len(site.shapes[0]) > 1:
        turned = np.moveaxis(site.given[0], 0, -1)
        shape = (*site.shapes[0][1:], site.shapes[0][0])
        if turned.size > 1 and None in shape:
            return site.stop("reshapes a tensor with open sizes")
        if turned.size > 1:
            return site.coupling.compact(np.broadcast_to(turned, shape).reshape(-1))
        return turned.reshape(1)
    return reshaped(site, None)


@rule(layers.Reshape)
def _reshape(site: Site) -> Labels | list[Labels]:
    return reshaped(site, "target_shape")


@rule(layers.Permute)
def _permute(site: Site) -> Labels:
    return site.given[0].transpose([axis - 1 for axis in site.operation.dims])


@rule(layers.RepeatVector)
def _repeat(site: Site) -> Labels:
    return site.given[0][None]
