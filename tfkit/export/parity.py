"""Does an artifact compute what the Keras model computes?"""

import os
import pathlib
from typing import Any

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ParityError
from tfkit.export.artifact import Artifact, Parity
from tfkit.export.runtime import Runner, load_runner
from tfkit.export.signature import input_specs, samples, serving_function

TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "int8": 0.25}


def check_parity(
    model: keras.Model,
    artifact: Artifact | str | os.PathLike,
    x: Any,
    *,
    tolerance: float | None = None,
) -> Parity:
    """Runs an artifact and the Keras model on the same inputs and compares.

    ``relative_error = max |artifact(x) - model(x)| / max |model(x)|`` over all outputs.
    A `.tflite` file runs on LiteRT, sample by sample if its batch is fixed at one; a
    SavedModel runs through ``tf.saved_model.load``.

    Args:
        model: The Keras model that the artifact was made from.
        artifact: An `Artifact`, or the path of a `.tflite` file or a SavedModel.
        x: Inputs: an array, a list of arrays (one an input) or a tf.data.Dataset; at
            most 128 samples are used.
        tolerance: Largest relative error that passes. None takes 1e-5 for float32,
            0.01 for float16 and 0.25 for int8, by the artifact's precision; a bare path
            counts as float32.

    Returns:
        A `Parity`; `.passed` tells the verdict.

    Raises:
        ArgumentTypeError: If `model` is no model.
        ArgumentError: If the path is no artifact, or `x` does not fit the model.
        ExportError: If the runtime cannot load or run the artifact.

    Examples:
        >>> import pathlib, tempfile, numpy as np, tfkit
        >>> model = tfkit.models.build_encoder_decoder((16, 16, 3), filters=(4, 8), output_channels=3)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.tflite")
        >>> artifact = tfkit.export_tflite(model, path)
        >>> tfkit.check_parity(model, artifact, np.ones((2, 16, 16, 3))).passed
        True
    """
    arrays = samples(x, input_specs(graph.require_model(model), batch_size=None), name="x")
    known = isinstance(artifact, Artifact)
    path = artifact.path if known else pathlib.Path(artifact)
    limit = TOLERANCE[artifact.precision if known else "float32"] if tolerance is None else tolerance
    return compare(model, load_runner(path), arrays, limit)


def compare(
    model: keras.Model,
    run: Runner,
    arrays: list[np.ndarray],
    tolerance: float,
    batch_size: int = 1,
) -> Parity:
    """Compares a loaded artifact with the model, batch by batch."""
    serve = serving_function(model)
    worst = scale = square = 0.0
    count = 0
    for place in range(0, len(arrays[0]), batch_size):
        sample = [array[place : place + batch_size] for array in arrays]
        for expected, got in zip(serve(*sample), run(sample), strict=True):
            expected = np.asarray(expected, dtype="float64")
            difference = np.abs(np.asarray(got, dtype="float64") - expected)
            worst = max(worst, difference.max() if np.isfinite(difference).all() else np.inf)
            scale = max(scale, float(np.abs(expected).max()))
            square += float((difference**2).sum())
            count += difference.size
    relative = worst / scale if scale else (0.0 if worst == 0 else np.inf)
    rms = float(np.sqrt(square / count))
    return Parity(float(worst), float(relative), rms, tolerance, len(arrays[0]))


def require_parity(parity: Parity, precision: str) -> Parity:
    """Returns `parity` if it passed.

    Raises:
        ParityError: If it did not.
    """
    if not parity.passed:
        raise ParityError(
            f"A {precision} file must agree with Keras within {parity.tolerance:g} of the largest output. "
            f"Received: relative error {parity.relative_error:.3g} on {parity.samples} samples. "
            "Nothing was written. For int8, pass representative_data like what the model will see."
        )
    return parity
