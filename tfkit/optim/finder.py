"""A short mock training that shows which learning rates a model can take."""

import dataclasses
import math
import numbers
import os
import types
import warnings
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ArgumentError
from tfkit.optim.arguments import require_count, require_positive
from tfkit.optim.rate import require_assignable_rate, set_rate
from tfkit.training import TrainingState, require_current_training

if TYPE_CHECKING:
    import pandas as pd

SLIDE_WIDTH, SLIDE_THRESHOLD = 15, 0.005  # fastai's
DROPPED_END = 5  # the last steps are not judged, nor is the first tenth
LEAST_STEPS = 10
LEAST_POINTS = 4  # below that there is no curve to read


def find_learning_rate(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    start: float = 1e-7,
    stop: float = 10.0,
    steps: int = 100,
    batch_size: int = 32,
    sample_weight: Any = None,
    divergence: float = 4.0,
    smoothing: float = 0.98,
    shuffle: bool = True,
    verbose: int = 0,
) -> "LearningRateSearch":
    """Trains a few batches while the learning rate rises, and puts everything back.

    Batch i of n trains at the rate ``start · (stop / start)^(i / (n - 1))``. With l_i the
    loss of that batch alone and β the smoothing, the smoothed loss is
    ``s_i = (1 - β) Σ_{j≤i} β^(i-j) l_j / (1 - β^(i+1))``. The search ends early once s
    exceeds its least value m by ``(divergence - 1) |m|``, or the loss is no finite number.

    Weights, statistics, seeds, the optimizer with its rate, metrics, pruning masks and
    the traced train step end bit-identical to how they began, also after an error. What
    cannot go back is data with a state of its own: a generator has given its batches.
    Under gradient accumulation each batch has its rate, and every k-th moves the weights.

    Args:
        model: A built and compiled model, as it is to be trained.
        x: What `model.fit` takes: arrays, a tf.data Dataset, a PyDataset or a generator.
            Data shorter than `steps` goes round again; a generator must be long enough.
        y: Targets, unless `x` holds them.
        start: The first learning rate, above 0.
        stop: The last learning rate, above `start`.
        steps: Batches, at least 10; the suggestions want 50 or more.
        batch_size: Examples to a batch, for arrays.
        sample_weight: Weights of the examples, unless `x` holds them.
        divergence: How far the smoothed loss may rise, as a multiple of its least value;
            above 1.
        smoothing: β, in [0, 1); 0 does not smooth.
        shuffle: Whether arrays and a PyDataset are shuffled, as in `fit`.
        verbose: 1 shows a progress bar.

    Returns:
        The losses by rate, and four suggestions.

    Raises:
        ArgumentTypeError: If `model` is no Keras 3 model.
        ArgumentError: If the model is not compiled, its optimizer has a schedule or
            consists of several, nothing trains, or a number is out of its range; once the
            model is restored, if the loss diverged too soon to judge or the data ended.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> found = tfkit.find_learning_rate(model, np.ones((8, 2)), np.ones((8, 1)),
        ...                                  stop=0.1, steps=30)
        >>> len(found.table), found.table.learning_rate.iloc[[0, -1]].tolist()
        (30, [1e-07, 0.1])
        >>> list(found.suggestions)
        ['valley', 'steep', 'minimum', 'slide']

    Source: Smith, Cyclical Learning Rates (2017), section 3.3; fastai's `lr_find`.
    """
    rates = _rates(start, stop, steps)
    _check(batch_size, divergence, smoothing)
    require_assignable_rate(graph.require_compiled(model).optimizer)
    require_current_training(model)
    if not model.trainable_variables:
        raise ArgumentError(
            "A learning rate needs something that trains. "
            f"Received: model={model.name!r}, all of it frozen. Use tfkit.configure_base_model."
        )
    sweep = _Sweep(rates, divergence, smoothing, verbose)
    state = TrainingState(model)
    try:
        model.train_function = None  # one of its own: the user's stays as it was traced
        model.steps_per_execution = 1
        model._initial_epoch = None
        with warnings.catch_warnings():
            # Keras warns where data of unknown length ends, and of its own default
            warnings.filterwarnings("ignore", "Your input ran out of data")
            warnings.filterwarnings("ignore", "`shuffle=True` was passed")
            model.fit(
                x,
                y,
                sample_weight=sample_weight,
                batch_size=batch_size,
                epochs=1 if isinstance(x, types.GeneratorType) else len(rates),
                shuffle=shuffle,
                callbacks=[sweep],
                verbose=0,
            )
    finally:
        state.restore()
    return sweep.result()


