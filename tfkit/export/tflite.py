"""TFLite files: float32, float16, int8 weights and full int8."""

import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ArgumentError, ExportError
from tfkit.export.apart import EMULATOR_MISSING, emulator, has_avx, run_apart
from tfkit.export.artifact import Artifact, Parity, output_path
from tfkit.export.names import LayerNames
from tfkit.export.operations import read_program, read_programs
from tfkit.export.padding import explicit_padding
from tfkit.export.parity import PROOF_SAMPLES, TOLERANCE, compare, require_parity
from tfkit.export.quantization import quantize_weights
from tfkit.export.signature import (
    input_specs,
    random_samples,
    require_range,
    require_varied,
    samples,
    serving_function,
)
from tfkit.export.upsampling import as_resizing
from tfkit.export.xnnpack import Verdict, analyse
from tfkit.files import staged
from tfkit.litert import convert, trace

Precision = Literal["float32", "float16", "int8", "int8_weights"]
PRECISIONS = ("float32", "float16", "int8", "int8_weights")
EMULATED_SAMPLES = 4  # qemu takes about thirty times as long
HERE, WITHOUT_AVX = "LiteRT on this processor", "LiteRT without AVX"


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    precision: Precision = "float32",
    representative_data: Any = None,
    sparse: Literal["auto"] | bool = "auto",
    batch_size: int | None = 1,
    input_shape: Sequence[int | None] | None = None,
    accept_unproven: bool = False,
) -> Artifact:
    """Writes a `.tflite` file, once LiteRT has shown that it computes what Keras does.

    The file is written under a temporary name, run with ai-edge-litert on real inputs in a process
    of its own, and compared with Keras; only then it gets its name. Inputs and outputs are float32
    in every precision, so the files can take each other's place.

    Args:
        model: A built Keras model.
        path: The file to write; what stood there before is replaced.
        precision: ``"float32"``; ``"float16"`` stores half-size weights; ``"int8"``
            computes in 8-bit integers throughout, activations included; ``"int8_weights"``
            stores weights of 1024 elements and more in 8 bits and computes in float32.
        representative_data: Inputs as the device will see them: an array, a list or a dict of
            arrays (one an input) or a tf.data.Dataset. int8 needs it to find the
            activations' ranges, from up to 128 samples; in every precision the comparison
            runs on the first 16, or on seeded uniform numbers without it.
        sparse: Whether to sparse-encode weights that are mostly zeros: smaller, and faster in
            XNNPACK's sparse kernels on phones and in browsers; GPUs cannot read it.
            ``"auto"`` does where these kernels take the model, and it was proven as without AVX;
            True refuses if that cannot be; False never does. `make_sparse_ready` helps.
        batch_size: Samples a call, at least 1; fixed in the file. None leaves it open.
        input_shape: ``(height, width, channels)`` for a model that leaves sizes open. None in
            it leaves a size open in the file, too.
        accept_unproven: Sparse-encode also where qemu is missing and this processor cannot
            prove it. The artifact's `proofs` tell.

    Returns:
        An `Artifact`.

    Raises:
        ArgumentTypeError: If `model` is no model.
        UnbuiltModelError: If it has no weights, or does not know its inputs.
        NonFiniteWeightsError: If a weight is NaN or infinite.
        ArgumentError: If the precision is unknown, int8 has no data or shall be sparse, the
            data does not fit, or a size is still open.
        OutputPathError: If nothing can be written at `path`.
        ExportError: If TensorFlow cannot convert the model, LiteRT cannot run the file, or
            `sparse` is True and the sparse kernels do not take the model or cannot be proven.
        ParityError: If the file does not compute what Keras computes.

    Examples:
        >>> import pathlib, tempfile, numpy as np, tfkit
        >>> model = tfkit.models.build_encoder_decoder((16, 16, 3), filters=(4, 8), output_channels=3)
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> tfkit.export_tflite(model, folder / "model.tflite").parity.passed
        True
        >>> images = np.random.default_rng(0).random((8, 16, 16, 3))
        >>> tfkit.export_tflite(model, folder / "int8.tflite", precision="int8",
        ...                     representative_data=images).precision
        'int8'

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference (2018); the converter is TensorFlow's.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(
            f"`precision` must be one of {', '.join(PRECISIONS)}. Received: precision={precision!r}."
        )
    if precision == "int8" and representative_data is None:
        raise ArgumentError(
            "int8 needs `representative_data` to find the range of every activation. "
            "Received: representative_data=None. Pass about 100 inputs as the device will see them."
        )
    if sparse not in ("auto", True, False):
        raise ArgumentError(f"`sparse` must be 'auto', True or False. Received: sparse={sparse!r}.")
    if sparse is True and precision == "int8":
        raise ArgumentError(
            "Sparse kernels compute in floats. Received: sparse=True, precision='int8'. "
            "Choose another precision, or sparse=False."
        )
    graph.require_finite(graph.require_model(model))
    if precision == "int8":
        _refuse_loops(model)
    specs = input_specs(model, batch_size=batch_size, input_shape=input_shape)
    if input_shape is None and any(size is None for spec in specs for size in spec.shape[1:]):
        raise ArgumentError(
            "A TFLite file must have fixed sizes unless it is told otherwise. "
            f"Received: model={model.name!r} with inputs {[tuple(spec.shape) for spec in specs]}. "
            "Pass input_shape=(height, width, channels), with None where a size shall stay open."
        )
    arrays = random_samples(specs)
    if representative_data is not None:
        arrays = samples(representative_data, specs, model=model)
    if precision == "int8":
        require_range(model, arrays)
        require_varied(arrays)
    path = output_path(path, "tflite")
    with staged(path) as temporary:
        content, encoded = _write(model, specs, precision, arrays, sparse, accept_unproven)
        temporary.write_bytes(content)
        parity, proofs = prove(model, temporary, arrays, precision, sparse=encoded)
    return Artifact.at(path, precision, parity, sparse=encoded, proofs=proofs)


def prove(
    reference: keras.Model, path: pathlib.Path, arrays: list[np.ndarray], precision: str, *, sparse: bool
) -> tuple[Parity, tuple[str, ...]]:
    """Runs a file and compares it with Keras; a sparse one also as on a processor without AVX.

    Args:
        reference: The Keras model.
        path: The file.
        arrays: Samples, one array an input.
        precision: The file's precision; it gives the tolerance.
        sparse: Whether the file is sparse-encoded.

    Returns:
        The worse parity, and the names of the proofs.

    Raises:
        ExportError: If the file cannot be run.
        ParityError: If it does not compute what Keras computes.
    """
    tolerance = TOLERANCE[precision]
    proof = [each[:PROOF_SAMPLES] for each in arrays]
    parity = require_parity(
        compare(reference, functools.partial(run_apart, path), proof, tolerance), precision
    )
    if not sparse:
        return parity, (HERE,)
    if has_avx() and emulator() is None:
        return parity, (HERE,)  # allowed by `accept_unproven`
    run = functools.partial(run_apart, path, processor="no-avx")
    without = compare(reference, run, [each[:EMULATED_SAMPLES] for each in proof], tolerance)
    require_parity(without, precision)
    return max(parity, without, key=lambda each: each.relative_error), (HERE, WITHOUT_AVX)


def _write(
    model: keras.Model,
    specs: Sequence[tf.TensorSpec],
    precision: str,
    arrays: list[np.ndarray],
    sparse: Literal["auto"] | bool,
    accept_unproven: bool,
) -> tuple[bytes, bool]:
    """Returns a file, and whether its weights are sparse-encoded."""
    provable = not has_avx() or emulator() is not None or accept_unproven
    possible = precision != "int8" and all(size is not None for spec in specs for size in spec.shape)
    if sparse is True and not possible:
        raise ExportError(
            "XNNPACK's sparse kernels take a model in floats, and its sizes must be fixed. "
            f"Received: sparse=True, inputs {[tuple(spec.shape) for spec in specs]}. "
            "Pass batch_size and input_shape."
        )
    if sparse is True and not provable:
        raise ExportError(
            "A sparse-encoded file must be proven as on a processor without AVX before it ships. "
            f"Received: sparse=True. {EMULATOR_MISSING} Or pass accept_unproven=True."
        )
    if sparse is False or not possible or not provable or (sparse == "auto" and not has_zeros(model)):
        return convert_model(model, specs, precision, arrays), False
    dense = convert_model(model, specs, "float32", arrays)
    if sparse == "auto" and len(read_programs(dense)) > 1:  # a loop, which the sparse kernels do not know
        return (dense if precision == "float32" else convert_model(model, specs, precision, arrays)), False
    found = analyse(read_program(explicit_padding(dense)))
    if found.verdict is Verdict.SPARSE:
        return convert_model(model, specs, precision, arrays, sparse=True), True
    if sparse is True:
        place, reason = found.stopper
        where = f" at {place.operation.name[:80]}" if place else ""
        raise ExportError(
            f"XNNPACK's sparse kernels must take the model. Received: model={model.name!r}, which stays "
            f"{found.verdict.value}{where}: {reason or 'no part of it is fit'}. "
            "Call make_sparse_ready(model) first; explain_deployment tells the rest."
        )
    return (dense if precision == "float32" else convert_model(model, specs, precision, arrays)), False


def has_zeros(model: keras.Model) -> bool:
    """Tells whether some kernel is pruned; the converter encodes from 30% zeros on."""
    kernels = (variable for _, variable in graph.learnable(model) if len(variable.shape) > 1)
    return any(np.mean(keras.ops.convert_to_numpy(each) == 0) > 0.3 for each in kernels)


def _refuse_loops(model: keras.Model) -> None:
    """Checks that no recurrent layer runs as a loop, on which TensorFlow's calibrator crashes."""
    loops = [
        node.path
        for node in graph.descend(graph.walk(model))
        if isinstance(node.layer, keras.layers.RNN) and not node.layer.unroll
    ]
    if loops:
        raise ExportError(
            "int8 needs recurrent layers that are unrolled; TensorFlow's calibrator crashes on loops. "
            f"Received: model={model.name!r} with {', '.join(loops)}. Build them with unroll=True."
        )


