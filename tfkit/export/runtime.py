"""Running artifacts as a device would: LiteRT for `.tflite`, TensorFlow for a SavedModel."""

import pathlib
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

from tfkit.errors import ArgumentError, ExportError

Kind = Literal["saved_model", "tflite"]


class Runner(Protocol):
    """A loaded artifact: a function from one batch of inputs to its outputs, in model order."""

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]: ...

    def zeros(self) -> list[np.ndarray]:
        """Returns one batch of zeros that fits; open sizes are 1."""

    def sizes(self) -> list[tuple[int | None, ...]]:
        """Returns the shape of each input; None where it is open."""


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
        f"Received: path={str(path)!r}, which is neither."
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
        return _LiteRT(path, threads) if kind == "tflite" else _SavedModel(path)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise ExportError(
            "The runtime must be able to load the artifact. "
            f"Received: path={str(path)!r} ({error}). Export it again."
        ) from error


def load_signature(path: pathlib.Path, signature: str) -> Runner:
    """Loads one signature of a SavedModel."""
    return _SavedModel(path, signature)


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
    count, batch = len(arrays[0]), len(run.zeros()[0])
    padded = [np.resize(array, (-(-count // batch) * batch, *array.shape[1:])) for array in arrays]
    try:
        answers = [
            run([array[start : start + batch] for array in padded]) for start in range(0, count, batch)
        ]
    except (RuntimeError, ValueError, _tensorflow_error()) as error:
        raise ExportError(
            "The runtime must be able to run the artifact. "
            f"Received: samples of shape {[array.shape[1:] for array in arrays]} ({str(error)[:300]})."
        ) from error
    return [np.concatenate(parts)[:count] for parts in zip(*answers, strict=True)]


def fitting(run: Runner, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the samples in the types of an artifact's inputs, once their shapes fit.

    Raises:
        ExportError: If the artifact takes other inputs; LiteRT itself would compute on.
    """
    sizes = run.sizes()
    got = [np.shape(array) for array in samples]
    fits = len(got) == len(sizes) and all(
        len(have) == len(want) and all(w is None or h == w for h, w in zip(have[1:], want[1:]))
        for have, want in zip(got, sizes)
    )
    if not fits:
        raise ExportError(
            "An artifact runs on samples shaped like its inputs, one array an input. "
            f"Received: arrays of shape {got} for inputs of shape {sizes}."
        )
    return [np.asarray(array, zeros.dtype) for array, zeros in zip(samples, run.zeros(), strict=True)]


def _tensorflow_error() -> type[Exception]:
    import tensorflow as tf

    return tf.errors.OpError


def _by_number(name: str) -> tuple[int, str]:
    """Orders output_2 before output_10."""
    return len(name), name


class _LiteRT:
    def __init__(self, path: pathlib.Path, threads: int):
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=str(path), num_threads=threads)
        self._run = self._interpreter.get_signature_runner()  # allocates and validates
        self._inputs = self._run.get_input_details()
        self._outputs = sorted(self._run.get_output_details(), key=_by_number)

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        answer = self._run(**dict(zip(sorted(self._inputs), arrays, strict=True)))
        return [answer[name] for name in self._outputs]

    def zeros(self) -> list[np.ndarray]:
        details = [self._inputs[name] for name in sorted(self._inputs)]
        return [np.zeros(detail["shape"], detail["dtype"]) for detail in details]

    def sizes(self) -> list[tuple[int | None, ...]]:
        details = [self._inputs[name] for name in sorted(self._inputs)]
        return [tuple(None if size < 0 else int(size) for size in d["shape_signature"]) for d in details]


class _SavedModel:
    def __init__(self, path: pathlib.Path, signature: str = "serving_default"):
        import tensorflow as tf

        self._loaded = tf.saved_model.load(str(path))  # its variables live as long as this does
        self._serve = self._loaded.signatures[signature]
        self._specs = self._serve.structured_input_signature[1]
        self._outputs = sorted(self._serve.structured_outputs, key=_by_number)

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        import tensorflow as tf

        inputs = {name: tf.constant(array) for name, array in zip(sorted(self._specs), arrays, strict=True)}
        answer = self._serve(**inputs)
        return [answer[name].numpy() for name in self._outputs]

    def zeros(self) -> list[np.ndarray]:
        specs = [self._specs[name] for name in sorted(self._specs)]
        shapes = [[1 if size is None else size for size in spec.shape] for spec in specs]
        return [np.zeros(shape, spec.dtype.as_numpy_dtype) for shape, spec in zip(shapes, specs)]

    def sizes(self) -> list[tuple[int | None, ...]]:
        return [tuple(self._specs[name].shape) for name in sorted(self._specs)]
