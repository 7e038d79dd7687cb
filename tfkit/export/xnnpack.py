"""What XNNPACK does with sparse weights: the rules by which its sparse kernels engage.

XNNPACK is the code that runs float models on phones and in browsers. Its sparse kernels take
tensors channel by channel (NCHW), all others pixel by pixel (NHWC). So it looks for clusters of
operations that know NCHW, entered through a strided 3x3 convolution of the picture and left
through a mean over the picture, and turns a cluster over when more than 2/3 of the weights of its
1x1 convolutions are zero. Some clusters it turns over have no such exit: what leaves them stands
in the wrong order, and nothing tells.

Source: XNNPACK, subgraph.c, xnn_check_nchw_compatibility and xnn_subgraph_rewrite_for_nchw.
"""

import dataclasses
import enum
import math
from typing import Any

from tfkit.export.operations import Operation, Program, Tensor

NEIGHBOURS = "its neighbours cannot"

_UNARY = {
    "ABS", "CEIL", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "NEG", "RELU",
    "RELU6", "RELU_N1_TO_1", "ROUND", "RSQRT", "SQRT", "SQUARE", "TANH",
}  # fmt: skip


class Verdict(enum.StrEnum):
    """What becomes of an operation, or of a model, once its weights are sparse-encoded."""

    SPARSE = "sparse"  # the sparse kernels run
    DENSE = "dense"  # they do not; it computes as if it were not encoded
    WRONG = "wrong"  # they run, and what comes out is wrong


class Rewritable(str):
    """A reason that `make_sparse_ready` takes away."""


@dataclasses.dataclass
class Place:
    """An operation and what the runtime knows of it.

    Attributes:
        operation: The operation.
        inside: Whether it can compute channel by channel.
        entry: Whether it turns pixels to channels.
        exit: Whether it turns channels back; lost once a consumer in the cluster takes its output.
        broken: Whether its cluster cannot be turned over.
        leader: The number of the place that stands for its cluster.
        reason: Why it can do none of this, empty if it can.
        weights: Weights that count for the share of zeros.
        zeros: How many of them are zero.
    """

    operation: Operation
    inside: bool = False
    entry: bool = False
    exit: bool = False
    broken: bool = False
    leader: int = 0
    reason: str = ""
    weights: int = 0
    zeros: int = 0


@dataclasses.dataclass(frozen=True)
class Analysis:
    """What XNNPACK makes of a program with sparse-encoded weights.

    Attributes:
        places: The operations that run, in order; paddings that a convolution takes in are left out.
        verdicts: One for each place.
        reasons: Why it is so, one for each place.
    """

    places: tuple[Place, ...]
    verdicts: tuple[Verdict, ...]
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> Verdict:
        """What becomes of the whole: wrong if a part is, else sparse if a part is."""
        found = (each for each in (Verdict.WRONG, Verdict.SPARSE) if each in self.verdicts)
        return next(found, Verdict.DENSE)

    @property
    def stopper(self) -> tuple[Place | None, str]:
        """What keeps the whole from being sparse, and why; the first such place that is no mere neighbour."""
        if self.verdict is not Verdict.SPARSE:
            for place, verdict, reason in zip(self.places, self.verdicts, self.reasons, strict=True):
                if verdict is self.verdict and reason and not reason.startswith(NEIGHBOURS):
                    return place, reason
        return None, ""

    @property
    def zeros(self) -> float:
        """The share of zeros in the 1x1 convolutions of the clusters that turn over; 0 if none does."""
        leaders = {
            each.leader
            for each, verdict in zip(self.places, self.verdicts, strict=True)
            if verdict is Verdict.SPARSE
        }
        weights = sum(self.places[number].weights for number in leaders)
        return sum(self.places[number].zeros for number in leaders) / weights if weights else 0.0


def analyse(program: Program) -> Analysis:
    """Tells which operations XNNPACK runs by its sparse kernels, and whether that goes well.

    Args:
        program: The operations; their weights are taken as if sparse-encoded.
    """
    places, padding = _places(program)
    makers = {x.number: place for place in places for x in place.operation.outputs}
    takers: dict[int, list[Place]] = {}
    for place in places:
        for x in _fed(place, padding):
            takers.setdefault(x.number, []).append(place)
    inputs = {id(place): _fed(place, padding) for place in places}
    _cluster(places, makers, inputs, program.outputs)
    _settle(places, takers, inputs, program.outputs)
    turned = {id(place) for place in places if (place.inside or place.exit) and _pays(places[place.leader])}
    channelwise = {x.number for place in places if id(place) in turned for x in inputs[id(place)]}
    judged = [_judge(place, turned, channelwise, places, program.outputs) for place in places]
    return Analysis(tuple(places), tuple(each for each, _ in judged), tuple(each for _, each in judged))


