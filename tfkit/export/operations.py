"""A `.tflite` file as a list of operations: what a runtime will really be given."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkit.errors import ExportError

# operations that only bring a stored tensor into the form in which others take it
_UNPACKING = ("DENSIFY", "DEQUANTIZE")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a `.tflite` file.

    Attributes:
        number: Its place in the file.
        name: The converter's name; names of several fused operations are joined by ``;``.
        shape: Its sizes.
        dtype: ``"FLOAT32"``, ``"INT8"``, … as the schema calls them.
        values: What it holds, if the file stores it densely; else None.
        constant: Whether the file stores it, in whatever form.
        sparse: Whether the file stores it in the sparse encoding.
    """

    number: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    values: np.ndarray | None
    constant: bool
    sparse: bool


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation of a `.tflite` file.

    Attributes:
        number: Its place among the operations that compute.
        kind: The schema's name, like ``"CONV_2D"``.
        inputs: What it takes; unpacked constants count as constants.
        outputs: What it gives.
        options: The schema's options of that kind, or None.
    """

    number: int
    kind: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    options: Any

    @property
    def name(self) -> str:
        """The converter's name of the first output."""
        return self.outputs[0].name


@dataclasses.dataclass(frozen=True)
class Program:
    """A graph of a `.tflite` file: its operations, in the order in which they run.

    Attributes:
        operations: Those that compute; unpacking of constants is left out.
        tensors: All tensors by number; what is unpacked from constants counts as constant.
        inputs: The tensors that the graph takes, in its order.
        outputs: Numbers of the tensors that the graph gives.
    """

    operations: tuple[Operation, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    outputs: frozenset[int]

    @property
    def sparse(self) -> bool:
        """Whether a constant is stored in the sparse encoding."""
        return any(each.sparse for each in self.tensors)

    @property
    def holds_int8(self) -> bool:
        """Whether any tensor is int8."""
        return any(each.dtype == "INT8" for each in self.tensors)

    @property
    def computes_in_int8(self) -> list[str]:
        """The kinds of operations that take or give int8, but for those that turn it to float."""
        return [
            each.kind
            for each in self.operations
            if any(x.dtype == "INT8" for x in each.outputs)
            or (each.kind != "DEQUANTIZE" and any(x.dtype == "INT8" for x in each.inputs))
        ]

    def activations(self, inputs: Sequence[int]) -> tuple[int, ...]:
        """Returns the tensors that depend on the inputs, in the order in which they are computed."""
        live = dict.fromkeys(inputs)
        for operation in self.operations:
            if any(x.number in live for x in operation.inputs):
                live |= dict.fromkeys(x.number for x in operation.outputs)
        return tuple(live)

    def frozen(self, inputs: Sequence[int]) -> list[int]:
        """Returns the tensors that hold values and do not depend on the inputs; packed ones left out."""
        computed = {x.number for operation in self.operations for x in operation.outputs}
        held = {x.number for x in self.tensors if x.constant and not x.sparse}
        return sorted((computed | held) - set(self.activations(inputs)))


def read_program(content: bytes) -> Program:
    """Reads a `.tflite` file with one graph.

    Args:
        content: The file's bytes.

    Raises:
        ExportError: If they are no such file, or hold several graphs.
    """
    programs = read_programs(content)
    if len(programs) != 1:
        raise ExportError(
            "A .tflite file must have one graph. "
            f"Received: one with {len(programs)}, which a loop or a branch makes. "
            "Rebuild the model without it, recurrent layers with unroll=True."
        )
    return programs[0]


def read_programs(content: bytes) -> tuple[Program, ...]:
    """Reads all graphs of a `.tflite` file: the one that runs first, then those that it calls.

    Args:
        content: The file's bytes.

    Raises:
        ExportError: If they are no such file.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromPackedBuf(bytes(content), 0)
        kinds, types = _names(schema.BuiltinOperator), _names(schema.TensorType)
        return tuple(_read_graph(model, graph, kinds, types) for graph in model.subgraphs)
    except Exception as error:  # flatbuffers has no exception of its own for torn files
        raise ExportError(
            "The bytes must be a whole .tflite file. "
            f"Received: {len(content)} bytes ({type(error).__name__}: {error}). Export it again."
        ) from error


def _read_graph(model: Any, graph: Any, kinds: dict[int, str], types: dict[int, str]) -> Program:
    tensors = [_read_tensor(number, each, model.buffers, types) for number, each in enumerate(graph.tensors)]
    operations: list[Operation] = []
    for each in () if graph.operators is None else graph.operators:
        code = model.operatorCodes[each.opcodeIndex]
        kind = kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?")
        if kind == "CUSTOM":
            kind = (code.customCode or b"CUSTOM").decode()
        inputs = tuple(tensors[i] for i in _numbers(each.inputs) if i >= 0)
        outputs = _numbers(each.outputs)
        if kind in _UNPACKING and all(x.constant for x in inputs):
            (packed,), (number,) = inputs, outputs
            tensors[number] = dataclasses.replace(tensors[number], constant=True, values=packed.values)
            continue
        given = tuple(tensors[i] for i in outputs)
        operations.append(Operation(len(operations), kind, inputs, given, each.builtinOptions))
    taken = tuple(tensors[i] for i in _numbers(graph.inputs))
    return Program(tuple(operations), tuple(tensors), taken, frozenset(_numbers(graph.outputs)))


def _read_tensor(number: int, tensor: Any, buffers: Sequence[Any], types: dict[int, str]) -> Tensor:
    data = buffers[tensor.buffer].data
    constant, sparse = data is not None and len(data) > 0, tensor.sparsity is not None
    shape, dtype = tuple(_numbers(tensor.shape)), types[tensor.type]
    values = None
    if constant and not sparse and hasattr(np, dtype.lower()):
        values = np.frombuffer(bytes(data), dtype.lower())
        values = values.reshape(shape) if values.size == np.prod(shape, dtype=int) else None
    return Tensor(number, (tensor.name or b"").decode(), shape, dtype, values, constant, sparse)


def _names(numbers: type) -> dict[int, str]:
    return {number: name for name, number in vars(numbers).items() if isinstance(number, int)}


def _numbers(given: Sequence[int] | None) -> list[int]:
    return [] if given is None else [int(each) for each in given]
