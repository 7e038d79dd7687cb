"""Keras callbacks that move the learning rate.

All count optimizer updates since the `fit` began, so gradient accumulation is right by
itself and a second `fit` starts its curve anew. A run that Keras's BackupAndRestore
resumes, or that begins at a later epoch, goes on where it stood.

With ``steps_per_execution=n`` Keras calls callbacks once every n steps: the rate may
change only between executions, and the curve is read at the first step of each.

A curve and a plateau compose: the plateau scales what the curve says.
"""

import math
import weakref
from typing import Any, Literal

import keras
import numpy as np

from tfkit.errors import ArgumentError
from tfkit.optim import curves
from tfkit.optim.arguments import Curve, require_count, require_curve, require_fraction, require_nonnegative
from tfkit.optim.rate import accumulation, count_updates, read_rate, require_assignable_rate, set_rate
from tfkit.resume import ResumableCallback


class _RateCallback(ResumableCallback):
    """A callback that counts the updates of a run."""

    def begin_run(self) -> None:
        super().begin_run()
        self._origin: int | None = None  # the optimizer's count at the run's first update
        self._count: int | None = None  # its count when this callback looked last
        self._epoch = -1  # the epoch under way
        self._epoch_step = 0  # updates before it

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        require_assignable_rate(self.model.optimizer)
        super().on_train_begin(logs)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        count = self._look()
        if self._origin is None:
            self._origin = count
            if epoch > 0:  # begun elsewhere, by a run that left no state
                steps = self.params.get("steps")
                done = epoch * steps // accumulation(self.model.optimizer) if steps else count
                self._origin -= done  # of unknown length: all updates so far belong to this run
        elif epoch == self._epoch:  # saved in its midst, and now begun anew
            self._origin = count - self._epoch_step
        self._epoch, self._epoch_step = epoch, count - self._origin

    def _look(self) -> int:
        """Returns the optimizer's count; weights that were loaded amid a run may have lowered it."""
        count = count_updates(self.model.optimizer)
        if self._origin is not None and self._count is not None and count < self._count:
            self._origin -= self._count - count  # the run goes on from where it stood
        self._count = count
        return count

    @property
    def _step(self) -> int:
        """Updates since the run began."""
        return self._look() - (self._origin or 0)

    def read_state(self) -> dict[str, float]:
        if self._origin is None:
            return {}
        return {"origin": self._origin, "epoch": self._epoch, "epoch_step": self._epoch_step}

    def write_state(self, state: dict[str, float]) -> None:
        self._origin, self._epoch = int(state["origin"]), int(state["epoch"])
        self._epoch_step = int(state["epoch_step"])


