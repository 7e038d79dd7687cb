"""A model without some of its channels, and the same with them made silent."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import PruningError
from tfkit.prune.coupling import Use
from tfkit.prune.groups import Wiring
from tfkit.prune.normalization import MaskedNormalization
from tfkit.prune.pruning import MagnitudeMask
from tfkit.training import carry_state, compile_settings

Kept = Mapping[int, Iterable[int]]


def require_dense(model: keras.Model) -> None:
    """Checks that no weight is held at zero by a mask, which would not fit a smaller one.

    Raises:
        PruningError: If one is.
    """
    pruned = [
        f"{node.path}/{variable.name}"
        for node in graph.descend(graph.walk(model))
        for variable in graph.own_variables(node.layer)
        if isinstance(variable.constraint, MagnitudeMask)
    ]
    if pruned:
        raise PruningError(
            "Channels are removed from a model whose weights are not held at zero by masks. "
            f"Received: model={model.name!r}, where magnitude pruning is at work on {pruned[0]}. "
            "Call tfkit.strip_pruning(model) first, and prune_low_magnitude on the smaller model."
        )


def shrink(wiring: Wiring, kept: Kept) -> tuple[keras.Model, list[tuple[keras.Variable, keras.Variable]]]:
    """Returns a new model in which only the units that are kept exist.

    Args:
        wiring: A model's groups; the model is not changed.
        kept: For the number of a group the units that stay; other groups stay whole.

    Returns:
        The model, and for every weight the old and the new variable.
    """
    alive = wiring.alive(kept)
    labels_of = wiring.coupling.find
    changes: dict[int, dict[str, Any]] = defaultdict(dict)
    for size in wiring.coupling.sizes.values():
        before = [axis if isinstance(axis, int) else len(axis) for axis in size.axes]
        after = [axis if isinstance(axis, int) else int(alive[labels_of(axis)].sum()) for axis in size.axes]
        if before != after or size.always:
            changes[id(size.operation)][size.key] = after[0] if size.scalar else tuple(after)
    model, pairs = _rebuilt(wiring, lambda operation: _copy(wiring, operation, changes[id(operation)]))
    _fill(wiring, model, pairs, lambda values, uses: cut(values, uses, wiring, alive))
    return model, pairs


def cut(values: np.ndarray, uses: Iterable[Use], wiring: Wiring, alive: np.ndarray) -> np.ndarray:
    """Returns what stays of an array that has the shape of a weight."""
    for use in uses:
        values = values.compress(alive[wiring.coupling.find(use.labels)], use.axis)
    return values


def carry_optimizer(wiring: Wiring, kept: Kept) -> keras.Model:
    """Returns the smaller model, compiled like the old one, with what its optimizer has learned."""
    old = graph.require_compiled(wiring.model)
    model, pairs = shrink(wiring, kept)
    alive, uses = wiring.alive(kept), _uses_of(wiring)
    model.compile(**compile_settings(old))
    if not old.optimizer.built:
        return model
    model.optimizer.build(model.trainable_variables)
    news = {id(old): new for old, new in pairs}

    def cut_slot(variable: keras.Variable, values: np.ndarray) -> np.ndarray:
        return cut(values, uses[id(variable)], wiring, alive) if values.shape == variable.shape else values

    carry_state(old.optimizer, model.optimizer, news, cut_slot)
    return model


def silence(wiring: Wiring, kept: Kept) -> keras.Model:
    """Returns a new model of the same shape that computes what the smaller one does.

    What makes a channel that goes, and what reads it, is zero. Normalisations over channels
    take their statistics over those that stay.
    """
    alive = wiring.alive(kept)
    crowds = {key: alive[wiring.coupling.find(crowd.labels)] for key, crowd in wiring.coupling.crowds.items()}

    def replace(operation: keras.Operation) -> keras.Operation:
        twin = _copy(wiring, operation, {})
        if id(operation) in crowds and not crowds[id(operation)].all():
            return MaskedNormalization(twin, crowds[id(operation)].tolist(), name=operation.name)
        return twin

    model, pairs = _rebuilt(wiring, replace)
    _fill(wiring, model, pairs, lambda values, uses: zeroed(values, uses, wiring, alive))
    return model


def zeroed(values: np.ndarray, uses: Iterable[Use], wiring: Wiring, alive: np.ndarray) -> np.ndarray:
    """Returns a weight with zeros where it makes or reads a channel that goes."""
    for use in uses:
        if use.role != "accompanies":
            shape = [1] * values.ndim
            shape[use.axis] = -1
            values = np.where(alive[wiring.coupling.find(use.labels)].reshape(shape), values, 0)
    return values


def _fill(
    wiring: Wiring,
    model: keras.Model,
    pairs: Iterable[tuple[keras.Variable, keras.Variable]],
    change: Callable[[np.ndarray, list[Use]], np.ndarray],
) -> None:
    """Gives each weight of a new model what becomes of the old one, and its frozen state."""
    uses = _uses_of(wiring)
    for old, new in pairs:
        new.assign(change(keras.ops.convert_to_numpy(old), uses[id(old)]))
        new.trainable = old.trainable
    graph.finish_normalization(model)


def _uses_of(wiring: Wiring) -> dict[int, list[Use]]:
    uses: dict[int, list[Use]] = defaultdict(list)
    for (variable, _), use in wiring.coupling.uses.items():
        uses[variable].append(use)
    return uses


def _copy(wiring: Wiring, operation: keras.Operation, changes: dict[str, Any]) -> keras.Operation:
    try:
        return graph.copy_operation(operation, changes)
    except (NotImplementedError, TypeError, ValueError) as error:
        path = next((c.path for c in wiring.flow.calls if c.operation is operation), operation.name)
        raise PruningError(
            "Every layer must be able to be made again from its configuration. "
            f"Received: model={wiring.model.name!r} with {path} ({type(operation).__name__}), which fails: "
            f"{str(error)[:300]} Give the class get_config and from_config."
        ) from error


def _rebuilt(
    wiring: Wiring, replace: Callable[[keras.Operation], keras.Operation]
) -> tuple[keras.Model, list[tuple[keras.Variable, keras.Variable]]]:
    made: list[tuple[keras.Operation, keras.Operation]] = []

    def remember(operation: keras.Operation) -> keras.Operation:
        made.append((operation, replace(operation)))
        return made[-1][1]

    model = graph.rebuild(wiring.model, remember)
    pairs = [
        pair
        for old, new in made
        if isinstance(old, keras.Layer)
        for pair in zip(old.weights, new.weights, strict=True)
    ]
    return model, pairs
