"""One trial: a model in its first state, a rate and a decay, epochs, a score."""

import copy
import math
import os
import pathlib
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import keras_tuner
import numpy as np

from tfkit.tune.bench import Bench, WrongCallError, moving_variables, plain_decay, require_reported
from tfkit.tune.ledger import Ledger
from tfkit.tune.result import SNAPSHOTS, TrialRecord, read_record, record_path, write_json
from tfkit.tune.snapshot import Snapshot, read_values, write_values

LEAST_TRIALS = 5  # to compare with before one is called hopeless


class EpochKeeper(keras.callbacks.Callback):
    """Keeps what a trial has reached after every epoch: in its record, on disk, and the best in memory.

    Args:
        objective: What is optimised.
        record: The trial's record, which is written after every epoch.
        folder: The search's directory.
        before: What an interrupted run of this trial left; None at its beginning.
        is_hopeless: Tells from the objective's values so far whether to stop the trial.
        on_epoch: Called with the number of epochs done.
    """

    def __init__(
        self,
        objective: keras_tuner.Objective,
        record: TrialRecord,
        folder: pathlib.Path,
        before: Snapshot | None,
        is_hopeless: Callable[[list[float]], bool],
        on_epoch: Callable[[int], None],
    ):
        super().__init__()
        self.objective = objective
        self.best: list[np.ndarray] | None = None
        self.hopeless = False
        self._record, self._folder = record, folder
        self._is_hopeless, self._on_epoch = is_hopeless, on_epoch
        self._start = time.perf_counter() - record.seconds
        if before is not None:
            record.history = before.history
            self._judge()
            self.best = before.best

    @property
    def values(self) -> list[float]:
        """The objective so far, one value an epoch."""
        return self._record.history.get(self.objective.name, [])

    def _judge(self) -> bool:
        """Notes the best epoch so far and tells whether that is the last one."""
        finite = [(value, epoch) for epoch, value in enumerate(self.values) if math.isfinite(value)]
        if not finite:
            return False
        sign = 1 if self.objective.direction == "min" else -1
        value, epoch = min(finite, key=lambda each: (sign * each[0], each[1]))
        self._record.score, self._record.best_epoch = value, epoch
        return epoch == len(self.values) - 1

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        for name, metric in (logs or {}).items():
            self._record.history.setdefault(name, []).append(float(metric))
        if self.objective.name not in self._record.history:
            require_reported(self.objective.name, logs or {})
        if self._judge():
            self.best = read_values(moving_variables(self.model))
        if self.best is not None:
            Snapshot.take(self.model, self.best, self._record.history).write(
                snapshot_path(self._folder, self._record.trial)
            )
        self._record.seconds = time.perf_counter() - self._start
        self._record.write(self._folder)
        self._on_epoch(epoch + 1)
        if self._is_hopeless(self.values):
            self.hopeless = self.model.stop_training = True


def snapshot_path(folder: pathlib.Path, trial: int) -> pathlib.Path:
    """Returns where the state of a trial that is not over is kept."""
    return folder / SNAPSHOTS / f"{trial:06d}.npz"


