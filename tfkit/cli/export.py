"""``tfkit export MODEL OUT``: for each target what runs best there, proven."""

import pathlib
from typing import TYPE_CHECKING, Any

import click

import tfkit
from tfkit.cli.command import Command, echo_json, echo_paragraph, echo_table, load_model, megabytes
from tfkit.cli.data import read_data
from tfkit.cli.kinds import BatchSize, File, Shape, Targets

if TYPE_CHECKING:
    from tfkit.export import ExportReport


@click.command(cls=Command, words={"source": "model", "directory": "out", "representative_data": "data"})
@click.argument("model", type=File(".keras", exists=True, dir_okay=False))
@click.argument("out", type=click.Path(path_type=pathlib.Path))
@click.option(
    "--targets",
    type=Targets(),
    default=",".join(Targets.known),
    show_default=True,
    help="Where it shall run.",
)
@click.option(
    "--data",
    type=File(".npy", ".npz", exists=True),
    help="Inputs as the device will see them: a .npy or .npz file, or a folder of pictures.",
)
@click.option("--input-shape", type=Shape(), help="Sizes that the model leaves open, as 224,224,3.")
@click.option(
    "--batch-size", type=BatchSize(), default="1", show_default=True, help="Samples a call of a .tflite file."
)
@click.option("--overwrite", is_flag=True, help="Replace what an earlier export wrote to OUT.")
@click.option("--accept-unproven", is_flag=True, help="Ship sparse files also where qemu is missing.")
@click.option(
    "--runs", type=click.IntRange(min=0), default=20, show_default=True, help="Timed rounds; 0 for none."
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
def export(
    model: pathlib.Path,
    out: pathlib.Path,
    data: pathlib.Path | None,
    input_shape: tuple[int | None, ...] | None,
    batch_size: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Write for each target what runs best there, once it is proven, into the folder OUT.

    MODEL is a .keras file; one that could run code is refused. OUT gets the artifacts,
    manifest.json and report.html, all at once when all is done.

    With --data there is int8, and the proofs run on real inputs; up to 128 samples are used, of
    every subfolder of pictures alike. Pictures are stretched to the model's size, with values from
    0 to 255; a model that takes others needs arrays.

    Exit codes: 0 when something was shipped for every target, 1 when not, 2 when the call was wrong.
    """
    loaded = load_model(model, verbose=not as_json)
    samples = None
    if data is not None:
        samples, said = read_data(data, loaded, input_shape)
        click.echo(said, err=as_json)
    report = tfkit.export(
        loaded,
        out,
        representative_data=samples,
        input_shape=input_shape,
        batch_size=batch_size or None,
        verbose=int(not as_json),
        **options,
    )
    if as_json:
        echo_json({"directory": str(report.directory), "page": str(report.page), **report.manifest})
    else:
        _echo_report(report)


def _echo_report(report: "ExportReport") -> None:
    """Prints the choices as a table, then why, which no table has room for."""
    import pandas as pd

    rows = [
        {
            "target": row["target"],
            "runtime": row["runtime"],
            "file": row["file"],
            "MB": megabytes(row["size_bytes"]),
            "MB gzip": megabytes(row["gzip_bytes"]),
            "off by": f"{row['relative_error']:.1e}",
            "ms here": "" if row["latency_ms"] is None else f"{row['latency_ms']:.2f}",
            "times as fast": "" if row["speedup"] is None else f"{row['speedup']:.2f}",
        }
        for row in report.rows
    ]
    echo_table(pd.DataFrame(rows))
    click.echo()
    for row in report.rows:
        echo_paragraph(
            f"{row['target']}, {row['runtime']}: {row['reason']}. Proven on {', '.join(row['proofs'])}.",
            indent="  ",
        )
    for note in report.notes:
        echo_paragraph(note, indent="  ")
    click.echo(f"The report is {report.page}")
