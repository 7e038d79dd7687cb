"""keras-tuner's oracles, made to continue where a search was stopped."""

import json
import pathlib
from typing import TYPE_CHECKING, Any

import keras_tuner
from keras_tuner import oracles
from keras_tuner.engine import trial as trials

from tfkit.errors import SearchError
from tfkit.tune.result import read_record, record_path, write_json
from tfkit.tune.space import SearchSpace

if TYPE_CHECKING:  # it stands before the class of an oracle, whose methods it extends
    from keras_tuner import Oracle as _Oracle
else:
    _Oracle = object


class _Careful(_Oracle):
    """Files that are written whole or not at all, and read whatever state they are in."""

    _retry_queue: list[str]

    def save(self) -> None:
        write_json(pathlib.Path(self._get_oracle_fname()), self.get_state())

    def _save_trial(self, trial: trials.Trial) -> None:
        write_json(pathlib.Path(self._get_trial_dir(trial.trial_id), "trial.json"), trial.get_state())

    def reload(self) -> None:
        path = pathlib.Path(self._get_oracle_fname())
        try:
            state = json.loads(path.read_text())
        except (ValueError, FileNotFoundError) as error:
            raise SearchError(
                "A search goes on from its oracle's file, which must be whole. "
                f"Received: {str(path)!r} ({error}). "
                "Put it back from a copy, or begin anew with overwrite=True."
            ) from error
        for folder in sorted(pathlib.Path(self._project_dir).glob("trial_*")):
            self.trials[folder.name.removeprefix("trial_")] = self._read_trial(folder, state)
        for name in ("start_order", "end_order", "retry_queue"):
            state[name] = [each for each in state[name] if each in self.trials]
        state["ongoing_trials"] = {k: v for k, v in state["ongoing_trials"].items() if v in self.trials}
        self.set_state(state)
        unfinished = [each.trial_id for each in self.trials.values() if each.status == "RUNNING"]
        self._retry_queue = list(dict.fromkeys([*self._retry_queue, *reversed(unfinished)]))
        self.ongoing_trials: dict[str, trials.Trial] = {}
        self.tuner_ids: set[str] = set()

    def _read_trial(self, folder: pathlib.Path, state: dict[str, Any]) -> trials.Trial:
        """Reads a trial; one whose file is torn is made from tfkit's own record of it."""
        try:
            return trials.Trial.from_state(json.loads((folder / "trial.json").read_text()))
        except (ValueError, FileNotFoundError, KeyError) as error:
            number = folder.name.removeprefix("trial_")
            record = read_record(record_path(folder.parents[1], int(number)))
            if record is None:
                raise SearchError(
                    "A trial's file must be whole, or its record must be. "
                    f"Received: {str(folder / 'trial.json')!r} ({error}). "
                    "Begin anew with overwrite=True, or in another directory."
                ) from error
            hp = keras_tuner.HyperParameters.from_config(state["hyperparameters"])
            hp.values = dict(record.hyperparameters)
            over = {"completed": "COMPLETED", "stopped": "COMPLETED", "failed": "FAILED"}
            status = over[record.status] if record.is_over else "RUNNING"
            trial = trials.Trial(hp, number, status, record.error)
            trial.score, trial.best_step = record.score, record.best_epoch or 0
            return trial

    def _check_consecutive_failures(self) -> None:
        """One bad corner of a space must not end the search."""


class GridOracle(_Careful, oracles.GridSearchOracle):
    """keras-tuner's grid, which forgets the order of its combinations when it is reloaded."""

    def get_state(self) -> dict[str, Any]:
        """Returns keras-tuner's state and the trials in the order of their combinations."""
        ordered = sorted(self._ordered_ids._data_to_index, key=self._place)
        return super().get_state() | {"ordered_ids": ordered}

    def _place(self, trial_id: str) -> int:
        place, index = 0, self._ordered_ids._next_index[None]
        while self._ordered_ids._memory[index] != trial_id:
            place, index = place + 1, self._ordered_ids._next_index[index]
        return place

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes up the state; every trial may turn out to have a next combination."""
        super().set_state(state)
        for trial_id in state["ordered_ids"]:
            self._ordered_ids.insert(trial_id)
        self._populate_next = list(state["ordered_ids"])


class BayesianOracle(_Careful, oracles.BayesianOptimizationOracle):
    """keras-tuner's Gaussian process."""


class RandomOracle(_Careful, oracles.RandomSearchOracle):
    """keras-tuner's random search."""


class HyperbandOracle(_Careful, oracles.HyperbandOracle):
    """keras-tuner's Hyperband, begun anew as long as there are trials left."""

    def __init__(self, *, max_trials: int, epochs: int, **kwargs: Any):
        super().__init__(max_epochs=epochs, hyperband_iterations=None, **kwargs)
        self.max_trials = max_trials


ORACLES = {
    "bayesian": BayesianOracle,
    "random": RandomOracle,
    "hyperband": HyperbandOracle,
    "grid": GridOracle,
}


def make_oracle(
    tuner: str,
    objective: keras_tuner.Objective,
    max_trials: int,
    epochs: int,
    space: SearchSpace,
    seed: int | None,
) -> keras_tuner.Oracle:
    """Returns the oracle that proposes the trials of a search."""
    options = {"epochs": epochs} if tuner == "hyperband" else {}
    return ORACLES[tuner](
        objective=objective,
        max_trials=max_trials,
        seed=None if seed is None else seed + 1,  # keras-tuner takes 0 for no seed
        hyperparameters=space.hyperparameters(),
        **options,
    )
