"""Running artifacts in a process of its own: what crashes there, or never ends, does no harm here."""

import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tfkit.errors import ArgumentError, ExportError
from tfkit.export import runners
from tfkit.export.runtime import kind_of, unloadable, unrunnable

Processor = Literal["this", "no-avx"]
PROCESSORS = ("this", "no-avx")
EMULATOR_MISSING = (
    "Files run as on a processor without AVX through qemu-x86_64, which this machine lacks; "
    "on Debian it is in the package qemu-user (apt-get install qemu-user)."
)
LAST_LINES = 5  # of what a child wrote before it failed


def emulator() -> str | None:
    """Returns the path of qemu's user-mode emulator of x86-64, or None; `EMULATOR_MISSING` says the rest."""
    return shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")


def has_avx() -> bool:
    """Tells whether this processor has AVX; an x86-64 that does not tell counts as one that does."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    try:
        words = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return True
    return "flags" not in words or "avx" in words


@dataclasses.dataclass(frozen=True)
class ApartRun:
    """What an artifact did in a process of its own.

    Attributes:
        outputs: One array for each output, ``(samples, …)``.
        memory_bytes: What the artifact added to the process's memory at its peak, from loading it to its
            last output, its inputs and outputs included, the runtime itself left out; None where
            the system does not tell.
    """

    outputs: list[np.ndarray]
    memory_bytes: int | None


def run_apart(
    path: str | os.PathLike[str],
    arrays: Sequence[np.ndarray] | None,
    *,
    processor: Processor = "this",
    threads: int = 1,
    signature: str = runners.SERVING,
    time_limit_s: float = 600.0,
) -> list[np.ndarray]:
    """Runs an artifact in a process of its own, without tfkit and without Keras.

    LiteRT picks its kernels by the processor: an x86 with AVX never runs the sparse ones of phones and
    browsers, so their faults show on ``"no-avx"`` only. There the child runs under qemu, as on an
    Intel Nehalem; a processor that has no AVX itself, or is no x86, runs the file as it is.

    Args:
        path: A `.tflite` file or a SavedModel directory.
        arrays: Any number of samples, one array ``(samples, …)`` an input. None takes one batch of zeros.
        processor: ``"this"`` or ``"no-avx"``; the latter for `.tflite` files only.
        threads: Threads of LiteRT, at least 1; TensorFlow uses its own setting.
        signature: Which of a SavedModel's signatures to run.
        time_limit_s: Seconds, start-up included, after which the child is killed.

    Returns:
        One array for each output, ``(samples, …)``.

    Raises:
        ArgumentError: If the path is no artifact, the processor is unknown, a SavedModel shall run
            without AVX, or a number is out of range.
        ExportError: If the runtime crashes, fails, or takes too long; if the artifact takes other
            inputs; if the emulator is missing.

    Examples:
        >>> import pathlib, tempfile, tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4,), output_channels=1)
        >>> artifact = tfkit.export_tflite(model, pathlib.Path(tempfile.mkdtemp(), "model.tflite"))
        >>> [output.shape for output in run_apart(artifact.path, [np.zeros((5, 8, 8, 3))])]
        [(5, 8, 8, 1)]
    """
    return measure_apart(
        path,
        arrays,
        processor=processor,
        threads=threads,
        signature=signature,
        time_limit_s=time_limit_s,
    ).outputs


def measure_apart(
    path: str | os.PathLike[str],
    arrays: Sequence[np.ndarray] | None,
    *,
    processor: Processor = "this",
    threads: int = 1,
    signature: str = runners.SERVING,
    time_limit_s: float = 600.0,
) -> ApartRun:
    """Runs an artifact as `run_apart` does and tells what memory that took.

    Args:
        path: As for `run_apart`, like all others.
        arrays: Samples.
        processor: The processor.
        threads: Threads of LiteRT.
        signature: The signature.
        time_limit_s: Seconds.

    Raises:
        TfkitError: As `run_apart` does.
    """
    path = pathlib.Path(path).expanduser().absolute()
    kind = kind_of(path)
    if processor not in PROCESSORS:
        raise ArgumentError(
            f"`processor` must be one of {', '.join(PROCESSORS)}. Received: processor={processor!r}."
        )
    if processor == "no-avx" and kind == "saved_model":
        raise ArgumentError(
            "Only a .tflite file can run without AVX; TensorFlow itself needs it. "
            f"Received: processor='no-avx', path={str(path)!r}."
        )
    if not isinstance(threads, int) or threads < 1:
        raise ArgumentError(f"`threads` must be at least 1. Received: threads={threads!r}.")
    if not time_limit_s > 0:
        raise ArgumentError(f"`time_limit_s` must be above 0. Received: time_limit_s={time_limit_s!r}.")
    with tempfile.TemporaryDirectory(prefix="tfkit-apart-") as name:
        folder = pathlib.Path(name)
        write_job(folder, path, arrays, threads=threads, signature=signature)
        code = _wait(command(processor, folder), folder, child_environment(processor), time_limit_s)
        happened = read_job(folder)
        shapes = [np.shape(array)[1:] for array in arrays or ()]
        where = "on an emulated processor without AVX" if _emulated(processor) else "in a process of its own"
        if code is None:
            raise ExportError(
                f"An artifact must finish within its time limit of {time_limit_s:g} s. Received: "
                f"path={str(path)!r}, still {happened['stage']} {where}, and stopped. "
                "Raise time_limit_s or pass fewer samples."
            )
        if happened["fault"] == "inputs":
            raise ExportError(happened["text"])
        if happened["fault"] == "load":
            raise unloadable(path, f"{where}: {_last(happened['text'])}")
        if happened["fault"] == "run":
            raise unrunnable(shapes, f"{where}: {_last(happened['text'])}")
        if code != 0 or happened["stage"] != "done":
            raise ExportError(
                f"An artifact must not crash its runtime. Received: path={str(path)!r}, which ended it "
                f"{_end(code)} while {happened['stage']} {where}. Export it again. "
                f"Last lines: {_last((folder / 'log').read_text(errors='replace')) or 'none'}"
            )
        outputs = [np.load(folder / f"output_{number}.npy") for number in range(happened["outputs"])]
        return ApartRun(outputs, happened["memory_bytes"])


def write_job(
    folder: pathlib.Path,
    path: pathlib.Path,
    arrays: Sequence[np.ndarray] | None,
    *,
    threads: int = 1,
    signature: str = runners.SERVING,
    rounds: int = 0,
) -> None:
    """Writes what `runners.main` reads: the job, and its inputs."""
    for number, array in enumerate(arrays or ()):
        np.save(folder / f"input_{number}.npy", runners.plain(array), allow_pickle=False)
    job = {"path": str(path), "kind": kind_of(path), "threads": threads, "signature": signature}
    job |= {"rounds": rounds, "inputs": len(arrays or ())}
    (folder / "job.json").write_text(json.dumps(job))


def read_job(folder: pathlib.Path) -> dict[str, Any]:
    """Returns what the child last noted; one that died before it could is still starting."""
    try:
        return json.loads((folder / "happened.json").read_text())
    except (OSError, ValueError):
        nothing = {"stage": "starting", "fault": None, "text": "", "outputs": 0}
        return nothing | {"seconds": [], "memory_bytes": None}


def command(processor: Processor, folder: pathlib.Path) -> list[str]:
    """Returns the child's command line.

    Raises:
        ExportError: If it needs the emulator and there is none.
    """
    # -S and -P: neither site packages that start by themselves nor tfkit's own folder get in
    python = [sys.executable, "-S", "-P", runners.__file__, str(folder)]
    if not _emulated(processor):
        return python
    found = emulator()
    if found is None:
        raise ExportError(f"{EMULATOR_MISSING} Received: processor={processor!r}.")
    return [found, "-cpu", "Nehalem", *python]


def child_environment(processor: Processor) -> dict[str, str]:
    """Returns the child's environment: it finds packages where this process does."""
    found = [os.path.abspath(entry) for entry in sys.path]
    chosen = {"PYTHONPATH": os.pathsep.join(found), "OPENBLAS_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    chosen["CUDA_VISIBLE_DEVICES"] = "-1"  # this process may hold all of the GPU's memory
    if _emulated(processor):
        chosen["OPENBLAS_CORETYPE"] = "Nehalem"  # else NumPy picks kernels by the real processor
    return os.environ | chosen


def _emulated(processor: Processor) -> bool:
    return processor == "no-avx" and has_avx()


def _wait(
    command: list[str], folder: pathlib.Path, environment: dict[str, str], time_limit_s: float
) -> int | None:
    """Runs a child to its end and returns its code, None if it had to be stopped."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:  # also when this process is interrupted
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _end(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"by {name}" + (" (was there enough memory?)" if name == "SIGKILL" else "")


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-LAST_LINES:])[-1000:]
