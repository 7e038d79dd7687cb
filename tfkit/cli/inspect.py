"""``tfkit inspect FILE``: what a model is made of, and what each target would do with it."""

import pathlib
from typing import TYPE_CHECKING, Any

import click

import tfkit
from tfkit.cli.command import (
    Command,
    as_options,
    echo_json,
    echo_paragraph,
    echo_table,
    load_model,
    megabytes,
    records,
)
from tfkit.cli.figures import count_work, share_of_zeros
from tfkit.cli.kinds import File, Shape, Targets
from tfkit.report.progress import working

if TYPE_CHECKING:
    import keras
    import pandas as pd

    from tfkit.export.deployment import Target

NEIGHBOURS = "its neighbours cannot"  # a consequence, no cause


@click.command(cls=Command, words={"source": "file", "path": "file"})
@click.argument("file", type=File(".keras", ".tflite", exists=True, dir_okay=False))
@click.option("--input-shape", type=Shape(), help="Sizes that the model leaves open, as 224,224,3.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def inspect(file: pathlib.Path, input_shape: tuple[int | None, ...] | None, as_json: bool) -> None:
    """Show what is in FILE, and what the runtimes make of it.

    Of a .keras model: its layers with parameters, zeros and work, and for each target whether
    sparse kernels would engage, what stops them and what mends it. One that could run code is
    refused. Of a .tflite file: its operations, and what XNNPACK does with them.

    Exit codes: 0 when it was read, 1 when a runtime cannot run it, 2 when the call was wrong.
    """
    if file.suffix == ".tflite":
        if input_shape is not None:
            raise tfkit.ArgumentError(
                "A .tflite file has its own sizes. "
                f"Received: {str(file)!r} with --input-shape. Leave the option out."
            )
        _inspect_tflite(file, as_json)
    elif file.suffix != ".keras":
        raise tfkit.ArgumentError(
            "FILE must be a .keras or a .tflite file. "
            f"Received: {str(file)!r}. Save a model from Keras 3 by model.save('name.keras')."
        )
    else:
        _inspect_keras(file, input_shape, as_json)


def _inspect_tflite(file: pathlib.Path, as_json: bool) -> None:
    with working(f"running {file}", verbose=not as_json):
        table = tfkit.explain_tflite(file)
    found = {"file": str(file), "size_bytes": file.stat().st_size, **table.attrs}
    if as_json:
        echo_json(found | {"operations": records(table)})
        return
    echo_table(table.drop(columns="remedy" if not table.remedy.any() else []))
    click.echo()
    encoded = "sparse-encoded" if found["sparse"] else "not sparse-encoded"
    echo_paragraph(
        f"{file}: {megabytes(found['size_bytes'])} MB, takes {', '.join(found['inputs'])}, {encoded}. "
        f"XNNPACK on ARM and in a browser: {found['verdict']}."
    )


def _inspect_keras(file: pathlib.Path, input_shape: tuple[int | None, ...] | None, as_json: bool) -> None:
    model = load_model(file, verbose=not as_json)
    layers = tfkit.layer_table(model)
    with working("counting", verbose=not as_json) as step:
        work, notes = count_work(model, input_shape)
        step("asking what each target would do with it")
        targets = _targets(model, input_shape)
    flops = None
    if work is not None:
        layers["flops"] = layers.path.map(work.set_index("path").flops).astype("Int64")
        flops = int(work.flops.sum())
    parameters = int(layers.parameters.sum())
    zeros = share_of_zeros(model)
    found = {
        "file": str(file),
        "name": model.name,
        "inputs": [list(each.shape) for each in getattr(model, "inputs", None) or []],
        "outputs": [list(each.shape) for each in getattr(model, "outputs", None) or []],
        "parameters": parameters,
        "sparsity": zeros,
        "flops": flops,
        "targets": targets,
        "notes": notes,
    }
    if as_json:
        echo_json(found | {"layers": records(layers)})
        return
    shown = layers.assign(
        parameters=[f"{each:,}" for each in layers.parameters],
        sparsity=[f"{each:.3f}" for each in layers.sparsity],
    )
    if "flops" in shown:
        shown["flops"] = ["" if each is None else f"{each:,}" for each in _or_none(layers.flops)]
    echo_table(shown)
    click.echo()
    price = "" if flops is None else f", {flops:,} multiplications and additions a sample"
    echo_paragraph(f"{model.name}: {parameters:,} parameters, {zeros:.1%} of the kernels zero{price}.")
    for note in notes:
        echo_paragraph(note, indent="  ")
    alike: dict[str, list[str]] = {}
    for target, said in targets.items():
        alike.setdefault(_words(said), []).append(target)
    for words, names in alike.items():
        echo_paragraph(f"{', '.join(names)}: {words}", indent="  ")


def _or_none(column: "pd.Series") -> list[int | None]:
    return [None if missing else int(value) for value, missing in zip(column, column.isna())]


def _targets(
    model: "keras.Model", input_shape: tuple[int | None, ...] | None
) -> dict["Target", dict[str, Any]]:
    """Returns the verdict for each target, and the first thing that stands behind it."""
    try:
        table = tfkit.explain_deployment(model, Targets.known, input_shape=input_shape)
    except tfkit.TfkitError as error:
        nothing = {
            "verdict": None,
            "layer": "",
            "operation": "",
            "reason": as_options(str(error)),
            "remedy": "",
        }
        return dict.fromkeys(Targets.known, nothing)
    verdicts = table.attrs["verdict"]
    return {target: _because(table[table.target == target], verdicts[target]) for target in Targets.known}


def _because(table: "pd.DataFrame", verdict: str) -> dict[str, Any]:
    causes = table[(table.runs == verdict) & (table.reason != "")]
    causes = causes[~causes.reason.str.startswith(NEIGHBOURS)]
    # what a sparse or a GPU's model leaves aside needs no reason
    first = None if verdict in ("sparse", "gpu") or causes.empty else causes.iloc[0]
    names = ("layer", "operation", "reason", "remedy")
    counts = table.runs.value_counts()
    return {
        "verdict": verdict,
        "operations": {str(name): int(count) for name, count in counts.items()},
        **{name: "" if first is None else str(first[name]) for name in names},
    }


def _words(said: dict[str, Any]) -> str:
    if said["verdict"] is None:
        return f"not known. {said['reason']}"
    counts = ", ".join(f"{count} {name}" for name, count in said["operations"].items())
    text = f"{said['verdict']} ({counts})"
    if said["reason"]:
        at = said["layer"] or said["operation"]
        text += f"; {at}: {said['reason']}"
    return f"{text}. Remedy: {said['remedy']}." if said["remedy"] else f"{text}."
