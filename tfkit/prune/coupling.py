"""Which channels must stay or go together: a union-find over channels, and where they are used.

Every channel of every tensor has a label, an integer. Rules (`prune.passing`) tell for each
layer which labels come out, which are one and the same, and along which axes of which
weights they lie. Labels of a tensor are an array that broadcasts to its shape without the
batch: (1, 1, 64) for 64 channels that do not depend on the place.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np

Labels = np.ndarray
Dimensions = Sequence[Any]  # an int, or None where it is open

# What an axis of a weight is to the channels along it: the weights that make a channel, those
# that accompany it (a normalisation's scale), or those that read it.
Role = Literal["makes", "accompanies", "reads"]


@dataclasses.dataclass
class Use:
    """An axis of a weight along which channels lie.

    Attributes:
        path: Path of the layer.
        variable: The weight.
        axis: The axis, from 0.
        labels: A label for every position on it.
        role: What the weight is to these channels.
        parts: How many times a channel lies on the axis by the nature of the layer, such as
            once for each gate.
    """

    path: str
    variable: keras.Variable
    axis: int
    labels: Labels
    role: Role
    parts: int = 1


@dataclasses.dataclass
class Size:
    """An entry of a layer's configuration that counts channels.

    Attributes:
        operation: The layer or operation.
        key: The name of the entry.
        axes: For each number of the entry, the labels that it counts or the number itself.
        scalar: Whether the entry is one number, not a tuple.
        always: Whether to write the entry even where the count stays, as a layer that finds
            it from what comes in would find another.
    """

    operation: keras.Operation
    key: str
    axes: tuple[Labels | int, ...]
    scalar: bool = True
    always: bool = False


@dataclasses.dataclass
class Work:
    """Multiplications and additions of a layer: `factor` times how many channels each axis keeps.

    Attributes:
        path: Path of the layer.
        call: Key of the tensor that the layer gives there.
        factor: Multiply-adds for one channel on every axis.
        axes: The labels along each axis that counts.
    """

    path: str
    call: int
    factor: float
    axes: tuple[Labels, ...]


@dataclasses.dataclass
class Crowd:
    """A normalisation whose result for one channel depends on the others beside it.

    Attributes:
        operation: The layer.
        labels: The labels along its last axis.
    """

    operation: keras.Layer
    labels: Labels


class Coupling:
    """Labels, which of them are one, and what is known of them."""

    def __init__(self) -> None:
        self._parents = np.arange(0)
        self._reasons: dict[int, str] = {}
        self.uses: dict[tuple[int, int], Use] = {}
        self.sizes: dict[tuple[int, str], Size] = {}
        self.works: list[Work] = []
        self.crowds: dict[int, Crowd] = {}
        self.readings: list[tuple[int, int, Labels]] = []
        self.stops: dict[str, str] = {}

    def fresh(self, count: int) -> Labels:
        """Returns labels of new channels."""
        start = len(self._parents)
        self._parents = np.concatenate([self._parents, np.arange(start, start + count)])
        return np.arange(start, start + count)

    @property
    def total(self) -> int:
        """How many labels there are."""
        return len(self._parents)

    def find(self, labels: Labels) -> Labels:
        """Returns for each label the one that stands for all that are joined with it."""
        roots = self._parents[labels]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def join(self, first: Labels, second: Labels) -> None:
        """Makes the channels at the same places of two arrays, which broadcast, one."""
        a, b = np.broadcast_arrays(self.find(first), self.find(second))
        pairs = np.unique(np.stack([a[a != b], b[a != b]]), axis=1)
        for one, other in pairs.T:
            low, high = sorted((self._root(int(one)), self._root(int(other))))
            if low == high:
                continue
            self._parents[high] = low
            if high in self._reasons:
                self._reasons.setdefault(low, self._reasons[high])

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = int(self._parents[label])
        return label

    def whole(self, rank: int, reason: str) -> Labels:
        """Returns labels of a tensor of some rank whose channels must all stay."""
        label = self.fresh(1)
        self._reasons[int(label[0])] = reason
        return label.reshape((1,) * rank)

    def keep(self, labels: Labels, reason: str) -> None:
        """Decides that these channels stay; those that already must keep their own reason."""
        roots = np.unique(self.find(labels))
        free = roots[[int(root) not in self._reasons for root in roots]]
        if free.size:
            self.join(free, self.whole(1, reason))

    def reasons(self, labels: Labels) -> list[str | None]:
        """Returns why each label must stay; None where it may go."""
        return [self._reasons.get(int(root)) for root in self.find(labels)]

    def along(self, labels: Labels, axis: int, size: int) -> Labels:
        """Returns one label for each place on an axis, for weights that serve all other places alike.

        Channels at one place of the axis, wherever they are on the others, become one.
        """
        lined = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])
        self.join(lined, lined[:1])
        return np.broadcast_to(lined[0], (size,))

    def tied(self, labels: Labels) -> Labels:
        """Returns the labels with at most one axis along which they differ, the last such one."""
        labels = self.compact(labels)
        varying = [axis for axis, size in enumerate(labels.shape) if size > 1]
        if len(varying) > 1:
            line = self.along(labels, varying[-1], labels.shape[varying[-1]])
            labels = placed(line, varying[-1], labels.ndim)
        return labels

    def compact(self, labels: Labels) -> Labels:
        """Returns the labels with size 1 along every axis on which they do not differ."""
        roots = self.find(labels)
        for axis, size in enumerate(labels.shape):
            if size > 1 and (roots == roots.take([0], axis)).all():
                labels, roots = labels.take([0], axis), roots.take([0], axis)
        return labels

    def use(
        self,
        path: str,
        variable: keras.Variable | None,
        axis: int,
        labels: Labels,
        role: Role,
        parts: int = 1,
    ) -> None:
        """Notes that labels lie along an axis of a weight; None is a weight that a layer lacks.

        Where the weight is used at a second place, the channels of both places become one.
        """
        if variable is None:
            return
        axis %= len(variable.shape)
        known = self.uses.get((id(variable), axis))
        if known is not None:
            self.join(known.labels, labels)
        else:
            labels = np.broadcast_to(labels, (variable.shape[axis],))
            self.uses[id(variable), axis] = Use(path, variable, axis, labels, role, parts)

    def size(self, operation: keras.Operation, key: str, *axes: Labels | int, **options: bool) -> None:
        """Notes that an entry of a configuration counts channels; for the options see `Size`."""
        self.sizes.setdefault((id(operation), key), Size(operation, key, axes, **options))

    def work(self, path: str, call: int, factor: float, *axes: Labels) -> None:
        """Notes multiply-adds."""
        self.works.append(Work(path, call, factor, axes))

    def crowd(self, operation: keras.Layer, labels: Labels) -> None:
        """Notes that a layer computes each channel from all channels on the last axis."""
        self.crowds.setdefault(id(operation), Crowd(operation, labels))

    def read(self, key: int, axis: int, labels: Labels) -> None:
        """Notes that weights read a tensor, its channels on an axis counted without the batch."""
        self.readings.append((key, axis, labels))

    def stop(self, path: str, operation: Any, why: str) -> str:
        """Notes that nothing is known beyond an operation, and returns the reason."""
        reason = f"{path} ({type(operation).__name__}) {why}"
        self.stops.setdefault(path, reason)
        return reason


def placed(line: Labels, axis: int, rank: int) -> Labels:
    """Returns labels along one axis as labels of a tensor of some rank."""
    shape = [1] * rank
    shape[axis] = len(line)
    return line.reshape(shape)
