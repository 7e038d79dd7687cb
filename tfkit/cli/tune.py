"""``tfkit tune JOB``: a search of hyperparameters."""

import importlib.util
import inspect
import pathlib
import sys
from types import ModuleType
from typing import Any

import click

import tfkit
from tfkit.cli.command import Command
from tfkit.cli.kinds import File
from tfkit.report.progress import working


@click.command(cls=Command)
@click.argument("job", type=File(".py", exists=True, dir_okay=False))
@click.option(
    "-d",
    "--directory",
    required=True,
    type=click.Path(),
    help="Where the search is kept; shared by all machines.",
)
@click.option("--max-trials", type=int, required=True, help="Trials at most.")
@click.option("--epochs", type=int, required=True, help="Epochs a trial; of Hyperband the most epochs.")
@click.option(
    "--tuner",
    type=click.Choice(["bayesian", "random", "hyperband", "grid"]),
    default="bayesian",
    show_default=True,
)
@click.option("--objective", default="val_loss", show_default=True, help="The metric to optimise.")
@click.option("--seed", type=int, help="Seeds the tuner, and every trial alike.")
@click.option("--batch-size", type=int, help="Samples a batch.")
@click.option("--median-stopping", is_flag=True, help="Stop trials that lag behind the median.")
@click.option("--keep-checkpoints", type=int, default=1, show_default=True, help="Models that stay on disk.")
@click.option("--workers", type=int, default=1, show_default=True, help="Processes on this machine.")
@click.option("--chief", metavar="HOST:PORT", help="Give out trials here, to workers anywhere.")
@click.option("--worker", metavar="HOST:PORT", help="Run trials for the chief at this address.")
@click.option("--overwrite", is_flag=True, help="Delete what the directory holds of an earlier search.")
@click.option("--plot", type=File(".png", dir_okay=False), help="Draw the result into this picture.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def tune(job: pathlib.Path, plot: pathlib.Path | None, as_json: bool, **options: Any) -> None:
    """Search hyperparameters of the model in JOB.

    JOB is a Python file with `build` (a function that returns a compiled model), `data` (the
    arguments x, y and validation_data of tfkit.search as a dictionary, or a function that
    returns it), and, if more than the learning rate and the weight decay is to vary, `space`
    (a tfkit.SearchSpace).

    The same command on the same directory continues a search that was stopped. To use several
    machines, start it once with --chief and any number of times with --worker.

    Exit codes: 0 when a trial completed, 1 when the search failed, 2 when the call was wrong.
    """
    with working(f"loading {job}", verbose=not as_json) as step:
        module = _load(job)
        space = getattr(module, "space", None) or tfkit.SearchSpace(
            learning_rate=(1e-5, 1e-1), weight_decay=(1e-6, 1e-1)
        )
        step(f"loading the data of {job}")
        data = module.data() if callable(module.data) else module.data
    result = tfkit.search(module.build, space=space, verbose=int(not as_json), **data, **options)
    if plot:
        result.plot(plot)
    if as_json:
        click.echo(result.table.to_json(orient="records"))
    elif not options["worker"]:
        click.echo(result.table.drop(columns="error").to_string(index=False))
        click.echo(f"The best is trial {result.best.trial}, {result.objective} {result.best.score:.6g}.")


def _load(path: pathlib.Path) -> ModuleType:
    """Imports a job and checks that it has what a search needs."""
    import cloudpickle

    specification = importlib.util.spec_from_file_location(path.stem, path)  # None unless it ends in .py
    if specification is None or specification.loader is None:
        raise tfkit.ArgumentError(
            f"JOB must be a Python file. Received: {str(path)!r}. tfkit tune --help tells what it holds."
        )
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.parent.resolve()))
    sys.modules[path.stem] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise tfkit.SearchError(
            f"JOB must run when it is imported. Received: {str(path)!r}, which raised "
            f"{type(error).__name__}: {error}. Mend it; --debug shows where."
        ) from error
    cloudpickle.register_pickle_by_value(module)  # so that workers on this machine can have its functions
    missing = [name for name in ("build", "data") if not hasattr(module, name)]
    if missing:
        defined = sorted(name for name, value in vars(module).items() if inspect.isfunction(value))
        raise tfkit.ArgumentError(
            "A job must define `build` and `data`. "
            f"Received: {str(path)!r}, which lacks {' and '.join(missing)}; "
            f"its functions are {', '.join(defined) or 'none'}."
        )
    return module
