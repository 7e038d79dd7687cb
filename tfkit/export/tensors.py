"""The inside of a `.tflite` file: its operators, and the value of every tensor."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfkit.errors import ArgumentError, ExportError


@dataclasses.dataclass(frozen=True)
class Operator:
    """One operator: its kind, and the tensors that it takes and gives, by number."""

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Flatbuffer:
    """The graphs of a file as they are written.

    Attributes:
        graphs: The operators of each graph, in the order in which they run.
        types: The type of each tensor of each graph, such as ``"INT8"``.
        constants: Tensors of the first graph that hold data, packed ones left out.
        sparse: Tensors of the first graph that are sparse-encoded.
    """

    graphs: tuple[tuple[Operator, ...], ...]
    types: tuple[tuple[str, ...], ...]
    constants: frozenset[int]
    sparse: frozenset[int]

    @property
    def holds_int8(self) -> bool:
        """Whether any tensor is int8."""
        return any("INT8" in types for types in self.types)

    @property
    def computes_in_int8(self) -> list[str]:
        """The kinds of operators that take or give int8, but for those that turn it to float."""
        return [
            each.kind
            for types, operators in zip(self.types, self.graphs, strict=True)
            for each in operators
            if any(types[k] == "INT8" for k in (*each.inputs, *each.outputs))
            and (each.kind != "DEQUANTIZE" or any(types[k] == "INT8" for k in each.outputs))
        ]

    def activations(self, inputs: Sequence[int]) -> tuple[int, ...]:
        """Returns the tensors that depend on the inputs, in the order in which they are computed."""
        live = dict.fromkeys(inputs)
        for operator in self.graphs[0]:
            if any(each in live for each in operator.inputs):
                live |= dict.fromkeys(operator.outputs)
        return tuple(live)


def read_flatbuffer(content: bytes) -> Flatbuffer:
    """Reads the graphs of a `.tflite` file."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    types = {number: name for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    kinds = {number: name for name, number in vars(schema.BuiltinOperator).items() if isinstance(number, int)}
    codes = [
        kinds.get(max(each.builtinCode, each.deprecatedBuiltinCode), "?") for each in model.operatorCodes
    ]

    def numbers(tensors: Sequence[int] | None) -> tuple[int, ...]:
        return tuple(int(each) for each in (() if tensors is None else tensors) if each >= 0)

    graphs = tuple(
        tuple(
            Operator(codes[each.opcodeIndex], numbers(each.inputs), numbers(each.outputs))
            for each in graph.operators or ()
        )
        for graph in model.subgraphs
    )
    first = list(enumerate(model.subgraphs[0].tensors))
    sparse = frozenset(number for number, each in first if each.sparsity is not None)
    held = (number for number, each in first if model.buffers[each.buffer].data is not None)
    return Flatbuffer(
        graphs,
        tuple(tuple(types[each.type] for each in graph.tensors) for graph in model.subgraphs),
        frozenset(number for number in held if number not in sparse),
        sparse,
    )


class TensorFile:
    """A `.tflite` file run by LiteRT's plain kernels, with every tensor kept.

    Attributes:
        flatbuffer: The file as it is written.
        inputs: Numbers of its inputs' tensors, in the model's order.
        outputs: Numbers of its outputs' tensors, in the model's order.
        names: The name of each tensor.
        shapes: The shape of each tensor.
    """

    def __init__(self, content: bytes):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self.flatbuffer = read_flatbuffer(content)
        try:
            self._interpreter = Interpreter(
                model_content=bytes(content),
                experimental_preserve_all_tensors=True,
                experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            )
            self._interpreter.allocate_tensors()
            signature = self._interpreter.get_signature_runner()
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                "LiteRT must be able to load the file, and it must have one signature. "
                f"Received: a file of {len(content)} bytes ({str(error)[:300]}). Export it again."
            ) from error
        given, got = signature.get_input_details(), signature.get_output_details()
        self.inputs = [given[name]["index"] for name in sorted(given)]
        self.outputs = [got[name]["index"] for name in sorted(got, key=lambda name: (len(name), name))]
        self._details = {each["index"]: each for each in self._interpreter.get_tensor_details()}
        self.names = {index: each["name"] for index, each in self._details.items()}
        self.shapes = {index: tuple(map(int, each["shape"])) for index, each in self._details.items()}

    @property
    def batch_size(self) -> int:
        """Samples a call."""
        return self.shapes[self.inputs[0]][0]

    def require_fit(self, arrays: Sequence[np.ndarray]) -> None:
        """Checks that samples have the shape of the inputs.

        Raises:
            ArgumentError: If they have not.
        """
        wanted = [self.shapes[index][1:] for index in self.inputs]
        if [each.shape[1:] for each in arrays] != wanted:
            raise ArgumentError(
                "`x` must hold samples shaped like the file's inputs, one array an input. "
                f"Received: x with samples of shape {[each.shape[1:] for each in arrays]}; "
                f"the file takes {wanted}."
            )

    def run(self, arrays: Sequence[np.ndarray]) -> None:
        """Runs one batch; `value` then reads any tensor."""
        for index, array in zip(self.inputs, arrays, strict=True):
            self._interpreter.set_tensor(index, np.asarray(array, self._details[index]["dtype"]))
        self._interpreter.invoke()

    def value(self, index: int) -> np.ndarray:
        """Returns a tensor in real numbers: ``scale · (q - zero point)`` where it is quantized."""
        raw = self._interpreter.get_tensor(index)
        detail = self._details[index]["quantization_parameters"]
        scales, zeros = np.asarray(detail["scales"], "float64"), np.asarray(detail["zero_points"], "float64")
        if not len(scales):
            return raw.astype("float64")
        shape = [1] * raw.ndim
        if len(scales) > 1:
            shape[detail["quantized_dimension"]] = len(scales)
        return (raw.astype("float64") - zeros.reshape(shape)) * scales.reshape(shape)
