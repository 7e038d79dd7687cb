"""Running artifacts in this process, with faults as tfkit's errors."""

import pathlib
from collections.abc import Sequence

import numpy as np

from tfkit.errors import ArgumentError, ExportError
from tfkit.export import runners
from tfkit.export.runners import Kind, Runner


def kind_of(path: pathlib.Path) -> Kind:
    """Tells what kind of artifact stands at a path.

    Raises:
        ArgumentError: If it is neither a `.tflite` file nor a SavedModel directory.
    """
    if path.is_dir() and (path / "saved_model.pb").is_file():
        return "saved_model"
    if path.is_file():
        with path.open("rb") as file:
            if file.read(8)[4:] == b"TFL3":
                return "tflite"
    raise ArgumentError(
        "An artifact is a .tflite file or a SavedModel directory. "
        f"Received: path={str(path)!r}, which is neither. "
        "Make one of a Keras model by tfkit.export."
    )


def load_runner(path: pathlib.Path, *, threads: int = 1) -> Runner:
    """Loads an artifact.

    Args:
        path: A `.tflite` file or a SavedModel directory.
        threads: Threads for a `.tflite` file; TensorFlow uses its own setting.

    Raises:
        ArgumentError: If nothing of either kind stands there.
        ExportError: If the runtime cannot load it.
    """
    kind = kind_of(path)
    try:
        return runners.load(path, kind, threads)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise unloadable(path, str(error)) from error


def run_samples(run: Runner, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs any number of samples, in batches of the size that the artifact takes.

    Args:
        run: A loaded artifact.
        samples: One array for each input, ``(samples, …)``; cast to the inputs' types.

    Returns:
        One array for each output, ``(samples, …)``.

    Raises:
        ExportError: If the artifact takes other inputs.
    """
    arrays = fitting(run, samples)
    try:
        return runners.in_batches(run, arrays)
    except (RuntimeError, ValueError, _tensorflow_error()) as error:
        raise unrunnable([array.shape[1:] for array in arrays], str(error)[:300]) from error


def fitting(run: Runner, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the samples in the types of an artifact's inputs, once their shapes fit.

    Raises:
        ExportError: If the artifact takes other inputs; LiteRT itself would compute on.
    """
    try:
        return runners.fitting(run, samples)
    except runners.UnfitError as error:
        raise ExportError(str(error)) from error


def unloadable(path: pathlib.Path, text: str) -> ExportError:
    """Returns the error of an artifact that its runtime does not load."""
    return ExportError(
        "The runtime must be able to load the artifact. "
        f"Received: path={str(path)!r} ({text}). Export it again."
    )


def unrunnable(shapes: Sequence[tuple[int, ...]], text: str) -> ExportError:
    """Returns the error of an artifact that its runtime loads and does not run."""
    received = f"samples of shape {list(shapes)}" if shapes else "zeros"
    return ExportError(f"The runtime must be able to run the artifact. Received: {received} ({text}).")


def _tensorflow_error() -> type[Exception]:
    import tensorflow as tf

    return tf.errors.OpError
