"""A `.tflite` file as a list of operations: what a runtime will really be given."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfkit.errors import ExportError

# names in the schema that are the static form of a tensor, not work on it
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
    """

    number: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    values: np.ndarray | None
    constant: bool


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
    """A `.tflite` file's operations, in the order in which they run.

    Attributes:
        operations: Those that compute; unpacking of constants is left out.
        inputs: The tensors that the file takes, in the order of the graph.
        outputs: Numbers of the tensors that the file gives.
        sparse: Whether a constant is stored in the sparse encoding.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[Tensor, ...]
    outputs: frozenset[int]
    sparse: bool


def read_program(content: bytes) -> Program:
    """Reads a `.tflite` file.

    Args:
        content: The file's bytes.

    Raises:
        ExportError: If they are no such file, or hold several graphs.
    """
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        (graph,) = model.subgraphs
    except Exception as error:  # flatbuffers has no exception of its own for torn files
        raise ExportError(
            "A .tflite file with one graph can be read. "
            f"Received: {len(content)} bytes ({type(error).__name__}: {error}). Export it again."
        ) from error
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    tensors = [_tensor(number, each, model.buffers, types) for number, each in enumerate(graph.tensors)]
    operations: list[Operation] = []
    for each in graph.operators:
        code = model.operatorCodes[each.opcodeIndex]
        kind = kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?")
        if kind == "CUSTOM":
            kind = (code.customCode or b"CUSTOM").decode()
        inputs = tuple(tensors[i] for i in _numbers(each.inputs) if i >= 0)
        outputs = _numbers(each.outputs)
        if kind in _UNPACKING and all(x.constant for x in inputs):
            tensors[outputs[0]] = dataclasses.replace(
                tensors[outputs[0]], constant=True, values=inputs[0].values
            )
            continue
        operations.append(
            Operation(len(operations), kind, inputs, tuple(tensors[i] for i in outputs), each.builtinOptions)
        )
    return Program(
        tuple(operations),
        tuple(tensors[i] for i in _numbers(graph.inputs)),
        frozenset(_numbers(graph.outputs)),
        any(each.sparsity is not None for each in graph.tensors),
    )


def _numbers(given: Sequence[int] | None) -> list[int]:
    return [] if given is None else [int(each) for each in given]


def _tensor(number: int, tensor: Any, buffers: Sequence[Any], types: dict[int, str]) -> Tensor:
    data = buffers[tensor.buffer].data
    constant = data is not None and len(data) > 0
    shape, dtype = tuple(_numbers(tensor.shape)), types[tensor.type]
    values = None
    if constant and tensor.sparsity is None and hasattr(np, dtype.lower()):
        values = np.frombuffer(bytes(data), dtype.lower())
        values = values.reshape(shape) if values.size == np.prod(shape, dtype=int) else None
    return Tensor(number, (tensor.name or b"").decode(), shape, dtype, values, constant)
