"""How much a model needs each of its channels."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ArgumentError
from tfkit.prune.batches import inputs_of, read_batches
from tfkit.prune.coupling import Use
from tfkit.prune.groups import Wiring

CRITERIA = ("l1", "l2", "bn_scale", "fpgm", "random", "activation", "taylor")
NEED_DATA = ("activation", "taylor")

# one number for each unit of each group; None where a criterion says nothing of a group
Scores = list[np.ndarray | None]


def score_units(
    wiring: Wiring,
    criterion: str,
    *,
    data: Any = None,
    batch_size: int = 32,
    loss: Callable[[Any, Any], Any] | None = None,
    seed: int | None = None,
) -> Scores:
    """Scores the units of every group, each group by itself.

    Every layer (or tensor) that tells something of a group gives each unit a number, divided
    by their mean in that layer; a unit's score is the mean over the layers, so it is about 1
    for an average channel in every group and groups can be compared.

    Args:
        wiring: A model's groups.
        criterion: One of `CRITERIA`.
        data: Batches for `activation` and `taylor`.
        batch_size: Samples a batch.
        loss: What `taylor` differentiates; None takes the loss the model is compiled with.
        seed: For `random`.
    """
    if criterion == "random":
        generator = np.random.default_rng(seed)
        return [generator.uniform(size=len(group.units)) * 2 for group in wiring.groups]
    if criterion == "activation":
        batches = read_batches(wiring.model, data, batch_size)
        return _mean_of_parts(wiring, _activations(wiring, batches))
    if criterion == "taylor":
        batches = read_batches(wiring.model, data, batch_size)
        return _mean_of_parts(wiring, _taylor(wiring, batches, loss))
    return _mean_of_parts(wiring, WEIGHTS[criterion](wiring))


# what one layer tells of one group: (group, a number a unit)
Parts = Iterator[tuple[int, np.ndarray]]


def _mean_of_parts(wiring: Wiring, parts: Parts) -> Scores:
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    for group, numbers in parts:
        mean = numbers.mean()
        found[group].append(numbers / mean if mean > 0 else numbers)
    return [
        np.mean(found[number], axis=0) if number in found else None for number in range(len(wiring.groups))
    ]


def _members(wiring: Wiring, labels: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields for each group on an axis: its number, the places, and the unit at each place."""
    groups, units = wiring.places(labels)
    for number in np.unique(groups[groups >= 0]).tolist():
        places = np.flatnonzero(groups == number)
        yield number, places, units[places]


