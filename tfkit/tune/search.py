"""The search itself."""

import contextlib
import json
import numbers
import os
import pathlib
import shutil
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from tfkit.errors import ArgumentError, ArgumentTypeError, OutputPathError, SearchError
from tfkit.report import progress
from tfkit.tune.arguments import check_call, check_fit, check_places, find_objective
from tfkit.tune.result import (
    CHECKPOINTS,
    ENGINE,
    SNAPSHOTS,
    SPEC,
    TRIALS,
    SearchResult,
    read_spec,
    write_json,
)
from tfkit.tune.space import SearchSpace

if TYPE_CHECKING:
    import keras

    from tfkit.tune.job import Job


def search(
    build: "Callable[..., keras.Model]",
    x: Any,
    y: Any = None,
    *,
    space: SearchSpace,
    validation_data: Any = None,
    validation_split: float = 0.0,
    tuner: Literal["bayesian", "random", "hyperband", "grid"] = "bayesian",
    max_trials: int,
    epochs: int,
    objective: str = "val_loss",
    directory: str | os.PathLike[str],
    workers: int = 1,
    chief: str | None = None,
    worker: str | None = None,
    seed: int | None = None,
    callbacks: "Sequence[keras.callbacks.Callback]" = (),
    overwrite: bool = False,
    batch_size: int | None = None,
    median_stopping: bool = False,
    keep_checkpoints: int = 1,
    reuse: bool = True,
    cache_frozen: bool = True,
    distribution_strategy: Any = None,
    verbose: int = 1,
) -> SearchResult:
    """Searches hyperparameters with keras-tuner and keeps every trial as data.

    Each trial takes a model in its first state, sets its optimizer's learning rate and
    weight decay, trains it, and scores it by its best epoch. A trial that fails is recorded
    and the search goes on. The same call on the same directory continues where it was
    stopped, an interrupted trial after its last whole epoch.

    What `build` returns is kept and put back exactly for the next trial, with its traced
    train step, as long as no value that `build(hp)` reads has changed: the learning rate and
    the weight decay are variables. If layers are frozen, their features are computed once
    for the whole search.

    Args:
        build: ``build()`` or ``build(hp)``, returns a new compiled model each time.
        x: Inputs, as `fit` takes them: arrays or a tf.data.Dataset.
        y: Targets, unless `x` holds them.
        space: What varies.
        validation_data: As `fit` takes it.
        validation_split: Fraction of arrays held out, in [0, 1).
        tuner: ``"bayesian"``, ``"random"``, ``"hyperband"`` or ``"grid"``.
        max_trials: Trials at most, at least 1.
        epochs: Epochs a trial, at least 1; of Hyperband the most epochs.
        objective: The metric to optimise, ``"val_loss"`` or any name in the history; a
            `keras_tuner.Objective` gives the direction of a metric Keras does not know.
        directory: Where everything is kept.
        workers: Processes on this machine, each with its share of cores, or a GPU of its own.
            keras-tuner's chief runs here and listens on loopback only.
        chief: ``"HOST:PORT"`` to listen on for workers on any machine that shares `directory`;
            nothing is trained here.
        worker: The chief's ``"HOST:PORT"``: this process runs trials until there are none left.
        seed: Seeds the tuner, and every trial alike; None leaves randomness alone, but as long
            as a model is kept all trials begin with the weights that it was built with.
        callbacks: Keras callbacks, copied for each trial.
        overwrite: Whether to delete what the directory holds of an earlier search.
        batch_size: As `fit` takes it.
        median_stopping: Whether to stop a trial whose best value so far lags behind the median
            of at least five others at the same epoch; its status is ``"stopped"``.
        keep_checkpoints: How many of the best trials' models stay on disk, at least 1.
        reuse: Whether to keep a model for the next trial; False builds every trial's anew.
        cache_frozen: Whether to compute frozen layers once, as `fit_cached` does.
        distribution_strategy: A tf.distribute strategy under which models are built.
        verbose: 1 shows one line of progress: trial k of n, the best so far, time left.

    Returns:
        A `SearchResult` with `.table`, `.history`, `.best`, `.best_model()`, `.plot(path)`.

    Raises:
        ArgumentError: If a count is below 1, the tuner is unknown, the objective needs
            validation data or is never reported, `build` returns no compiled model, or
            the directory holds another search.
        ArgumentTypeError: If `build`, `space`, `callbacks` or `seed` is of another kind, or
            `x` is a generator.
        OutputPathError: If nothing can be written in `directory`.
        SearchError: If every trial failed; gives the last traceback.

    Examples:
        >>> import tempfile, keras, numpy as np, tfkit
        >>> def build():
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile("adam", "mse")
        ...     return model
        >>> result = tfkit.search(build, np.ones((8, 2)), np.ones((8, 1)), max_trials=2, epochs=3,
        ...                       space=tfkit.SearchSpace(learning_rate=(1e-3, 1e-1)), verbose=0,
        ...                       validation_split=0.5, directory=tempfile.mkdtemp(), seed=0)
        >>> len(result.table), len(result.history)
        (2, 6)

    Source: keras-tuner's oracles; Snoek et al., Practical Bayesian Optimization (2012); Li et
    al., Hyperband (2018).
    """
    takes_hp = check_call(build, space, tuner, validation_split)
    counts = {"max_trials": max_trials, "epochs": epochs, "keep_checkpoints": keep_checkpoints}
    counts["workers"] = workers
    for name, count in counts.items():
        if not isinstance(count, numbers.Integral) or isinstance(count, bool) or count < 1:
            raise ArgumentError(f"`{name}` must be at least 1. Received: {name}={count!r}.")
    check_fit(x, y, validation_split, callbacks, seed, batch_size)
    seed = None if seed is None else int(seed)
    if not isinstance(directory, str | os.PathLike):
        raise ArgumentTypeError(f"`directory` must be a path. Received: directory={directory!r}.")
    check_places(workers, chief, worker, distribution_strategy, overwrite)
    goal = find_objective(objective)
    if goal.name.startswith("val_") and validation_data is None and not validation_split:
        raise ArgumentError(
            "An objective that begins with 'val_' needs validation data. "
            f"Received: objective={goal.name!r}, validation_data=None, validation_split=0.0. "
            "Pass validation_data, or validation_split=0.2 for arrays."
        )
    spec = {
        "space": space.describe(),
        "objective": goal.name,
        "direction": goal.direction,
        "tuner": tuner,
        "epochs": epochs,
        "seed": seed,
    }
    folder = _prepare(pathlib.Path(directory), spec, overwrite)

    from tfkit.tune.job import Job

    fit = {"x": x, "y": y, "batch_size": batch_size, "shuffle": not _is_dataset(x), "verbose": 0}
    fit |= {"validation_data": validation_data, "validation_split": validation_split}
    job = Job(
        build,
        takes_hp,
        space,
        fit,
        tuner,
        goal,
        int(max_trials),
        int(epochs),
        callbacks,
        seed,
        reuse,
        cache_frozen,
        int(keep_checkpoints),
        median_stopping,
        distribution_strategy,
    )
    _run(job, folder, verbose, workers, chief, worker)
    result = SearchResult.load(folder)
    if not (result.table.status == "completed").any():
        raise SearchError(
            f"At least one trial must complete. Received: {len(result.table)} trials, all failed. "
            f"The last error:\n{result.table.error.dropna().iloc[-1]}"
        )
    return result