@dataclasses.dataclass(frozen=True, eq=False)
class LearningRateSearch:
    """What `find_learning_rate` found.

    Attributes:
        table: One row a batch: `step`, `learning_rate`, `loss`, `smoothed_loss`.
        suggestions: Four learning rates, read from the smoothed loss without the first
            tenth of the steps and without the last five, unless too few would be left.
            `valley`: a third and a sixth into the longest fall. `steep`: where the loss
            falls fastest over the logarithm of the rate. `minimum`: a tenth of the rate at
            the least loss. `slide`: left of the last interval of 15 steps over which the
            slope changes by more than 0.005 a step; a loss far below 1 has none, and then
            it says nothing.

    Examples:
        >>> import pandas as pd, tfkit
        >>> table = pd.DataFrame({"step": [0], "learning_rate": [0.1], "loss": [2.0], "smoothed_loss": [2.0]})
        >>> tfkit.LearningRateSearch(table, {"valley": 0.1}).suggestions["valley"]
        0.1

    Source: fastai's `SuggestionMethod`; valley, ESRI; slide, Chang (Novetta).
    """

    table: "pd.DataFrame" = dataclasses.field(repr=False)
    suggestions: dict[str, float]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the loss over the learning rate, with the suggestions marked.

        Args:
            path: The image to write; its ending gives the format.
        """
        from matplotlib.figure import Figure

        rates, smoothed = self.table.learning_rate, self.table.smoothed_loss
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(rates, self.table.loss, color="C0", alpha=0.3, linewidth=1, label="loss of a batch")
        axes.plot(rates, smoothed, color="C0", linewidth=2, label="smoothed")
        for number, (name, rate) in enumerate(self.suggestions.items(), 1):
            height = np.interp(math.log(rate), np.log(rates), smoothed)
            axes.axvline(rate, color=f"C{number}", linewidth=1, linestyle=":")
            axes.plot(
                rate,
                height,
                "osD^"[(number - 1) % 4],
                color=f"C{number}",
                markersize=9,
                markeredgecolor="white",
                label=f"{name} {rate:.1e}",
                zorder=3,
            )
        axes.set(xlabel="learning rate", ylabel="loss", xscale="log", title="Loss while the rate rises")
        axes.set_ylim(*self._shown_range())
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", fontsize=9)
        figure.savefig(path, dpi=120)

    def _shown_range(self) -> tuple[float, float]:
        """Returns the losses to draw: the last steps and single batches may lie far outside."""
        steady = self.table[:-DROPPED_END] if len(self.table) > 2 * DROPPED_END else self.table
        steady = steady[np.isfinite(steady.smoothed_loss)]
        seen = [*steady.smoothed_loss, *steady.loss.quantile([0.05, 0.95])]
        margin = 0.08 * (max(seen) - min(seen)) or 0.1
        return min(seen) - margin, max(seen) + margin


class _Sweep(keras.callbacks.Callback):
    """Sets the rate before each batch and keeps the loss of that batch alone."""

    def __init__(self, rates: np.ndarray, divergence: float, smoothing: float, verbose: int):
        super().__init__()
        self.rates, self.divergence, self.smoothing = rates, divergence, smoothing
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self._bar = keras.utils.Progbar(
            len(rates), verbose=verbose, stateful_metrics=["learning_rate", "loss"]
        )
        self._average = 0.0  # of the losses, before its bias is corrected
        self._before = 0  # batches before the epoch under way

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._before = len(self.losses)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self.model.reset_metrics()
        set_rate(self.model.optimizer, float(self.rates[len(self.losses)]))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None or "loss" not in logs:
            raise ArgumentError(
                "The model's train step must report its `loss`. "
                f"Received: model={self.model.name!r}, which reports {', '.join(logs or {}) or 'nothing'}."
            )
        loss = float(logs["loss"])
        self.losses.append(loss)
        self._average = self.smoothing * self._average + (1 - self.smoothing) * loss
        self.smoothed.append(self._average / (1 - self.smoothing ** len(self.losses)))
        count, over = len(self.losses), self._is_over()
        shown = [("learning_rate", self.rates[count - 1]), ("loss", loss)]
        self._bar.update(count, shown, finalize=over)
        self.model.stop_training = over

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if len(self.losses) == self._before:  # the data is used up and does not begin anew
            self.model.stop_training = True

    def _is_over(self) -> bool:
        least = min(self.smoothed)
        return (
            len(self.losses) == len(self.rates)
            or not math.isfinite(self.losses[-1])
            or self.smoothed[-1] > least + (self.divergence - 1) * abs(least)
        )

    def result(self) -> LearningRateSearch:
        """Returns the losses and the suggestions, or says why there are none."""
        import pandas as pd

        count = len(self.losses)
        if not count or not self._is_over():
            raise ArgumentError(
                "The data must last for all steps, or begin anew. "
                f"Received: steps={len(self.rates)}, and data that ended after {count} batches. "
                "Pass a tf.data.Dataset or arrays, or fewer `steps`."
            )
        judged = slice(len(self.rates) // 10, count - DROPPED_END)
        if judged.stop - judged.start <= SLIDE_WIDTH:  # diverged early: every finite loss is needed
            judged = slice(0, count - (not math.isfinite(self.losses[-1])))
        if judged.stop - judged.start < LEAST_POINTS:
            raise ArgumentError(self._cause())
        table = pd.DataFrame(
            {
                "step": range(count),
                "learning_rate": self.rates[:count],
                "loss": self.losses,
                "smoothed_loss": self.smoothed,
            }
        )
        return LearningRateSearch(table, suggest(self.rates[judged], np.array(self.smoothed[judged])))

    def _cause(self) -> str:
        step, loss = len(self.losses) - 1, self.losses[-1]
        happened = "rose to" if math.isfinite(loss) else "was"
        fix = (
            "The rate has no part in the first loss: look for NaN or infinity in the data and the weights."
            if step == 0
            else f"Lower `start`, which was {self.rates[0]:.3g}, or look at the data of that batch."
        )
        return (
            f"The loss must be finite for the first {LEAST_POINTS} steps, and not diverge. "
            f"Received: a loss that {happened} {loss:.4g} at step {step}, "
            f"where the learning rate was {self.rates[step]:.3g}. {fix}"
        )


def suggest(rates: np.ndarray, losses: np.ndarray) -> dict[str, float]:
    """Returns fastai's four suggestions.

    Args:
        rates: At least 4 learning rates that rise.
        losses: The smoothed loss at each, finite.

    Returns:
        `valley`, `steep`, `minimum` and `slide`.

    Examples:
        >>> import numpy as np
        >>> rates = np.geomspace(1e-4, 1e-1, 31)  # ten steps to a decade
        >>> losses = np.abs(np.arange(31) - 20.0)  # falls straight over 20 steps, then rises
        >>> {name: f"{rate:.0e}" for name, rate in suggest(rates, losses).items()}
        {'valley': '8e-04', 'steep': '1e-04', 'minimum': '1e-03', 'slide': '3e-04'}
    """
    slopes = np.diff(losses) / np.diff(np.log(rates))
    return {
        "valley": float(rates[_valley(losses)]),
        "steep": float(rates[np.argmin(slopes)]),
        "minimum": float(rates[np.argmin(losses)]) / 10,
        "slide": float(rates[_slide(losses)]),
    }


def _valley(losses: np.ndarray) -> int:
    """Returns the place a third and a sixth into the longest fall.

    The fall is the longest decreasing subsequence, taken to cover as many steps before
    its end as it has members.
    """
    lengths = np.ones(len(losses), int)
    for place in range(1, len(losses)):
        above = lengths[:place][losses[:place] > losses[place]]
        lengths[place] += above.max(initial=0)
    end = int(np.argmax(lengths))
    length = int(lengths[end])
    return max(end - length + length // 3 + length // 6, 0)


def _slide(losses: np.ndarray) -> int:
    """Returns the left end of the last interval, sliding down from the highest rate, whose slope changes."""
    slopes = np.gradient(losses)
    width = min(SLIDE_WIDTH, len(losses) - 1)
    found = len(losses) - 1 - width
    for left in range(found, -1, -1):
        if abs(slopes[left + width] - slopes[left]) <= SLIDE_THRESHOLD:
            break
        found = left
    return found


def _rates(start: float, stop: float, steps: int) -> np.ndarray:
    start, stop = require_positive("start", start), require_positive("stop", stop)
    if start >= stop:
        raise ArgumentError(f"`start` must be below `stop`. Received: start={start!r}, stop={stop!r}.")
    return np.geomspace(start, stop, require_count("steps", steps, least=LEAST_STEPS))


def _check(batch_size: int, divergence: float, smoothing: float) -> None:
    if isinstance(batch_size, bool) or not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise ArgumentError(
            f"`batch_size` must be a whole number of at least 1. Received: batch_size={batch_size!r}."
        )
    if require_positive("divergence", divergence) <= 1:
        raise ArgumentError(f"`divergence` must be above 1. Received: divergence={divergence!r}.")
    if not isinstance(smoothing, numbers.Real) or not 0 <= smoothing < 1:
        raise ArgumentError(f"`smoothing` must be in [0, 1). Received: smoothing={smoothing!r}.")