def _places(program: Program) -> tuple[list[Place], dict[int, Operation]]:
    """Returns the places, and the paddings that go into the convolution behind, by output."""
    uses: dict[int, int] = {}
    for operation in program.operations:
        for x in operation.inputs:
            uses[x.number] = uses.get(x.number, 0) + 1
    paddings = {
        operation.outputs[0].number: operation
        for operation in program.operations
        if _pads_by_zeros(operation)
    }
    taken = {
        operation.inputs[0].number
        for operation in program.operations
        if operation.kind in ("CONV_2D", "DEPTHWISE_CONV_2D")
        and operation.inputs[0].number in paddings
        and uses[operation.inputs[0].number] == 1
        and operation.inputs[0].number not in program.outputs
        and operation.options.padding == 1  # VALID
    }
    padding = {number: paddings[number] for number in taken}
    places = [
        Place(operation) for operation in program.operations if operation.outputs[0].number not in padding
    ]
    for number, place in enumerate(places):
        place.leader = number
        _classify(place, padding)
    return places, padding


def _pads_by_zeros(operation: Operation) -> bool:
    if operation.kind != "PAD" or operation.inputs[1].values is None:
        return False
    amounts = operation.inputs[1].values
    return amounts.shape == (4, 2) and not amounts[[0, 3]].any()


def _fed(place: Place, padding: dict[int, Operation]) -> list[Tensor]:
    """Returns what an operation computes from, constants left out."""
    given = (padding[x.number].inputs[0] if x.number in padding else x for x in place.operation.inputs)
    return [x for x in given if not x.constant]


# --- what one operation can do -------------------------------------------------------------------


def _classify(place: Place, padding: dict[int, Operation]) -> None:
    """Sets whether an operation can compute channel by channel, and why not."""
    operation = place.operation
    kind = operation.kind
    if not all(x.dtype in ("FLOAT32", "FLOAT16") for x in operation.inputs[:1] + operation.outputs):
        place.reason = f"{kind} computes in {operation.outputs[0].dtype}, not in floats"
    elif kind == "CONV_2D":
        _classify_convolution(place, padding)
    elif kind == "DEPTHWISE_CONV_2D":
        place.reason = _depthwise_reason(operation, padding)
        place.inside = not place.reason
    elif kind in ("MEAN", "SUM"):
        place.inside = place.exit = len(operation.inputs[0].shape) == 4
        place.reason = "" if place.inside else Rewritable(f"{kind} of other than pictures")
    elif kind == "DEPTH_TO_SPACE":
        place.exit = True
    elif kind in ("ADD", "MUL"):
        place.reason = _binary_reason(operation)
        place.inside = not place.reason
    elif kind == "RESIZE_BILINEAR":
        place.inside = min(operation.inputs[0].shape[1:3]) > 1
        place.reason = "" if place.inside else "RESIZE_BILINEAR of a single row or column"
    elif kind in _UNARY:
        place.inside = len(operation.inputs[0].shape) == 4
        place.reason = "" if place.inside else Rewritable(f"{kind} of other than pictures")
    else:
        place.reason = f"{kind} has no form that computes channel by channel"


