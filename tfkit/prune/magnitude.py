"""Magnitude pruning of Keras 3 models, without wrappers and without a callback."""

import math
import numbers
import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import keras
import numpy as np
from tensorflow_model_optimization.sparsity.keras import ConstantSparsity

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError, PruningError
from tfkit.prune import legacy
from tfkit.prune.constraint import MagnitudeMask, PruningClock, Schedule
from tfkit.prune.mask import magnitude_mask
from tfkit.select import Pattern, select_layers

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_SCHEDULE = ConstantSparsity(0.5, 0)  # TFMOT's own default
KERNELS = {"kernel", "recurrent_kernel", "depthwise_kernel", "pointwise_kernel", "embeddings"}


class Weight(NamedTuple):
    """A weight at its place, and why it is not prunable; None if it is."""

    path: str
    layer: keras.Layer
    variable: keras.Variable
    obstacle: str | None


def prune_low_magnitude(
    model: keras.Model,
    pruning_schedule: Schedule = DEFAULT_SCHEDULE,
    *,
    layers: Pattern | Iterable[Pattern] | None = None,
) -> keras.Model:
    """Prunes the smallest weights while the model trains, in place.

    No layer is wrapped or renamed and no callback is needed. Each kernel carries its
    mask as a Keras constraint, so the compiled train step itself keeps the weights
    exactly sparse after every update, in `fit` and in custom loops that call
    `optimizer.apply`. Prunable are the kernels of Dense and of every convolution, of
    embeddings, recurrent and attention layers; biases, normalisation and
    one-dimensional weights stay whole.

    A pruning step is an optimizer update, counted from 1 since this call; the schedule
    is asked with that number. At sparsity s a kernel of n weights keeps the
    ``max(round(n (1 - s)), 1)`` largest magnitudes. Checkpoints hold the sparse weights
    and load in plain Keras; loading one takes the mask from its zeros.

    Args:
        model: A built Keras 3 model, changed in place. A tf_keras model goes to TFMOT,
            which returns a wrapped copy.
        pruning_schedule: TFMOT's `ConstantSparsity`, `PolynomialDecay`, or any
            ``step -> (should_prune, sparsity)`` with sparsity in [0, 1).
        layers: Patterns of `select_layers`; None prunes all that can be.

    Returns:
        `model` itself (for tf_keras: TFMOT's new model).

    Raises:
        ArgumentTypeError: If `model` is no model or the schedule cannot be called.
        UnbuiltModelError: If the model has no weights yet.
        ArgumentError: If the schedule returns a sparsity outside [0, 1).
        LayerNotFoundError: If a pattern matches nothing.
        PruningError: If nothing is prunable, or a selected layer is pruned already.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a")])
        >>> _ = tfkit.prune_low_magnitude(model, tfkit.ConstantSparsity(0.75, begin_step=0, frequency=1))
        >>> model.compile("adam", "mse")
        >>> _ = model.fit(np.ones((2, 8)), np.ones((2, 4)), verbose=0)
        >>> int(np.count_nonzero(model.get_layer("a").kernel))
        8

    Source: Zhu and Gupta, To Prune, or Not to Prune (2017); TFMOT's function of that name.
    """
    if legacy.is_tf_keras(model):
        return legacy.prune_low_magnitude(model, pruning_schedule, layers=layers)
    weights = _chosen(graph.require_model(model), layers)
    _check_schedule(pruning_schedule)
    for weight in weights:
        if isinstance(weight.variable.constraint, MagnitudeMask):
            raise PruningError(
                "A layer can be pruned once. "
                f"Received: model={model.name!r}, where {weight.path}/{weight.variable.name} carries a mask. "
                "Call tfkit.strip_pruning(model) first, or leave the layer out of `layers`."
            )
    optimizer = model.optimizer if model.compiled else None
    with model.distribute_strategy.scope():
        clock = PruningClock(optimizer)
        for weight in weights:
            weight.variable.constraint = MagnitudeMask(weight.variable, pruning_schedule, clock)
            _follow_checkpoints(weight.layer)
    _retrace(model)
    return model