def _run(
    job: "Job", folder: pathlib.Path, verbose: int, workers: int, chief: str | None, worker: str | None
) -> None:
    """Runs the trials that are still to come; each leaves its record in `folder`."""
    from tfkit.tune.bench import WrongCallError
    from tfkit.tune.job import engine
    from tfkit.tune.launch import run_workers, serve, work

    before = SearchResult.load(folder)
    best = float(before.best.score) if (before.table.status == "completed").any() else None
    with _progress(job.max_trials, job.epochs, job.objective.name, best, verbose) as show:
        try:
            if worker is not None:
                work(job, folder, worker, f"{socket.gethostname()}-{os.getpid()}")
                return  # the chief tidies up
            if chief is not None:
                serve(job, folder, chief, show)
            elif workers > 1:
                run_workers(job, folder, workers, show)
            else:
                with engine(job, folder, show, worker="tuner0") as tuner:
                    tuner.oracle.verbose = 0
                    tuner.search()
        except WrongCallError:
            if best is None:
                _forget(folder)  # or the corrected call would find another search here
            raise
    shutil.rmtree(folder / SNAPSHOTS, ignore_errors=True)  # every trial is over


def _is_dataset(x: Any) -> bool:
    import tensorflow as tf

    return isinstance(x, tf.data.Dataset)


def _prepare(folder: pathlib.Path, spec: dict[str, Any], overwrite: bool) -> pathlib.Path:
    """Makes the directory, or checks that it belongs to this very search."""
    try:
        if overwrite:
            _forget(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SPEC).is_file():
            write_json(folder / SPEC, spec)
    except OSError as error:
        raise OutputPathError(
            "`directory` must be a folder that can be written to. "
            f"Received: directory={str(folder)!r} ({error})."
        ) from error
    before = read_spec(folder)
    now = json.loads(json.dumps(spec))
    differences = [
        f"{name}: {before.get(name)!r} there, {now[name]!r} here"
        for name in now
        if before.get(name) != now[name]
    ]
    if differences:
        raise ArgumentError(
            "`directory` must be empty or hold the same search. "
            f"Received: directory={str(folder)!r}, which differs in {'; '.join(differences)}. "
            "Choose another directory, or pass overwrite=True to delete what it holds."
        )
    return folder


def _forget(folder: pathlib.Path) -> None:
    """Deletes what a search keeps in its directory, and nothing else."""
    for name in (TRIALS, CHECKPOINTS, SNAPSHOTS, ENGINE):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / SPEC).unlink(missing_ok=True)


@contextlib.contextmanager
def _progress(
    max_trials: int, epochs: int, objective: str, best: float | None, verbose: int
) -> Iterator[Callable[[int, int, float | None], None]]:
    from rich import progress as bars

    columns = (
        bars.TextColumn("trial {task.fields[trial]}/{task.fields[trials]}"),
        bars.BarColumn(bar_width=24),
        bars.TextColumn("best {task.fields[objective]} {task.fields[best]}"),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
    )
    with progress.bar(*columns, verbose=verbose) as bar, warnings.catch_warnings():
        # keras-tuner warns of threading.currentThread, which is its own to mend
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="keras_tuner")
        task = bar.add_task(
            "search",
            total=max_trials * epochs,
            trial=1,
            trials=max_trials,
            objective=objective,
            best="-" if best is None else f"{best:.4g}",
        )

        def show(trial: int, epoch: int, best: float | None) -> None:
            text = "-" if best is None else f"{best:.4g}"
            bar.update(task, completed=trial * epochs + epoch, trial=trial + 1, best=text)

        yield show
        bar.update(task, completed=max_trials * epochs, trial=max_trials)
