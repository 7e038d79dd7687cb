"""What both kinds of `tfkit prune` share: a model file in, a pruned one out, and the report."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

import tfkit
from tfkit.cli.command import Command, echo_json, echo_paragraph, echo_table, load_model, megabytes, records
from tfkit.cli.data import read_data, read_targets
from tfkit.cli.kinds import File, Shape
from tfkit.errors import ArgumentError, LayerNotFoundError, OutputPathError
from tfkit.files import staged, writable
from tfkit.report.progress import working

if TYPE_CHECKING:
    import keras
    import numpy as np
    import pandas as pd

MOST_SAMPLES = 1024  # statistics of BatchNormalization want about a thousand
ROWS = {
    "parameters": ("parameters", "{:,}".format),
    "sparsity": ("zeros in kernels", "{:.1%}".format),
    "flops": ("FLOPs a sample", "{:,}".format),
    "latency_ms": ("ms on LiteRT", "{:.3g}".format),
    "size_bytes": ("MB", megabytes),
    "gzip_bytes": ("MB gzip", megabytes),
}
OPTIONS = [
    click.Option(
        ["--layers"],
        metavar="PATTERN",
        multiple=True,
        help="Which layers: a name, 'encoder_*', a range 'a..b', '!name' for not that one; repeatable.",
    ),
    click.Option(
        ["--data"],
        type=File(".npy", ".npz", exists=True),
        help="Training inputs: a .npy or .npz file, or a folder of pictures; up to 1024 are used.",
    ),
    click.Option(
        ["--recalibrate/--no-recalibrate"],
        default=True,
        show_default=True,
        help="With --data, measure the statistics of BatchNormalization anew.",
    ),
    click.Option(
        ["--batch-size"],
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Samples of --data a batch, best as in training.",
    ),
    click.Option(["--input-shape"], type=Shape(), help="Sizes that the model leaves open, as 224,224,3."),
    click.Option(["--overwrite"], is_flag=True, help="Replace files that are there."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print what was done as JSON."),
]


class PruneCommand(Command):
    """A command with MODEL, OUT and the common options, which its function gets as a `Job`.

    Args:
        needs_out: Whether OUT must be given.
    """

    def __init__(self, *args: Any, needs_out: bool = True, **kwargs: Any):
        super().__init__(*args, words={"source": "model", "x": "data", "pattern": "layers"}, **kwargs)
        files = [
            click.Argument(["model"], type=File(".keras", exists=True, dir_okay=False)),
            click.Argument(["out"], type=File(".keras"), required=needs_out),
        ]
        *own, debug = self.params
        self.params = [*files, *own, *OPTIONS, debug]

    def invoke(self, ctx: click.Context) -> Any:
        names = [each.name for each in dataclasses.fields(Job)]
        ctx.params["job"] = Job(**{name: ctx.params.pop(name) for name in names})
        return super().invoke(ctx)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be done with which files."""

    model: pathlib.Path
    out: pathlib.Path | None
    layers: tuple[str, ...]
    data: pathlib.Path | None
    recalibrate: bool
    batch_size: int
    input_shape: tuple[int | None, ...] | None
    overwrite: bool
    as_json: bool

    @property
    def target(self) -> pathlib.Path:
        """OUT, where it is needed.

        Raises:
            ArgumentError: If it is not given.
        """
        if self.out is None:
            raise ArgumentError("The smaller model needs a name. Received: no OUT. Add one, or --dry-run.")
        return self.out

    def working(self, text: str) -> contextlib.AbstractContextManager[Callable[[str], None]]:
        """Shows what is being done."""
        return working(text, verbose=not self.as_json)

    def require_new(self, path: pathlib.Path, suffix: str, name: str) -> None:
        """Checks that a file can be written, before any work.

        Raises:
            ArgumentError: If it has another suffix.
            OutputPathError: If it is there and `overwrite` is off, or its folder cannot be written to.
        """
        received = f"Received: {name}={str(path)!r}"
        if path.suffix != suffix:
            raise ArgumentError(
                f"`{name}` must be a {suffix} file. {received}. Write {path.with_suffix(suffix)}."
            )
        if path.is_dir():
            raise OutputPathError(
                f"`{name}` must be a file. {received}, which is a folder. Choose another name."
            )
        if path.exists() and not self.overwrite:
            raise OutputPathError(
                f"A file is replaced only if that is asked for. {received}, which is there. "
                "Pass --overwrite or choose another name."
            )
        writable(path, name)

    def load(self) -> "keras.Model":
        """Loads the model."""
        return load_model(self.model, verbose=not self.as_json)

    def samples(
        self, model: "keras.Model", *, targets: bool = False
    ) -> "tuple[list[np.ndarray], np.ndarray | None] | None":
        """Reads the data, if there are any: an array for each input, and the targets if asked for.

        Raises:
            ArgumentError: If they do not fit the model, or the targets are missing.
        """
        if self.data is None:
            return None
        with self.working(f"reading {self.data}"):
            arrays, said = read_data(self.data, model, self.input_shape, most=MOST_SAMPLES, fits=True)
            y = read_targets(self.data, most=MOST_SAMPLES) if targets else None
        click.echo(said, err=self.as_json)
        return arrays, y

    def finish(self, model: "keras.Model", arrays: "list[np.ndarray] | None") -> list[str]:
        """Measures statistics anew if there are data for it, saves the model, and tells what was done."""
        notes = [] if arrays is None or not self.recalibrate else [self._measure(model, arrays)]
        with self.working(f"writing {self.out}"), staged(self.target) as temporary:
            model.save(temporary)
        return notes

    def _measure(self, model: "keras.Model", arrays: "list[np.ndarray]") -> str:
        if not _has_statistics(model):
            return "The model has no BatchNormalization to measure on --data."
        x = arrays[0] if len(arrays) == 1 else arrays
        verbose = int(not self.as_json)
        tfkit.recalibrate_batch_norm(model, x, batch_size=self.batch_size, verbose=verbose)
        return f"Measured the statistics of BatchNormalization anew on {len(arrays[0])} samples."

    def sizes(self, path: pathlib.Path) -> dict[str, int]:
        """Returns a file's bytes as it is and packed."""
        from tfkit.report.measure import disk_bytes, gzip_bytes

        with self.working(f"packing {path}"):
            return {"size_bytes": disk_bytes(path), "gzip_bytes": gzip_bytes(path)}

    def report(
        self,
        kind: str,
        table: "pd.DataFrame",
        shown: "pd.DataFrame",
        before: dict[str, Any],
        after: dict[str, Any],
        notes: list[str],
        **more: Any,
    ) -> None:
        """Prints what was done: as JSON with the table under its kind, or a table to be seen and the sums."""
        if self.as_json:
            done = {"model": str(self.model), "out": None if self.out is None else str(self.out)}
            echo_json(done | {"before": before, "after": after, **more, "notes": notes, kind: records(table)})
            return
        echo_table(shown)
        click.echo()
        echo_table(_sums(before, after))
        click.echo()
        for note in notes:
            echo_paragraph(note)


def _has_statistics(model: "keras.Model") -> bool:
    import keras

    try:
        tfkit.select_layers(model, lambda layer: isinstance(layer, keras.layers.BatchNormalization))
    except LayerNotFoundError:
        return False
    return True


def _sums(before: dict[str, Any], after: dict[str, Any]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for key, (title, write) in ROWS.items():
        old, new = before.get(key), after.get(key)
        if old is None or new is None:
            continue
        share = "" if key == "sparsity" or not old else f"{new / old:.1%}"
        rows.append({"": title, "before": write(old), "after": write(new), "of it": share})
    return pd.DataFrame(rows)