def strip_pruning(model: keras.Model) -> keras.Model:
    """Removes every trace of pruning but the zeros, in place.

    Args:
        model: A model that `prune_low_magnitude` has prepared; a TFMOT-wrapped tf_keras
            model goes to TFMOT.

    Returns:
        `model` itself, plain Keras again, with the constraints it had before (for
        tf_keras: TFMOT's new model).

    Raises:
        ArgumentTypeError: If `model` is no model.
        PruningError: If it carries no mask.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a")])
        >>> model = tfkit.strip_pruning(tfkit.prune_low_magnitude(model))
        >>> model.get_layer("a").kernel.constraint is None
        True

    Source: TFMOT's function of that name.
    """
    if legacy.is_tf_keras(model):
        return legacy.strip_pruning(model)
    masked = [each for each in weights_of(model) if isinstance(each.variable.constraint, MagnitudeMask)]
    if not masked:
        raise PruningError(
            "`strip_pruning` takes a model that is being pruned. "
            f"Received: model={model.name!r}, which carries no mask. "
            "Call tfkit.prune_low_magnitude(model) first; a model pruned by tfkit.prune_now needs no strip."
        )
    dense = [each.path for each in masked if bool(keras.ops.all(keras.ops.not_equal(each.variable, 0)))]
    if dense:
        warnings.warn(
            f"No zeros in {', '.join(dense[:5])}: its schedule never pruned it. "
            "A schedule acts at updates begin_step, begin_step + frequency, … that training reaches "
            "(TFMOT's default frequency is 100), and only on layers that train.",
            stacklevel=2,
        )
    for weight in masked:
        weight.variable.constraint = weight.variable.constraint.before
        weight.layer.__dict__.pop("load_own_variables", None)
    _retrace(model)
    return model


def prune_now(
    model: keras.Model, sparsity: float, *, layers: Pattern | Iterable[Pattern] | None = None
) -> keras.Model:
    """Sets the smallest weights of each kernel to zero at once, in place.

    Nothing holds the zeros afterwards; to train on with them, use `prune_low_magnitude`.

    Args:
        model: A built Keras 3 model.
        sparsity: Fraction of each kernel's weights to drop, in [0, 1).
        layers: Patterns of `select_layers`; None prunes all that can be.

    Returns:
        `model` itself.

    Raises:
        ArgumentTypeError: If `model` is no model.
        ArgumentError: If `sparsity` lies outside [0, 1).
        LayerNotFoundError: If a pattern matches nothing.
        PruningError: If nothing is prunable.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a")])
        >>> int(np.count_nonzero(tfkit.prune_now(model, 0.5).get_layer("a").kernel))
        16

    Source: Han et al., Learning both Weights and Connections (2015).
    """
    _check_sparsity("sparsity", sparsity)
    for weight in _chosen(graph.require_model(model), layers):
        values = keras.ops.convert_to_tensor(weight.variable)
        mask = magnitude_mask(values, sparsity)
        weight.variable.assign(keras.ops.where(mask, values, keras.ops.zeros_like(values)))
        if isinstance(weight.variable.constraint, MagnitudeMask):
            weight.variable.constraint.mask.assign(mask)
    return model


def sparsity_table(model: keras.Model) -> "pd.DataFrame":
    """Lists every weight once, with its zeros and whether pruning reaches it.

    Args:
        model: A built Keras 3 model.

    Returns:
        A DataFrame with the columns `path` (of the layer), `variable`, `shape`,
        `parameters` (a count), `sparsity` (the fraction of zeros, in [0, 1]), `status`
        (``"pruned"`` if it carries a mask, else ``"skipped"``) and `reason`.

    Raises:
        ArgumentTypeError: If `model` is no model.
        UnbuiltModelError: If it has no weights yet.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a")])
        >>> table = tfkit.sparsity_table(tfkit.prune_low_magnitude(model))
        >>> table[["path", "variable", "status"]].values.tolist()
        [['a', 'kernel', 'pruned'], ['a', 'bias', 'skipped']]
    """
    import pandas as pd

    rows = []
    for path, layer, variable, obstacle in weights_of(graph.require_model(model)):
        pruned = isinstance(variable.constraint, MagnitudeMask)
        frozen = not (variable.trainable and layer.trainable)
        if pruned:
            reason = "frozen: the mask acts once the layer trains" if frozen else ""
        else:
            reason = obstacle or "prunable, but carries no mask now"
        values = np.asarray(variable)
        rows.append(
            {
                "path": path,
                "variable": variable.name,
                "shape": tuple(variable.shape),
                "parameters": values.size,
                "sparsity": 1 - np.count_nonzero(values) / values.size if values.size else 0.0,
                "status": "pruned" if pruned else "skipped",
                "reason": reason,
            }
        )
    columns = ["path", "variable", "shape", "parameters", "sparsity", "status", "reason"]
    return pd.DataFrame(rows, columns=columns)


