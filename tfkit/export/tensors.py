"""The value of every tensor of a `.tflite` file."""

from collections.abc import Sequence

import numpy as np

from tfkit.errors import ArgumentError, ExportError
from tfkit.export.operations import read_programs


class TensorFile:
    """A `.tflite` file run by LiteRT's plain kernels, with every tensor kept.

    Attributes:
        program: The graph that runs first.
        inputs: Numbers of its inputs' tensors, in the model's order.
        outputs: Numbers of its outputs' tensors, in the model's order.
        names: The name of each tensor.
        shapes: The shape of each tensor.
    """

    def __init__(self, content: bytes):
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        self.program, *_ = read_programs(content)
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
