"""One trial: build, set the rate and the decay, fit, keep the best epoch."""

import copy
import math
import os
import pathlib
import time
import traceback
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import keras_tuner

from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.tune.result import BEST, TrialRecord
from tfkit.tune.space import LOGARITHMIC, SearchSpace


class WrongCallError(ArgumentError):
    """A mistake in the call of `search` itself, which no other trial would mend."""


class NoModelError(WrongCallError, ArgumentTypeError):
    """A `build` that returns something else than a model."""


class Hypermodel(keras_tuner.HyperModel):
    """A user's `build`, with the learning rate and weight decay of a trial applied."""

    def __init__(self, build: Callable[..., keras.Model], takes_hp: bool, space: SearchSpace):
        super().__init__()
        self._make = build
        self._takes_hp = takes_hp
        self._space = space
        self._last: list[weakref.ref[keras.Variable]] = []

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        model = self._make(hp) if self._takes_hp else self._make()
        optimizer = _optimizer(model)
        self._require_fresh(model)
        for name in LOGARITHMIC:
            if name in self._space.entries:
                setattr(optimizer, name, hp.get(name))
        return model

    def _require_fresh(self, model: keras.Model) -> None:
        """Checks that no weight that trains was there in the trial before."""
        before = {id(variable) for reference in self._last if (variable := reference()) is not None}
        shared = [variable.path for variable in model.trainable_variables if id(variable) in before]
        if shared:
            raise WrongCallError(
                "`build` must make new weights each time, or trials would train each other's. "
                f"Received: model={model.name!r}, twice with the same {', '.join(shared[:3])}. "
                "Create, load or clone what trains inside `build`."
            )
        self._last = [weakref.ref(variable) for variable in model.trainable_variables]


def _optimizer(model: object) -> keras.optimizers.Optimizer:
    if not isinstance(model, keras.Model):
        raise NoModelError(
            "`build` must return a compiled Keras 3 model. "
            f"Received: {model!r} of type {type(model).__module__}.{type(model).__name__}."
        )
    if not model.compiled:
        raise WrongCallError(
            "`build` must return a compiled model, so that the search knows its loss. "
            f"Received: model={model.name!r}, not compiled. Call model.compile(optimizer, loss) in `build`."
        )
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not isinstance(optimizer._learning_rate, keras.Variable):
        raise WrongCallError(
            "The optimizer must be made with a number as its learning rate, for the search sets it. "
            f"Received: learning_rate={optimizer._learning_rate!r} in model {model.name!r}. "
            "Pass a float to the optimizer and the curve as a callback."
        )
    return optimizer


class BestEpoch(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the best objective, in memory."""

    def __init__(self, objective: keras_tuner.Objective, on_epoch: Callable[[int], None]):
        super().__init__()
        self.objective = objective
        self.value: float | None = None
        self.epoch: int | None = None
        self.weights: list[Any] | None = None
        self.history: dict[str, list[float]] = {}
        self._on_epoch = on_epoch

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._on_epoch(epoch)
        for name, metric in (logs or {}).items():
            self.history.setdefault(name, []).append(float(metric))
        if self.objective.name not in self.history:
            raise WrongCallError(
                "`objective` must be a metric that training reports. "
                f"Received: objective={self.objective.name!r}; "
                f"the history has {', '.join(sorted(logs or {}))}."
            )
        value = float(logs[self.objective.name])
        if math.isfinite(value) and (self.value is None or self.objective.better_than(value, self.value)):
            self.value, self.epoch = value, epoch
            self.weights = self.model.get_weights()


class SearchTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """keras-tuner's loop, with records, progress and one checkpoint added.

    Args:
        directory: Where the search keeps its files.
        progress: Called as ``progress(trial, epoch, best)``.
        seed: Seeds every trial alike; None leaves randomness alone.
        **kwargs: Keras-tuner's own arguments.
    """

    def __init__(
        self,
        *,
        search_directory: pathlib.Path,
        progress: Callable[[int, int, float | None], None],
        seed: int | None,
        best: float | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._folder = search_directory
        self._progress = progress
        self._seed = seed
        self._best = best

    def run_trial(
        self, trial: Any, *, fit: Mapping[str, Any], callbacks: Sequence[keras.callbacks.Callback]
    ) -> keras.callbacks.History:
        number = int(trial.trial_id)
        record = TrialRecord(number, "running", dict(trial.hyperparameters.values))
        record.write(self._folder)
        start = time.perf_counter()
        if self._seed is not None:
            keras.utils.set_random_seed(self._seed)
        best = BestEpoch(self.oracle.objective, lambda epoch: self._progress(number, epoch + 1, self._best))
        try:
            model = self.hypermodel.build(trial.hyperparameters)
            model.fit(**fit, callbacks=[*copy.deepcopy(list(callbacks)), best])
            if best.value is None:
                raise keras_tuner.errors.FailedTrialError(
                    f"{best.objective.name} was never a finite number: {best.history[best.objective.name]}"
                )
            record.status, record.score, record.best_epoch = "completed", best.value, best.epoch
            self._keep_if_best(model, best)
            self._progress(number, best.params["epochs"], self._best)
        except BaseException as error:
            record.status = "failed" if isinstance(error, Exception) else "stopped"
            record.error = traceback.format_exc()
            raise
        finally:
            record.history = best.history
            record.seconds = time.perf_counter() - start
            record.write(self._folder)
        return model.history

    def _keep_if_best(self, model: keras.Model, best: BestEpoch) -> None:
        if self._best is not None and not self.oracle.objective.better_than(best.value, self._best):
            return
        model.set_weights(best.weights)
        temporary = self._folder / f".{os.getpid()}.{BEST}"
        model.save(temporary)
        os.replace(temporary, self._folder / BEST)
        self._best = best.value

    def _try_run_and_update_trial(self, trial: Any, *args: Any, **kwargs: Any) -> None:
        try:
            self._run_and_update_trial(trial, *args, **kwargs)
            trial.status = "COMPLETED"
        except WrongCallError:
            raise
        except Exception:  # the record on disk has the traceback; the search goes on
            trial.status = "FAILED"
            trial.message = traceback.format_exc()

    def _populate_initial_space(self) -> None:
        """Learns what `build` declares; a build that fails here is a trial's affair."""
        try:
            super()._populate_initial_space()
        except WrongCallError:
            raise
        except Exception as error:
            warnings.warn(
                f"`build` raised {type(error).__name__} at the space's first values: {error}. "
                "Trials with such values will fail.",
                stacklevel=2,
            )

    def on_search_begin(self) -> None:
        self.save()  # so that a search killed in its first trial is known to the next call
