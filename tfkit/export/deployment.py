"""What a target's runtime will do with a model, operation by operation."""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ArgumentError
from tfkit.export.apart import run_apart
from tfkit.export.layer_error import read_tflite
from tfkit.export.names import LayerNames
from tfkit.export.operations import Operation, Program, Tensor, read_program
from tfkit.export.padding import explicit_padding
from tfkit.export.signature import input_specs
from tfkit.export.tensors import TensorFile
from tfkit.export.tflite import convert_model
from tfkit.export.xnnpack import Analysis, Rewritable, Verdict, analyse

if TYPE_CHECKING:
    import pandas as pd

Target = Literal["desktop", "gpu", "mobile", "web"]
TARGETS: tuple[Target, ...] = ("desktop", "gpu", "mobile", "web")
COLUMNS = ["layer", "operation", "runs", "reason", "remedy"]

# what LiteRT's GPU delegates take, as `gpu_row` says how it was measured
_GPU = {
    "ABS", "ADD", "ATAN2", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CAST", "CEIL", "CONCATENATION",
    "CONV_2D", "COS", "CUMSUM", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DIV", "ELU", "EXP", "FLOOR",
    "FLOOR_DIV", "FLOOR_MOD", "FULLY_CONNECTED", "GELU", "GREATER", "HARD_SWISH", "LEAKY_RELU", "LOG",
    "LOGICAL_AND", "LOGISTIC", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG",
    "PAD", "POW", "PRELU", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "RELU", "RELU6", "RELU_N1_TO_1",
    "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "ROUND", "RSQRT", "SELECT",
    "SIGN", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQRT", "SQUARE",
    "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TILE", "TRANSPOSE", "TRANSPOSE_CONV",
    "UNPACK",
}  # fmt: skip
_GPU_MOST_DIMENSIONS, _GPU_FEWER_DIMENSIONS = 5, {"TILE": 4}


def require_target(target: str) -> Target:
    """Returns a target that exists.

    Raises:
        ArgumentError: If it does not.
    """
    if target not in TARGETS:
        raise ArgumentError(f"A target must be one of {', '.join(TARGETS)}. Received: {target!r}.")
    return target


def explain_deployment(
    model: keras.Model,
    target: Target | Sequence[Target],
    *,
    input_shape: Sequence[int | None] | None = None,
) -> "pd.DataFrame":
    """Tells what a target's runtime will do with each operation of a model, before it is exported.

    For ``"mobile"`` and ``"web"``: whether XNNPACK's sparse kernels take it once its weights are
    sparse-encoded, what stops them, what mends it, and which operations they would compute wrong.
    For ``"gpu"``: which operations the GPU delegates lack. For ``"desktop"``: nothing is sparse there,
    for XNNPACK leaves its sparse kernels out on x86 with AVX. The model is converted to
    TFLite to find out, which takes seconds.

    Args:
        model: A built Keras model.
        target: ``"desktop"`` (x86 with AVX), ``"gpu"``, ``"mobile"`` (ARM) or ``"web"``; or
            several of them, for which the model is converted once.
        input_shape: ``(height, width, channels)`` for a model that leaves sizes open.

    Returns:
        A DataFrame, a row for each operation as the runtime sees it: `layer` (the path of the
        Keras layer, empty where the converter's name does not tell), `operation`
        (TFLite's name), `runs` (``"sparse"``, ``"dense"``, ``"wrong"``; of a GPU ``"gpu"``
        or ``"cpu"``), `reason` and `remedy`, empty where there is nothing to say. ``attrs["verdict"]``
        is the whole's: ``"wrong"`` if a row is, else ``"sparse"`` if a row is, else ``"dense"``;
        of a GPU ``"cpu"`` if a row is. Of several targets the rows of each follow one another, with the
        target in a column of its own, and ``attrs["verdict"]`` is a dict by target.

    Raises:
        ArgumentTypeError: If `model` is no model.
        ArgumentError: If there is no such target, or a size is open.
        UnbuiltModelError: If the model has no weights, or does not know its inputs.
        ExportError: If TensorFlow cannot convert the model.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None)
        >>> table = tfkit.explain_deployment(model, "mobile")
        >>> table.attrs["verdict"], table.remedy[0]
        ('dense', 'tfkit.make_sparse_ready(model)')
    """
    import pandas as pd

    targets = [require_target(each) for each in ([target] if isinstance(target, str) else target)]
    graph.require_finite(graph.require_model(model))
    program = read_program(convert_dense(model, input_shape))
    names = LayerNames(model)
    tables = {each: _explained(program, names, each) for each in targets}
    if isinstance(target, str):
        return tables[target]
    whole = pd.concat(tables, names=["target"]).reset_index("target").reset_index(drop=True)
    whole.attrs["verdict"] = {each: table.attrs["verdict"] for each, table in tables.items()}
    return whole


def _explained(program: Program, names: LayerNames, target: Target) -> "pd.DataFrame":
    import pandas as pd

    if target == "gpu":
        rows = [gpu_row(operation) for operation in program.operations]
        verdict = "cpu" if any(row["runs"] == "cpu" for row in rows) else "gpu"
        operations: Sequence[Operation] = program.operations
    else:
        found = analyse(program)
        operations = [place.operation for place in found.places]
        rows, verdict = _xnnpack_rows(found), found.verdict.value
        if target == "desktop":
            why = "XNNPACK has no sparse kernels for x86 with AVX"
            rows, verdict = [{"runs": "dense", "reason": why, "remedy": ""} for _ in rows], "dense"
    for row, operation in zip(rows, operations, strict=True):
        row |= {"layer": names.of(operation), "operation": operation.kind}
    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["verdict"] = verdict
    return table


