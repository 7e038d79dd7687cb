"""A trial between two epochs, on disk: what a worker that takes it up again goes on from."""

import dataclasses
import json
import os
import pathlib
import zipfile
from typing import Any

import keras
import numpy as np

from tfkit.training import local_value
from tfkit.tune.bench import moving_variables


@dataclasses.dataclass
class Snapshot:
    """The state of a trial after an epoch.

    Attributes:
        values: What training moves: weights, statistics, seeds, the optimizer's state.
        best: The weights, statistics and seeds after the best epoch.
        history: Metric name to one value an epoch.
    """

    values: list[np.ndarray]
    best: list[np.ndarray]
    history: dict[str, list[float]]

    @classmethod
    def take(cls, model: keras.Model, best: list[np.ndarray], history: dict[str, list[float]]) -> "Snapshot":
        return cls(read_values([*moving_variables(model), *model.optimizer.variables]), best, history)

    def fits(self, model: keras.Model) -> bool:
        """Tells whether a model's state has the same shapes."""
        variables = [*moving_variables(model), *model.optimizer.variables]
        return [value.shape for value in self.values] == [tuple(each.shape) for each in variables]

    def put_into(self, model: keras.Model) -> None:
        write_values([*moving_variables(model), *model.optimizer.variables], self.values)

    def write(self, path: pathlib.Path) -> None:
        """Writes it, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
        arrays: dict[str, Any] = {f"value_{place}": value for place, value in enumerate(self.values)}
        arrays |= {f"best_{place}": value for place, value in enumerate(self.best)}
        with open(temporary, "wb") as file:
            np.savez(file, history=np.array(json.dumps(self.history)), **arrays)
        os.replace(temporary, path)

    @classmethod
    def read(cls, path: pathlib.Path) -> "Snapshot | None":
        """Reads it; None where there is none, or where a crash of long ago left half of one."""
        if not path.is_file():
            return None
        try:
            with np.load(path) as file:
                names = file.files
                arrays: dict[str, list[Any]] = {
                    kind: [file[name] for name in names if name.startswith(kind)]
                    for kind in ("value_", "best_")
                }
                return cls(arrays["value_"], arrays["best_"], json.loads(str(file["history"])))
        except (ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None


def read_values(variables: list[keras.Variable]) -> list[np.ndarray]:
    """Returns copies of what variables hold."""
    return [np.array(local_value(variable).numpy()) for variable in variables]


def write_values(variables: list[keras.Variable], values: list[np.ndarray]) -> None:
    """Puts values into variables."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
