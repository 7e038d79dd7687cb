"""Artifacts on disk: what is known of them."""

import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from tfkit.errors import OutputPathError
from tfkit.export.runners import Kind
from tfkit.export.runtime import kind_of, load_runner, run_samples
from tfkit.files import writable
from tfkit.report.measure import disk_bytes


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far an artifact's outputs are from Keras's, on the same inputs.

    Attributes:
        max_abs_error: Largest difference of any output value, in the output's unit.
        relative_error: That over the largest magnitude Keras puts out.
        rms_error: Root mean square of the difference, in the output's unit.
        tolerance: What `relative_error` may be at most.
        samples: How many inputs were compared.

    Examples:
        >>> Parity(0.002, 0.001, 0.0005, tolerance=0.01, samples=8).passed
        True
    """

    max_abs_error: float
    relative_error: float
    rms_error: float
    tolerance: float
    samples: int

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the tolerance."""
        return self.relative_error <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A model on disk that was run and compared with Keras before it got its name.

    Attributes:
        path: A `.tflite` file or a SavedModel directory.
        kind: ``"tflite"`` or ``"saved_model"``.
        precision: ``"float32"``, ``"float16"``, ``"int8_weights"`` or ``"int8"``.
        size_bytes: Bytes on disk.
        parity: How far its outputs are from Keras's.
        sparse: Whether its weights are sparse-encoded.
        proofs: Where it was run and compared.

    Examples:
        >>> import pathlib, tempfile, numpy as np, tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4,), output_channels=1)
        >>> artifact = tfkit.export_tflite(model, pathlib.Path(tempfile.mkdtemp(), "model.tflite"))
        >>> artifact.predict(np.zeros((5, 8, 8, 3))).shape
        (5, 8, 8, 1)
    """

    path: pathlib.Path
    kind: Kind
    precision: str
    size_bytes: int
    parity: Parity
    sparse: bool = False
    proofs: tuple[str, ...] = ()

    def predict(self, x: Any) -> np.ndarray | list[np.ndarray]:
        """Runs the artifact on any number of samples, in batches of its own size.

        Args:
            x: Inputs ``(samples, …)``: an array, or a list of arrays, one an input.

        Returns:
            The outputs ``(samples, …)``; a list if the model has several.

        Raises:
            ExportError: If the runtime cannot load the artifact, or it takes other inputs.
        """
        outputs = run_samples(load_runner(self.path), x if isinstance(x, list | tuple) else [x])
        return outputs[0] if len(outputs) == 1 else outputs

    @classmethod
    def at(cls, path: pathlib.Path, precision: str, parity: Parity, **known: Any) -> "Artifact":
        """Describes what stands at `path`."""
        return cls(path, kind_of(path), precision, disk_bytes(path), parity, **known)


def output_path(path: str | os.PathLike[str], kind: Kind) -> pathlib.Path:
    """Returns `path`, having made sure that an artifact can be written there.

    Raises:
        ArgumentTypeError: If it is no path.
        OutputPathError: If its folder cannot be made or written to, or something other
            than an artifact of that kind stands there, which is not ours to replace.
    """
    path = writable(path, "path")
    ours = path.is_file() if kind == "tflite" else (path / "saved_model.pb").is_file()
    if (
        path.exists()
        and not ours
        and not (path.is_dir() and kind == "saved_model" and not any(path.iterdir()))
    ):
        raise OutputPathError(
            f"An export replaces an older {'file' if kind == 'tflite' else 'SavedModel'}, nothing else. "
            f"Received: path={str(path)!r}, where a {'folder' if path.is_dir() else 'file'} stands. "
            "Choose another place or move it away."
        )
    return path
