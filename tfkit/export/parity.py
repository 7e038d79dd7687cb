"""Does an artifact compute what the Keras model computes?"""

import contextlib
import contextvars
import functools
import hashlib
import numbers
import os
import pathlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ArgumentError, ExportError, ParityError
from tfkit.export.apart import run_apart
from tfkit.export.artifact import Artifact, Parity
from tfkit.export.signature import input_specs, samples, serving_function

PROOF_SAMPLES = 16  # how many inputs an export compares before it gives the name
TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "int8": 0.25, "int8_weights": 0.1}
Answers = tuple[keras.Model, list[np.ndarray]]  # the model is held, so that no other gets its id
_REMEMBERED: contextvars.ContextVar[dict[tuple[int, bytes], Answers] | None] = contextvars.ContextVar(
    "_REMEMBERED", default=None
)

_REMEDIES = {
    "float32": "Look whether the model draws random numbers in inference, or has random weights still.",
    "float16": "float16 needs weights and activations below 65504.",
    "int8": "int8 needs representative_data like what the model will see.",
    "int8_weights": "float16 rounds weights less.",
}


def check_parity(
    model: keras.Model,
    artifact: Artifact | str | os.PathLike[str],
    x: Any,
    *,
    tolerance: float | None = None,
) -> Parity:
    """Runs an artifact and the Keras model on the same inputs and compares.

    ``relative_error = max |artifact(x) - model(x)| / max |model(x)|``, the worst of all outputs.
    A `.tflite` file runs on LiteRT, a SavedModel through ``tf.saved_model.load``; either in a process
    of its own without tfkit and Keras, so that a file that crashes its runtime is an error here.

    Args:
        model: The Keras model that the artifact was made from.
        artifact: An `Artifact`, or the path of a `.tflite` file or a SavedModel.
        x: Inputs: an array, a list or a dict of arrays (one an input) or a tf.data.Dataset; at
            most 128 samples are used.
        tolerance: Largest relative error that passes. None takes 1e-5 for float32,
            0.01 for float16, 0.1 for int8_weights and 0.25 for int8, by the artifact's precision; a bare path
            counts as float32.

    Returns:
        A `Parity`; `.passed` tells the verdict.

    Raises:
        ArgumentTypeError: If `model` is no model.
        ArgumentError: If the path is no artifact, `x` does not fit the model, or `tolerance`
            is negative.
        ExportError: If the runtime cannot load or run the artifact, or crashes.

    Examples:
        >>> import pathlib, tempfile, numpy as np, tfkit
        >>> model = tfkit.models.build_encoder_decoder((16, 16, 3), filters=(4, 8), output_channels=3)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.tflite")
        >>> artifact = tfkit.export_tflite(model, path)
        >>> tfkit.check_parity(model, artifact, np.ones((2, 16, 16, 3))).passed
        True
    """
    arrays = samples(x, input_specs(graph.require_model(model), batch_size=None), name="x", model=model)
    path = artifact.path if isinstance(artifact, Artifact) else pathlib.Path(artifact)
    precision = artifact.precision if isinstance(artifact, Artifact) else "float32"
    limit = TOLERANCE[precision] if tolerance is None else tolerance
    if not isinstance(limit, numbers.Real) or not limit >= 0:
        raise ArgumentError(f"`tolerance` must be a number of at least 0. Received: tolerance={tolerance!r}.")
    return compare(model, functools.partial(run_apart, path), arrays, limit)


def compare(
    model: keras.Model,
    run: Callable[[list[np.ndarray]], Sequence[np.ndarray]],
    arrays: list[np.ndarray],
    tolerance: float,
) -> Parity:
    """Compares what came of an artifact with the model.

    Args:
        model: The Keras model.
        run: Takes all samples and returns the artifact's outputs, one array ``(samples, …)`` each.
        arrays: The samples, one array an input.
        tolerance: Largest relative error that passes.
    """
    got = [np.asarray(output, dtype="float64") for output in run(arrays)]
    expected = _answers(model, arrays)
    if [output.shape for output in got] != [output.shape for output in expected]:
        raise ExportError(
            "An artifact must put out what the model does. "
            f"Received: outputs of shape {[output.shape for output in got]}; "
            f"the model's are {[output.shape for output in expected]}."
        )
    errors = [np.abs(a - b) for a, b in zip(got, expected, strict=True)]
    worst = [float(error.max()) if np.isfinite(error).all() else np.inf for error in errors]
    scales = [float(np.abs(output).max()) for output in expected]
    relative = max(_ratio(error, scale) for error, scale in zip(worst, scales, strict=True))
    rms = float(np.sqrt(np.mean(np.concatenate([error.ravel() for error in errors]) ** 2)))
    return Parity(max(worst), relative, rms, tolerance, len(arrays[0]))


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Lets comparisons inside keep what a model answers, as long as its weights stay what they are."""
    token = _REMEMBERED.set({})
    try:
        yield
    finally:
        _REMEMBERED.reset(token)


def _answers(model: keras.Model, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Returns what a model puts out for samples, one by one as an artifact is run."""
    digest = hashlib.blake2b(pickle.dumps(arrays)).digest()  # texts among them have no bytes of their own
    remembered, key = _REMEMBERED.get(), (id(model), digest)
    if remembered is not None and key in remembered:
        return remembered[key][1]
    serve = serving_function(model)
    with tf.device("CPU:0"):  # where artifacts are proven; a GPU rounds float32 products
        wanted = [serve(*(array[place : place + 1] for array in arrays)) for place in range(len(arrays[0]))]
    answers = [np.concatenate(parts).astype("float64") for parts in zip(*wanted, strict=True)]
    if remembered is not None:
        remembered[key] = model, answers
    return answers


def _ratio(error: float, scale: float) -> float:
    if scale:
        return error / scale if np.isfinite(scale) else np.inf
    return 0.0 if error == 0 else np.inf


def require_parity(parity: Parity, precision: str) -> Parity:
    """Returns `parity` if it passed.

    Raises:
        ParityError: If it did not.
    """
    if not parity.passed:
        raise ParityError(
            f"A file in {precision} must agree with Keras within {parity.tolerance:g} of the largest output. "
            f"Received: relative error {parity.relative_error:.3g} on {parity.samples} samples. "
            f"Nothing was written. {_REMEDIES[precision]}"
        )
    return parity
