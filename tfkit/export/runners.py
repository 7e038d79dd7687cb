"""Running artifacts: LiteRT for `.tflite`, TensorFlow for a SavedModel; for tfkit, or all by itself.

Nothing of tfkit is imported here, for this file is also a script: ``python -S runners.py JOB`` runs
an artifact in a process of its own, which may crash without taking anybody along. JOB is a folder:

- ``job.json``: `path`, `kind`, `threads`, `signature`, `inputs` (how many arrays; 0 takes zeros), `rounds`
  (timed calls of the first batch, after the outputs are known);
- ``input_0.npy``, … come in, ``output_0.npy``, … go out, the samples stacked;
- ``happened.json``: `stage` (``loading``, ``running``, ``timing`` or ``done``), `fault` (None,
  ``load``, ``inputs`` or ``run``) with its `text`, `outputs` (how many), `seconds` (of each round),
  `memory_bytes` (what loading and running the artifact added at its peak; None where unknown).
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np

Kind = Literal["saved_model", "tflite"]
SERVING = "serving_default"
# What an artifact must do without. TensorFlow loads Keras when it can; this also saves two seconds.
WITHOUT = ("tfkit", "keras", "tf_keras")


class Runner(Protocol):
    """A loaded artifact: a function from one batch of inputs to its outputs, in model order."""

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]: ...

    def zeros(self) -> list[np.ndarray]:
        """Returns one batch of zeros that fits; open sizes are 1."""

    def sizes(self) -> list[tuple[int | None, ...]]:
        """Returns the shape of each input; None where it is open."""


class UnfitError(ValueError):
    """Samples that are not shaped like the artifact's inputs."""


def load(path: str | os.PathLike[str], kind: Kind, threads: int = 1, signature: str = SERVING) -> Runner:
    """Loads an artifact; a SavedModel has signatures, and TensorFlow its own setting of threads."""
    return LiteRT(path, threads) if kind == "tflite" else SavedModel(path, signature)


def fitting(run: Runner, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Returns the samples in the types of an artifact's inputs, once their shapes fit.

    Raises:
        UnfitError: If the artifact takes other inputs; LiteRT itself would compute on.
    """
    sizes = run.sizes()
    got = [np.shape(array) for array in samples]
    fits = len(got) == len(sizes) and all(
        len(have) == len(want) and all(w is None or h == w for h, w in zip(have[1:], want[1:]))
        for have, want in zip(got, sizes)
    )
    if not fits:
        raise UnfitError(
            "An artifact runs on samples shaped like its inputs, one array an input. "
            f"Received: arrays of shape {got} for inputs of shape {sizes}."
        )
    return [np.asarray(array, zeros.dtype) for array, zeros in zip(samples, run.zeros(), strict=True)]


def in_batches(run: Runner, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs samples that fit in batches of the artifact's size, the last one filled up.

    Returns:
        One array for each output, ``(samples, …)``.
    """
    count, batch = len(arrays[0]), len(run.zeros()[0])
    padded = [np.resize(array, (-(-count // batch) * batch, *array.shape[1:])) for array in arrays]
    answers = [run([array[start : start + batch] for array in padded]) for start in range(0, count, batch)]
    return [np.concatenate(parts)[:count] for parts in zip(*answers, strict=True)]


def plain(array: Any) -> np.ndarray:
    """Returns an array that `np.save` keeps: texts at a fixed width; bfloat16, which it lacks, as float32."""
    array = np.asarray(array)
    if array.dtype.kind == "O":  # as TensorFlow gives texts
        array = np.array(array.tolist()).reshape(array.shape)
    return array if array.dtype.kind in "biufcUS" else array.astype("float32")


def _by_number(name: str) -> tuple[int, str]:
    """Orders output_2 before output_10."""
    return len(name), name


def start(kind: Kind) -> None:
    """Imports a runtime, whose own memory is not the artifact's."""
    if kind == "tflite":
        pass
    else:
        import tensorflow  # noqa: F401


class LiteRT:
    """A `.tflite` file on LiteRT, by its signature: inputs by name, outputs by number."""

    def __init__(self, path: str | os.PathLike[str], threads: int):
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


class SavedModel:
    """A SavedModel by one of its signatures."""

    def __init__(self, path: str | os.PathLike[str], signature: str = SERVING):
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


def main(folder: pathlib.Path) -> int:
    """Does the job in a folder and returns the exit code: 0, or 1 if Python saw it fail."""
    job = json.loads((folder / "job.json").read_text())
    happened: dict[str, Any] = {"stage": "loading", "fault": None, "text": "", "outputs": 0}
    happened |= {"seconds": [], "memory_bytes": None}

    def note(**news: Any) -> None:
        (folder / "happened.json").write_text(json.dumps(happened | news))
        happened.update(news)

    fault = "load"
    note()
    try:
        start(job["kind"])
        before = Memory.now()
        run = load(job["path"], job["kind"], job["threads"], job["signature"])
        fault = "run"
        note(stage="running")
        given = [np.load(folder / f"input_{number}.npy") for number in range(job["inputs"])]
        arrays = fitting(run, given) if given else run.zeros()
        outputs = in_batches(run, arrays)
        for number, output in enumerate(outputs):
            np.save(folder / f"output_{number}.npy", plain(output), allow_pickle=False)
        note(stage="timing", outputs=len(outputs), memory_bytes=before.added())
        first = [array[: len(zeros)] for array, zeros in zip(arrays, run.zeros(), strict=True)]
        note(stage="done", seconds=[_seconds(run, first) for _ in range(job["rounds"])])
    except UnfitError as error:
        note(fault="inputs", text=str(error))
    except Exception as error:  # whatever a runtime raises is the answer
        note(fault=fault, text=f"{type(error).__name__}: {error}")
    return 0 if happened["fault"] is None else 1


class Memory:
    """A process's memory at one time, by Linux's account: ``VmRSS`` now, and ``VmHWM``, its peak so far."""

    def __init__(self, resident: int | None, peak: int | None):
        self.resident, self.peak = resident, peak

    @classmethod
    def now(cls) -> "Memory":
        """Notes it, and lets the peak begin again from here where that is allowed."""
        with contextlib.suppress(OSError):
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        return cls(_status("VmRSS"), _status("VmHWM"))

    def added(self) -> int | None:
        """Returns how far the peak lies above what was resident; None where the peak is an older one."""
        peak = _status("VmHWM")
        if peak is None or self.peak is None or self.resident is None:
            return None
        # an older, higher peak hides the new one
        return peak - self.resident if peak > self.peak or self.peak == self.resident else None


def _status(name: str) -> int | None:
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration, ValueError):
        return None


def _seconds(run: Runner, arrays: list[np.ndarray]) -> float:
    start = time.perf_counter()
    run(arrays)
    return time.perf_counter() - start


if __name__ == "__main__":
    for name in WITHOUT:
        sys.modules[name] = None  # type: ignore[assignment]  # makes its import fail
    sys.exit(main(pathlib.Path(sys.argv[1])))
