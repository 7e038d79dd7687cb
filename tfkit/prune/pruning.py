"""Masks that live on variables: constraints that Keras applies inside the train step."""

import math
import numbers
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras.src.saving.keras_saveable import KerasSaveable

from tfkit import graph
from tfkit.prune.mask import Layout, Structure, apply_mask, draw_masks, keep_count

Schedule = Callable[[Any], tuple[Any, Any]]


def begin_step(schedule: Schedule) -> int:
    """Returns the update at which a schedule begins, 1 if it does not tell."""
    begin = getattr(schedule, "begin_step", 1)
    return max(int(begin), 1) if isinstance(begin, numbers.Integral) else 1


def end_step(schedule: Schedule) -> int:
    """Returns the update at which a schedule ends, 1 if it does not tell."""
    end = getattr(schedule, "end_step", 1)
    return max(int(end), 1) if isinstance(end, numbers.Integral) else 1


class Pruning:
    """What one call of `prune_low_magnitude` set going: a count of updates and the masks.

    The count is a variable of its own, so it goes on from a checkpoint wherever the
    optimizer stands, and updates before pruning began do not count.

    Args:
        model: The model whose optimizer may consist of parts (`MultiOptimizer`), which
            update together and count once; None for layers alone.
    """

    def __init__(self, model: keras.Model | None = None):
        self.step = _state_variable("zeros", (), "int64", "pruning_step")
        self.families: list[Family] = []
        self._model = (lambda: None) if model is None else weakref.ref(model)
        self._begun: weakref.WeakSet[keras.optimizers.Optimizer] = weakref.WeakSet()

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
        return optimizer not in parts or optimizer in moving[:1] or not moving