def _classify_convolution(place: Place, padding: dict[int, Operation]) -> None:
    operation = place.operation
    options, kernel = operation.options, operation.inputs[1].shape
    size, pads = kernel[1:3], _pads(operation, padding)
    stride = (options.strideH, options.strideW)
    if size == (1, 1):
        _count(place)
    if operation.inputs[0].shape[3] != kernel[3]:
        place.reason = "a convolution in groups"
    elif (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        place.reason = "a dilated convolution"
    elif size == (1, 1):
        place.inside = stride == (1, 1) and pads == (0, 0, 0, 0)
        place.reason = "" if place.inside else "a 1x1 convolution with strides or padding"
    elif size == (3, 3) and stride == (2, 2) and kernel[3] == 3:
        place.entry = pads == (1, 1, 1, 1)
        place.reason = (
            "" if place.entry else Rewritable(f"a stem padded by {_words(pads)}, not by 1 on each side")
        )
    else:
        place.reason = (
            f"a {size[0]}x{size[1]} convolution with strides {stride[0]}, {stride[1]} "
            f"of {kernel[3]} channels; of 3x3 only strides of 2 of 3 channels will do"
        )


def _depthwise_reason(operation: Operation, padding: dict[int, Operation]) -> str:
    options = operation.options
    size, stride = operation.inputs[1].shape[1:3], (options.strideH, options.strideW)
    pads = _pads(operation, padding)
    if (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return "a dilated depthwise convolution"
    if options.depthMultiplier != 1:
        return f"a depthwise convolution with a multiplier of {options.depthMultiplier}"
    if stride not in ((1, 1), (2, 2)):
        return f"a depthwise convolution with strides {stride[0]}, {stride[1]}"
    if size not in ((3, 3), (5, 5)):
        return f"a {size[0]}x{size[1]} depthwise convolution; only 3x3 and 5x5 will do"
    if pads is None:
        return Rewritable("a depthwise convolution with strides and padding='same'")
    if set(pads) != {size[0] // 2}:
        return Rewritable(
            f"a depthwise convolution padded by {_words(pads)}, not by {size[0] // 2} on each side"
        )
    return ""


def _binary_reason(operation: Operation) -> str:
    first, second = operation.inputs
    if len(first.shape) != 4 or len(second.shape) != 4:
        return Rewritable(f"{operation.kind} of other than pictures")
    # XNNPACK looks at the first operand's sizes for either constant
    if (first.constant or second.constant) and sum(size != 1 for size in first.shape) > 1:
        return Rewritable(f"{operation.kind} with a constant")
    return ""


def _pads(operation: Operation, padding: dict[int, Operation]) -> tuple[int, int, int, int] | None:
    """Returns the padding above, below, left and right; None where it hangs on the size."""
    given = padding.get(operation.inputs[0].number)
    if given is not None:
        values: Any = given.inputs[1].values  # never None: what pads is read from the file
        above, below, left, right = (int(each) for each in values[1:3].ravel())
        return above, below, left, right
    if operation.options.padding == 1:
        return (0, 0, 0, 0)
    if (operation.options.strideH, operation.options.strideW) != (1, 1):
        return None
    height, width = operation.inputs[1].shape[1:3]
    return (height - 1) // 2, height // 2, (width - 1) // 2, width // 2


def _words(pads: tuple[int, ...] | None) -> str:
    if pads is None:
        return "'same'"
    return "{} above, {} below, {} left, {} right".format(*pads)


def _count(place: Place) -> None:
    weights = place.operation.inputs[1]
    if weights.values is not None:
        place.weights = math.prod(weights.shape)
        place.zeros = int((weights.values == 0).sum())


# --- clusters ------------------------------------------------------------------------------------


def _cluster(
    places: list[Place],
    makers: dict[int, Place],
    inputs: dict[int, list[Tensor]],
    outputs: frozenset[int],
) -> None:
    """Joins places into clusters as XNNPACK does, in its order, which has a say."""

    def join(place: Place) -> bool:
        changed = False
        for x in inputs[id(place)]:
            maker = makers.get(x.number)
            if maker is None or x.number in outputs:
                place.broken = True
            elif (maker.entry or maker.inside) and not maker.broken:
                maker.exit = False
                if maker.leader != place.leader:
                    maker.leader = place.leader = max(maker.leader, place.leader)
                    changed = True
            else:
                place.broken = True
        return changed

    changed = False
    for place in places:
        if place.exit:
            changed |= join(place)
    if not changed:  # without an exit nothing is turned over
        for place in places:
            place.broken = True
    while changed:
        changed = False
        for place in places:
            if not place.broken and (place.inside or place.exit):
                changed |= join(place)


def _settle(
    places: list[Place],
    takers: dict[int, list[Place]],
    inputs: dict[int, list[Tensor]],
    outputs: frozenset[int],
) -> None:
    """Breaks clusters that feed outsiders, and counts the zeros of the others."""
    for place in places:
        places[place.leader].broken |= place.broken
    for place in places:
        if places[place.leader].broken or not (place.inside or place.exit):
            continue
        for x in inputs[id(place)]:
            able = [
                each
                for each in takers[x.number]
                if (each.inside or each.exit) and not places[each.leader].broken
            ]
            if len(able) != len(takers[x.number]) + (x.number in outputs):
                places[place.leader].broken = True
    for place in places:
        leader = places[place.leader]
        if place is not leader:
            leader.weights, leader.zeros = leader.weights + place.weights, leader.zeros + place.zeros
            place.weights = place.zeros = 0


def _pays(leader: Place) -> bool:
    return not leader.broken and leader.zeros * 3 > leader.weights * 2


def _judge(
    place: Place, turned: set[int], channelwise: set[int], places: list[Place], outputs: frozenset[int]
) -> tuple[Verdict, str]:
    """Returns what becomes of a place, and why."""
    (output, *_) = place.operation.outputs
    leader = places[place.leader]
    picture = len(output.shape) == 4
    if id(place) in turned:
        kind = place.operation.kind
        if kind in ("MEAN", "SUM"):
            if picture and output.number not in channelwise:
                return Verdict.WRONG, Rewritable(f"{kind} keeps its dimensions where the cluster ends")
            return Verdict.SPARSE, ""
        if picture and not place.exit and output.number not in channelwise:
            return (
                Verdict.WRONG,
                "the cluster ends here without an exit: what follows reads channels as pixels",
            )
        return Verdict.SPARSE, ""
    if place.entry and output.number in channelwise:
        return Verdict.SPARSE, ""
    if place.reason:
        return Verdict.DENSE, place.reason
    if leader.broken:
        return Verdict.DENSE, f"{NEIGHBOURS} compute channel by channel"
    if leader.weights and not _pays(leader):
        share = 100 * leader.zeros / leader.weights
        return Verdict.DENSE, f"{share:.1f}% of the cluster's weights are zero; it takes more than 66.7%"
    return Verdict.DENSE, "no 1x1 convolution in its cluster"
