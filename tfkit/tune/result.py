"""What a search found, on disk and as tables. Needs neither TensorFlow nor Keras."""

import dataclasses
import json
import math
import os
import pathlib
import warnings
from typing import TYPE_CHECKING, Any, Literal

from tfkit.errors import ArgumentError, SearchError

if TYPE_CHECKING:
    import keras
    import pandas as pd

SPEC, TRIALS, CHECKPOINTS, SNAPSHOTS = "search.json", "trials", "checkpoints", "snapshots"
ENGINE = "keras_tuner"  # the folder of keras-tuner's own state
MEASURES = ("score", "best_epoch", "epochs", "seconds", "worker", "error")  # of a table, after the values
Status = Literal["completed", "failed", "running", "stopped"]


@dataclasses.dataclass
class TrialRecord:
    """One trial as it is kept on disk.

    Attributes:
        trial: Its number, from 0.
        status: ``"completed"``, ``"failed"``, ``"running"`` or ``"stopped"``: interrupted, or given
            up as hopeless, and then without an error.
        hyperparameters: Name to value.
        score: The objective at the best epoch; None without one.
        best_epoch: That epoch, from 0.
        seconds: Wall time.
        error: The traceback of a failed trial.
        history: Metric name to one value an epoch.
        worker: Which process ran it.
    """

    trial: int
    status: Status
    hyperparameters: dict[str, Any]
    score: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    error: str | None = None
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    worker: str = ""

    @property
    def is_over(self) -> bool:
        """Whether no process will go on with it."""
        return self.status in ("completed", "failed") or (self.status == "stopped" and self.error is None)

    def write(self, directory: pathlib.Path) -> None:
        """Puts the record on disk, whole or not at all."""
        path = record_path(directory, self.trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, dataclasses.asdict(self))


def record_path(directory: pathlib.Path, trial: int) -> pathlib.Path:
    """Returns where a trial's record is kept."""
    return directory / TRIALS / f"{trial:06d}.json"


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file in one move, so that no reader ever sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


