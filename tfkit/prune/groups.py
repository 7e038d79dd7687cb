"""The channels of a model that can be removed, in groups."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import PruningError
from tfkit.prune.arguments import Patterns
from tfkit.prune.coupling import Coupling, Labels, Use
from tfkit.prune.passing import pass_channels
from tfkit.select import select_layers


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels that lie in the same weights, so that each can go without the others.

    Attributes:
        name: Path of the first layer that makes them; a second group of one layer has
            ``#2`` behind it.
        makers: Paths of the layers that make them.
        layers: Paths of all layers with weights in which they lie, in the order of the graph.
        units: A label for each unit: what goes or stays as a whole. It is one channel of
            every maker, or several where groups of a convolution or a reshape tie them.
        width: Channels of a unit in the first layer.
        reason: Why all must stay; None where they can be removed.
    """

    name: str
    makers: tuple[str, ...]
    layers: tuple[str, ...]
    units: Labels
    width: int
    reason: str | None = None

    @property
    def channels(self) -> int:
        """Channels of the first layer that belong to the group."""
        return len(self.units) * self.width


@dataclasses.dataclass(frozen=True)
class Count:
    """How many channels lie on an axis: ``fixed + sum of each group's factor times its units``."""

    fixed: int
    factors: tuple[tuple[int, int], ...]

    def __call__(self, units: Sequence[int] | Labels) -> int:
        """Returns the channels, given the units of each group."""
        return self.fixed + sum(factor * int(units[group]) for group, factor in self.factors)


@dataclasses.dataclass(frozen=True)
class Product:
    """A number that is a factor times the channels of some axes: multiply-adds, or parameters."""

    path: str
    factor: float
    counts: tuple[Count, ...]

    def __call__(self, units: Sequence[int] | Labels) -> float:
        """Returns the number, given the units of each group."""
        value = self.factor
        for count in self.counts:
            value *= count(units)
        return value


