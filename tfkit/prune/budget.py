"""How many channels each group keeps, so that the whole costs what it may."""

import dataclasses
import heapq
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tfkit.prune.groups import Count

TOLERANCE = 0.02  # how far under the target a plan may end where smaller steps are left


class Cost(Protocol):
    """What a model costs, as groups lose units one after the other."""

    def value(self) -> float:
        """Returns the cost now."""

    def after(self, group: int, units: int) -> float:
        """Returns what the cost would be if a group had so many units."""

    def set(self, group: int, units: int) -> None:
        """Gives a group so many units."""


class Summand(Protocol):
    """A number that follows from the channels of some axes."""

    @property
    def counts(self) -> tuple[Count, ...]:
        """The channels of each axis."""

    def __call__(self, units: Sequence[int] | np.ndarray) -> float:
        """Returns the number, given the units of each group."""


class SumCost:
    """A sum of products of channels; a change looks only at the products that it touches."""

    def __init__(self, products: Sequence[Summand], units: Sequence[int] | np.ndarray):
        self._products, self._units = products, np.array(units)
        self._touched: dict[int, list[int]] = defaultdict(list)
        for number, product in enumerate(products):
            for group in {group for count in product.counts for group, _ in count.factors}:
                self._touched[group].append(number)
        self._values = np.array([product(self._units) for product in products])

    def value(self) -> float:
        """Returns the sum."""
        return float(self._values.sum())

    def after(self, group: int, units: int) -> float:
        """Returns what the sum would be if a group had so many units."""
        touched = self._touched[group]
        before, self._units[group] = self._units[group], units
        change = sum(self._products[each](self._units) - self._values[each] for each in touched)
        self._units[group] = before
        return self.value() + change

    def set(self, group: int, units: int) -> None:
        """Gives a group so many units."""
        self._units[group] = units
        for each in self._touched[group]:
            self._values[each] = self._products[each](self._units)


@dataclasses.dataclass(frozen=True)
class Ladder:
    """What a group may keep, and in which order its units go.

    Attributes:
        levels: Units that may stay, falling; the first is all of them.
        order: The units, those that go first in front.
    """

    levels: tuple[int, ...]
    order: np.ndarray

    def kept(self, level: int) -> np.ndarray:
        """Returns the units that stay on a level, in their own order."""
        return np.sort(self.order[len(self.order) - self.levels[level] :])

    def removed(self, level: int) -> np.ndarray:
        """Returns the units that go between a level and the one before."""
        total = len(self.order)
        return self.order[total - self.levels[level - 1] : total - self.levels[level]]


def levels(units: int, width: int, multiple_of: int, most: float, fewest: int = 1) -> tuple[int, ...]:
    """Returns how many units a group may keep, falling.

    All of them, or a number whose channels are a multiple; where a group is too narrow for a
    smaller multiple, of half of it, and so on.

    Args:
        units: Units of the group.
        width: Channels of a unit.
        multiple_of: What the channels that stay are a multiple of.
        most: Largest fraction that may go.
        fewest: Channels that must stay.

    Examples:
        >>> levels(32, 1, 8, 0.9)
        (32, 24, 16, 8)
        >>> levels(8, 1, 8, 0.9)
        (8, 4)
        >>> levels(32, 1, 8, 0.9, fewest=20)
        (32, 24)
        >>> levels(1, 1, 8, 0.9)
        (1,)
    """
    least = max(1, int(np.ceil(units * (1 - most) - 1e-9)), -(-fewest // width))
    while True:
        fewer = tuple(each for each in range(units - 1, least - 1, -1) if each * width % multiple_of == 0)
        if fewer or multiple_of == 1:
            return (units, *fewer)
        multiple_of //= 2


def least(ladders: Sequence[Ladder], cost: Cost) -> float:
    """Returns the cost with every group at its lowest level; the cost ends as it was."""
    for group, ladder in enumerate(ladders):
        cost.set(group, ladder.levels[-1])
    value = cost.value()
    for group, ladder in enumerate(ladders):
        cost.set(group, ladder.levels[0])
    return value


# what it costs the model's quality that a group goes down to a level; never falls along a ladder
Price = Callable[[int, int], float]


def spend(ladders: Sequence[Ladder], price: Price, cost: Cost, target: float) -> list[int]:
    """Takes groups down, the cheapest step first, until the cost is at most the target.

    A step that would end more than 2% under the target waits for the smaller ones. In the end
    groups go up again where the target has room, the dearest step first; where it stays more
    than 2% under, also to within 2% above.

    Returns:
        The level of each group; `cost` is left at it.
    """
    at = [0] * len(ladders)
    paid: dict[tuple[int, int], float] = {}

    def ask(group: int, level: int) -> tuple[float, int]:
        paid[group, level] = price(group, level)
        return paid[group, level], group

    steps = [ask(group, 1) for group, ladder in enumerate(ladders) if len(ladder.levels) > 1]
    heapq.heapify(steps)
    waiting: list[int] = []
    while cost.value() > target and steps:
        _, group = heapq.heappop(steps)
        ladder, level = ladders[group], at[group] + 1
        if cost.after(group, ladder.levels[level]) < (1 - TOLERANCE) * target:
            waiting.append(group)
            continue
        cost.set(group, ladder.levels[level])
        at[group] = level
        if level + 1 < len(ladder.levels):
            heapq.heappush(steps, ask(group, level + 1))
    while cost.value() > target and waiting:  # no small step is left: the large one that ends nearest
        ends = [cost.after(group, ladders[group].levels[at[group] + 1]) for group in waiting]
        under = [each if each <= target else -np.inf for each in ends]
        place = int(np.argmax(under)) if max(under) > -np.inf else int(np.argmin(ends))
        group = waiting.pop(place)
        at[group] += 1
        cost.set(group, ladders[group].levels[at[group]])
        if at[group] + 1 < len(ladders[group].levels):
            waiting.append(group)
    dearest = sorted(range(len(ladders)), key=lambda group: -paid.get((group, at[group]), 0.0))
    for limit in (target, (1 + TOLERANCE) * target):
        for group in dearest:
            while at[group] and cost.value() < (1 - TOLERANCE * (limit > target)) * target:
                if cost.after(group, ladders[group].levels[at[group] - 1]) > limit:
                    break
                at[group] -= 1
                cost.set(group, ladders[group].levels[at[group]])
    return at
