"""``tfkit prune channels MODEL OUT``: the model without the channels that it needs least."""

import pathlib
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import tfkit
from tfkit.cli.command import echo_paragraph
from tfkit.cli.figures import figures
from tfkit.cli.kinds import File, Fraction
from tfkit.cli.prune_job import Job, PruneCommand
from tfkit.errors import ArgumentError

if TYPE_CHECKING:
    import keras
    import numpy as np
    import pandas as pd

SIZES = ("flops", "parameters", "ratio", "latency", "latency_ms")
NEED_DATA = ("activation", "taylor")
COLUMNS = {"group": "group", "channels_before": "channels", "channels_after": "stay", "reason": "why whole"}
# what makes a plan
PLANNING = ("layers", "criterion", "scope", "sensitivity", "multiple_of", "max_ratio", "min_channels", "seed")


@click.command(cls=PruneCommand, needs_out=False)
@click.option(
    "--flops", type=Fraction(counts=True), help="What stays of the work, as 0.5; above 1, FLOPs a sample."
)
@click.option(
    "--parameters",
    type=Fraction(counts=True),
    help="What stays of the weights, as 0.5; above 1, their number.",
)
@click.option("--ratio", type=Fraction(), help="What goes of the channels, as 0.3.")
@click.option("--latency", type=Fraction(), help="What stays of the time on LiteRT here, one thread, as 0.5.")
@click.option(
    "--latency-ms", type=click.FloatRange(0, min_open=True), help="Milliseconds on LiteRT here, one thread."
)
@click.option("--plan", type=File(".json", exists=True, dir_okay=False), help="Carry out a saved plan.")
@click.option(
    "--criterion",
    type=click.Choice(["l2", "l1", "bn_scale", "fpgm", "activation", "taylor", "random"]),
    default="l2",
    show_default=True,
    help="What ranks channels; activation and taylor by --data.",
)
@click.option(
    "--scope",
    type=click.Choice(["global", "uniform", "sensitivity"]),
    default="global",
    show_default=True,
    help="How the groups share the loss.",
)
@click.option(
    "--sensitivity",
    type=File(".csv", exists=True, dir_okay=False),
    help="For --scope sensitivity: tfkit.layer_sensitivity(kind='channels') as .csv.",
)
@click.option(
    "--multiple-of",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Channels stay in multiples of this.",
)
@click.option(
    "--max-ratio", type=Fraction(), default=0.9, show_default=True, help="Most that may go of a group."
)
@click.option(
    "--min-channels",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Fewest that stay in a group.",
)
@click.option("--seed", type=int, help="For --criterion random.")
@click.option(
    "--keep-optimizer/--no-keep-optimizer",
    default=None,
    help="Compile OUT as MODEL, with what its optimizer has learned.  [default: if MODEL is compiled]",
)
@click.option("--save-plan", type=File(".json"), help="Save the plan to a .json file.")
@click.option("--dry-run", is_flag=True, help="Print the plan and write no model; needs no OUT.")
def channels(
    job: Job,
    plan: pathlib.Path | None,
    sensitivity: pathlib.Path | None,
    keep_optimizer: bool | None,
    save_plan: pathlib.Path | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Remove the channels that MODEL needs least and save the smaller model as OUT.

    Both are .keras files. Exactly one of --flops, --parameters, --ratio, --latency, --latency-ms
    and --plan says how small. Channels that hang together, as over an addition, go together; inputs
    and outputs keep their shapes.

    For --criterion taylor, MODEL is compiled and --data a .npz file with an array for each input
    and the targets as `y`.

    Exit codes: 0 when it was done, 1 when the work failed, 2 when the call was wrong.
    """
    _check(job, plan, sensitivity, options)
    if not dry_run:
        job.require_new(job.target, ".keras", "out")
    if save_plan is not None:
        job.require_new(save_plan, ".json", "save_plan")
    table = None if sensitivity is None else _read_table(sensitivity)
    made = None if plan is None else tfkit.ChannelPlan.load(plan)
    model = job.load()
    if options["criterion"] == "taylor" and not model.compiled:
        raise ArgumentError(
            "The criterion taylor differentiates the loss that MODEL is compiled with. "
            f"Received: {str(job.model)!r}, which is not compiled. Compile it before you save it."
        )
    keep = model.compiled if keep_optimizer is None else keep_optimizer
    if keep and not model.compiled:
        raise ArgumentError(
            "An optimizer is kept where there is one. "
            f"Received: --keep-optimizer, {str(job.model)!r}, which is not compiled. Leave the option out."
        )
    data = job.samples(model, targets=options["criterion"] == "taylor")
    if made is None:
        made = _plan(job, model, data, table, options)
    if save_plan is not None:
        made.save(save_plan)
    before, notes = figures(model, job.input_shape)
    before |= made.before
    if dry_run:
        after = made.after
    else:
        with job.working("removing channels"):
            smaller = made.apply(model, keep_optimizer=keep)
        before |= job.sizes(job.model)  # before OUT, which may be MODEL
        notes += job.finish(smaller, None if data is None else data[0])
        after = figures(smaller, job.input_shape)[0] | made.after | job.sizes(job.target)
    shown = made.table[list(COLUMNS)].rename(columns=COLUMNS)
    more = {"plan": None if save_plan is None else str(save_plan), "target": made.target}
    job.report("groups", made.table, shown, before, after, notes, **more)
    if not job.as_json:
        echo_paragraph(_next(job, save_plan, dry_run))


def _check(
    job: Job,
    plan: pathlib.Path | None,
    sensitivity: pathlib.Path | None,
    options: dict[str, Any],
) -> None:
    """Checks what the options say together, before TensorFlow starts."""
    given = [name for name in SIZES if options[name] is not None] + ["plan"] * (plan is not None)
    if len(given) != 1:
        raise ArgumentError(
            f"Exactly one of {', '.join(map(_flag, SIZES))} and --plan says how small the model shall be. "
            f"Received: {', '.join(map(_flag, given)) or 'none'}. Pass --flops 0.5."
        )
    context = click.get_current_context()
    said = [x for x in PLANNING if context.get_parameter_source(x) is not ParameterSource.DEFAULT]
    if plan is not None and said:
        raise ArgumentError(
            "A saved plan says which channels stay. "
            f"Received: --plan {plan}, {', '.join(map(_flag, said))}. Leave the others out."
        )
    if options["criterion"] in NEED_DATA and job.data is None:
        raise ArgumentError(
            f"The criterion {options['criterion']} is measured on data. Received: no --data. "
            "Pass --data train.npz."
        )
    if (options["scope"] == "sensitivity") != (sensitivity is not None):
        raise ArgumentError(
            "--sensitivity is the table that --scope sensitivity follows. "
            f"Received: --scope {options['scope']}, {'no ' if sensitivity is None else ''}--sensitivity. "
            "Pass both or neither."
        )


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _read_table(path: pathlib.Path) -> "pd.DataFrame":
    import pandas as pd

    wanted = {"path", "sparsity", "score", "change"}
    try:
        table = pd.read_csv(path)
        missing = sorted(wanted - {*table.columns})
    except ValueError as error:  # pandas' own errors are such
        table, missing = pd.DataFrame(), [f"any table ({error})"]
    if missing:
        raise ArgumentError(
            "--sensitivity must be a table of tfkit.layer_sensitivity(model, evaluate, kind='channels'). "
            f"Received: {str(path)!r} without {', '.join(missing)}. Write it by table.to_csv({path.name!r})."
        )
    return table


def _plan(
    job: Job,
    model: "keras.Model",
    data: "tuple[list[np.ndarray], np.ndarray | None] | None",
    table: "pd.DataFrame | None",
    options: dict[str, Any],
) -> "tfkit.ChannelPlan":
    """Makes the plan."""
    x: Any = None
    if data is not None:
        x = data[0][0] if len(data[0]) == 1 else data[0]
        x = x if data[1] is None else (x, data[1])
    slow = options["latency"] is not None or options["latency_ms"] is not None
    what = "measuring layers and smaller models on LiteRT" if slow else "ranking channels"
    with job.working(what):
        return tfkit.plan_channel_pruning(
            model,
            layers=list(job.layers) or "*",
            data=x,
            batch_size=job.batch_size,
            input_shape=job.input_shape,
            sensitivity=table,
            **options,
        )


def _next(job: Job, save_plan: pathlib.Path | None, dry_run: bool) -> str:
    if not dry_run:
        return (
            "Next: train on, in small steps at first, to win back accuracy, "
            f"then tfkit export {job.out} FOLDER."
        )
    if save_plan is None:
        return "No model was written. The same without --dry-run and with a name for OUT writes it."
    command = f"tfkit prune channels {job.model} OUT.keras --plan {save_plan}"
    return f"No model was written. {command} carries the plan out."
