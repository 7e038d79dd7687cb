"""What a search found, on disk and as tables. Needs neither TensorFlow nor Keras."""

import dataclasses
import json
import math
import os
import pathlib
from typing import TYPE_CHECKING, Any, Literal

from tfkit.errors import ArgumentError, SearchError

if TYPE_CHECKING:
    import keras
    import pandas as pd

SPEC, TRIALS, BEST = "search.json", "trials", "best.keras"
Status = Literal["completed", "failed", "running", "stopped"]


@dataclasses.dataclass
class TrialRecord:
    """One trial as it is kept on disk.

    Attributes:
        trial: Its number, from 0.
        status: ``"completed"``, ``"failed"``, ``"running"`` or ``"stopped"``.
        hyperparameters: Name to value.
        score: The objective at the best epoch; None without one.
        best_epoch: That epoch, from 0.
        seconds: Wall time.
        error: The traceback of a failed trial.
        history: Metric name to one value an epoch.
    """

    trial: int
    status: Status
    hyperparameters: dict[str, Any]
    score: float | None = None
    best_epoch: int | None = None
    seconds: float = 0.0
    error: str | None = None
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def write(self, directory: pathlib.Path) -> None:
        """Puts the record on disk, whole or not at all."""
        folder = directory / TRIALS
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{self.trial:06d}.json", dataclasses.asdict(self))


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file in one move, so that no reader ever sees half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


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

    def __init__(self, directory: str | os.PathLike, spec: dict[str, Any], trials: list[TrialRecord]):
        self.directory = pathlib.Path(directory)
        self.objective: str = spec["objective"]
        self.direction: Literal["min", "max"] = spec["direction"]
        self._names: list[str] = list(spec["space"])
        self._trials = sorted(trials, key=lambda each: each.trial)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "SearchResult":
        """Reads the project in a directory, whether it finished, runs or crashed.

        Args:
            directory: What was passed to `search`.

        Returns:
            The trials so far.

        Raises:
            ArgumentError: If no search was ever begun there.
        """
        folder = pathlib.Path(directory)
        if not (folder / SPEC).is_file():
            raise ArgumentError(
                "`directory` must be one that tfkit.search has used. "
                f"Received: directory={str(directory)!r}, which has no {SPEC}."
            )
        spec = json.loads((folder / SPEC).read_text())
        trials = [TrialRecord(**json.loads(path.read_text())) for path in folder.glob(f"{TRIALS}/*.json")]
        return cls(folder, spec, trials)

    @property
    def table(self) -> "pd.DataFrame":
        """One row a trial.

        The columns are `trial`, `status`, one for each hyperparameter, `score`,
        `best_epoch`, `epochs`, `seconds` and `error`.
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
                "error": each.error,
            }
            for each in self._trials
        ]
        columns = ["trial", "status", *names, "score", "best_epoch", "epochs", "seconds", "error"]
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
        place = completed.score.idxmin() if self.direction == "min" else completed.score.idxmax()
        return table.loc[place]

    def _last_error(self) -> str:
        errors = [each.error for each in self._trials if each.error]
        return f"The last error:\n{errors[-1]}" if errors else ""

    def best_model(self) -> "keras.Model":
        """Loads the best trial's model as it was after its best epoch, compiled.

        Raises:
            SearchError: If no trial has completed.
        """
        self.best  # noqa: B018  raises if there is none
        import keras

        return keras.models.load_model(self.directory / BEST)

    def plot(self, path: str | os.PathLike) -> None:
        """Draws the scores by trial and over learning rate and weight decay.

        Args:
            path: The image to write; its ending gives the format.

        Raises:
            SearchError: If no trial has completed.
        """
        self.best  # noqa: B018
        import pandas as pd
        from matplotlib.figure import Figure

        table = self.table
        completed = table[table.status == "completed"]
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        best_so_far = completed.score.cummin() if self.direction == "min" else completed.score.cummax()
        left.plot(completed.trial, completed.score, "o", label="trial")
        left.step(completed.trial, best_so_far, where="post", label="best so far")
        left.set(xlabel="trial", ylabel=self.objective, title="Score by trial")
        left.legend()
        axes = [name for name in ("learning_rate", "weight_decay") if name in completed] or self._names[:1]
        x, y = axes[0], axes[1] if len(axes) > 1 else "score"
        dots = right.scatter(
            completed[x], completed[y], c=completed.score, cmap="viridis", edgecolors="black"
        )
        right.set(xlabel=x, ylabel=self.objective if y == "score" else y, title="Score over the space")
        for axis, name in ((right.set_xscale, x), (right.set_yscale, y)):
            if (
                name in axes
                and pd.api.types.is_numeric_dtype(completed[name])
                and (completed[name] > 0).all()
            ):
                axis("log")
        figure.colorbar(dots, label=self.objective)
        figure.savefig(path, dpi=120)