def weights_of(model: keras.Model) -> Iterator[Weight]:
    """Yields every weight of the model once, with what keeps it from being pruned."""
    seen: set[int] = set()
    for node in graph.descend(graph.walk(graph.require_model(model))):
        named = getattr(node.layer, "get_prunable_weights", None)
        chosen = None if named is None else {id(variable) for variable in named()}
        for variable in graph.own_variables(node.layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                yield Weight(node.path, node.layer, variable, _obstacle(variable, chosen))


def _obstacle(variable: keras.Variable, chosen: set[int] | None) -> str | None:
    if chosen is not None:
        return None if id(variable) in chosen else "the layer does not name it as prunable"
    if len(variable.shape) < 2:
        return "one-dimensional"
    if variable.name not in KERNELS:
        return "no kernel"
    if "float" not in variable.dtype:
        return f"not floating-point ({variable.dtype})"
    return None


def _chosen(model: keras.Model, layers: Pattern | Iterable[Pattern] | None) -> list[Weight]:
    weights = [weight for weight in weights_of(model) if weight.obstacle is None]
    if layers is not None:
        inside = {id(variable) for variable in select_layers(model, layers).variables}
        weights = [weight for weight in weights if id(weight.variable) in inside]
    if not weights:
        raise PruningError(
            "The model must have something to prune: a kernel of two dimensions or more. "
            f"Received: model={model.name!r}, layers={layers!r}, where no weight qualifies. "
            "tfkit.sparsity_table(model) gives the reason for each weight."
        )
    return weights


def _check_schedule(schedule: Schedule) -> None:
    if not callable(schedule) or isinstance(schedule, type):
        raise ArgumentTypeError(
            "`pruning_schedule` must be a schedule, step -> (should_prune, sparsity). "
            f"Received: pruning_schedule={schedule!r}. "
            "Use tfkit.ConstantSparsity(0.8, begin_step=0) or tfkit.PolynomialDecay(...)."
        )
    steps = {1, getattr(schedule, "begin_step", 1), getattr(schedule, "end_step", 1), 10**6}
    for step in sorted(step for step in steps if step >= 0):
        answer = schedule(keras.ops.convert_to_tensor(step, dtype="int64"))
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ArgumentTypeError(
                "`pruning_schedule` must return a pair (should_prune, sparsity). "
                f"Received: pruning_schedule={schedule!r}, which returned {answer!r} at step {step}."
            )
        try:
            sparsity = float(answer[1])
        except (TypeError, ValueError):
            sparsity = answer[1]
        _check_sparsity(f"pruning_schedule({step})", sparsity)


def _check_sparsity(name: str, sparsity: object) -> None:
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
        raise ArgumentTypeError(f"`{name}` must be a number in [0, 1). Received: {name}={sparsity!r}.")
    if not 0 <= sparsity < 1 or math.isnan(sparsity):
        raise ArgumentError(
            "A sparsity is the fraction of zeros and must lie in [0, 1). "
            f"Received: {name}={sparsity!r}. Write 0.8 for 80%."
        )


def _retrace(model: keras.Model) -> None:
    """Makes the next train step see the constraints as they are now."""
    if model.train_function is not None:
        model.make_train_function(force=True)


def _follow_checkpoints(layer: keras.Layer) -> None:
    """Lets the masks of a layer follow whatever a checkpoint puts into its weights."""
    if "load_own_variables" in layer.__dict__:
        return
    load = layer.load_own_variables

    def load_and_adopt(store: object) -> None:
        load(store)
        for variable in graph.own_variables(layer):
            if isinstance(variable.constraint, MagnitudeMask):
                variable.constraint.adopt(variable)

    layer.__dict__["load_own_variables"] = load_and_adopt
