"""Latency and size of artifacts, measured side by side."""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkit.errors import ArgumentError
from tfkit.export.apart import run_apart
from tfkit.export.artifact import Artifact
from tfkit.export.runners import Runner
from tfkit.export.runtime import fitting, kind_of, load_runner
from tfkit.litert import interleave
from tfkit.report.measure import disk_bytes, gzip_bytes

if TYPE_CHECKING:
    import pandas as pd

Given = Artifact | str | os.PathLike


def benchmark(
    artifacts: Given | Sequence[Given] | Mapping[str, Given],
    *,
    runs: int = 50,
    threads: int = 1,
    x: Any = None,
) -> "pd.DataFrame":
    """Measures artifacts against each other, their runs interleaved.

    Every round runs each artifact once, so that whatever else the machine does hits all
    alike; compare the latencies of one call, not of two. A tenth of the rounds, at least
    three, warm up and do not count. Before, each `.tflite` file runs once in a process of its own,
    so that a broken one is an error and no crash.

    Args:
        artifacts: `Artifact`s or paths: one, a list, or named in a dict.
        runs: Rounds that count, at least 1.
        threads: Threads of a TFLite artifact; a SavedModel uses TensorFlow's setting.
        x: One batch to run on: an array, or a list of arrays (one an input). None takes
            zeros of the artifact's own input shapes, open sizes 1.

    Returns:
        A DataFrame, one row an artifact: `name`, `kind`, `precision` (where known),
        `latency_ms` (median of the runs), `latency_low_ms` and `latency_high_ms` (10th
        and 90th percentile), `size_bytes`, `gzip_bytes`.

    Raises:
        ArgumentError: If there is no artifact, a path is none, or a count is below 1.
        ExportError: If a runtime cannot load or run an artifact, or crashes, or `x` does not fit it.

    Examples:
        >>> import pathlib, tempfile, tfkit
        >>> model = tfkit.models.build_encoder_decoder((16, 16, 3), filters=(4, 8), output_channels=3)
        >>> artifact = tfkit.export_tflite(model, pathlib.Path(tempfile.mkdtemp(), "model.tflite"))
        >>> table = tfkit.benchmark([artifact], runs=3)
        >>> table.name[0], bool(table.latency_ms[0] > 0)
        ('model.tflite', True)
    """
    import pandas as pd

    if isinstance(artifacts, Given):
        artifacts = [artifacts]
    named = artifacts.items() if isinstance(artifacts, Mapping) else [(None, each) for each in artifacts]
    if not named:
        raise ArgumentError(f"`artifacts` must hold at least one. Received: artifacts={artifacts!r}.")
    for name, count in (("runs", runs), ("threads", threads)):
        if not isinstance(count, int) or count < 1:
            raise ArgumentError(f"`{name}` must be at least 1. Received: {name}={count!r}.")

    rows, calls = [], []
    for name, given in named:
        path = given.path if isinstance(given, Artifact) else pathlib.Path(given)
        rows.append(
            {
                "name": name or path.name,
                "kind": kind_of(path),
                "precision": given.precision if isinstance(given, Artifact) else None,
                "size_bytes": disk_bytes(path),
                "gzip_bytes": gzip_bytes(path),
            }
        )
        if kind_of(path) == "tflite":  # TensorFlow finds what is wrong with a SavedModel by itself
            run_apart(path, _arrays(x), threads=threads)
        run = load_runner(path, threads=threads)
        calls.append(functools.partial(run, _batch(run, x)))
    for row, seconds in zip(rows, interleave(calls, runs), strict=True):
        low, median, high = np.percentile(1000 * np.asarray(seconds), [10, 50, 90])
        row |= {"latency_ms": median, "latency_low_ms": low, "latency_high_ms": high}
    columns = ["name", "kind", "precision", "latency_ms", "latency_low_ms", "latency_high_ms"]
    return pd.DataFrame(rows, columns=[*columns, "size_bytes", "gzip_bytes"])


def _batch(run: Runner, x: Any) -> list[np.ndarray]:
    """Returns `x` in the types of the artifact's inputs, or zeros."""
    arrays = _arrays(x)
    return run.zeros() if arrays is None else fitting(run, arrays)


def _arrays(x: Any) -> list[Any] | None:
    return x if x is None or isinstance(x, list | tuple) else [x]
