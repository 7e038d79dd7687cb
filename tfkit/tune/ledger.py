"""What has been found so far, read from the records that all workers of a search write."""

import math
import pathlib
import statistics

from tfkit.tune.result import CHECKPOINTS, TRIALS, TrialRecord, read_record


class Ledger:
    """The records of a search's directory; those of trials that ended are read once.

    Args:
        folder: The directory.
        objective: Name of what is optimised.
        direction: ``"min"`` or ``"max"``.
    """

    def __init__(self, folder: pathlib.Path, objective: str, direction: str):
        self._folder, self._objective = folder, objective
        self._sign = 1.0 if direction == "min" else -1.0
        self._ended: dict[int, TrialRecord] = {}

    def records(self) -> list[TrialRecord]:
        """Returns all trials that have begun."""
        ended = self.ended()
        paths = (self._folder / TRIALS).glob("*.json")
        running = [read_record(path) for path in paths if int(path.stem) not in ended]
        return [*ended.values(), *(record for record in running if record is not None)]

    def ended(self) -> dict[int, TrialRecord]:
        """Returns the trials that completed, failed or were stopped for good, by number."""
        for path in (self._folder / TRIALS).glob("*.json"):
            number = int(path.stem)
            if number not in self._ended:
                record = read_record(path)
                if record is not None and record.is_over:
                    self._ended[number] = record
        return self._ended

    def ranked(self) -> list[TrialRecord]:
        """Returns the completed trials, the best first."""
        return [record for *_, record in self._losses()]

    def count_ahead(self, score: float) -> int:
        """Returns how many completed trials have a score at least as good."""
        return sum(loss <= self._sign * score for loss, *_ in self._losses())

    def _losses(self) -> list[tuple[float, int, TrialRecord]]:
        """Returns the completed trials, the best first, each behind its score as a loss and its number."""
        losses = [
            (self._sign * each.score, each.trial, each)
            for each in self.ended().values()
            if each.status == "completed" and each.score is not None
        ]
        return sorted(losses, key=lambda row: row[:2])

    @property
    def best(self) -> float | None:
        """The best score so far."""
        ranked = self.ranked()
        return ranked[0].score if ranked else None

    def is_hopeless(self, values: list[float], least_trials: int) -> bool:
        """Tells whether a trial's best value lags behind the median of the others at the same epoch.

        Args:
            values: The trial's objective, one an epoch so far.
            least_trials: Trials that must have got that far before any is judged.

        Source: the median stopping rule of Golovin et al., Google Vizier (2017), section 3.2.
        """
        epoch = len(values)
        others = [
            self._best_of(record.history[self._objective][:epoch])
            for record in self.ended().values()
            if len(record.history.get(self._objective, ())) >= epoch
        ]
        return len(others) >= least_trials and self._best_of(values) > statistics.median(others)

    def _best_of(self, values: list[float]) -> float:
        """Returns the best value, the less the better."""
        return min((self._sign * value for value in values if math.isfinite(value)), default=math.inf)

    def checkpoint(self, trial: int) -> pathlib.Path:
        """Returns where a trial's model is kept."""
        return self._folder / CHECKPOINTS / f"{trial:06d}.keras"

    def keep(self, count: int) -> None:
        """Deletes the checkpoints of all but the best trials."""
        kept = {self.checkpoint(record.trial) for record in self.ranked()[:count]}
        for path in (self._folder / CHECKPOINTS).glob("*.keras"):
            if path not in kept:
                path.unlink(missing_ok=True)  # another worker may have been quicker
