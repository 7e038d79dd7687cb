"""Cutting a model where its frozen part ends."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.traced import draws_random_numbers, list_operations


class NotSplittable(Exception):  # noqa: N818 - a verdict that the caller turns into a warning or an error
    """Why nothing of a model, or of its data, can be computed beforehand."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A model as two lists of calls.

    Attributes:
        flow: The whole graph.
        front: Calls whose results never change while the model trains.
        rest: The calls that must run at every step.
        features: Keys of the tensors that `rest` takes from `front` or from the inputs.
        uncached: For each frozen layer with weights that is in `rest`, why.
    """

    flow: graph.Flow
    front: tuple[graph.Call, ...]
    rest: tuple[graph.Call, ...]
    features: tuple[int, ...]
    uncached: dict[str, str]


def split(model: keras.Model, sample: Any) -> Split:
    """Finds every call that depends neither on what trains nor on chance.

    Args:
        model: A built model.
        sample: A small batch of its input, to try layers that are not Keras's own.

    Raises:
        NotSplittable: If the model is no graph, trains in a way of its own, or has no
            frozen layer with weights that could run beforehand.
    """
    for name in ("train_step", "test_step", "compute_loss", "compute_metrics"):
        if name in vars(model) or getattr(type(model), name) is not getattr(keras.Model, name):
            raise NotSplittable(f"the class {type(model).__name__} has a {name} of its own")
    trained = {id(variable) for variable in model.trainable_variables}
    flow = graph.read_flow(model, enter=lambda inner: _obstacle(inner, trained) is not None)
    if flow is None:
        raise NotSplittable("the model computes in Python of its own, so it is no graph that could be cut")
    obstacles = _obstacles(flow, sample, model)
    front = tuple(call for call in flow.calls if call not in obstacles)
    rest = tuple(call for call in flow.calls if call in obstacles)
    uncached: dict[str, str] = {}
    for call, reason in obstacles.items():
        for path in _frozen_inside(call):
            uncached[path] = reason if path == call.path else f"stands inside {call.path}, which {reason}"
    if not any(getattr(call.operation, "weights", ()) for call in front):
        why = "; ".join(f"{path} {reason}" for path, reason in list(uncached.items())[:3])
        raise NotSplittable(f"no frozen layer could run beforehand ({why or 'no layer is frozen'})")
    made = {key for call in rest for key in call.outputs}
    taken = [key for call in rest for key in call.inputs] + list(flow.outputs)
    features = tuple(dict.fromkeys(key for key in taken if key not in made))
    return Split(flow, front, rest, features, uncached)


def _obstacles(flow: graph.Flow, sample: Any, model: keras.Model) -> dict[graph.Call, str]:
    """Returns the calls that cannot run beforehand, each with the reason."""
    trained = {id(variable) for variable in model.trainable_variables}
    native = {id(variable.value) for variable in model.trainable_variables}
    alike = keras.tree.map_structure(
        lambda array: np.repeat(array[:1], len(array), axis=0), sample, none_is_leaf=False
    )
    values, others = (dict(zip(flow.inputs, flow.read(each), strict=True)) for each in (sample, alike))
    trying = any(_is_suspect(call.operation) for call in flow.calls)
    changing: dict[int, str] = {}  # keys of tensors that change -> the layer that is why
    obstacles: dict[graph.Call, str] = {}
    for call in flow.calls:
        reason = _obstacle(call.operation, trained)
        sources = [changing[key] for key in call.inputs if key in changing]
        if reason is None and not sources and trying:
            reason = _try(call, values, others, native, eagerly=model.run_eagerly)
        if reason is not None:
            obstacles[call] = reason
            changing |= dict.fromkeys(call.outputs, f"{call.path}, which {reason}")
        elif sources:
            obstacles[call] = f"stands behind {sources[0]}"
            changing |= dict.fromkeys(call.outputs, sources[0])
    return obstacles


def _obstacle(operation: keras.Operation, trained: set[int]) -> str | None:
    """Returns why a layer cannot run beforehand, as far as its class tells."""
    if not isinstance(operation, keras.Layer):
        return None
    if any(id(variable) in trained for variable in operation.variables):
        return "trains"
    for layer in graph.sublayers(operation):
        if graph.draws_random_numbers(layer):
            return "draws random numbers"
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            return "updates its statistics"
        if isinstance(layer, keras.layers.SpectralNormalization) or getattr(layer, "stateful", False):
            return "changes its own state when it runs"
        if layer.activity_regularizer is not None:
            return "adds to the loss"
    return None


def is_foreign(operation: keras.Operation) -> bool:
    """Tells whether a layer may do what its class does not tell."""
    layers = graph.sublayers(operation) if isinstance(operation, keras.Layer) else [operation]
    return any(
        isinstance(layer, keras.layers.Lambda) or type(layer).__module__.split(".")[0] != "keras"
        for layer in layers
    )


def _is_suspect(operation: keras.Operation) -> bool:
    """Tells whether a call may do more than compute each sample's result from that sample."""
    axes = keras.tree.flatten(getattr(operation, "axis", None))
    return is_foreign(operation) or not isinstance(operation, keras.Layer) or 0 in axes


