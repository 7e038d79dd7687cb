"""A model of the same wiring, with new layers in the places of the old."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfkit.graph.flow import functional_graph, inputs_of
from tfkit.graph.nodes import sublayers

Shape = tuple[int | None, ...]


def rebuild(
    model: keras.Model,
    replace: Callable[[keras.Operation], keras.Operation],
    shapes: Sequence[Shape] | None = None,
) -> keras.Model:
    """Makes a functional or Sequential model anew, models inside it included.

    The wiring, the names and the frozen state stay; the sizes of all tensors behind the
    inputs follow from the new layers. The model and its layers are not touched, and the new
    weights are initial ones.

    Args:
        model: A functional or Sequential model.
        replace: Gives the new layer or operation for an old one. Asked once for each; a
            layer that is used at several places stays one layer.
        shapes: New shapes of the inputs, with the batch; None keeps them.

    Returns:
        The new, uncompiled model.
    """
    made: dict[int, keras.Operation] = {}

    def remake(operation: keras.Operation, arguments: Any, tensors: Mapping[int, Any]) -> keras.Operation:
        if id(operation) not in made:
            inner = functional_graph(operation)
            if inner is None:
                made[id(operation)] = replace(operation)
            else:
                shapes = [x.shape for x in inner.inputs]
                given = inputs_of(inner, arguments)
                if given is not None:
                    sizes = zip(shapes, given, strict=True)
                    shapes = [_resized(inside, x.shape, tensors[id(x)].shape) for inside, x in sizes]
                made[id(operation)] = remake_model(operation, shapes)
        return made[id(operation)]

    def remake_model(old: keras.Model, shapes: Sequence[Shape]) -> keras.Model:
        graph: Any = functional_graph(old)  # not None: what computes in Python is never rebuilt
        inputs = [
            keras.Input(
                batch_shape=shape, dtype=x.dtype, name=x._keras_history.operation.name, sparse=x.sparse
            )
            for shape, x in zip(shapes, graph.inputs, strict=True)
        ]
        tensors = {id(x): y for x, y in zip(graph.inputs, inputs, strict=True)}
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input or any(id(x) not in tensors for x in node.input_tensors):
                    continue
                operation = remake(node.operation, node.arguments, tensors)
                args, kwargs = node.arguments.fill_in(tensors)
                outputs = keras.tree.flatten(operation(*args, **kwargs))
                tensors.update({id(x): y for x, y in zip(node.outputs, outputs, strict=True)})
        if isinstance(old, keras.Sequential):
            layers = [made[id(layer)] for layer in old.layers]
            for layer in layers:  # the chain calls them again, so the call above shall not be their first
                layer._inbound_nodes.pop()
            new = keras.Sequential([inputs[0], *layers], name=old.name)
        else:
            pack = keras.tree.pack_sequence_as
            outputs = pack(graph._outputs_struct, [tensors[id(x)] for x in graph.outputs])
            new = keras.Model(pack(graph._inputs_struct, inputs), outputs, name=old.name)
        new._trainable = old._trainable  # the setter would set all layers inside
        return new

    whole: Any = functional_graph(model)
    return remake_model(model, [x.shape for x in whole.inputs] if shapes is None else shapes)


def _resized(inside: Shape, before: Shape, after: Shape) -> Shape:
    """Returns the shape that a model inside declares, where its input has changed its size."""
    return tuple(
        new if own is not None and old != new else own
        for own, old, new in zip(inside, before, after, strict=True)
    )


def _vocabulary(operation: keras.Operation) -> dict[str, Any]:
    """Returns what a lookup was adapted to, which its configuration leaves out."""
    if not isinstance(operation, keras.layers.TextVectorization | keras.layers.StringLookup):
        return {}
    lookup = getattr(operation, "_lookup_layer", operation)
    if lookup.output_mode == "tf_idf":
        raise NotImplementedError("its tf_idf weights cannot be read; keep this layer outside the model.")
    return {"vocabulary": operation.get_vocabulary(include_special_tokens=False) or None}


def copy_operation(operation: keras.Operation, changes: Mapping[str, Any]) -> keras.Operation:
    """Returns a new layer or operation like another, without its weights and its places.

    Args:
        operation: A layer, or an operation of `keras.ops` in a functional model.
        changes: Entries of its configuration to replace.

    Raises:
        NotImplementedError: If the class does not tell its configuration.
    """
    if isinstance(operation, keras.layers.Lambda):  # Keras would send its code through bytes
        config = keras.Layer.get_config(operation)
        own = {"output_shape": operation._output_shape, "mask": operation.mask}
        return keras.layers.Lambda(
            operation.function, arguments=operation.arguments, **own, **config | dict(changes)
        )
    if isinstance(operation, keras.Layer) or changes.keys() - {"name"}:
        return type(operation).from_config(operation.get_config() | _vocabulary(operation) | dict(changes))
    twin = copy.copy(operation)
    twin._inbound_nodes, twin._outbound_nodes = [], []
    twin.name = changes.get("name", operation.name)
    return twin


def finish_normalization(model: keras.Model) -> None:
    """Lets Normalization layers whose weights were set, in place, compute with them: they keep a copy."""
    for layer in sublayers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()


def rename(tensor: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Renames the operation that a tensor comes from, in place, and returns the tensor.

    Operations of `keras.ops` name themselves, and no two in a model may have one name.
    """
    tensor._keras_history.operation.name = name
    return tensor
