"""Operations of `keras.ops` in a functional model."""

import keras
import numpy as np

from tfkit.prune.coupling import Labels
from tfkit.prune.passing.merging import merge
from tfkit.prune.passing.moving import reshaped
from tfkit.prune.passing.site import MOVES_BATCH, ONE_EACH, Site, rule_by_name

# fmt: off
PLAIN = (
    "Relu", "Relu6", "Sigmoid", "Softplus", "Softsign", "SoftShrink", "Silu", "Squareplus", "LogSigmoid",
    "LeakyRelu", "HardSigmoid", "HardSilu", "Elu", "Selu", "Gelu", "Celu", "TanhShrink", "HardTanh",
    "HardShrink", "Tanh", "Absolute", "Abs", "Negative", "Square", "Exp", "Clip", "Threshold", "SparsePlus",
    "SparseSigmoid", "Sin", "Cos", "Identity",
)
# fmt: on


def _alone(site: Site) -> bool:
    """Tells whether everything but the tensors that come in is plain numbers or settings."""
    given = keras.tree.flatten([list(site.call.arguments.args), dict(site.call.arguments.kwargs)])
    others = [each for each in given if not isinstance(each, keras.KerasTensor)]
    return all(each is None or isinstance(each, bool | int | float | str) for each in others)


@rule_by_name(*PLAIN)
def _plain_operation(site: Site) -> Labels | list[Labels]:
    arrays = any(getattr(setting, "ndim", 0) for setting in vars(site.operation).values())
    if len(site.given) != 1 or not _alone(site) or arrays:
        return site.stop()
    return site.given[0]


@rule_by_name("Add", "Subtract", "Multiply", "Maximum", "Minimum")
def _arithmetic(site: Site) -> Labels | list[Labels]:
    if not _alone(site):
        return site.stop("computes with an array")
    return site.given[0] if len(site.given) == 1 else merge(site)


@rule_by_name("Divide", "TrueDivide", "Power")
def _division(site: Site) -> Labels | list[Labels]:
    """Divides or raises by a number; where a channel is divided by, zeros in it would spread."""
    args = site.call.arguments.args
    if len(args) != 2 or not isinstance(args[1], int | float) or isinstance(args[1], bool) or args[1] <= 0:
        return site.stop("divides or raises by a tensor")
    return site.given[0]


@rule_by_name("Mean", "Max", "Min", "Sum")
def _reduction(site: Site) -> Labels | list[Labels]:
    operation, rank = site.operation, len(site.shapes[0])
    if operation.axis is None or not _alone(site):
        return site.stop()
    axes = {axis % (rank + 1) - 1 for axis in keras.tree.flatten(operation.axis)}
    if -1 in axes:
        return site.stop(MOVES_BATCH)
    labels = site.coupling.compact(site.given[0])
    if labels.size == 1:
        return labels.reshape((1,) * len(site.results[0]))
    if any(labels.shape[axis] > 1 for axis in axes):
        return site.stop(ONE_EACH)
    return labels if operation.keepdims else np.squeeze(labels, tuple(sorted(axes)))


@rule_by_name("Reshape")
def _reshape_operation(site: Site) -> Labels | list[Labels]:
    target = site.operation.newshape
    if len(target) != len(site.results[0]) + 1 or not isinstance(target[0], int):
        return site.stop()
    return reshaped(site, "newshape", (target[0],))


@rule_by_name("Transpose")
def _transpose_operation(site: Site) -> Labels | list[Labels]:
    axes = site.operation.axes
    if axes is None or axes[0] % len(axes) != 0:
        return site.stop(MOVES_BATCH)
    return site.given[0].transpose([axis % len(axes) - 1 for axis in axes[1:]])
