"""A search as data, and the keras-tuner engine that runs its trials in a process."""

import contextlib
import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import keras_tuner

from tfkit.frozen.features import Storage
from tfkit.tune.bench import Bench
from tfkit.tune.oracles import make_oracle
from tfkit.tune.result import ENGINE
from tfkit.tune.space import SearchSpace
from tfkit.tune.trial import SearchTuner

MEMORY_BYTES = 4 * 2**30  # of features to keep in memory; more go to disk


@dataclasses.dataclass(frozen=True)
class Job:
    """All that a process must know to run trials of a search; see `search` for the meanings.

    Attributes:
        build: What makes a model.
        takes_hp: Whether it takes hyperparameters.
        space: What varies.
        fit: The arguments of `fit` that all trials share: the data among them.
        tuner: The oracle's name.
        objective: What is optimised, with its direction.
        max_trials: Trials at most.
        epochs: Epochs a trial.
        callbacks: Keras callbacks, copied for each trial.
        seed: Seeds the oracle and every trial; None leaves randomness alone.
        reuse: Whether to keep a model for the next trial.
        cache_frozen: Whether to compute frozen layers once.
        keep_checkpoints: How many of the best models stay on disk.
        median_stopping: Whether to stop hopeless trials.
        strategy: A tf.distribute strategy.
    """

    build: Callable[..., keras.Model]
    takes_hp: bool
    space: SearchSpace
    fit: dict[str, Any]
    tuner: str
    objective: keras_tuner.Objective
    max_trials: int
    epochs: int
    callbacks: Sequence[keras.callbacks.Callback] = ()
    seed: int | None = None
    reuse: bool = True
    cache_frozen: bool = True
    keep_checkpoints: int = 1
    median_stopping: bool = False
    strategy: Any = None

    def oracle(self) -> keras_tuner.Oracle:
        """Returns the oracle that proposes the trials."""
        return make_oracle(self.tuner, self.objective, self.max_trials, self.epochs, self.space, self.seed)


Progress = Callable[[int, int, float | None], None]


@contextlib.contextmanager
def engine(
    job: Job, folder: pathlib.Path, progress: Progress, worker: str, client: Any = None
) -> Iterator[SearchTuner]:
    """Gives keras-tuner's loop over the trials that are still to come.

    Args:
        job: The search.
        folder: Its directory.
        progress: Called as ``progress(trial, epoch, best)``.
        worker: The name of this process in the records.
        client: The way to a chief that gives out the trials; None to propose them here.
    """
    moves = any(getattr(each, "moves_boundary", False) for each in job.callbacks)
    with contextlib.ExitStack() as lifetime:
        storage = Storage(MEMORY_BYTES, None, lifetime) if job.cache_frozen and not moves else None
        bench = Bench(
            job.build,
            job.takes_hp,
            job.space,
            job.fit,
            seed=job.seed,
            reuse=job.reuse and not moves,
            storage=storage,
            objective=None if job.callbacks else job.objective.name,
            strategy=job.strategy,
        )
        # keras-tuner prints a line when it takes up a search; no code of the user runs then
        continued = (folder / ENGINE).is_dir()
        with contextlib.redirect_stdout(io.StringIO()) if continued else contextlib.nullcontext():
            made = SearchTuner(
                oracle=job.oracle(),
                bench=bench,
                directory=str(folder),
                project_name=ENGINE,
                search_directory=folder,
                progress=progress,
                epochs=job.epochs,
                callbacks=job.callbacks,
                keep_checkpoints=job.keep_checkpoints,
                median_stopping=job.median_stopping,
                worker=worker,
                client=client,
            )
        yield made
