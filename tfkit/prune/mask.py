"""Mask arithmetic: which weights are the largest, found exactly and without sorting."""

import math
from typing import Any

from keras import ops


def keep_count(size: int, sparsity: Any) -> Any:
    """Returns how many of `size` weights stay at a sparsity: ``max(round(n (1 - s)), 1)``.

    Rounds halves to even in float32, as TFMOT does, so that both keep the same number.
    """
    share = ops.subtract(ops.cast(1.0, "float32"), ops.cast(sparsity, "float32"))
    kept = ops.round(ops.multiply(ops.cast(float(size), "float32"), share))
    return ops.cast(ops.maximum(kept, 1.0), "int32")


def kth_largest_bits(magnitudes: Any, k: Any) -> Any:
    """Returns the bit pattern of the k-th largest of non-negative float32 numbers.

    The bits of non-negative floats, read as integers, are ordered as the floats are. So
    the answer is built from its highest bit down: a bit belongs to it if at least k
    numbers reach the candidate with that bit set. 31 counting passes, no sort.

    Args:
        magnitudes: A float32 tensor, no entry negative.
        k: How many, from 1 to the number of entries.

    Returns:
        A scalar int32 tensor.
    """
    bits = ops.view(magnitudes, "int32")

    def settle(index: Any, found: Any) -> Any:
        candidate = ops.bitwise_or(found, ops.left_shift(ops.cast(1, "int32"), 30 - index))
        enough = ops.sum(ops.cast(bits >= candidate, "int32")) >= k
        return ops.where(enough, candidate, found)

    return ops.fori_loop(0, 31, settle, ops.cast(0, "int32"))


def magnitude_mask(weights: Any, sparsity: Any) -> Any:
    """Marks the weights whose magnitude is among the largest.

    ``mask = |w| >= t`` with t the k-th largest magnitude, ``k = keep_count(n, sparsity)``.
    Weights that tie with the k-th stay, so a kernel of zeros stays free to learn.

    Args:
        weights: A floating-point tensor of any shape.
        sparsity: Fraction of weights to drop, in [0, 1); a number or a scalar tensor.

    Returns:
        A boolean tensor of the weights' shape with at least one True.

    Source: Zhu and Gupta, To Prune, or Not to Prune (2017), section 3; ties as in TFMOT.

    Examples:
        >>> import numpy as np
        >>> np.asarray(magnitude_mask(np.float32([3.0, -4.0, 1.0, 0.0]), 0.5)).tolist()
        [True, True, False, False]
    """
    magnitudes = ops.abs(ops.cast(weights, "float32"))
    k = keep_count(math.prod(weights.shape), sparsity)
    return ops.view(magnitudes, "int32") >= kth_largest_bits(magnitudes, k)
