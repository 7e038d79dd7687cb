"""Masks that live on variables: constraints that Keras applies inside the train step."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras.src.saving.keras_saveable import KerasSaveable

from tfkit import graph
from tfkit.prune.mask import Layout, Structure, draw_masks

Schedule = Callable[[Any], tuple[Any, Any]]


class Pruning:
    """What one call of `prune_low_magnitude` set going: a count of updates and the masks.

    The count is a variable of its own, so it goes on from a checkpoint wherever the
    optimizer stands, and updates before pruning began do not count.

    Args:
        model: The model whose optimizer may consist of parts (`MultiOptimizer`), which
            update together and count once; None for layers alone.
    """

    def __init__(self, model: keras.Model | None = None):
        self.step = keras.Variable(
            0, dtype="int64", trainable=False, aggregation="only_first_replica", name="pruning_step"
        )
        self.families: list[Family] = []
        self._model = (lambda: None) if model is None else weakref.ref(model)
        self._begun: weakref.WeakSet = weakref.WeakSet()

    def begin(self) -> keras.optimizers.Optimizer | None:
        """Draws what the update under way must draw, once; returns its optimizer, if there is one."""
        update = graph.running_update()
        if update is None:  # only hold the masks
            return None
        optimizer = update.caller
        if update not in self._begun:
            self._begun.add(update)
            calls = ops.cast(optimizer._iterations, "int64") + 1
            complete = ops.equal(calls % (optimizer.gradient_accumulation_steps or 1), 0)
            if self._leads(optimizer):
                self.step.assign_add(ops.cast(complete, "int64"))
            for family in self.families:
                family.draw(optimizer, ops.convert_to_tensor(self.step), complete)
        return optimizer

    def _leads(self, optimizer: keras.optimizers.Optimizer) -> bool:
        """Tells whether this is the first of the optimizers that move the masked weights together."""
        whole = getattr(self._model(), "optimizer", None)
        whole = getattr(whole, "inner_optimizer", whole)
        parts = getattr(whole, "optimizers", [])
        moving = [part for part in parts if any(family.moved_by(part) for family in self.families)]
        return optimizer not in parts or optimizer is moving[0]


class Family:
    """Kernels that follow one schedule, and whose masks are drawn together.

    Args:
        pruning: The call that they belong to.
        kernels: The variables, each with its layout.
        schedule: ``step -> (should_prune, sparsity)``.
        structure: Which weights go together, and what they compete with.
    """

    def __init__(
        self,
        pruning: Pruning,
        kernels: Sequence[tuple[keras.Variable, Layout]],
        schedule: Schedule,
        structure: Structure,
    ):
        self.pruning = pruning
        self.schedule = schedule
        self.structure = structure
        self.layouts = [layout for _, layout in kernels]
        self.masks = [MagnitudeMask(variable, self) for variable, _ in kernels]
        # TFMOT draws m zeros in n at the first update, whatever the schedule's frequency
        self.first_step = max(int(getattr(schedule, "begin_step", 1)), 1)
        pruning.families.append(self)

    def moved_by(self, optimizer: keras.optimizers.Optimizer) -> "list[tuple[MagnitudeMask, Layout]]":
        """Returns the masks of the kernels that an optimizer trains, each with its layout."""
        known = optimizer._trainable_variables_indices
        pairs = zip(self.masks, self.layouts, strict=True)
        return [(mask, layout) for mask, layout in pairs if optimizer._var_key(mask.variable) in known]

    def is_dense(self, variable: keras.Variable) -> bool:
        """Tells whether neither a kernel nor any that it competes with has a zero."""
        rivals = [variable] if self.structure.scope == "layer" else [mask.variable for mask in self.masks]
        return all(bool(ops.all(ops.not_equal(each, 0))) for each in rivals)

    def draw(self, optimizer: keras.optimizers.Optimizer, step: Any, complete: Any) -> None:
        """Draws the masks of what the optimizer trains, if the schedule says so at this step."""
        moved = self.moved_by(optimizer)
        if not moved:
            return
        masks, layouts = zip(*moved, strict=True)
        should_prune, sparsity = self.schedule(step)
        if self.structure.m_by_n is not None:
            should_prune = ops.logical_or(should_prune, ops.equal(step, self.first_step))
        drawn = ops.cond(
            ops.logical_and(complete, should_prune),
            lambda: draw_masks([mask.constrained() for mask in masks], sparsity, layouts, self.structure),
            lambda: [ops.convert_to_tensor(mask.mask) for mask in masks],
        )
        for mask, values in zip(masks, drawn, strict=True):
            mask.mask.assign(values)


class MagnitudeMask(keras.constraints.Constraint):
    """Keeps a variable exactly sparse after every optimizer update.

    At the updates the schedule names, the mask is drawn anew from the magnitudes that
    the update left, masked weights included, so that a weight can come back. At every
    update the weights outside the mask become zero.

    Args:
        variable: The variable to carry the mask.
        family: What it is drawn together with.
    """

    def __init__(self, variable: keras.Variable, family: Family):
        self.variable = variable
        self.family = family
        self.before = variable.constraint  # the user's own, still applied first
        self.mask = keras.Variable(
            ops.ones(variable.shape, dtype="bool"),
            dtype="bool",
            trainable=False,
            aggregation="only_first_replica",
            name=f"{variable.name}_mask",
        )

    def __call__(self, w: Any) -> Any:
        optimizer = self.family.pruning.begin()
        weights = ops.convert_to_tensor(w if self.before is None else self.before(w))
        if optimizer is not None and optimizer.use_ema:  # what `fit` ends with must be as sparse
            average = optimizer._model_variables_moving_average[optimizer._get_variable_index(w)]
            average.assign(self.apply(average))
        return self.apply(weights)

    def apply(self, weights: Any) -> Any:
        """Returns weights with zeros outside the mask."""
        weights = ops.convert_to_tensor(weights)
        return ops.where(self.mask, weights, ops.zeros_like(weights))

    def constrained(self) -> Any:
        """Returns the variable's values as the user's own constraint will have them."""
        return ops.convert_to_tensor(self.variable if self.before is None else self.before(self.variable))

    @property
    def variables(self) -> list[keras.Variable]:
        """What training moves in the constraint itself."""
        return [self.mask, self.family.pruning.step]

    def follow_zeros(self) -> None:
        """Takes the mask from the weights: what is not zero stays.

        Weights that are all zero are free, for nothing has been pruned in them.
        """
        nonzero = ops.not_equal(ops.convert_to_tensor(self.variable), 0)
        self.mask.assign(ops.logical_or(nonzero, ops.logical_not(ops.any(nonzero))))


class LayerMasks(KerasSaveable, tf.__internal__.tracking.AutoTrackable):
    """The masks of one layer, as a part of it that Keras and TensorFlow save.

    They ride in every checkpoint of the model, a bit a weight (a byte in
    `tf.train.Checkpoint`); plain Keras passes them by when it loads one. A file without
    masks gives them by its zeros.
    """

    NAME = "pruning_masks"

    def __init__(self, masks: Sequence[MagnitudeMask]):
        self._masks = tuple(masks)
        self.step = masks[0].family.pruning.step.value
        for number, mask in enumerate(masks):
            setattr(self, f"mask_{number}", mask.mask.value)

    def save_own_variables(self, store: Any) -> None:
        store["step"] = ops.convert_to_numpy(self._masks[0].family.pruning.step)
        for number, mask in enumerate(self._masks):
            store[f"mask_{number}"] = np.packbits(ops.convert_to_numpy(mask.mask))

    def load_own_variables(self, store: Any) -> None:
        if "step" not in store.keys():  # noqa: SIM118
            for mask in self._masks:
                mask.follow_zeros()
            return
        self._masks[0].family.pruning.step.assign(np.array(store["step"]))
        for number, mask in enumerate(self._masks):
            shape = tuple(mask.mask.shape)
            bits = np.unpackbits(np.array(store[f"mask_{number}"]), count=int(np.prod(shape)))
            mask.mask.assign(bits.reshape(shape).astype(bool))

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        """A SavedModel is for inference and holds no masks."""
        return super()._trackable_children(save_type, **kwargs) if save_type == "checkpoint" else {}

    def _obj_type(self) -> str:
        return "Operation"
