"""Weights in eight bits, arithmetic in float32: smaller files at float32's accuracy."""

import contextlib
import io

from tfkit.errors import ArgumentError, ArgumentTypeError, ExportError
from tfkit.export.operations import read_programs

MIN_ELEMENTS = 1024  # below, the scales and the operator that unpacks eat up what the bytes save


def quantize_weights(content: bytes) -> bytes:
    """Returns a float32 `.tflite` file with its weights stored as int8.

    ``q = round(w / s_c)`` with ``s_c = max |w| / 127`` over output channel c, and zero point 0,
    so that a zero stays exactly zero. An operator DEQUANTIZE turns each weight back to float32
    before it is used; nothing is computed in integers. That is not dynamic-range
    quantization, which is slower than float32 on x86.

    Weights that stay as they are: those under 1024 elements, those that the converter has
    sparse-encoded, and tables of `Embedding`. So the order is: sparse-encode first
    (``tf.lite.Optimize.EXPERIMENTAL_SPARSITY``), then call this; what was pruned too
    little to be encoded becomes int8.

    Args:
        content: The bytes of a float32 `.tflite` file.

    Returns:
        The bytes of the new file.

    Raises:
        ArgumentTypeError: If `content` is not bytes.
        ArgumentError: If it is no `.tflite` file, or one with int8 tensors in it.
        ExportError: If ai-edge-quantizer fails, or computes in integers.

    Examples:
        >>> import pathlib, tempfile, keras, tfkit
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.tflite")
        >>> content = tfkit.export_tflite(model, path).path.read_bytes()
        >>> len(tfkit.quantize_weights(content)) < 0.5 * len(content)
        True

    Source: ai-edge-quantizer, weight-only recipe.
    """
    if not isinstance(content, bytes | bytearray):
        raise ArgumentTypeError(
            f"`content` must be the bytes of a .tflite file. Received: content={type(content).__name__}. "
            "Pass path.read_bytes()."
        )
    if bytes(content[4:8]) != b"TFL3":
        raise ArgumentError(
            "`content` must be the bytes of a .tflite file. "
            f"Received: {len(content)} bytes that begin with {bytes(content[:8])!r}."
        )
    if any(each.holds_int8 for each in read_programs(content)):
        raise ArgumentError(
            "`content` must be a float32 file. Received: content with int8 tensors in it. "
            "Export the model with precision='float32' first."
        )
    try:
        quantized = bytes(_quantize(bytes(content)))
    except Exception as error:  # the quantizer's own classes are not public
        raise ExportError(
            "ai-edge-quantizer must be able to quantize the weights. "
            f"Received: a file of {len(content)} bytes. It says: {str(error)[:1000]}"
        ) from error
    wrong = [kind for each in read_programs(quantized) for kind in each.computes_in_int8]
    if wrong:
        raise ExportError(
            "int8 weights must reach their operator through DEQUANTIZE, or it would compute in integers. "
            f"Received: a quantized file in which {', '.join(wrong[:3])} takes int8."
        )
    return quantized


def _quantize(content: bytes) -> bytes:
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe_manager

    recipe = recipe_manager.RecipeManager()
    recipe.add_quantization_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        algorithm_key=algorithm_manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=qtyping.TensorQuantizationConfig(
                num_bits=8, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE
            ),
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
            min_weight_elements=MIN_ELEMENTS,
        ),
    )
    engine = quantizer.Quantizer(content, recipe.get_quantization_recipe())
    with contextlib.redirect_stderr(io.StringIO()):  # one of its two progress bars cannot be switched off
        return engine.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model