class Wiring:
    """What the graph of a model tells about its channels.

    Attributes:
        model: The model.
        flow: Its calls.
        coupling: Labels, and where they lie.
        groups: Groups of channels that can be removed, in the order of the graph.
        left: Groups whose channels must all stay, with the reason.
        works: Multiply-adds of each layer.
        parameters: Sizes of all weights.
    """

    def __init__(self, model: keras.Model):
        """Reads a model.

        Raises:
            PruningError: If it has no graph, or two different layers hold the same weight.
        """
        flow = graph.read_flow(graph.require_model(model))
        if flow is None:
            raise PruningError(
                "Channels are found from a model's graph, so it must be functional or Sequential. "
                f"Received: model={model.name!r} of type {type(model).__name__}, which computes in Python. "
                "Build it with keras.Input and keras.Model(inputs, outputs), or prune its functional parts."
            )
        self.model, self.flow, self.coupling = model, flow, Coupling()
        self._require_own_weights()
        self._pass()
        self._hold()
        self.groups, self.left = self._gather()
        labels = {int(root): (i, j) for i, g in enumerate(self.groups) for j, root in enumerate(g.units)}
        self._group = np.full(self.coupling.total, -1)
        self._unit = self._group.copy()
        self._group[list(labels)] = [group for group, _ in labels.values()]
        self._unit[list(labels)] = [unit for _, unit in labels.values()]
        self.works = [
            Product(work.path, work.factor, tuple(self.count(each) for each in work.axes))
            for work in self.coupling.works
        ]
        self.parameters = self._count_parameters()

    def _require_own_weights(self) -> None:
        """Refuses a weight in two layers: made again from their configurations, each would have its own."""
        owners: dict[int, graph.Call] = {}
        for call in self.flow.calls:
            inner = graph.functional_graph(call.operation)
            for variable in [] if inner is not None else getattr(call.operation, "weights", []):
                owner = owners.setdefault(id(variable), call)
                if owner.operation is not call.operation:
                    raise PruningError(
                        "A weight that serves at several places must belong to one layer that is called "
                        f"there. Received: model={self.model.name!r}, where {owner.path} and {call.path} "
                        f"both hold {variable.path}. Call the one layer at both places."
                    )

    def _hold(self) -> None:
        """Keeps the channels in weights of a model that is also called in a way that is not read."""
        for call in self.flow.calls:
            if graph.functional_graph(call.operation) is None:
                continue
            held = {id(variable) for variable in call.operation.weights}
            for use in self.coupling.uses.values():
                if id(use.variable) in held:
                    self.coupling.keep(use.labels, self.coupling.stops[call.path])

    def _pass(self) -> None:
        flow, c = self.flow, self.coupling
        labels: dict[int, Labels] = {}
        for key, x in zip(flow.inputs, flow.model.inputs, strict=True):
            labels[key] = c.whole(len(x.shape) - 1, "is an input of the network")
        for call in flow.calls:
            made = pass_channels(call, [labels[key] for key in call.inputs], c)
            labels.update(zip(call.outputs, made, strict=True))
        for key in flow.outputs:
            c.keep(labels[key], "goes out of the network")

    def _gather(self) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        """Sorts channels by where they lie."""
        uses = list(self.coupling.uses.values())
        places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, use in enumerate(uses):
            roots, counts = np.unique(self.coupling.find(use.labels), return_counts=True)
            for root, count in zip(roots.tolist(), counts.tolist()):
                places[root].append((number, count))
        order: dict[int, None] = {}
        for use in uses:
            if use.role == "makes":
                order.update(dict.fromkeys(self.coupling.find(use.labels).tolist()))
        sorted_by_place: dict[tuple[Any, str | None], list[int]] = defaultdict(list)
        for root, reason in zip(order, self.coupling.reasons(np.array([*order], int)), strict=True):
            sorted_by_place[tuple(places[root]), reason].append(root)
        names: dict[str, int] = defaultdict(int)
        free: list[Group] = []
        left: list[Group] = []
        for (where, reason), members in sorted_by_place.items():
            mine = [(uses[number], count) for number, count in where]
            makers = list(dict.fromkeys(use.path for use, _ in mine if use.role == "makes"))
            first = next(count // use.parts for use, count in mine if use.role == "makes")
            names[makers[0]] += 1
            number = names[makers[0]]
            group = Group(
                makers[0] + (f"#{number}" if number > 1 else ""),
                tuple(makers),
                tuple(dict.fromkeys(use.path for use, _ in mine)),
                np.array(members),
                first,
                reason,
            )
            (free if group.reason is None else left).append(group)
        return tuple(free), tuple(left)

    def places(self, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
        """Returns for each place on an axis the number of its group, or -1, and the unit in it."""
        roots = self.coupling.find(labels)
        return self._group[roots], self._unit[roots]

    def count(self, labels: Labels) -> Count:
        """Returns how the number of channels along an axis follows from the groups' units."""
        numbers, counts = np.unique(self.places(labels)[0], return_counts=True)
        fixed = sum(int(count) for number, count in zip(numbers, counts) if number < 0)
        factors = [
            (int(number), int(count) // len(self.groups[number].units))
            for number, count in zip(numbers, counts)
            if number >= 0
        ]
        return Count(fixed, tuple(factors))

    def _count_parameters(self) -> list[Product]:
        axes: dict[int, list[Use]] = defaultdict(list)
        for (variable, _), use in self.coupling.uses.items():
            axes[variable].append(use)
        products, seen = [], set()
        for node in graph.descend(graph.walk(self.model)):
            for variable in graph.own_variables(node.layer):
                if id(variable) in seen:
                    continue
                seen.add(id(variable))
                uses = axes[id(variable)]
                rest = np.delete(variable.shape, [use.axis for use in uses])
                counts = tuple(self.count(use.labels) for use in uses)
                products.append(Product(node.path, float(np.prod(rest)), counts))
        return products

    def uncounted(self) -> tuple[str, ...]:
        """Returns paths of layers with kernels whose work is not known."""
        counted = {work.path for work in self.works}
        known = {use.path for use in self.coupling.uses.values()}
        return tuple(
            call.path
            for call in self.flow.calls
            if call.path not in counted | known
            and any(len(each.shape) > 1 for each in getattr(call.operation, "weights", []))
        )

    def units(self) -> np.ndarray:
        """Returns how many units each group has."""
        return np.array([len(group.units) for group in self.groups], int)

    def alive(self, kept: Mapping[int, Iterable[int]]) -> np.ndarray:
        """Returns for every label whether it stays, given the units that each group keeps.

        Args:
            kept: For the number of a group the units that stay; other groups stay whole.
        """
        alive = np.ones(self.coupling.total, bool)
        for number, units in kept.items():
            group = self.groups[number]
            alive[np.delete(group.units, list(units))] = False
        return alive[self.coupling.find(np.arange(self.coupling.total))]

    def not_chosen(self, layers: Patterns) -> dict[int, str]:
        """Returns for each group that patterns leave whole its number and the reason.

        Raises:
            LayerNotFoundError: If a pattern matches nothing.
        """
        chosen = {id(variable) for variable in select_layers(self.model, layers).variables}
        outside = {use.path for use in self.coupling.uses.values() if id(use.variable) not in chosen}
        return {
            number: f"{path} is not among `layers`"
            for number, group in enumerate(self.groups)
            for path in group.makers
            if path in outside
        }

    def uses_of(self, number: int) -> dict[int, list[Use]]:
        """Returns for each weight that makes or reads a group's channels where they lie in it."""
        uses: dict[int, list[Use]] = defaultdict(list)
        for (variable, _), use in self.coupling.uses.items():
            if use.role != "accompanies" and (self.places(use.labels)[0] == number).any():
                uses[variable].append(use)
        return uses