class SearchTuner(keras_tuner.engine.base_tuner.BaseTuner):
    """keras-tuner's loop, with records, snapshots, progress and checkpoints added.

    Args:
        search_directory: Where the search keeps its files.
        bench: Gives each trial its model and trains it.
        epochs: Epochs of a trial, unless the oracle says otherwise.
        callbacks: Keras callbacks, copied for each trial.
        keep_checkpoints: How many of the best models stay on disk.
        median_stopping: Whether to stop hopeless trials.
        progress: Called as ``progress(trial, epoch, best)``.
        worker: The name of this process in the records.
        client: The way to a chief that gives out the trials, if there is one.
        **kwargs: Keras-tuner's own arguments.
    """

    def __init__(
        self,
        *,
        search_directory: pathlib.Path,
        bench: Bench,
        epochs: int,
        callbacks: Sequence[keras.callbacks.Callback],
        keep_checkpoints: int,
        median_stopping: bool,
        progress: Callable[[int, int, float | None], None],
        worker: str,
        client: Any,
        oracle: keras_tuner.Oracle,
        **kwargs: Any,
    ):
        objective = oracle.objective
        self._folder, self._bench = search_directory, bench
        self._epochs, self._callbacks = epochs, callbacks
        self._keep_checkpoints, self._median_stopping = keep_checkpoints, median_stopping
        self._progress, self._worker, self._client = progress, worker, client
        self.ledger = Ledger(search_directory, objective.name, objective.direction)
        super().__init__(oracle=oracle, hypermodel=bench, **kwargs)
        if client is not None:
            self.oracle, self.tuner_id = client, worker

    def run_trial(self, trial: Any) -> dict[str, float | None]:
        number, values = int(trial.trial_id), dict(trial.hyperparameters.values)
        earlier = read_record(record_path(self._folder, number))
        if earlier is not None and earlier.is_over:
            record = earlier  # a process was killed before keras-tuner heard of it
            if record.status == "failed":
                raise keras_tuner.errors.FailedTrialError(record.error)
        else:
            seconds = 0.0 if earlier is None else earlier.seconds
            record = TrialRecord(number, "running", _own(values), seconds=seconds, worker=self._worker)
            self._run_recorded(trial, record, values)
        self.ledger.keep(self._keep_checkpoints)
        if not values.get("tuner/epochs"):  # Hyperband may go on from there
            snapshot_path(self._folder, number).unlink(missing_ok=True)
        self._progress(number, self._epochs, self.ledger.best)
        return {self.oracle.objective.name: record.score}

    def _run_recorded(self, trial: Any, record: TrialRecord, values: dict[str, Any]) -> None:
        """Trains a trial's model; its record on disk tells how that ends, however it ends."""
        record.write(self._folder)
        start = time.perf_counter() - record.seconds
        try:
            self._train(trial, record, values)
        except BaseException as error:
            is_its_own = isinstance(error, Exception) and not isinstance(error, WrongCallError)
            record.status = "failed" if is_its_own else "stopped"
            record.error = traceback.format_exc()
            if record.is_over:
                snapshot_path(self._folder, record.trial).unlink(missing_ok=True)
            raise
        finally:
            record.seconds = time.perf_counter() - start
            record.write(self._folder)

    def _train(self, trial: Any, record: TrialRecord, values: dict[str, Any]) -> None:
        """Trains a trial's model and notes the outcome in its record."""
        number, best = record.trial, self.ledger.best
        model = self._bench.build(trial.hyperparameters)
        record.hyperparameters = _own(trial.hyperparameters.values)  # `build` may have declared more
        begun, before = self._begun(record, values, model)
        keeper = EpochKeeper(
            self.oracle.objective,
            record,
            self._folder,
            before,
            lambda seen: self._median_stopping and self.ledger.is_hopeless(seen, LEAST_TRIALS),
            lambda epoch: self._progress(number, epoch, best),
        )
        callbacks = copy.deepcopy(list(self._callbacks))
        _log_hyperparameters(callbacks, record)
        epochs = values.get("tuner/epochs") or self._epochs
        if begun < epochs:
            self._bench.fit(
                model, {"epochs": epochs, "initial_epoch": begun, "callbacks": [*callbacks, keeper]}
            )
        if keeper.best is None or record.score is None:
            raise keras_tuner.errors.FailedTrialError(
                f"{keeper.objective.name} was never a finite number: {keeper.values}"
            )
        record.status = "stopped" if keeper.hopeless else "completed"
        if record.status == "completed":
            self._save_if_good(model, keeper.best, record.score, record.trial)

    def _begun(
        self, record: TrialRecord, values: dict[str, Any], model: keras.Model
    ) -> tuple[int, Snapshot | None]:
        """Puts the model where this trial was interrupted, or where the one before it in Hyperband ended.

        Returns the epochs that are done, and what an interrupted run of this trial left.
        """
        own = Snapshot.read(snapshot_path(self._folder, record.trial))
        if own is not None and model.optimizer.built and own.fits(model):
            own.put_into(model)
            done = max(map(len, own.history.values()))
            return values.get("tuner/initial_epoch", 0) + done, own
        if past := values.get("tuner/trial_id"):
            earlier = Snapshot.read(snapshot_path(self._folder, int(past)))
            if earlier is not None and earlier.fits(model):
                earlier.put_into(model)
                return values["tuner/initial_epoch"], None
        return 0, None

    def _save_if_good(self, model: keras.Model, best: list[np.ndarray], score: float, trial: int) -> None:
        """Saves the model as it was after its best epoch, if it is among the best so far."""
        if self.ledger.count_ahead(score) >= self._keep_checkpoints:
            return
        write_values(moving_variables(model), best)
        path = self.ledger.checkpoint(trial)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}.keras")
        with plain_decay(model):
            model.save(temporary)
        os.replace(temporary, path)

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

    def save(self) -> None:
        """Marks the project as begun; all that counts is in the oracle's files."""
        if self._client is None:
            write_json(pathlib.Path(self._get_tuner_fname()), {})

    def reload(self) -> None:
        if self._client is None:
            self.oracle.reload()
        else:
            self._populate_initial_space()


def _own(values: dict[str, Any]) -> dict[str, Any]:
    """Returns hyperparameters without those that keras-tuner keeps for itself."""
    return {name: value for name, value in values.items() if not name.startswith("tuner/")}


def _log_hyperparameters(callbacks: list[keras.callbacks.Callback], record: TrialRecord) -> None:
    """Gives each trial a folder of TensorBoard's, with its values for the HParams page."""
    for each in callbacks:
        if isinstance(each, keras.callbacks.TensorBoard):
            import tensorflow as tf
            from tensorboard.plugins.hparams import api

            each.log_dir = os.path.join(each.log_dir, f"trial_{record.trial:06d}")
            with tf.summary.create_file_writer(each.log_dir).as_default():
                api.hparams(record.hyperparameters, trial_id=f"{record.trial:06d}")