def _kernels(wiring: Wiring) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields for each group in each kernel that makes it: its number, the rows, their units."""
    for use in wiring.coupling.uses.values():
        if use.role != "makes":
            continue
        values = keras.ops.convert_to_numpy(use.variable).astype("float32", copy=False)
        rows = np.moveaxis(values, use.axis, 0).reshape(values.shape[use.axis], -1)
        for group, places, units in _members(wiring, use.labels):
            yield group, rows[places], units


def _l1(wiring: Wiring) -> Parts:
    for group, rows, units in _kernels(wiring):
        yield group, np.bincount(units, np.abs(rows).sum(1))


def _l2(wiring: Wiring) -> Parts:
    for group, rows, units in _kernels(wiring):
        yield group, np.sqrt(np.bincount(units, np.square(rows).sum(1)))


def _fpgm(wiring: Wiring) -> Parts:
    for group, rows, units in _kernels(wiring):
        by_unit = rows[np.argsort(units, kind="stable")].reshape(units.max() + 1, -1).astype("float64")
        squares = np.square(by_unit).sum(1)
        distances = np.maximum(squares[:, None] + squares - 2 * by_unit @ by_unit.T, 0)
        np.fill_diagonal(distances, 0)
        yield group, np.sqrt(distances).sum(1)


def _bn_scale(wiring: Wiring) -> Parts:
    nodes = graph.descend(graph.walk(wiring.model))
    norms = [node.layer for node in nodes if isinstance(node.layer, keras.layers.BatchNormalization)]
    scales = {id(layer.gamma) for layer in norms if layer.gamma is not None}
    for use in wiring.coupling.uses.values():
        if id(use.variable) in scales:
            values = np.abs(keras.ops.convert_to_numpy(use.variable))
            for group, places, units in _members(wiring, use.labels):
                yield group, np.bincount(units, values[places])


WEIGHTS = {"l1": _l1, "l2": _l2, "fpgm": _fpgm, "bn_scale": _bn_scale}


def _activations(wiring: Wiring, batches: list[tuple[Any, Any]]) -> Parts:
    """Mean size of what the layers behind read of each channel."""
    flow = wiring.flow
    readings = {(key, axis % rank): labels for key, axis, labels, rank in _ranked(wiring)}

    @tf.function(reduce_retracing=True)
    def sums(x: Any) -> list[Any]:
        values = dict(zip(flow.inputs, flow.read(x), strict=True))
        for call in flow.calls:
            call.run(values, training=False)
        answer = []
        for key, axis in readings:
            size = keras.ops.abs(keras.ops.cast(values[key], "float32"))
            others = [each for each in range(len(size.shape)) if each not in (0, axis + 1)]
            answer.append(keras.ops.sum(keras.ops.mean(size, others), 0))
        return answer

    totals: list[np.ndarray] | None = None
    for x, _ in batches:
        numbers = [np.asarray(each, "float64") for each in sums(inputs_of(flow.model, x))]
        totals = numbers if totals is None else [a + b for a, b in zip(totals, numbers, strict=True)]
    for (_, labels), total in zip(readings.items(), totals or [], strict=True):
        for group, places, units in _members(wiring, labels):
            yield group, np.bincount(units, total[places]) / np.bincount(units)


def _ranked(wiring: Wiring) -> Iterator[tuple[int, int, np.ndarray, int]]:
    ranks: dict[int, int] = {}
    for call in wiring.flow.calls:
        pairs = zip(call.inputs, call.arguments.keras_tensors, strict=True)
        ranks |= {key: len(x.shape) - 1 for key, x in pairs}
    for key, axis, labels in wiring.coupling.readings:
        yield key, axis, labels, ranks[key]


def _taylor(wiring: Wiring, batches: list[tuple[Any, Any]], loss: Callable[[Any, Any], Any] | None) -> Parts:
    """Squared change of the loss, to first order, if all weights of a channel became zero.

    A normalisation's statistics are no weights: a variance of zero would not silence a channel.
    """
    model = wiring.model
    if any(y is None for _, y in batches):
        raise ArgumentError(
            "`taylor` scores channels by gradients of the loss, so it needs targets. "
            "Received: data without targets. Pass data=(x, y)."
        )
    learnable = {id(variable) for _, variable in graph.learnable(model)}
    uses = [
        use
        for use in wiring.coupling.uses.values()
        if use.role != "reads" and id(use.variable) in learnable and _floating(use)
    ]
    variables = {id(use.variable): use.variable for use in uses}
    order = list(variables)

    @tf.function(reduce_retracing=True)
    def products(x: Any, y: Any) -> list[Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in variables.values():
                tape.watch(variable.value)
            answer = model(x, training=False)
            value = model.compute_loss(x, y, answer) if loss is None else keras.ops.mean(loss(y, answer))
        values = [variable.value for variable in variables.values()]
        gradients = tape.gradient(value, values, unconnected_gradients="zero")
        dense = [tf.convert_to_tensor(each) for each in gradients]  # an embedding's come as slices
        return [keras.ops.multiply(a, b) for a, b in zip(dense, values, strict=True)]

    totals: dict[int, np.ndarray] = {}
    for x, y in batches:
        y = keras.tree.map_structure(keras.ops.convert_to_tensor, y)
        answer = dict(zip(order, products(inputs_of(model, x), y), strict=True))
        change: dict[int, np.ndarray] = defaultdict(lambda: np.zeros(1))
        for use in uses:
            product = np.moveaxis(np.asarray(answer[id(use.variable)], "float64"), use.axis, 0)
            line = product.reshape(len(product), -1).sum(1)
            for group, places, units in _members(wiring, use.labels):
                change[group] = change[group] + np.bincount(units, line[places])
        for group, numbers in change.items():
            totals[group] = totals.get(group, 0) + np.square(numbers)
    yield from totals.items()


def _floating(use: Use) -> bool:
    return "float" in use.variable.dtype