def _state_variable(initializer: str, shape: tuple[int, ...], dtype: str, name: str) -> keras.Variable:
    """Returns a variable of pruning's own; by an initializer, for Keras may only be building a layer."""
    return keras.Variable(
        initializer,
        shape=shape,
        dtype=dtype,
        trainable=False,
        aggregation="only_first_replica",
        name=name,
    )


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
        self.masks = [MagnitudeMask(variable, layout, self) for variable, layout in kernels]
        pruning.families.append(self)

    def moved_by(self, optimizer: keras.optimizers.Optimizer) -> "list[MagnitudeMask]":
        """Returns the masks of the kernels that train and that an optimizer knows."""
        known = optimizer._trainable_variables_indices
        return [
            mask
            for mask in self.masks
            if mask.variable.trainable and optimizer._var_key(mask.variable) in known
        ]

    def missed(self, variable: keras.Variable) -> bool:
        """Tells whether neither a kernel nor a rival has a zero although the schedule asks for some."""
        rivals = [variable] if self.structure.scope == "layer" else [mask.variable for mask in self.masks]
        if any(bool(ops.any(ops.equal(each, 0))) for each in rivals):
            return False
        steps = (int(ops.convert_to_tensor(self.pruning.step)), end_step(self.schedule))
        sparsity = max(float(self.schedule(ops.cast(step, "int64"))[1]) for step in steps)
        size = sum(math.prod(each.shape) for each in rivals)
        return self.structure.m_by_n is not None or int(keep_count(size, sparsity)) < size

    def early(self) -> tuple[int, int] | None:
        """Returns the update that training reached and that of the end, if zeros were still to come."""
        step, end = int(ops.convert_to_tensor(self.pruning.step)), end_step(self.schedule)
        if step >= end or self.structure.m_by_n is not None:
            return None
        now, last = (float(self.schedule(ops.cast(each, "int64"))[1]) for each in (step, end))
        return (step, end) if now < last else None

    def draw(self, optimizer: keras.optimizers.Optimizer, step: Any, complete: Any) -> None:
        """Draws the masks of what the optimizer trains, if the schedule says so at this step."""
        masks = self.moved_by(optimizer)
        if not masks:
            return
        layouts = [mask.layout for mask in masks]
        should_prune, sparsity = self.schedule(step)
        if self.structure.m_by_n is not None:  # as in TFMOT, the frequency does not put the first off
            undrawn = ops.any([ops.all(mask.mask) for mask in masks])
            begun = ops.greater_equal(step, begin_step(self.schedule))
            should_prune = ops.logical_or(should_prune, ops.logical_and(begun, undrawn))
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
        layout: How it is read as a matrix.
        family: What it is drawn together with.
    """

    def __init__(self, variable: keras.Variable, layout: Layout, family: Family):
        self.variable = variable
        self.layout = layout
        self.family = family
        self.before = variable.constraint  # the user's own, still applied first
        self.mask = _state_variable("ones", tuple(variable.shape), "bool", f"{variable.name}_mask")

    def __call__(self, w: Any) -> Any:
        optimizer = self.family.pruning.begin()
        weights = ops.convert_to_tensor(w if self.before is None else self.before(w))
        if optimizer is not None and optimizer.use_ema:  # what `fit` ends with must be as sparse
            average = optimizer._model_variables_moving_average[optimizer._get_variable_index(w)]
            average.assign(self.apply(average))
        return self.apply(weights)

    def apply(self, weights: Any) -> Any:
        """Returns weights with zeros outside the mask."""
        return apply_mask(self.mask, ops.convert_to_tensor(weights))

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

    @property
    def _variables(self) -> dict[str, keras.Variable]:
        masks = {f"mask_{number}": mask.mask for number, mask in enumerate(self._masks)}
        return {"step": self._masks[0].family.pruning.step, **masks}

    def save_own_variables(self, store: Any) -> None:
        for name, variable in self._variables.items():
            values = ops.convert_to_numpy(variable)
            if name != "step":
                store[f"{name}_shape"] = np.array(values.shape)
                values = np.packbits(values)
            store[name] = values

    def load_own_variables(self, store: Any) -> None:
        if "step" not in store.keys():  # noqa: SIM118
            for mask in self._masks:
                mask.follow_zeros()
            return
        values = {"step": np.array(store["step"])}
        for name, variable in self._variables.items():
            if name == "step":
                continue
            shape = tuple(np.array(store[f"{name}_shape"])) if name in store.keys() else None  # noqa: SIM118
            if shape != tuple(variable.shape):
                raise ValueError(
                    f"A mask must have the shape of its weight. Received: {variable.path} of shape "
                    f"{tuple(variable.shape)}, and in the file {shape}."
                )
            bits = np.unpackbits(np.array(store[name]), count=int(np.prod(shape)))
            values[name] = bits.reshape(shape).astype(bool)
        for name, variable in self._variables.items():
            variable.assign(values[name])

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        if save_type != "checkpoint":  # a SavedModel is for inference
            return {}
        return {name: variable.value for name, variable in self._variables.items()}

    def _lookup_dependency(self, name: str, cached_dependencies: Any = None) -> Any:
        return self._trackable_children().get(name)

    def _obj_type(self) -> str:
        return "Operation"


def warn_of_few_zeros(masked: Mapping[str, keras.Variable]) -> None:
    """Warns the caller of the calling function of weights without the zeros that were asked for.

    Args:
        masked: Weights that carry a mask, by their paths.
    """
    families = {path: variable.constraint.family for path, variable in masked.items()}
    dense = {path: variable for path, variable in masked.items() if families[path].missed(variable)}
    if frozen := [path for path, variable in dense.items() if not variable.trainable]:
        warnings.warn(
            f"No zeros in {_names(frozen)}: they are frozen, and a schedule prunes only what trains. "
            "Let them train before you fit, by tfkit.configure_base_model(model, '*'), or leave them out of "
            "`layers`; tfkit.prune_now prunes frozen layers at once.",
            stacklevel=3,
        )
    if never := [path for path, variable in dense.items() if variable.trainable]:
        warnings.warn(
            f"No zeros in {_names(never)}: the schedule never pruned there. "
            "A schedule acts at updates begin_step, begin_step + frequency, … that training reaches; "
            "TFMOT's default frequency is 100. In a short run pass frequency=2 and a smaller end_step.",
            stacklevel=3,
        )
    if early := {path: steps for path in families.keys() - dense if (steps := families[path].early())}:
        paths = [path for path in masked if path in early]
        step, end = early[paths[0]]
        warnings.warn(
            f"Fewer zeros than asked for in {_names(paths)}: training ended at update {step} and the "
            f"schedule ends at {end}. Steps are optimizer updates, epochs times batches: choose an end_step "
            "that training reaches, or train on before you strip.",
            stacklevel=3,
        )


def _names(paths: list[str]) -> str:
    return ", ".join(paths[:5]) + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")
