"""Layers by name: patterns in, a `Selection` out."""

import dataclasses
import difflib
import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Union

import keras

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError, LayerNotFoundError

if TYPE_CHECKING:
    import pandas as pd

Pattern = Union[str, keras.Layer, "Selection", Callable[[keras.Layer], bool]]


class Entry(NamedTuple):
    """A layer that a selection covers, or a part of it."""

    path: str
    layer: keras.Layer
    part: list[keras.Variable] | None = None  # if only a part of a composite was named

    @property
    def weights(self) -> list[keras.Variable]:
        return self.layer.weights if self.part is None else self.part


@dataclasses.dataclass(frozen=True, repr=False)
class Selection:
    """Layers of one model, in model order.

    Attributes:
        entries: For each layer its `path`, the `layer`, and those of its `weights` that the
            selection covers (all of them, unless only a part of a composite was named).

    Examples:
        >>> import keras, tfkit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
        >>> selection = tfkit.select_layers(model, "a")
        >>> selection.paths, [variable.name for variable in selection.variables]
        (('a',), ['kernel', 'bias'])
    """

    entries: tuple[Entry, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """``"outer/inner/layer"`` for each layer, without the root model's name."""
        return tuple(entry.path for entry in self.entries)

    @property
    def layers(self) -> tuple[keras.Layer, ...]:
        """The layers."""
        return tuple(entry.layer for entry in self.entries)

    @property
    def variables(self) -> tuple[keras.Variable, ...]:
        """The selected layers' weights, each once."""
        return tuple({id(v): v for entry in self.entries for v in entry.weights}.values())

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"Selection(paths={self.paths!r})"


class _Index:
    """A model's layers, prepared once for any number of patterns.

    Patterns are answered in atoms: the layers that have nothing inside, or weights
    of their own. Sets of atoms can be joined and subtracted without ambiguity; what
    people see is put together again by `selection`.
    """

    def __init__(self, model: keras.Model):
        self.roots = graph.walk(model)
        self.nodes = list(graph.descend(self.roots))
        self.names = [node.path.rpartition("/")[2] for node in self.nodes]
        self.position: dict[int, int] = {}  # atom (its layer's id) -> order in the model
        self.atoms: list[frozenset[int]] = []  # one set for each node: the atoms it covers
        self._cover(self.roots)

    def _cover(self, nodes: Sequence[graph.Node]) -> frozenset[int]:
        covered: set[int] = set()
        for node in nodes:
            place = len(self.atoms)
            self.atoms.append(frozenset())
            own: frozenset[int] = frozenset()
            if not node.children or graph.own_variables(node.layer):
                self.position.setdefault(id(node.layer), len(self.position))
                own = frozenset([id(node.layer)])
            self.atoms[place] = own | self._cover(node.children) if node.children else own
            covered |= self.atoms[place]
        return frozenset(covered)

    def everything(self) -> frozenset[int]:
        return frozenset(self.position)

    def match(self, pattern: Pattern) -> frozenset[int]:
        """Returns the atoms that a positive pattern covers."""
        if isinstance(pattern, str):
            hits = self._match_text(pattern)
        elif isinstance(pattern, keras.Layer):
            hits = [i for i, node in enumerate(self.nodes) if node.layer is pattern]
        elif isinstance(pattern, Selection):
            inside = {id(layer) for layer in pattern.layers}
            hits = [i for i, node in enumerate(self.nodes) if id(node.layer) in inside]
        elif callable(pattern):
            hits = [i for i, node in enumerate(self.nodes) if pattern(node.layer)]
        else:
            raise ArgumentTypeError(
                "A pattern must be a string, a layer or a function of a layer. "
                f"Received: pattern={pattern!r} of type {type(pattern).__name__}. "
                "tfkit.layer_table(model).path lists the names."
            )
        if not hits:
            raise self._not_found(pattern)
        return frozenset().union(*(self.atoms[i] for i in hits))

    def _match_text(self, pattern: str) -> list[int]:
        if exact := self._exact(pattern):  # a name may hold what is a sign elsewhere
            return exact
        if pattern.startswith("re:"):
            try:
                expression = re.compile(pattern[3:])
            except re.error as error:
                raise ArgumentError(
                    "A pattern that starts with 're:' must hold a regular expression. "
                    f"Received: pattern={pattern!r} ({error})."
                ) from error
            return [i for i, node in enumerate(self.nodes) if expression.fullmatch(node.path)]
        if ".." in pattern:
            return self._match_range(pattern)
        if any(letter in pattern for letter in "*?["):
            matches = re.compile(fnmatch.translate(pattern)).match
            if "/" in pattern:
                return [i for i, node in enumerate(self.nodes) if matches(node.path)]
            return [i for i, name in enumerate(self.names) if matches(name)]
        return []

    def _exact(self, name: str) -> list[int]:
        if "/" in name:
            return [i for i, node in enumerate(self.nodes) if node.path == name]
        return [i for i, each in enumerate(self.names) if each == name]

    def _match_range(self, pattern: str) -> list[int]:
        first, _, last = pattern.partition("..")
        ends = []
        for end in (first, last):
            hits = self._exact(end)
            if not hits:
                raise self._not_found(end, inside=pattern)
            if whole := [i for i in hits if self.nodes[i].path == end]:
                hits = whole  # a name at the top is a path as well
            if len({id(self.nodes[i].layer) for i in hits}) > 1:
                raise ArgumentError(
                    "Each end of a range must name one layer. "
                    f"Received: pattern={pattern!r}, where {end!r} stands at "
                    f"{', '.join(self.nodes[i].path for i in hits)}. Use the full path."
                )
            ends.append([self.position[atom] for atom in self.atoms[hits[0]]])
        low, high = min(ends[0]), max(ends[1])
        if min(ends[1]) < low:
            raise ArgumentError(
                "A range must run from an earlier layer to a later one. "
                f"Received: pattern={pattern!r}. Write '{last}..{first}'."
            )
        inside = {atom for atom, place in self.position.items() if low <= place <= high}
        return [i for i, atoms in enumerate(self.atoms) if atoms and atoms <= inside]

    def _not_found(self, pattern: object, inside: str | None = None) -> LayerNotFoundError:
        received = f"pattern={inside if inside is not None else pattern!r}"
        if not isinstance(pattern, str):
            return LayerNotFoundError(
                f"Every pattern must match at least one layer. Received: {received}, "
                f"which holds for none of the model's {len(self.position)} layers."
            )
        wanted = re.sub(r"^re:|[*?\[\]]", "", pattern)
        known = dict.fromkeys([*self.names, *(node.path for node in self.nodes)])
        nearest = difflib.get_close_matches(wanted, known, n=3, cutoff=0.3) or list(known)[:3]
        return LayerNotFoundError(
            f"Every pattern must match at least one layer. Received: {received}"
            f"{f', where {pattern!r} is unknown' if inside else ''}. "
            f"Nearest names: {', '.join(nearest)}."
        )

    def selection(self, atoms: frozenset[int]) -> Selection:
        entries: dict[int, Entry] = {}

        def collect(nodes: Sequence[graph.Node], place: int) -> int:
            for node in nodes:
                covered, below = self.atoms[place], place + 1
                if covered and covered <= atoms and (not node.children or node.is_unit):
                    entries.setdefault(id(node.layer), Entry(node.path, node.layer))
                    place = below + sum(1 for _ in graph.descend(node.children))
                else:
                    if node.children and id(node.layer) in atoms:
                        own = graph.own_variables(node.layer)
                        entries.setdefault(id(node.layer), Entry(node.path, node.layer, own))
                    place = collect(node.children, below)
            return place

        collect(self.roots, 0)
        return Selection(tuple(entries.values()))


def select_layers(model: keras.Model, patterns: Pattern | Iterable[Pattern]) -> Selection:
    """Finds layers by name, path, range, regular expression or predicate.

    A pattern, alone or in a list, is one of

    - an exact name at any depth; a nested model's name covers all inside it,
    - a glob such as ``"encoder_conv*"``, on the name, or on the whole path when it
      contains a ``/``,
    - an inclusive range in model order, ``"encoder_conv4..encoder_conv6"``,
    - ``"re:<regex>"``, a full match on the path,
    - a layer, a `Selection`, or a predicate ``layer -> bool``,
    - ``"!pattern"``, which removes what it matches from what stands before it. A list
      that begins with a removal begins with every layer.

    Args:
        model: A built Keras model of any kind.
        patterns: One pattern or several; an empty list selects nothing.

    Returns:
        The layers in model order, each once. Composites that Keras itself built, such
        as an LSTM and its cell, count as one layer unless only a part is selected.

    Raises:
        ArgumentTypeError: If `model` is no model or a pattern is of another kind.
        UnbuiltModelError: If the model's layers do not exist yet.
        LayerNotFoundError: If a pattern matches nothing; names the nearest three.
        ArgumentError: If a range is reversed or ambiguous, or a regex is malformed.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a"),
        ...                           keras.layers.Dense(3, name="b"), keras.layers.Dense(1, name="c")])
        >>> tfkit.select_layers(model, "a..b").paths
        ('a', 'b')
        >>> tfkit.select_layers(model, ["*", "!b"]).paths
        ('a', 'c')
        >>> tfkit.select_layers(model, []).paths
        ()

    Source: selection as a predicate plus a partition, after equinox's filters; names
    that match nothing are errors, after big_vision's optimizer rules.
    """
    index = _Index(graph.require_model(model))
    chosen: frozenset[int] = frozenset()
    for number, pattern in enumerate(list_patterns(patterns)):
        if isinstance(pattern, str) and pattern.startswith("!"):
            chosen = (index.everything() if number == 0 else chosen) - index.match(pattern[1:])
        else:
            chosen |= index.match(pattern)
    return index.selection(chosen)


def list_patterns(patterns: Pattern | Iterable[Pattern]) -> list[Pattern]:
    """Returns patterns, alone or in any iterable, as a list.

    Raises:
        ArgumentTypeError: If they are a mapping, of which the values would go unread.
    """
    if isinstance(patterns, Mapping):
        raise ArgumentTypeError(
            f"Patterns come as one or as a list. Received: {patterns!r} of type {type(patterns).__name__}. "
            "Write ['decoder_*', '!decoder_conv1'] to take layers and leave some out."
        )
    if isinstance(patterns, str | Selection) or callable(patterns) or not isinstance(patterns, Iterable):
        return [patterns]
    return list(patterns)


def layer_table(model: keras.Model) -> "pd.DataFrame":
    """Lists every layer that has weights, once, in model order.

    Args:
        model: A built Keras model.

    Returns:
        A DataFrame with the columns `path`, `class`, `trainable`, `parameters` (a
        count), `sparsity` (the fraction of zeros among its weights of rank two and more,
        biases left out, in [0, 1]) and `dtype` of the weights.

    Raises:
        ArgumentTypeError: If `model` is no model.
        UnbuiltModelError: If its weights do not exist yet.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="a")])
        >>> tfkit.layer_table(model)[["path", "class", "trainable", "parameters"]].values.tolist()
        [['a', 'Dense', True, 15]]
    """
    import numpy as np
    import pandas as pd

    rows, counted = [], set[int]()
    for entry in select_layers(model, lambda _: True).entries:
        layer = entry.layer
        weights = [each for each in entry.weights if id(each) not in counted]  # tied ones count once
        counted.update(map(id, weights))
        if not weights:
            continue
        kernels = [np.asarray(each) for each in weights if len(each.shape) > 1 and "bias" not in each.name]
        size = sum(kernel.size for kernel in kernels)
        zeros = sum(kernel.size - np.count_nonzero(kernel) for kernel in kernels)
        rows.append(
            {
                "path": entry.path,
                "class": type(layer).__name__,
                "trainable": layer.trainable and any(weight.trainable for weight in weights),
                "parameters": sum(math.prod(weight.shape) for weight in weights),
                "sparsity": zeros / size if size else 0.0,
                "dtype": weights[0].dtype,
            }
        )
    return pd.DataFrame(rows, columns=["path", "class", "trainable", "parameters", "sparsity", "dtype"])