class LearningRateCurve(_RateCallback):
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

    def begin_run(self) -> None:
        super().begin_run()
        self._base: float | None = None  # what the curve said last

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        rivals = [each for each in self.companions if isinstance(each, LearningRateCurve)]
        if len(rivals) > 1:
            raise ArgumentError(
                "Only one curve may set the learning rate of a fit. "
                f"Received: {', '.join(type(each).__name__ for each in rivals)}. "
                "Put curves one after another with tfkit.curves.join."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        if self.unit == "epoch":
            self._follow(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self.unit == "step":
            self._follow(self._step)

    def _follow(self, place: int) -> None:
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
        self._base = rate
        self.apply()

    def apply(self) -> None:
        """Sets the rate: what the curve said last, as the plateaus of this fit shape it."""
        if self._base is None:
            return
        rate = self._base
        for each in self.companions:
            if isinstance(each, ReduceLROnPlateau):
                rate = each.shape(rate)
        set_rate(self.model.optimizer, rate)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is not None:
            logs["learning_rate"] = read_rate(self.model.optimizer)


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


class ReduceLROnPlateau(_RateCallback, keras.callbacks.ReduceLROnPlateau):
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
        ArgumentError: If `factor` is not in (0, 1), `mode` is unknown or a number is negative; at
            the start of training, if the optimizer owns a schedule already.

    Examples:
        >>> import tfkit
        >>> callback = tfkit.ReduceLROnPlateau(factor=0.5, patience=3, warmup_steps=100)
        >>> callback.factor, callback.patience, callback.warmup_steps
        (0.5, 3, 100)

    Source: keras.callbacks.ReduceLROnPlateau; the combination, tensorflow#36612.
    """

    mode: str

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
        require_fraction("factor", factor)
        require_nonnegative("min_lr", min_lr)
        require_nonnegative("min_delta", min_delta)
        for name, count in (("patience", patience), ("cooldown", cooldown)):
            require_count(name, count, least=0)
        if mode not in ("auto", "min", "max"):
            raise ArgumentError(f"`mode` must be 'auto', 'min' or 'max'. Received: mode={mode!r}.")
        super().__init__(monitor, factor, patience, verbose, mode, min_delta, cooldown, min_lr)
        self.warmup_steps = require_count("warmup_steps", warmup_steps, least=0)
        self._ramp = curves.warmup(curves.constant(1.0), self.warmup_steps)
        self._begin()

    def _begin(self) -> None:
        self._scale = 1.0  # what the falls so far make of a curve's rate
        self._peak = 0.0  # where the warmup rises to, if no curve says it
        self._judged = -1  # the last epoch that was
        self._train_logs: dict[str, Any] = {}
        self._test_logs: dict[str, Any] = {}
        self._missed: float | None = None  # a value that the run before could not judge any more

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)  # of the base alone: Keras's forgets what was restored
        if sum(each.warmup_steps > 0 for each in self._plateaus) > 1:
            raise ArgumentError(
                "Only one plateau of a fit may have a warmup, for there is one rate to raise. Received: "
                f"warmup_steps={[each.warmup_steps for each in self._plateaus]!r}. Leave it to one of them."
            )
        if self.restored:
            return
        self._reset()
        self._begin()
        optimizer = self.model.optimizer
        rate = read_rate(optimizer)
        peak, last = _RISING.get(optimizer, (rate, None))
        self._peak = peak if rate == last else rate

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        missed = self._missed if self._epoch == epoch - 1 else None
        super().on_epoch_begin(epoch, logs)
        if missed is not None:
            self.on_epoch_end(epoch - 1, {self.monitor: missed})
            if curve := self._curve:
                curve.apply()
        self._missed = None
        self._train_logs = self._test_logs = {}

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self.warmup_steps or not self._is_rising():
            return
        if curve := self._curve:
            curve.apply()
        else:
            set_rate(self.model.optimizer, self._peak * self._ramp(self._step))
        _RISING[self.model.optimizer] = (self._peak, read_rate(self.model.optimizer))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._train_logs = logs or {}

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._test_logs = logs or {}

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._judged = epoch
        if not self._is_rising():
            keras.callbacks.ReduceLROnPlateau.on_epoch_end(self, epoch, logs)
        elif logs is not None:
            logs["learning_rate"] = read_rate(self.model.optimizer)

    def shape(self, rate: float) -> float:
        """Returns a curve's rate as the falls so far and the warmup make it."""
        return self._ramp(self._step) * max(rate * self._scale, min(rate, self.min_lr))

    @property
    def _curve(self) -> LearningRateCurve | None:
        return next((each for each in self.companions if isinstance(each, LearningRateCurve)), None)

    @property
    def _plateaus(self) -> "list[ReduceLROnPlateau]":
        return [each for each in self.companions if isinstance(each, ReduceLROnPlateau)]

    def _is_rising(self) -> bool:
        """Tells whether the rate is still a warmup's; ends the warmup when it is over."""
        optimizer = self.model.optimizer
        if self._step < max(each.warmup_steps for each in self._plateaus):
            return True
        if optimizer in _RISING:  # the last update of the rise was just below the peak
            del _RISING[optimizer]
            if curve := self._curve:
                curve.apply()
            else:
                set_rate(optimizer, self._peak)
        return False

    def _reduce_optimizer_lr(self, optimizer: keras.optimizers.Optimizer, epoch: int, name: str = "") -> bool:
        before = read_rate(optimizer)
        if not self._curve or before <= np.float32(self.min_lr):
            return super()._reduce_optimizer_lr(optimizer, epoch, name)
        self._scale *= self.factor
        if self.verbose > 0:
            print(
                f"\nEpoch {epoch + 1}: ReduceLROnPlateau scales the curve's learning rate by {self._scale:g}."
            )
        return True

    def read_state(self) -> dict[str, float]:
        state = super().read_state()
        if not state:
            return state
        state |= {
            "best": math.nan if self.best is None else self.best,
            "wait": self.wait,
            "cooldown": self.cooldown_counter,
            "scale": self._scale,
            "peak": self._peak,
            "rising": self.model.optimizer in _RISING,
        }
        if self._judged < self._epoch:  # saved by a callback that stands before this one
            inside, name = (
                (self._test_logs, self.monitor.removeprefix("val_"))
                if self.monitor.startswith("val_")
                else (self._train_logs, self.monitor)
            )
            if name in inside:
                state["missed"] = float(inside[name])
                if self.monitor_op is None:
                    self._set_monitor_op()
        if self.monitor_op is not None:
            state["upwards"] = self.monitor_op is keras.ops.greater
        return state

    def write_state(self, state: dict[str, float]) -> None:
        super().write_state(state)
        self._begin()
        self.best = None if math.isnan(state["best"]) else state["best"]
        self.wait, self.cooldown_counter = int(state["wait"]), int(state["cooldown"])
        self._scale, self._peak = state["scale"], state["peak"]
        self._missed = state.get("missed")
        if "upwards" in state and self.monitor_op is None:  # Keras finds out only once metrics are built
            given, self.mode = self.mode, "max" if state["upwards"] else "min"
            self._set_monitor_op()
            self.mode = given
        if state["rising"]:
            _RISING[self.model.optimizer] = (self._peak, math.nan)


# For each optimizer whose rate a warmup is raising: the peak, and the rate set last. A fit
# that ends inside the warmup thus does not take the rate it left for the peak of the next.
_RISING: weakref.WeakKeyDictionary[keras.Optimizer, tuple[float, float]] = weakref.WeakKeyDictionary()