def explain_tflite(path: str | os.PathLike[str]) -> "pd.DataFrame":
    """Tells what LiteRT does with each operation of a `.tflite` file on ARM and in a browser.

    The sparse kernels engage only where the weights are sparse-encoded; on x86 with AVX there are
    none. The file runs once in a process of its own first, so that a broken one is an error.

    Args:
        path: The file.

    Returns:
        A DataFrame as `explain_deployment` returns it for ``"mobile"``, but that `layer` is the
        converter's name. ``attrs`` holds `verdict`, `sparse` (whether weights are sparse-encoded) and
        `inputs` (shape and type of each, as ``"1x224x224x3 FLOAT32"``).

    Raises:
        ArgumentError: If it is no `.tflite` file.
        ExportError: If LiteRT cannot load or run it, or it holds several graphs.

    Examples:
        >>> import pathlib, tempfile, tfkit
        >>> model = tfkit.models.build_encoder_decoder((16, 16, 3), filters=(4, 8), output_channels=3)
        >>> artifact = tfkit.export_tflite(model, pathlib.Path(tempfile.mkdtemp(), "model.tflite"))
        >>> table = tfkit.explain_tflite(artifact.path)
        >>> table.attrs["inputs"], table.attrs["verdict"], table.operation[0]
        (['1x16x16x3 FLOAT32'], 'dense', 'CONV_2D')
    """
    import pandas as pd

    content = read_tflite(path)
    run_apart(path, None)
    program = read_program(content)
    if program.sparse:
        program = _unpacked(program, content)
    found = analyse(program)
    if program.sparse:
        rows, verdict = _xnnpack_rows(found), found.verdict.value
    else:
        why = "its weights are not sparse-encoded"
        rows, verdict = [{"runs": "dense", "reason": why, "remedy": ""} for _ in found.places], "dense"
    for row, place in zip(rows, found.places, strict=True):
        row |= {"layer": place.operation.name, "operation": place.operation.kind}
    table = pd.DataFrame(rows, columns=COLUMNS)
    inputs = [f"{'x'.join(map(str, each.shape))} {each.dtype}" for each in program.inputs]
    table.attrs |= {"verdict": verdict, "sparse": program.sparse, "inputs": inputs}
    return table


def _unpacked(program: Program, content: bytes) -> Program:
    """Returns a program with the values of its sparse-encoded constants, as LiteRT unpacks them."""
    file = TensorFile(content)
    file.run([np.zeros(file.shapes[index]) for index in file.inputs])

    def filled(tensor: Tensor) -> Tensor:
        packed = tensor.constant and tensor.values is None
        return dataclasses.replace(tensor, values=file.value(tensor.number)) if packed else tensor

    operations = [
        dataclasses.replace(operation, inputs=tuple(map(filled, operation.inputs)))
        for operation in program.operations
    ]
    return dataclasses.replace(program, operations=tuple(operations))


def convert_dense(model: keras.Model, input_shape: Sequence[int | None] | None = None) -> bytes:
    """Converts a model to float32 as it would be before its weights are sparse-encoded.

    Raises:
        ArgumentError: If a size is open.
        ExportError: If TensorFlow cannot convert it.
    """
    specs = input_specs(model, batch_size=1, input_shape=input_shape)
    if any(size is None for spec in specs for size in spec.shape):
        raise ArgumentError(
            "Sizes must be known to tell what a runtime does. "
            f"Received: model={model.name!r} with inputs {[tuple(spec.shape) for spec in specs]}. "
            "Pass input_shape=(height, width, channels)."
        )
    return explicit_padding(convert_model(model, specs, "float32", []))


def _xnnpack_rows(found: Analysis) -> list[dict[str, str]]:
    return [
        {"runs": verdict.value, "reason": reason, "remedy": _remedy(verdict, reason)}
        for verdict, reason in zip(found.verdicts, found.reasons, strict=True)
    ]


def _remedy(verdict: Verdict, reason: str) -> str:
    if verdict is Verdict.SPARSE or not reason:
        return ""
    if isinstance(reason, Rewritable):
        return "tfkit.make_sparse_ready(model)"
    if "are zero" in reason:
        return "prune the 1x1 convolutions to more than 2/3, better to 90%"
    if verdict is Verdict.WRONG:
        return "export with sparse=False"
    return ""


def gpu_row(operation: Operation) -> dict[str, str]:
    """Tells whether GPU delegates take an operation: `runs`, `reason` and `remedy` of its row.

    Measured in float32 with LiteRT.js 2.5.3 on WebGPU (Chromium's adapter in software): for each
    operation a model of a picture of 8x8x4, most with a 1x1 convolution before and behind, was run by
    `run_in_browser`, which tells whether all of it ran there. Refused were CONV_3D, GATHER of several rows,
    LOG_SOFTMAX, PACK, and TILE in five dimensions. Some are taken and come out wrong, which only a
    run shows, as `export` makes it: PADV2 by other than zeros (so it is not listed), a SPLIT whose
    parts go straight into a CONCATENATION in another order, convolutions in groups of 2 channels.
    """
    tensors = (*operation.inputs, *operation.outputs)
    if operation.kind not in _GPU:
        return {"runs": "cpu", "reason": f"GPU delegates lack {operation.kind}", "remedy": ""}
    most = _GPU_FEWER_DIMENSIONS.get(operation.kind, _GPU_MOST_DIMENSIONS)
    if wide := [x for x in tensors if len(x.shape) > most]:
        reason = f"{operation.kind} of a tensor of {len(wide[0].shape)} dimensions; GPU delegates take {most}"
        remedy = "keras.layers.UpSampling2D, if it repeats pixels" if operation.kind == "TILE" else ""
        return {"runs": "cpu", "reason": reason, "remedy": remedy}
    return {"runs": "gpu", "reason": "", "remedy": ""}
