"""Explicit padding where the converter wrote SAME, which XNNPACK's sparse kernels refuse.

A convolution with strides over an odd number of pixels is padded alike on both sides by SAME. The
converter writes SAME even where the model pads by itself, and XNNPACK does not work out what SAME
comes to when there are strides.
"""

from typing import Any

import numpy as np

from tfkit.export.operations import Operation, read_program


def explicit_padding(content: bytes) -> bytes:
    """Returns a `.tflite` file in which strided convolutions over odd sizes are padded explicitly.

    It computes the same. Without such convolutions the file comes back as it is.

    Args:
        content: The bytes of a file with one graph.

    Raises:
        ExportError: If they are no such file, or hold several graphs.
    """
    halves = {each.outputs[0].number: _half(each) for each in read_program(content).operations}
    if not any(halves.values()):
        return content
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    operators, pad = [], _Pad(schema, model, graph)
    for operator in graph.operators:
        half = halves.get(int(operator.outputs[0]))
        operators += [pad.before(operator, half), operator] if half else [operator]
    graph.operators = operators
    builder = flatbuffers.Builder(len(content) + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _half(convolution: Operation) -> tuple[int, int] | None:
    """Returns half the kernel, if SAME pads by it on all sides and strides hide it."""
    options = convolution.options
    if convolution.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or options.padding != 0:  # SAME
        return None
    strides = (options.strideH, options.strideW)
    if strides == (1, 1) or (options.dilationHFactor, options.dilationWFactor) != (1, 1):
        return None
    size, kernel = (each.shape[1:3] for each in convolution.inputs[:2])
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, kernel, strides, strict=True)]
    half = (kernel[0] // 2, kernel[1] // 2)
    return half if any(half) and totals == [2 * half[0], 2 * half[1]] else None


def _numbers(*values: int) -> np.ndarray:
    return np.asarray(values, "int32")  # flatbuffers writes an array as it stands in memory


class _Pad:
    """Puts paddings into a graph."""

    def __init__(self, schema: Any, model: Any, graph: Any):
        self.schema, self.model, self.graph = schema, model, graph

    def before(self, operator: Any, half: tuple[int, int]) -> Any:
        """Returns a padding for a convolution, which then takes what it gives, unpadded."""
        schema, tensors = self.schema, self.graph.tensors
        given = tensors[operator.inputs[0]]
        amounts = np.asarray([[0, 0], [half[0]] * 2, [half[1]] * 2, [0, 0]], "int32")
        sizes = self._tensor(b"paddings", amounts.shape, schema.TensorType.INT32, amounts.tobytes())
        shape = [int(n) + int(a.sum()) for n, a in zip(given.shape, amounts, strict=True)]
        padded = self._tensor(given.name + b"_padded", shape, given.type, None)
        padding = schema.OperatorT()
        padding.opcodeIndex = self._code()
        padding.inputs, padding.outputs = _numbers(operator.inputs[0], sizes), _numbers(padded)
        padding.builtinOptionsType, padding.builtinOptions = (
            schema.BuiltinOptions.PadOptions,
            schema.PadOptionsT(),
        )
        operator.inputs = _numbers(padded, *operator.inputs[1:])
        operator.builtinOptions.padding = schema.Padding.VALID
        return padding

    def _tensor(self, name: bytes, shape: Any, kind: int, data: bytes | None) -> int:
        tensor, buffer = self.schema.TensorT(), self.schema.BufferT()
        if data is not None:
            buffer.data = np.frombuffer(data, "uint8")
        self.model.buffers.append(buffer)
        tensor.name, tensor.shape, tensor.type = name, np.asarray(shape, "int32"), kind
        tensor.buffer = len(self.model.buffers) - 1
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _code(self) -> int:
        pad = self.schema.BuiltinOperator.PAD
        for number, code in enumerate(self.model.operatorCodes):
            if pad in (code.builtinCode, code.deprecatedBuiltinCode):
                return number
        code = self.schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = pad
        code.version = 1
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1
