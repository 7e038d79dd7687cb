"""Mask arithmetic: which weights are the largest, found exactly and without sorting."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from keras import ops

Scope = Literal["layer", "global", "erk"]
PoolingType = Literal["AVG", "MAX"]
SCOPES = ("erk", "global", "layer")
POOLING_TYPES = ("AVG", "MAX")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A kernel as the matrix that hardware multiplies by: what one output sums, by outputs.

    Rows are the positions of a filter and the inputs at each, columns the outputs.

    Attributes:
        positions: Axes of the positions in a convolution's filter; empty elsewhere.
        inputs: Axes of the input features.
        outputs: Axes of the output features.
    """

    positions: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of_matrix(cls, rank: int) -> "Layout":
        """Returns Keras's usual order: the outputs last, the inputs before."""
        return cls((), tuple(range(rank - 1)), (rank - 1,))

    def sizes(self, shape: Sequence[int]) -> tuple[int, int, int]:
        """Returns how many positions, inputs and outputs a kernel of a shape has."""
        positions, inputs, outputs = (
            math.prod(shape[axis] for axis in axes) for axes in (self.positions, self.inputs, self.outputs)
        )
        return positions, inputs, outputs

    def units(self, shape: Sequence[int]) -> int:
        """Returns the sides of a kernel of a shape added up, as the Erdős–Rényi-kernel rule counts."""
        _, inputs, outputs = self.sizes(shape)
        return sum(shape[axis] for axis in self.positions) + inputs + outputs

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Returns rows and columns of a kernel of a shape."""
        positions, inputs, outputs = self.sizes(shape)
        return positions * inputs, outputs

    def to_matrix(self, kernel: Any) -> Any:
        """Returns a kernel as its matrix."""
        order = self.positions + self.inputs + self.outputs
        return ops.reshape(ops.transpose(kernel, order), self.matrix_shape(kernel.shape))

    def from_matrix(self, matrix: Any, shape: Sequence[int]) -> Any:
        """Returns a matrix as the kernel of a shape that it came from."""
        order = self.positions + self.inputs + self.outputs
        split = ops.reshape(matrix, [shape[axis] for axis in order])
        return ops.transpose(split, [order.index(axis) for axis in range(len(order))])


@dataclasses.dataclass(frozen=True)
class Structure:
    """Which weights go together, and what they compete with.

    Attributes:
        scope: ``"layer"``, each kernel has its own threshold; ``"global"``, all share one;
            ``"erk"``, each has its own, at densities that follow its shape.
        block_size: Rows and columns of the tiles of a kernel's matrix that stay or go as one.
        block_pooling_type: How a tile's magnitudes become one: ``"AVG"`` or ``"MAX"``.
        m_by_n: (m, n) for m zeros in every n consecutive inputs; None for none.
    """

    scope: Scope = "layer"
    block_size: tuple[int, int] = (1, 1)
    block_pooling_type: PoolingType = "AVG"
    m_by_n: tuple[int, int] | None = None


def draw_masks(
    kernels: Sequence[Any],
    sparsity: Any,
    layouts: Sequence[Layout] | None = None,
    structure: Structure = Structure(),
) -> list[Any]:
    """Marks the weights of each kernel whose magnitude is among the largest.

    ``mask = s >= t`` with s the magnitude of a weight, or that of its tile, and t the k-th
    largest s, ``k = max(round(n (1 - sparsity)), 1)``. Weights that tie with the k-th stay,
    so a kernel of zeros stays free to learn. Under one global threshold each kernel keeps
    at least its largest.

    Args:
        kernels: Floating-point tensors of any shapes.
        sparsity: Fraction of weights to drop, in [0, 1); a number or a scalar tensor.
        layouts: How each kernel is read as a matrix; the last axis as its outputs if None.
        structure: What goes together. With `m_by_n` the sparsity is m / n and not asked for.

    Returns:
        A boolean tensor of its kernel's shape for each kernel, with at least one True.

    Source: Zhu and Gupta, To Prune, or Not to Prune (2017), section 3, ties as in TFMOT;
    Evci et al., Rigging the Lottery (2020), section 3, for ERK; Mishra et al., Accelerating
    Sparse Deep Neural Networks (2021), for m zeros in n.

    Examples:
        >>> import numpy as np
        >>> mask, = draw_masks([np.float32([3.0, -4.0, 1.0, 0.0])], 0.5)
        >>> np.asarray(mask).tolist()
        [True, True, False, False]
    """
    layouts = layouts or [Layout.of_matrix(len(kernel.shape)) for kernel in kernels]
    magnitudes = [ops.abs(ops.cast(kernel, "float32")) for kernel in kernels]
    if structure.m_by_n is not None:
        return [
            _m_by_n_mask(each, layout, *structure.m_by_n)
            for each, layout in zip(magnitudes, layouts, strict=True)
        ]
    tiled = structure.block_size != (1, 1)
    if tiled:
        magnitudes = [
            _pool(layout.to_matrix(each), structure) for each, layout in zip(magnitudes, layouts, strict=True)
        ]
    bits = [ops.view(ops.reshape(each, (-1,)), "int32") for each in magnitudes]
    sizes = [each.shape[0] for each in bits]
    if structure.scope == "global":
        shared = find_threshold(bits, keep_count(sum(sizes), sparsity, "float64"))
        thresholds = [ops.minimum(shared, ops.max(part)) for part in bits]
    else:
        if structure.scope == "erk":
            units = [layout.units(kernel.shape) for kernel, layout in zip(kernels, layouts, strict=True)]
            keep = erk_keep_counts(sizes, units, sparsity)
        else:
            keep = keep_count(sizes, sparsity)
        thresholds = [find_threshold([part], keep[i]) for i, part in enumerate(bits)]
    masks = [
        ops.reshape(part >= threshold, scores.shape)
        for part, threshold, scores in zip(bits, thresholds, magnitudes, strict=True)
    ]
    if not tiled:
        return masks
    return [
        layout.from_matrix(_spread(mask, structure.block_size), kernel.shape)
        for mask, layout, kernel in zip(masks, layouts, kernels, strict=True)
    ]


def apply_mask(mask: Any, weights: Any) -> Any:
    """Returns weights with zeros outside a mask."""
    return ops.where(mask, weights, ops.zeros_like(weights))


def keep_count(size: int | Sequence[int], sparsity: Any, dtype: str = "float32") -> Any:
    """Returns how many of `size` weights stay at a sparsity: ``max(round(n (1 - s)), 1)``.

    Rounds halves to even in float32, as TFMOT does, so that both keep the same number. In
    float64 a sparsity that comes in float32 counts by its seven decimals.
    """
    kept = ops.round(ops.multiply(ops.cast(size, dtype), _kept_share(sparsity, dtype)))
    return ops.cast(ops.maximum(kept, 1.0), "int32")


def _kept_share(sparsity: Any, dtype: str) -> Any:
    """Returns 1 - s, of an s that a schedule gives outside [0, 1] for the nearer end; for NaN 1."""
    sparsity = ops.cast(sparsity, dtype)
    if dtype == "float64":
        sparsity = ops.round(sparsity * 1e7) / 1e7
    sparsity = ops.minimum(ops.where(sparsity > 0, sparsity, ops.zeros_like(sparsity)), 1.0)
    return ops.subtract(ops.cast(1.0, dtype), sparsity)


def erk_keep_counts(sizes: Sequence[int], units: Sequence[int], sparsity: Any) -> Any:
    """Returns how many weights each kernel keeps under the Erdős–Rényi-kernel rule.

    Kernel l keeps the share ``min(c u_l / n_l, 1)`` of its n_l weights, where u_l adds up
    the sides of its filter, its inputs and outputs, and c makes the whole as sparse as asked for.

    Args:
        sizes: The weights n_l of each kernel, or its tiles.
        units: u_l of each kernel.
        sparsity: Fraction of all weights to drop, in [0, 1); a number or a scalar tensor.

    Returns:
        An int32 tensor of counts, each at least 1.
    """
    order = sorted(range(len(sizes)), key=lambda i: units[i] / sizes[i], reverse=True)
    n, u = (np.array([values[i] for i in order], "float64") for values in (sizes, units))
    rest_n, rest_u = (np.cumsum(each[::-1])[::-1].copy() for each in (n, u))  # from this kernel on
    dense_n = n.sum() - rest_n
    kept = ops.multiply(n.sum(), _kept_share(sparsity, "float64"))
    factors = ops.divide(ops.subtract(kept, dense_n), rest_u)  # if all before are dense
    fits = ops.less_equal(ops.multiply(factors, u / n), 1 + 1e-9)
    first = ops.argmax(ops.cast(fits, "int32"))  # the first kernel that need not be dense
    shares = ops.where(
        np.arange(len(n)) < first, np.ones(len(n)), ops.multiply(ops.take(factors, first), u / n)
    )
    counts = ops.maximum(ops.round(ops.multiply(ops.minimum(shares, 1.0), n)), 1.0)
    return ops.take(ops.cast(counts, "int32"), np.argsort(order))


def find_threshold(parts: Sequence[Any], keep: Any) -> Any:
    """Finds the number t such that ``x >= t`` marks the `keep` largest entries, and ties of the last.

    A radix selection: a histogram of the leading bits tells in which bin the answer lies,
    one of the next bits inside that bin goes on, down to the last. The bits of non-negative
    floats, read as integers, are ordered as the floats are.

    Args:
        parts: Vectors of int32, not negative. With several, each counts as holding at least
            one entry that reaches t.
        keep: How many to mark, from 1 to the number of entries; a scalar int32 tensor.

    Returns:
        A scalar int32 tensor.
    """
    many = sum(part.shape[0] for part in parts) > 2**17
    shift, found = 31, ops.cast(0, "int32")
    above = [ops.cast(0, "int32") for _ in parts]  # entries beyond the bins that are still in question
    for width in (16, 15) if many else (11, 10, 10):  # fewer passes, or smaller histograms
        shift -= width
        counts = []
        for part, beyond in zip(parts, above, strict=True):
            bins = ops.right_shift(part, shift)
            if shift + width < 31:
                inside = ops.equal(ops.right_shift(part, shift + width), found)
                bins = ops.where(inside, ops.bitwise_and(bins, 2**width - 1), 2**width)
            counts.append(beyond + _count_from(bins, 2**width))
        reached = sum(ops.maximum(count, 1) for count in counts) if len(parts) > 1 else counts[0]
        digit = ops.sum(ops.cast(reached >= keep, "int32")) - 1
        above = [
            ops.take(ops.append(count, beyond), digit + 1)
            for count, beyond in zip(counts, above, strict=True)
        ]
        found = ops.left_shift(found, width) + digit
    return found


def _count_from(bins: Any, size: int) -> Any:
    """Returns for every bin below `size` how many entries lie in it or above, those beyond left out."""
    # ops.bincount has no fixed size, which XLA needs
    histogram = tf.raw_ops.DenseBincount(input=bins, size=size, weights=tf.constant([], "int32"))
    return tf.cumsum(histogram, reverse=True)


def _pool(matrix: Any, structure: Structure) -> Any:
    """Returns one magnitude for each tile of a matrix."""
    rows, columns = structure.block_size
    height, width = matrix.shape
    tiles = ops.reshape(matrix, (height // rows, rows, width // columns, columns))
    return (ops.max if structure.block_pooling_type == "MAX" else ops.mean)(tiles, axis=(1, 3))


def _spread(mask: Any, block_size: tuple[int, int]) -> Any:
    """Returns the matrix whose tiles are the entries of a mask."""
    return ops.repeat(ops.repeat(mask, block_size[0], axis=0), block_size[1], axis=1)


def _m_by_n_mask(magnitudes: Any, layout: Layout, zeros: int, group: int) -> Any:
    """Keeps the n - m largest of every n consecutive inputs; of equal ones the first.

    A group that the inputs do not fill is filled up with weights that go first.
    """
    order = layout.positions + layout.outputs + layout.inputs
    shape = [magnitudes.shape[axis] for axis in order]
    inputs = layout.sizes(magnitudes.shape)[1]
    bits = ops.view(magnitudes, "int32")  # of which the processor makes no zeros when they are tiny
    lines = ops.reshape(ops.transpose(bits, order), (-1, inputs))
    filled = ops.pad(lines, ((0, 0), (0, -inputs % group)), constant_values=-1)
    groups = ops.reshape(filled, (-1, group))
    places = np.arange(group)
    larger = ops.zeros(groups.shape, "int32")  # how many of its group each one gives way to
    for place in places:
        other = groups[:, place : place + 1]
        before = ops.logical_and(ops.equal(other, groups), place < places)
        larger += ops.cast(ops.logical_or(other > groups, before), "int32")
    kept = ops.reshape(larger < group - zeros, (lines.shape[0], -1))[:, :inputs]
    return ops.transpose(ops.reshape(kept, shape), [order.index(axis) for axis in range(len(order))])
