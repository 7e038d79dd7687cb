"""A layer at its place in the graph, and the rules that are written for its class."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras

from tfkit import graph
from tfkit.prune.coupling import Coupling, Dimensions, Labels, placed

UNKNOWN = "does something to its channels that tfkit does not know"
ONE_EACH = "mixes all channels"
MOVES_BATCH = "moves what is in a sample to other samples"

# keras.activations that compute each number from itself alone
# fmt: off
ELEMENTWISE = frozenset({
    "relu", "leaky_relu", "relu6", "celu", "elu", "selu", "softplus", "softsign", "squareplus", "soft_shrink",
    "sparse_plus", "silu", "gelu", "tanh", "tanh_shrink", "threshold", "sigmoid", "sparse_sigmoid",
    "exponential", "hard_sigmoid", "hard_silu", "hard_tanh", "hard_shrink", "linear", "mish", "log_sigmoid",
})
# fmt: on


@dataclasses.dataclass(frozen=True)
class Site:
    """A layer or operation at its place in the graph, with the labels that come in.

    Attributes:
        call: The call.
        given: Labels of the tensors that come in.
        coupling: Where to write what is found.
    """

    call: graph.Call
    given: list[Labels]
    coupling: Coupling

    @property
    def path(self) -> str:
        """Path of the layer."""
        return self.call.path

    @property
    def operation(self) -> Any:
        """The layer or operation."""
        return self.call.operation

    @property
    def shapes(self) -> list[Dimensions]:
        """Shapes of the tensors that come in, without the batch."""
        return [tuple(x.shape[1:]) for x in self.call.arguments.keras_tensors]

    @property
    def results(self) -> list[Dimensions]:
        """Shapes of the tensors that go out, without the batch."""
        return [tuple(x.shape[1:]) for x in self.call.results]

    @property
    def masks(self) -> list[int]:
        """Numbers of the tensors that come in as masks, which tell what counts and hold no channels."""
        kwargs = self.call.arguments.kwargs
        masks = {id(each) for name, each in kwargs.items() if name.endswith("mask")}
        return [i for i, x in enumerate(self.call.arguments.keras_tensors) if id(x) in masks]

    @property
    def axis(self) -> int:
        """The axis of the channels, without the batch."""
        return 0 if getattr(self.operation, "data_format", None) == "channels_first" else -1

    def read(self, place: int = 0, axis: int | None = None) -> Labels:
        """Returns one label for each channel that weights read from a tensor that comes in."""
        axis = self.axis if axis is None else axis
        line = self.coupling.along(self.given[place], axis, self.shapes[place][axis])
        self.coupling.read(self.call.inputs[place], axis, line)
        return line

    def use(
        self, variable: keras.Variable | None, axis: int, line: Labels, role: Any, parts: int = 1
    ) -> None:
        """Notes the labels along an axis of one of the layer's weights."""
        self.coupling.use(self.path, variable, axis, line, role, parts)

    def size(self, key: str, *axes: Labels | int, **options: bool) -> None:
        """Notes an entry of the layer's configuration that counts channels."""
        self.coupling.size(self.operation, key, *axes, **options)

    def work(self, factor: float, *axes: Labels) -> None:
        """Notes multiply-adds of the layer."""
        self.coupling.work(self.path, self.call.outputs[0], factor, *axes)

    def make(self, line: Labels, axis: int | None = None) -> Labels:
        """Returns new channels as labels of the tensor that goes out, after the layer's activation."""
        activation = getattr(self.operation, "activation", None)
        if activation is not None and not is_elementwise(activation):
            name = getattr(activation, "__name__", type(activation).__name__)
            self.coupling.keep(line, f"{self.path} has the activation {name}, which {ONE_EACH}")
        return placed(line, self.axis if axis is None else axis, len(self.results[0]))

    def stop(self, why: str = UNKNOWN) -> list[Labels]:
        """Keeps all channels that come in and go out, for a reason."""
        reason = self.coupling.stop(self.path, self.operation, why)
        for labels in self.given:
            self.coupling.keep(labels, reason)
        return [self.coupling.whole(len(shape), reason) for shape in self.results]


Rule = Callable[[Site], Labels | list[Labels]]
RULES: dict[type, Rule] = {}
RULES_BY_NAME: dict[str, Rule] = {}


def rule(*classes: type) -> Callable[[Rule], Rule]:
    """Registers a rule for classes."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(classes, function))
        return function

    return register


def rule_by_name(*names: str) -> Callable[[Rule], Rule]:
    """Registers a rule for classes that Keras defines but does not export."""

    def register(function: Rule) -> Rule:
        RULES_BY_NAME.update(dict.fromkeys(names, function))
        return function

    return register


def is_elementwise(activation: Any) -> bool:
    """Tells whether an activation computes each number from itself alone, as far as is known."""
    name = getattr(activation, "__name__", None)
    return name in ELEMENTWISE and getattr(keras.activations, name, None) is activation


def elements(shape: Iterable[int | None]) -> float:
    """Returns how many places a shape has; open sizes count as NaN, so no cost is made up."""
    return math.prod(math.nan if size is None else size for size in shape)


def places(shape: Sequence[int | None], axis: int) -> float:
    """Returns how many places a shape has on the other axes than one."""
    axis %= len(shape)
    return elements(size for i, size in enumerate(shape) if i != axis)


def share(coupling: Coupling, line: Labels, groups: int) -> Labels:
    """Makes the channels at the same place of each group one, and returns them by group."""
    by_group = line.reshape(groups, -1)
    coupling.join(by_group, by_group[:1])
    return by_group