def _whole_batches(array: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the array, its first samples repeated up to a multiple of the batch size."""
    count = -(-len(array) // batch_size) * batch_size
    return np.resize(array, (count, *array.shape[1:]))


def convert_model(
    model: keras.Model,
    specs: Sequence[tf.TensorSpec],
    precision: str,
    arrays: list[np.ndarray],
    *,
    sparse: bool = False,
) -> bytes:
    """Converts a model to a `.tflite` file.

    Args:
        model: The model.
        specs: Its inputs; None as batch size leaves it open.
        precision: One of `PRECISIONS`.
        arrays: Samples, from which int8 learns ranges.
        sparse: Whether to sparse-encode weights that are mostly zeros.

    Raises:
        ExportError: If TensorFlow cannot convert it.
    """
    batch_size = specs[0].shape[0] or 1

    def representative() -> Iterator[list[np.ndarray] | dict[str, np.ndarray]]:
        whole = [_whole_batches(each, batch_size) for each in arrays]
        for start in range(0, len(whole[0]), batch_size):
            batch = [each[start : start + batch_size] for each in whole]
            # By name, for the calibrator takes the parts of a list in an order of its own.
            yield batch if len(batch) == 1 else dict(zip(names, batch, strict=True))

    def configure(converter: tf.lite.TFLiteConverter) -> None:
        converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY] if sparse else []
        if precision in ("float16", "int8"):
            converter.optimizations.append(tf.lite.Optimize.DEFAULT)
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.representative_dataset = representative
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    with as_resizing(model):
        serve = trace(serving_function(model), specs)
    names = [each.name.split(":")[0] for each in serve.inputs[: len(specs)]]
    try:
        content = convert({"serve": serve}, configure)
    except Exception as error:  # the converter's own classes are not public
        raise ExportError(
            f"TensorFlow must be able to convert the model to TFLite. Received: model={model.name!r}, "
            f"precision={precision!r}; {_conversion_fault(model, specs, str(error))}"
        ) from error
    content = quantize_weights(content) if precision == "int8_weights" else content
    return explicit_padding(content) if sparse else content


def _conversion_fault(model: keras.Model, specs: Sequence[tf.TensorSpec], text: str) -> str:
    """Says what stopped the converter and what to do; its own text only where that tells nothing."""
    lacking = LayerNames(model).unconverted(text)
    halves = [
        each.path
        for each in graph.descend(graph.walk(model))
        if each.layer.compute_dtype in ("float16", "bfloat16")
    ]
    opened = [tuple(spec.shape) for spec in specs if None in tuple(spec.shape)]
    cause = (
        f"TFLite lacks {lacking}. " if lacking else f"the converter says: {' '.join(text.split())[:600]}. "
    )
    if halves:
        return f"{cause}{halves[0]!r} computes in 16 bits: rebuild the model in float32 and copy its weights."
    if opened:
        return f"{cause}Sizes are open, {opened}, which may be why: fix them by batch_size and input_shape."
    return cause + ("Build these layers from other operations." if lacking else "")
