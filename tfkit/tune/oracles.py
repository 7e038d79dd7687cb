"""keras-tuner's oracles, made to continue where a search was stopped."""

from typing import Any

import keras_tuner
from keras_tuner import oracles

from tfkit.tune.space import SearchSpace


class GridOracle(oracles.GridSearchOracle):
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


ORACLES = {
    "bayesian": oracles.BayesianOptimizationOracle,
    "random": oracles.RandomSearchOracle,
    "grid": GridOracle,
}


def make_oracle(
    tuner: str, objective: keras_tuner.Objective, max_trials: int, space: SearchSpace, seed: int | None
) -> keras_tuner.Oracle:
    """Returns the oracle that proposes the trials of a search."""
    return ORACLES[tuner](
        objective=objective,
        max_trials=max_trials,
        seed=None if seed is None else seed + 1,  # keras-tuner takes 0 for no seed
        hyperparameters=space.hyperparameters(),
        max_consecutive_failed_trials=max_trials + 1,  # one bad corner must not end the search
    )
