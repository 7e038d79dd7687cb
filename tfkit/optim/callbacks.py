"""Keras callbacks that move the learning rate.

All count optimizer updates since the `fit` began, so gradient accumulation is right by
itself and a second `fit` starts its curve anew. A `fit` that begins at a later epoch
(Keras's BackupAndRestore, or `initial_epoch`) goes on where that epoch stands.

With ``steps_per_execution=n`` Keras calls callbacks once every n steps: the rate may
change only between executions, and the curve is read at the first step of each.
"""

import math
import weakref
from typing import Any, Literal

import keras

from tfkit.errors import ArgumentError
from tfkit.optim import curves
from tfkit.optim.arguments import Curve, require_count, require_curve


class LearningRateCurve(keras.callbacks.Callback):
    """Sets the learning rate from a curve and writes it into the logs.

    Args:
        curve: A function from a step (or an epoch) to a learning rate; see
            `tfkit.curves`. Counts from zero.
        unit: ``"step"`` asks the curve before every optimizer update, ``"epoch"`` at
            the start of every epoch.

    Raises:
        ArgumentTypeError: If `curve` is not callable.
        ArgumentError: If `unit` is neither value; at the start of training, if the
            optimizer owns a schedule already; while training, if the curve returns
            something else than a finite rate of at least 0.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("sgd", "mse")
        >>> callback = tfkit.LearningRateCurve(tfkit.curves.linear(0.3, 0.1, 2), unit="epoch")
        >>> history = model.fit(np.ones((4, 2)), np.ones((4, 1)), epochs=3, verbose=0,
        ...                     callbacks=[callback])
        >>> [round(rate, 6) for rate in history.history["learning_rate"]]
        [0.3, 0.2, 0.1]

    Source: keras.callbacks.LearningRateScheduler, per update as in timm.
    """

    def __init__(self, curve: Curve, *, unit: Literal["step", "epoch"] = "step"):
        super().__init__()
        self.curve = require_curve("curve", curve)
        if unit not in ("step", "epoch"):
            raise ArgumentError(f"`unit` must be 'step' or 'epoch'. Received: unit={unit!r}.")
        self.unit = unit
        self._clock = _UpdateClock()

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        require_assignable_rate(self.model.optimizer)
        self._clock.reset()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._clock.start(self, epoch)
        if self.unit == "epoch":
            self._set(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.unit == "step":
            self._set(self._clock.read(self))

    def _set(self, place: int) -> None:
        given = self.curve(place)
        try:
            rate = float(given)  # a Keras schedule returns a tensor
        except (TypeError, ValueError):
            rate = math.nan
        if not 0 <= rate < math.inf:
            raise ArgumentError(
                "A curve must return a finite learning rate of at least 0. "
                f"Received: {given!r} at {self.unit} {place}."
            )
        self.model.optimizer.learning_rate = rate

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs["learning_rate"] = float(self.model.optimizer.learning_rate)


class WarmupCosine(LearningRateCurve):
    """A straight rise to `peak`, then a half cosine down to `final`.

    Args:
        peak: The highest learning rate, reached at `warmup_steps`.
        warmup_steps: Updates of the rise, from 0 to below `total_steps`.
        total_steps: Updates in all, the rise included.
        start: The rate at update 0.
        final: The rate at `total_steps` and after.

    Raises:
        ArgumentError: If a rate is negative, or the warmup is not shorter than the whole.

    Examples:
        >>> import tfkit
        >>> callback = tfkit.WarmupCosine(0.1, warmup_steps=10, total_steps=110)
        >>> [round(callback.curve(step), 6) for step in (0, 5, 10, 60, 110)]
        [0.0, 0.05, 0.1, 0.05, 0.0]

    Source: Goyal et al. (2017), section 2.2; Loshchilov and Hutter, SGDR (2017).
    """

    def __init__(
        self,
        peak: float,
        *,
        warmup_steps: int,
        total_steps: int,
        start: float = 0.0,
        final: float = 0.0,
    ):
        for name, count in (("warmup_steps", warmup_steps), ("total_steps", total_steps)):
            require_count(name, count, least=0)
        if warmup_steps >= total_steps:
            raise ArgumentError(
                "`warmup_steps` must be below `total_steps`, which include it. "
                f"Received: warmup_steps={warmup_steps!r}, total_steps={total_steps!r}."
            )
        decay = curves.cosine(peak, total_steps - warmup_steps, final=final)
        super().__init__(curves.warmup(decay, warmup_steps, start=start))


class ReduceLROnPlateau(keras.callbacks.ReduceLROnPlateau):
    """Keras's ReduceLROnPlateau with a warmup before it.

    Over the first `warmup_steps` updates the rate rises in a straight line from zero to
    the optimizer's rate. An epoch that ends inside the warmup is not judged: it neither
    counts towards `patience` nor sets the best value.

    Args:
        monitor: The quantity in the logs to watch.
        factor: What the rate is multiplied by, below 1.
        patience: Epochs without improvement before the rate falls.
        verbose: 1 prints a line when the rate falls.
        mode: ``"min"``, ``"max"``, or ``"auto"`` to go by the quantity's name.
        min_delta: The least change that counts as improvement.
        cooldown: Epochs to wait after a fall.
        min_lr: The rate does not fall below it.
        warmup_steps: Updates of the rise, at least 0.

    Raises:
        ArgumentError: If `factor` is not in (0, 1), `mode` is unknown or `warmup_steps` is
            negative; at the start of training, if the optimizer owns a schedule already.

    Examples:
        >>> import tfkit
        >>> callback = tfkit.ReduceLROnPlateau(factor=0.5, patience=3, warmup_steps=100)
        >>> callback.factor, callback.patience, callback.warmup_steps
        (0.5, 3, 100)

    Source: keras.callbacks.ReduceLROnPlateau; the combination, tensorflow#36612.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: Literal["auto", "min", "max"] = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        *,
        warmup_steps: int = 0,
    ):
        if not 0 < factor < 1:
            raise ArgumentError(f"`factor` must lie between 0 and 1. Received: factor={factor!r}.")
        if mode not in ("auto", "min", "max"):
            raise ArgumentError(f"`mode` must be 'auto', 'min' or 'max'. Received: mode={mode!r}.")
        super().__init__(monitor, factor, patience, verbose, mode, min_delta, cooldown, min_lr)
        self.warmup_steps = require_count("warmup_steps", warmup_steps, least=0)
        self._clock = _UpdateClock()
        self._peak = 0.0

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        optimizer = self.model.optimizer
        require_assignable_rate(optimizer)
        super().on_train_begin(logs)
        self._clock.reset()
        rate = float(optimizer.learning_rate)
        peak, last = _RISING.get(optimizer, (rate, None))
        self._peak = peak if rate == last else rate

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._clock.start(self, epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        optimizer = self.model.optimizer
        if not self._follows_rise():
            return
        rise = curves.warmup(curves.constant(self._peak), self.warmup_steps)
        optimizer.learning_rate = rise(self._clock.read(self))
        _RISING[optimizer] = (self._peak, float(optimizer.learning_rate))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._follows_rise():
            if logs is not None:
                logs["learning_rate"] = float(self.model.optimizer.learning_rate)
        else:
            super().on_epoch_end(epoch, logs)

    def _follows_rise(self) -> bool:
        """Tells whether the rate is still the warmup's; ends the warmup when it is over."""
        optimizer = self.model.optimizer
        if self._clock.read(self) < self.warmup_steps:
            return True
        if optimizer in _RISING:  # the last update of the rise was just below the peak
            del _RISING[optimizer]
            optimizer.learning_rate = self._peak
        return False


# For each optimizer whose rate a warmup is raising: the peak, and the rate set last. A fit
# that ends inside the warmup thus does not take the rate it left for the peak of the next.
_RISING: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class _UpdateClock:
    """Counts optimizer updates since the beginning of a training run."""

    def __init__(self) -> None:
        self._origin: int | None = None

    def reset(self) -> None:
        self._origin = None

    def start(self, callback: keras.callbacks.Callback, epoch: int) -> None:
        """Fixes the origin at a run's first epoch, after any checkpoint was restored."""
        if self._origin is not None:
            return
        optimizer = callback.model.optimizer
        self._origin = int(optimizer.iterations)
        steps = callback.params.get("steps")
        if epoch > 0 and not steps:
            self._origin = 0  # of unknown length: all updates so far belong to this run
        elif epoch > 0:
            accumulation = getattr(optimizer, "inner_optimizer", optimizer).gradient_accumulation_steps
            self._origin -= epoch * steps // (accumulation or 1)

    def read(self, callback: keras.callbacks.Callback) -> int:
        return int(callback.model.optimizer.iterations) - (self._origin or 0)


def require_assignable_rate(optimizer: keras.optimizers.Optimizer) -> None:
    """Checks that the optimizer's rate can be set while it trains.

    Raises:
        ArgumentError: If the optimizer was made with a schedule or a function.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(inner._learning_rate, keras.Variable):
        raise ArgumentError(
            "The optimizer must be made with a number as its learning rate, for the callback sets it. "
            f"Received: learning_rate={inner._learning_rate!r}. "
            "Pass a float to the optimizer and the curve to tfkit.LearningRateCurve."
        )