def _try(
    call: graph.Call, values: dict[int, Any], others: dict[int, Any], trained: set[int], eagerly: bool
) -> str | None:
    """Runs a call as in training, and returns what it found where the class tells too little.

    Args:
        call: The call.
        values: The tensors so far of a batch.
        others: Those of a batch that holds its first sample again and again.
        trained: Ids of the variables that train.
        eagerly: Whether the model runs without graphs.
    """
    if not _is_suspect(call.operation):
        for batch in (values, others):
            call.run(batch, training=True)
        return None
    weights = getattr(call.operation, "variables", [])
    before = [np.array(variable.value.numpy()) for variable in weights]
    results = []
    for batch in (values, values, others):
        with tf.GradientTape() as tape:
            call.run(batch, training=True)
        results.append([np.asarray(batch[key]) for key in call.outputs])
    moved = [not _equal(old, variable.value.numpy()) for old, variable in zip(before, weights, strict=True)]
    random = not eagerly and _draws_unseen(call, values)
    for old, variable in zip(before, weights, strict=True):
        variable.assign(old)
    if any(moved):
        return "changes its own state when it runs"
    if random or not all(map(_equal, *results[:2])):
        return "gives another result at every call"
    if not all(_equal(one[:1], other[:1]) for one, other in zip(*results[1:], strict=True) if one.ndim):
        return "mixes the samples of a batch"
    if any(id(variable) in trained for variable in tape.watched_variables()):
        return "reads weights that train"
    return "adds to the loss" if getattr(call.operation, "losses", ()) else None


def _draws_unseen(call: graph.Call, values: dict[int, Any]) -> bool:
    """Tells whether a call asks TensorFlow for random numbers, however seldom they show."""
    concrete = tf.function(lambda: call.run(dict(values), training=True), autograph=False)
    operations = list_operations(concrete.get_concrete_function().graph)
    return any(draws_random_numbers(each) for each in operations)


def _frozen_inside(call: graph.Call) -> list[str]:
    """Returns the paths of the layers with weights in a call of which none trains."""
    if not isinstance(call.operation, keras.Layer):
        return []
    frozen, nodes = [], [graph.read_node(call.operation, call.path)]
    for node in nodes:
        if not node.layer.trainable_variables and node.layer.weights:
            frozen.append(node.path)
        elif not node.is_unit:  # an attention with a frozen part is one layer all the same
            nodes += node.children
    return frozen


def _equal(first: Any, second: Any) -> bool:
    return np.array_equal(
        np.asarray(first), np.asarray(second), equal_nan=np.asarray(first).dtype.kind == "f"
    )
