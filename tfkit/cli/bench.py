"""``tfkit bench FILE...``: artifacts measured side by side."""

import pathlib

import click

import tfkit
from tfkit.cli.command import Command, echo_json, echo_table, megabytes, records
from tfkit.cli.data import read_arrays
from tfkit.cli.kinds import File
from tfkit.report.progress import working

_MILLISECONDS = {"latency_ms": "ms", "latency_low_ms": "ms, 10%", "latency_high_ms": "ms, 90%"}
_BYTES = {"size_bytes": "MB", "gzip_bytes": "MB gzip", "memory_bytes": "MB memory"}


@click.command(cls=Command, words={"artifacts": "files", "path": "files", "x": "data"})
@click.argument("files", nargs=-1, required=True, type=File(".tflite", exists=True))
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Rounds that count.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Threads of a .tflite file; a SavedModel uses TensorFlow's setting.",
)
@click.option(
    "--data",
    type=File(".npy", ".npz", exists=True, dir_okay=False),
    help="A .npy or .npz file, whose first sample is the input; zeros without.",
)
@click.option("--plot", type=File(".png", dir_okay=False), help="Draw latency and size into this picture.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def bench(
    files: tuple[pathlib.Path, ...],
    runs: int,
    threads: int,
    data: pathlib.Path | None,
    plot: pathlib.Path | None,
    as_json: bool,
) -> None:
    """Measure latency, size and memory of FILES, their runs interleaved.

    FILES are .tflite files and folders of SavedModels. Each runs in a process of its own before it
    is timed, so that a broken one is an error. Compare the latencies of one call, not of two.

    Exit codes: 0 when all were measured, 1 when one does not run, 2 when the call was wrong.
    """
    x = None if data is None else [array[:1] for array in read_arrays(data)]
    names = {_short(file, files): file for file in files}
    what = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    with working(f"measuring {what}, each alone and then in turns", verbose=not as_json):
        table = tfkit.benchmark(names, runs=runs, threads=threads, x=x, plot=plot)
    if as_json:
        echo_json(records(table))
        return
    shown = table[["name", "kind"]].copy()
    for column, title in _MILLISECONDS.items():
        shown[title] = [f"{value:.3f}" for value in table[column]]
    for column, title in _BYTES.items():
        shown[title] = ["" if value != value else megabytes(value) for value in table[column]]
    echo_table(shown)


def _short(file: pathlib.Path, files: tuple[pathlib.Path, ...]) -> str:
    """Returns a file's name, its whole path where another has the same name."""
    alike = [each for each in files if each.name == file.name]
    return file.name if len(alike) == 1 else str(file)
