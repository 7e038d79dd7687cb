"""``tfkit prune magnitude | channels MODEL OUT``: from a model file a pruned one, at once."""

from typing import Any

import click

import tfkit
from tfkit.cli.command import echo_paragraph
from tfkit.cli.figures import figures
from tfkit.cli.kinds import Fraction, Pair
from tfkit.cli.prune_channels import channels
from tfkit.cli.prune_job import Job, PruneCommand
from tfkit.errors import ArgumentError


class Kinds(click.Group):
    """A group that tells what is missing when a file stands where the kind of pruning should."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[Any, Any, list[str]]:
        if args[0].endswith(".keras"):
            ctx.fail(
                f"Say what shall go: tfkit prune magnitude {args[0]} …, or tfkit prune channels {args[0]} …."
            )
        return super().resolve_command(ctx, args)


@click.group(cls=Kinds)
def prune() -> None:
    """Make a pruned .keras file of a .keras file, at once and without training.

    `magnitude` sets the smallest weights to zero: the model keeps its shape, its file packs better.
    `channels` removes whole channels: a smaller model, with less work on every machine.

    Both lose accuracy until the model trains on. One that lost channels trains as any other. Zeros
    need masks, or they fill again; in Python:

    \b
      model = keras.models.load_model("pruned.keras")
      once = tfkit.ConstantSparsity(0.8, begin_step=1, end_step=1, frequency=1)
      tfkit.prune_low_magnitude(model, once)  # with the layers that were pruned
      model.compile(...)
      model.fit(...)
      tfkit.strip_pruning(model).save("trained.keras")
    """  # noqa: D301 - click reads the control character


@prune.command(cls=PruneCommand)
@click.option(
    "--sparsity", type=Fraction(zero=True), help="Share of each kernel's weights that goes, as 0.8."
)
@click.option(
    "--scope",
    type=click.Choice(["layer", "global", "erk"]),
    default="layer",
    show_default=True,
    help="All kernels alike; one threshold for all; or larger ones sparser (Erdős–Rényi-kernel).",
)
@click.option(
    "--block-size", type=Pair(), default="1,1", show_default=True, help="Rows and columns that go as one."
)
@click.option(
    "--block-pooling-type",
    type=click.Choice(["AVG", "MAX"]),
    default="AVG",
    show_default=True,
    help="How the magnitudes of a block become one.",
)
@click.option("--sparsity-m-by-n", type=Pair(), help="Instead of --sparsity: m zeros in n inputs, as 2,4.")
def magnitude(job: Job, **options: Any) -> None:
    """Set the smallest weights of MODEL to zero and save it as OUT.

    Both are .keras files. OUT stays compiled, with its optimizer. Biases and normalisations stay
    whole. To train on with the zeros held, see `tfkit prune --help`.

    Exit codes: 0 when OUT was written, 1 when the work failed, 2 when the call was wrong.
    """
    if (options["sparsity"] is None) == (options["sparsity_m_by_n"] is None):
        raise ArgumentError(
            "Either --sparsity or --sparsity-m-by-n says how much becomes zero. "
            f"Received: {'neither' if options['sparsity'] is None else 'both'}. Pass --sparsity 0.8."
        )
    job.require_new(job.target, ".keras", "out")
    model = job.load()
    data = job.samples(model)
    before, notes = figures(model, job.input_shape)
    sparsity_before = tfkit.sparsity_table(model).sparsity
    with job.working("pruning"):
        tfkit.prune_now(model, layers=list(job.layers) or None, **options)
    before |= job.sizes(job.model)  # before OUT, which may be MODEL
    notes += job.finish(model, None if data is None else data[0])
    after = figures(model, job.input_shape)[0] | job.sizes(job.target)
    table = tfkit.sparsity_table(model)[["path", "variable", "shape", "parameters", "sparsity"]]
    table.insert(4, "sparsity_before", sparsity_before)
    table = table[[len(shape) > 1 for shape in table["shape"]]]  # biases and the like stay whole
    shown = table[["path", "variable"]].copy()
    shown["parameters"] = [f"{each:,}" for each in table.parameters]
    shown["zeros before"] = [f"{each:.1%}" for each in table.sparsity_before]
    shown["zeros"] = [f"{each:.1%}" for each in table.sparsity]
    job.report("weights", table, shown, before, after, notes)
    if not job.as_json:
        echo_paragraph(
            f"Next: train on with masks that hold the zeros (tfkit prune --help), "
            f"then tfkit export {job.out} FOLDER, which uses zeros where a runtime can."
        )


prune.add_command(channels)
