"""Latency and size of artifacts, measured side by side."""

import functools
import numbers
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.export.apart import measure_apart
from tfkit.export.artifact import Artifact
from tfkit.export.runners import Runner
from tfkit.export.runtime import fitting, kind_of, load_runner
from tfkit.files import writable
from tfkit.litert import interleave
from tfkit.report.measure import disk_bytes, gzip_bytes
from tfkit.report.plots import trade_offs

if TYPE_CHECKING:
    import pandas as pd

Given = Artifact | str | os.PathLike[str]
COLUMNS = [
    "name", "kind", "precision", "latency_ms", "latency_low_ms", "latency_high_ms", "size_bytes",
    "gzip_bytes", "threads", "memory_bytes",
]  # fmt: skip


def benchmark(
    artifacts: Given | Sequence[Given] | Mapping[str, Given],
    *,
    runs: int = 50,
    threads: int = 1,
    x: Any = None,
    quality: Mapping[str, float] | None = None,
    plot: str | os.PathLike[str] | None = None,
) -> "pd.DataFrame":
    """Measures artifacts against each other, their runs interleaved.

    Every round runs each artifact once, so that whatever else the machine does hits all
    alike; compare the latencies of one call, not of two. A tenth of the rounds, at least
    three, warm up and do not count. Before, each artifact runs once in a process of its own, so
    that a broken one is an error and no crash, and its memory can be told from all other.

    Args:
        artifacts: `Artifact`s or paths: one, a list, or named in a dict.
        runs: Rounds that count, at least 1.
        threads: Threads of a TFLite artifact; a SavedModel uses TensorFlow's setting.
        x: One batch to run on: an array, or a list of arrays (one an input). None takes
            zeros of the artifact's own input shapes, open sizes 1. An artifact whose batch has
            another size gets as many of the samples, or some of them again.
        quality: For each name a score, more is better, for the plot; a column `score` then.
        plot: A PNG to draw latency and size into, and quality where that is given.

    Returns:
        A DataFrame, one row an artifact: `name`, `kind`, `precision` (where known),
        `latency_ms` (median of the runs), `latency_low_ms` and `latency_high_ms` (10th
        and 90th percentile), `size_bytes`, `gzip_bytes`, `threads` (missing for a SavedModel), and
        `memory_bytes` (what loading and one run added to the memory of a process of its own at the
        peak, without the runtime itself; NaN where the system does not tell, as outside Linux).

    Raises:
        ArgumentTypeError: If `artifacts` is no artifact, list or dict.
        ArgumentError: If there is no artifact, a path is none, a count is below 1, or `quality` has
            not one finite number for each name.
        OutputPathError: If `plot` cannot be written.
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

    if isinstance(artifacts, Artifact | str | os.PathLike):
        artifacts = [artifacts]
    if not isinstance(artifacts, Iterable):
        raise ArgumentTypeError(
            f"`artifacts` must be artifacts or paths. Received: artifacts={artifacts!r}. "
            "Pass one, a list of them, or a dict by name."
        )
    listed: list[tuple[str | None, Given]] = (
        [*artifacts.items()] if isinstance(artifacts, Mapping) else [(None, each) for each in artifacts]
    )
    if not listed:
        raise ArgumentError(f"`artifacts` must hold at least one. Received: artifacts={artifacts!r}.")
    for name, count in (("runs", runs), ("threads", threads)):
        if not isinstance(count, int) or count < 1:
            raise ArgumentError(f"`{name}` must be at least 1. Received: {name}={count!r}.")

    if plot is not None:
        plot = writable(plot, "plot")
    named = [(name or _path(given).name, given) for name, given in listed]
    _require_scores(quality, [name for name, _ in named])

    rows: list[dict[str, Any]] = []
    calls = []
    for name, given in named:
        path = _path(given)
        kind = kind_of(path)
        rows.append(
            {
                "name": name,
                "kind": kind,
                "precision": given.precision if isinstance(given, Artifact) else None,
                "size_bytes": disk_bytes(path),
                "gzip_bytes": gzip_bytes(path),
            }
        )
        memory = measure_apart(path, _arrays(x), threads=threads).memory_bytes
        rows[-1] |= {
            "threads": threads if kind == "tflite" else None,
            "memory_bytes": np.nan if memory is None else memory,
        }
        run = load_runner(path, threads=threads)
        calls.append(functools.partial(run, _batch(run, x)))
    for row, seconds in zip(rows, interleave(calls, runs), strict=True):
        low, median, high = np.percentile(1000 * np.asarray(seconds), [10, 50, 90])
        row |= {"latency_ms": median, "latency_low_ms": low, "latency_high_ms": high}
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"threads": "Int64", "memory_bytes": "float64"})
    if quality is not None:
        table["score"] = [float(quality[name]) for name in table.name]
    if plot is not None:
        plot.write_bytes(trade_offs(table))
    return table


def _path(given: Given) -> pathlib.Path:
    return given.path if isinstance(given, Artifact) else pathlib.Path(given)


def _require_scores(quality: Mapping[str, float] | None, names: Sequence[str]) -> None:
    if quality is None:
        return
    known = isinstance(quality, Mapping) and set(quality) == set(names)
    if not known or not all(isinstance(x, numbers.Real) and np.isfinite(x) for x in quality.values()):
        raise ArgumentError(
            "`quality` must map each artifact's name to a finite number. "
            f"Received: quality={quality!r}; the names are {', '.join(names)}."
        )


def _batch(run: Runner, x: Any) -> list[np.ndarray]:
    """Returns `x` in the types of the artifact's inputs, or zeros."""
    arrays = _arrays(x)
    if arrays is None:
        return run.zeros()
    batch = run.sizes()[0][0]
    given = fitting(run, arrays)
    return given if batch is None else [np.resize(each, (batch, *each.shape[1:])) for each in given]


def _arrays(x: Any) -> Sequence[Any] | None:
    return x if x is None or isinstance(x, list | tuple) else [x]
