"""A functional model as a list of calls."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras.src.models.functional import Functional, operation_fn
from keras.src.ops.symbolic_arguments import SymbolicArguments


@dataclasses.dataclass(frozen=True)
class Call:
    """One operation at one place of a functional graph.

    Attributes:
        path: The operation's path below the root model.
        operation: The layer or operation.
        arguments: What it is called with, in symbols.
        inputs: Keys of the tensors that it takes.
        outputs: Keys of the tensors that it gives.
        results: The tensors that it gives, in symbols.
    """

    path: str
    operation: keras.Operation
    arguments: SymbolicArguments
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    results: tuple[keras.KerasTensor, ...]

    def call(self, function: Callable[..., Any], inputs: Sequence[Any]) -> list[Any]:
        """Calls something in the operation's place: with other tensors, and the same settings.

        Args:
            function: The operation, or another one that takes the same arguments.
            inputs: What to call it with, in the order of `inputs`.

        Returns:
            What it gives, flat.
        """
        given = {id(x): y for x, y in zip(self.arguments.keras_tensors, inputs, strict=True)}
        args, kwargs = self.arguments.fill_in(given)
        return keras.tree.flatten(function(*args, **kwargs))

    def run(self, values: dict[int, Any], training: bool | None) -> None:
        """Computes the outputs from the inputs in `values` and puts them there."""
        function = operation_fn(self.operation, training=training)
        results = self.call(function, [values[key] for key in self.inputs])
        values.update(zip(self.outputs, results, strict=True))


@dataclasses.dataclass(frozen=True)
class Flow:
    """A functional model as a list of calls in an order in which they can run.

    Attributes:
        calls: The calls.
        inputs: Keys of the model's inputs, flat.
        outputs: Keys of the model's outputs, flat.
        model: The functional model that was read.
    """

    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    model: keras.Model

    def read(self, x: Any) -> list[Any]:
        """Returns a batch as the model's flat inputs, in their dtypes and ranks."""
        return self.model._standardize_inputs(x)

    def pack(self, outputs: list[Any]) -> Any:
        """Returns flat outputs in the structure in which the model gives them."""
        packed = keras.tree.pack_sequence_as(self.model._outputs_struct, outputs)
        single = isinstance(packed, list | tuple) and len(packed) == 1
        return packed[0] if single else packed


def functional_graph(layer: keras.Operation) -> keras.Model | None:
    """Returns the functional model that computes what `layer` does; None if there is none."""
    if isinstance(layer, keras.Sequential):
        return layer._functional if type(layer).call is keras.Sequential.call else None
    return layer if isinstance(layer, Functional) and type(layer).call is Functional.call else None


def read_flow(model: keras.Model, enter: Callable[[keras.Model], bool] = lambda model: True) -> Flow | None:
    """Reads a functional or Sequential model as calls.

    Args:
        model: A built model.
        enter: Tells for each model inside whether to list its calls in place of one call
            of it. A model that is called with other than its own structure stays whole.

    Returns:
        The calls; None if the model computes in Python of its own.
    """
    functional = functional_graph(model)
    if functional is None:
        return None
    keys = itertools.count()
    calls: list[Call] = []

    def read(graph: keras.Model, known: dict[int, int], prefix: str) -> None:
        for depth in sorted(graph._nodes_by_depth, reverse=True):
            for node in graph._nodes_by_depth[depth]:
                if node.is_input or any(id(x) not in known for x in node.input_tensors):
                    continue
                operation, arguments = node.operation, node.arguments
                path = f"{prefix}{operation.name}"
                inner = functional_graph(operation)
                fed = inputs_of(inner, arguments) if inner is not None and enter(operation) else None
                if inner is not None and fed is not None:
                    inside = {id(x): known[id(y)] for x, y in zip(inner.inputs, fed, strict=True)}
                    read(inner, inside, f"{path}/")
                    known.update(
                        {id(x): inside[id(y)] for x, y in zip(node.outputs, inner.outputs, strict=True)}
                    )
                    continue
                known.update({id(x): next(keys) for x in node.outputs})
                taken = tuple(known[id(x)] for x in arguments.keras_tensors)
                given = tuple(known[id(x)] for x in node.outputs)
                calls.append(Call(path, operation, arguments, taken, given, tuple(node.outputs)))

    known = {id(x): next(keys) for x in functional.inputs}
    read(functional, known, "")
    return Flow(
        tuple(calls),
        tuple(known[id(x)] for x in functional.inputs),
        tuple(known[id(x)] for x in functional.outputs),
        functional,
    )


def inputs_of(inner: keras.Model, arguments: SymbolicArguments) -> list[Any] | None:
    """Returns the tensors that a nested model is called with, if it takes them as they are."""
    options = {
        name
        for name, value in arguments.kwargs.items()
        if any(each is not None for each in keras.tree.flatten(value))
    }
    if len(arguments.args) != 1 or options - {"training"}:
        return None
    given, wanted = arguments.args[0], inner._inputs_struct
    by_name = isinstance(given, dict) or isinstance(wanted, dict)  # else by place, as Keras does
    if by_name and not (type(given) is type(wanted) and given.keys() == wanted.keys()):
        return None
    flat = keras.tree.flatten(given)
    if len(flat) != len(inner.inputs):
        return None
    alike = all(
        isinstance(x, keras.KerasTensor) and len(x.shape) == len(y.shape) and x.dtype == y.dtype
        for x, y in zip(flat, inner.inputs, strict=True)
    )
    return flat if alike else None