def read_record(path: pathlib.Path) -> TrialRecord | None:
    """Reads a trial's record; None where there is none or only a part of one."""
    try:
        return TrialRecord(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


class SearchResult:
    """A search's trials, also of one that still runs or has crashed.

    Attributes:
        directory: Where the search keeps its files.
        objective: The name of what is optimised.
        direction: ``"min"`` or ``"max"``.

    Examples:
        >>> import tempfile, keras, numpy as np, tfkit
        >>> def build():
        ...     model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        ...     model.compile("adam", "mse")
        ...     return model
        >>> result = tfkit.search(build, np.ones((8, 2)), np.ones((8, 1)), max_trials=2, epochs=1,
        ...                       space=tfkit.SearchSpace(learning_rate=(1e-3, 1e-1)), verbose=0,
        ...                       validation_split=0.5, directory=tempfile.mkdtemp(), tuner="random")
        >>> tfkit.SearchResult.load(result.directory).table.status.tolist()
        ['completed', 'completed']
    """

    def __init__(self, directory: str | os.PathLike[str], spec: dict[str, Any], trials: list[TrialRecord]):
        self.directory = pathlib.Path(directory)
        self.objective: str = spec["objective"]
        self.direction: Literal["min", "max"] = spec["direction"]
        self._names: list[str] = list(spec["space"])
        self._trials = sorted(trials, key=lambda each: each.trial)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "SearchResult":
        """Reads the project in a directory, whether it finished, runs or crashed.

        Args:
            directory: What was passed to `search`.

        Returns:
            The trials so far.

        Raises:
            ArgumentError: If no search was ever begun there, or its description is torn.
        """
        folder = pathlib.Path(directory)
        if not (folder / SPEC).is_file():
            raise ArgumentError(
                "`directory` must be one that tfkit.search has used. "
                f"Received: directory={str(directory)!r}, which has no {SPEC}."
            )
        trials = {path: read_record(path) for path in folder.glob(f"{TRIALS}/*.json")}
        if torn := sorted(path.name for path, record in trials.items() if record is None):
            warnings.warn(
                f"{len(torn)} trials are left out, for their records are not whole: {', '.join(torn)} "
                f"in {str(folder / TRIALS)!r}. Run the search again to have them done.",
                stacklevel=2,
            )
        return cls(folder, read_spec(folder), [record for record in trials.values() if record])

    @property
    def table(self) -> "pd.DataFrame":
        """One row a trial.

        The columns are `trial`, `status`, one for each hyperparameter, `score`,
        `best_epoch`, `epochs`, `seconds`, `worker` and `error`.
        """
        import pandas as pd

        names = list(dict.fromkeys([*self._names, *(n for t in self._trials for n in t.hyperparameters)]))
        rows = [
            {
                "trial": each.trial,
                "status": each.status,
                **{name: each.hyperparameters.get(name) for name in names},
                "score": math.nan if each.score is None else each.score,
                "best_epoch": each.best_epoch,
                "epochs": max(map(len, each.history.values()), default=0),
                "seconds": each.seconds,
                "worker": each.worker,
                "error": each.error,
            }
            for each in self._trials
        ]
        columns = ["trial", "status", *names, *MEASURES]
        return pd.DataFrame(rows, columns=columns)

    @property
    def history(self) -> "pd.DataFrame":
        """One row an epoch a trial: `trial`, `epoch` and a column for each metric."""
        import pandas as pd

        parts = [
            pd.DataFrame(
                {"trial": each.trial, "epoch": range(len(next(iter(each.history.values())))), **each.history}
            )
            for each in self._trials
            if each.history
        ]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["trial", "epoch"])

    @property
    def best(self) -> "pd.Series":
        """The row of `table` with the best score.

        Raises:
            SearchError: If no trial has completed.
        """
        table = self.table
        completed = table[table.status == "completed"]
        if completed.empty:
            raise SearchError(
                "A search needs a completed trial to have a best one. "
                f"Received: {len(table)} trials, none completed, in {str(self.directory)!r}. "
                f"{self._last_error()}"
            )
        place: Any = completed.score.idxmin() if self.direction == "min" else completed.score.idxmax()
        return table.loc[place]

    def _last_error(self) -> str:
        errors = [each.error for each in self._trials if each.error]
        return f"The last error:\n{errors[-1]}" if errors else ""

    def best_model(self) -> "keras.Model":
        """Loads the best trial's model as it was after its best epoch, compiled.

        Raises:
            SearchError: If no trial has completed, or its file is gone.
        """
        path = self.directory / CHECKPOINTS / f"{self.best.trial:06d}.keras"
        if not path.is_file():
            raise SearchError(
                "The best trial's model must be there. "
                f"Received: {str(path)!r}, which is gone. Run the search anew with overwrite=True."
            )
        import keras

        from tfkit import per_variable  # noqa: F401 - knows the optimizers that a file may hold

        return keras.models.load_model(path)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the scores by trial, over learning rate and weight decay, and each trial as a line.

        Args:
            path: The image to write; its ending gives the format.

        Raises:
            SearchError: If no trial has completed.
        """
        self.best  # noqa: B018  raises if there is none
        from tfkit.tune import plots

        table = self.table
        names = [name for name in table.columns[2 : -len(MEASURES)] if table[name].notna().any()]
        plots.draw(table, names, self.objective, self.direction).savefig(path, dpi=120)


def read_spec(folder: pathlib.Path) -> dict[str, Any]:
    """Reads what a search in a directory is about.

    Raises:
        ArgumentError: If the file is torn.
    """
    try:
        spec = json.loads((folder / SPEC).read_text())
        if not isinstance(spec, dict):
            raise ValueError("it holds no object")
        return spec
    except ValueError as error:
        raise ArgumentError(
            f"`directory` must hold a whole {SPEC}. "
            f"Received: directory={str(folder)!r}, whose file is not ({error}). "
            "Put it back from a copy, or begin anew with overwrite=True."
        ) from error
