"""Layers that merge several tensors."""

import numpy as np
from keras import layers

from tfkit.prune.coupling import Coupling, Dimensions, Labels
from tfkit.prune.passing.site import MOVES_BATCH, Site, rule, rule_by_name


@rule(layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)
def merge(site: Site) -> Labels | list[Labels]:
    """Couples the channels at the same place; a size of 1 serves all places and is coupled with none."""
    if len({len(shape) for shape in site.shapes}) > 1:
        return site.stop("merges tensors of different rank")
    labels, shape = site.coupling.compact(site.given[0]), site.shapes[0]
    for other, size in zip(site.given[1:], site.shapes[1:], strict=True):
        labels, shape = _merged(site.coupling, labels, shape, site.coupling.compact(other), size)
    return labels


def _merged(
    coupling: Coupling, a: Labels, a_shape: Dimensions, b: Labels, b_shape: Dimensions
) -> tuple[Labels, Dimensions]:
    shape = tuple(y if x == 1 else x for x, y in zip(a_shape, b_shape, strict=True))
    for one, one_shape, other in ((a, a_shape, b), (b, b_shape, a)):
        varying = [axis for axis, size in enumerate(other.shape) if size > 1]
        if one.size == 1 and varying and all(one_shape[axis] == 1 for axis in varying):
            return other, shape  # one number for all channels of the other
    coupling.join(a, b)
    wide = np.broadcast_shapes(a.shape, b.shape)
    return coupling.compact(np.broadcast_to(a if a.size >= b.size else b, wide)), shape


@rule(layers.Concatenate)
@rule_by_name("Concatenate")
def _concatenate(site: Site) -> Labels | list[Labels]:
    axis = site.operation.axis % (len(site.shapes[0]) + 1) - 1
    if axis < 0:
        return site.stop(MOVES_BATCH)
    given = [site.coupling.compact(each) for each in site.given]
    if all(each.shape[axis] == 1 for each in given) and any(s[axis] is None for s in site.shapes):
        for each in given[1:]:  # of open length, so along another axis than the channels
            site.coupling.join(given[0], each)
        return max(given, key=np.size)
    wide = np.broadcast_shapes(*((*each.shape[:axis], 1, *each.shape[axis + 1 :]) for each in given))
    parts = [
        np.broadcast_to(each, (*wide[:axis], shape[axis], *wide[axis + 1 :]))
        for each, shape in zip(given, site.shapes, strict=True)
    ]
    return site.coupling.compact(np.concatenate(parts, axis))


@rule_by_name("CustomScaleLayer")
def _scaled_sum(site: Site) -> Labels | list[Labels]:
    if np.ndim(site.operation.scale):
        return site.stop()
    return merge(site)
