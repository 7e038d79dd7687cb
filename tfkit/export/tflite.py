"""TFLite files: float32, float16, int8 weights and full int8."""

import functools
import numbers
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ArgumentError, ExportError
from tfkit.export.apart import run_apart
from tfkit.export.artifact import Artifact, output_path, staged
from tfkit.export.parity import PROOF_SAMPLES, TOLERANCE, compare, require_parity
from tfkit.export.quantization import quantize_weights
from tfkit.export.signature import input_specs, random_samples, samples, serving_function
from tfkit.litert import convert, trace

PRECISIONS = ("float32", "float16", "int8", "int8_weights")


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike,
    *,
    precision: Literal["float32", "float16", "int8", "int8_weights"] = "float32",
    representative_data: Any = None,
    batch_size: int = 1,
    input_shape: Sequence[int] | None = None,
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
        representative_data: Inputs as the device will see them: an array, a list of
            arrays (one an input) or a tf.data.Dataset. int8 needs it to find the
            activations' ranges, from up to 128 samples; in every precision the comparison
            runs on the first 16, or on seeded uniform numbers without it.
        batch_size: Samples a call, at least 1; fixed in the file.
        input_shape: ``(height, width, channels)`` for a model that leaves sizes open.

    Returns:
        An `Artifact`.

    Raises:
        ArgumentTypeError: If `model` is no model.
        UnbuiltModelError: If it has no weights, or does not know its inputs.
        NonFiniteWeightsError: If a weight is NaN or infinite.
        ArgumentError: If the precision is unknown, int8 has no data, the data does not
            fit, or a size is still open.
        OutputPathError: If nothing can be written at `path`.
        ExportError: If TensorFlow cannot convert the model, or LiteRT cannot run the file.
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
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise ArgumentError(f"`batch_size` must be at least 1. Received: batch_size={batch_size!r}.")
    graph.require_finite(graph.require_model(model))
    if precision == "int8":
        _refuse_loops(model)
    specs = input_specs(model, batch_size=int(batch_size), input_shape=input_shape)
    if any(size is None for spec in specs for size in spec.shape):
        raise ArgumentError(
            "A TFLite file must have fixed sizes. "
            f"Received: model={model.name!r} with inputs {[tuple(spec.shape) for spec in specs]}. "
            "Pass input_shape=(height, width, channels)."
        )
    arrays = random_samples(specs) if representative_data is None else samples(representative_data, specs)
    path = output_path(path, "tflite")
    with staged(path) as temporary:
        temporary.write_bytes(_convert(model, specs, precision, arrays))
        proof = [each[:PROOF_SAMPLES] for each in arrays]
        parity = compare(model, functools.partial(run_apart, temporary), proof, TOLERANCE[precision])
        require_parity(parity, precision)
    return Artifact.at(path, precision, parity)


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


def _convert(
    model: keras.Model, specs: Sequence[tf.TensorSpec], precision: str, arrays: list[np.ndarray]
) -> bytes:
    batch_size = specs[0].shape[0]

    def representative() -> Iterator[list[np.ndarray]]:
        whole = [_whole_batches(each, batch_size) for each in arrays]
        for start in range(0, len(whole[0]), batch_size):
            batch = [each[start : start + batch_size] for each in whole]
            # By name, for the calibrator takes the parts of a list in an order of its own.
            yield batch if len(batch) == 1 else dict(zip(names, batch, strict=True))

    def configure(converter: tf.lite.TFLiteConverter) -> None:
        if precision in ("float16", "int8"):
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.representative_dataset = representative
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    serve = trace(serving_function(model), specs)
    names = [each.name.split(":")[0] for each in serve.inputs[: len(specs)]]
    try:
        content = convert({"serve": serve}, configure)
    except Exception as error:  # the converter's own classes are not public
        raise ExportError(
            f"TensorFlow must be able to convert the model to TFLite. Received: model={model.name!r}, "
            f"precision={precision!r}. A model in mixed precision must be rebuilt in float32 first. "
            f"The converter says: {str(error)[:1000]}"
        ) from error
    return quantize_weights(content) if precision == "int8_weights" else content
