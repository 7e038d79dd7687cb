"""The mask on a variable: a constraint that Keras applies inside the train step."""

import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tfkit import graph
from tfkit.prune.mask import magnitude_mask

Schedule = Callable[[Any], tuple[Any, Any]]


class PruningClock:
    """Numbers a model's optimizer updates from 1, for the masks of one call together.

    The number is derived from the optimizer's own counter, which checkpoints carry: a
    run that is resumed in a new process goes on where the checkpoint stands. Updates
    that an optimizer made before pruning began do not count; a new optimizer goes on
    from the updates counted so far.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer | None):
        self.step = keras.Variable(
            0, dtype="int64", trainable=False, aggregation="only_first_replica", name="pruning_step"
        )
        self.restored = False  # whether a checkpoint was loaded since pruning began
        self._origins: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        for each in getattr(inner, "optimizers", [] if inner is None else [inner]):
            self._origins[each] = _updates(each)

    def advance(self, optimizer: keras.optimizers.Optimizer) -> tuple[Any, Any]:
        """Returns whether this `apply` updates the weights, and the update's number."""
        if optimizer not in self._origins:
            with tf.init_scope():
                counted = _read(self.step)
                self._origins[optimizer] = -counted if self.restored else _updates(optimizer) - counted
        calls = ops.cast(optimizer._iterations, "int64") + 1
        accumulation = optimizer.gradient_accumulation_steps or 1
        is_update = ops.equal(calls % accumulation, 0)
        step = calls // accumulation - self._origins[optimizer]
        self.step.assign(ops.where(is_update, step, self.step))
        return is_update, step


def _updates(optimizer: keras.optimizers.Optimizer) -> int:
    return _read(optimizer._iterations) // (optimizer.gradient_accumulation_steps or 1)


def _read(variable: keras.Variable) -> int:
    """Returns the value of a counter, which every replica holds alike."""
    value = variable.value
    return int(getattr(value, "values", [value])[0].numpy())


class MagnitudeMask(keras.constraints.Constraint):
    """Keeps a variable exactly sparse after every optimizer update.

    At the updates the schedule names, the mask is drawn anew from the magnitudes that
    the update left, masked weights included, so that a weight can come back. At every
    update the weights outside the mask become zero.

    Args:
        variable: The variable to carry the mask.
        schedule: A TFMOT schedule, ``step -> (should_prune, sparsity)``.
        clock: The model's update counter.
    """

    def __init__(self, variable: keras.Variable, schedule: Schedule, clock: PruningClock):
        self.schedule = schedule
        self.clock = clock
        self.before = variable.constraint  # the user's own, still applied first
        self.mask = keras.Variable(
            ops.ones(variable.shape, dtype="bool"),
            dtype="bool",
            trainable=False,
            aggregation="only_first_replica",
            name=f"{variable.name}_mask",
        )

    def __call__(self, w: Any) -> Any:
        weights = ops.convert_to_tensor(w if self.before is None else self.before(w))
        optimizer = graph.running_optimizer()
        if optimizer is not None:  # otherwise no update is under way: only hold the mask
            is_update, step = self.clock.advance(optimizer)
            should_prune, sparsity = self.schedule(step)
            self.mask.assign(
                ops.cond(
                    ops.logical_and(is_update, should_prune),
                    lambda: magnitude_mask(weights, sparsity),
                    lambda: ops.convert_to_tensor(self.mask),
                )
            )
            if optimizer.use_ema:  # what `fit` ends with must be as sparse
                average = optimizer._model_variables_moving_average[optimizer._get_variable_index(w)]
                average.assign(ops.where(self.mask, average, ops.zeros_like(average)))
        return ops.where(self.mask, weights, ops.zeros_like(weights))

    @property
    def variables(self) -> list[keras.Variable]:
        """What training moves in the constraint itself."""
        return [self.mask, self.clock.step]

    def adopt(self, weights: Any) -> None:
        """Takes the mask from weights that a checkpoint put here: what is not zero stays.

        Weights that are all zero are free, for nothing has been pruned in them.
        """
        self.clock.restored = True
        nonzero = ops.not_equal(ops.convert_to_tensor(weights), 0)
        self.mask.assign(ops.logical_or(nonzero, ops.logical_not(ops.any(nonzero))))
