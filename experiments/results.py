"""What every experiment shares: its command line, and how it writes down what it found."""

import argparse
import dataclasses
import io
import json
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

import tfkit


def command(
    arguments: list[str] | None,
    *,
    name: str,
    question: str,
    config: Any,
    quick: Any,
    run: Callable[[Any, pathlib.Path], tuple[Mapping[str, pd.DataFrame], Mapping[str, bytes]]],
) -> int:
    """Runs an experiment from the command line and returns the process's exit code.

    Args:
        arguments: The command line, None for the process's own.
        name: The experiment's name; its results go to ``results/NAME`` unless told otherwise.
        question: What it answers, for ``--help``.
        config: A frozen dataclass with a `seed`.
        quick: The same for ``--quick``.
        run: Takes a config and the output folder; returns tables and pictures by name.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=question)
    parser.add_argument("--quick", action="store_true", help="a small run, two minutes at most")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("results", name), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    chosen = dataclasses.replace(quick if options.quick else config, seed=options.seed)
    start = time.perf_counter()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        tables, pictures = run(chosen, options.output)
    except tfkit.TfkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for title, table in tables.items():
        print(f"\n{title}\n{table.to_string(index=False)}")
    write(options.output, chosen, time.perf_counter() - start, tables, pictures)
    print(f"\n{options.output / 'results.json'} and {', '.join(pictures)}")
    return 0


def write(
    output: pathlib.Path,
    config: Any,
    seconds: float,
    tables: Mapping[str, pd.DataFrame],
    pictures: Mapping[str, bytes],
) -> None:
    """Writes results.json (config, versions, figures) and the pictures into a folder."""
    results = {
        **provenance(config, seconds),
        **{name: json.loads(table.to_json(orient="records")) for name, table in tables.items()},
    }
    for name, picture in pictures.items():
        (output / name).write_bytes(picture)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def provenance(config: Any, seconds: float) -> dict[str, Any]:
    """Returns what a figure must stand beside: config, versions, time and memory."""
    packages = (
        "tfkit",
        "tensorflow",
        "keras",
        "keras-tuner",
        "tensorflow-model-optimization",
        "ai-edge-litert",
    )
    return {
        "config": dataclasses.asdict(config),
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages},
        },
        "processor": processor(),
        "seconds": round(seconds, 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1),
    }


def processor() -> str:
    """Returns this processor's name and the vector instructions that timings hang on."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = dict(line.replace("\t", "").split(":", 1) for line in reversed(lines) if ":" in line)
    flags = told.get("flags", told.get("Features", "")).split()
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "asimddp") if name in flags]
    return ", ".join([told.get("model name", platform.machine()).strip(), *known])


def png(figure: Figure) -> bytes:
    """Returns a matplotlib figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
