"""Magnitude pruning of Keras 3 models, without wrappers and without a callback."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.sparsity.keras import ConstantSparsity

from tfkit import graph
from tfkit.errors import ArgumentError, PruningError
from tfkit.prune import legacy
from tfkit.prune.arguments import (
    by_rule,
    choose_weights,
    read_structure,
    require_fit,
    require_schedule,
    require_sparsity,
    schedule_reader,
    sparsity_reader,
)
from tfkit.prune.kernels import Weight, weights_of
from tfkit.prune.mask import PoolingType, Scope, Structure, apply_mask, draw_masks
from tfkit.prune.pruning import Family, LayerMasks, MagnitudeMask, Pruning, Schedule, warn_of_few_zeros
from tfkit.select import Pattern

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_SCHEDULE = ConstantSparsity(0.5, 0)  # TFMOT's own default


def prune_low_magnitude(
    model: keras.Model | keras.Layer | list[keras.Layer],
    pruning_schedule: Schedule = DEFAULT_SCHEDULE,
    *,
    layers: Pattern | Iterable[Pattern] | Mapping[Pattern, Schedule | float | None] | None = None,
    scope: Scope = "layer",
    block_size: tuple[int, int] = (1, 1),
    block_pooling_type: PoolingType = "AVG",
    sparsity_m_by_n: tuple[int, int] | None = None,
    pruning_policy: Any = None,
) -> Any:
    """Prunes the smallest weights while the model trains, in place.

    No layer is wrapped or renamed and no callback is needed. Each kernel carries its
    mask as a Keras constraint, so the compiled train step itself keeps the weights
    exactly sparse after every update, in `fit` and in custom loops that call
    `optimizer.apply`. Prunable are the kernels of Dense and of every convolution, of
    embeddings, recurrent and attention layers, and what a layer of your own names in
    `get_prunable_weights()`; biases, normalisation and one-dimensional weights stay whole.

    A pruning step is an optimizer update, counted from 1 since this call; the schedule
    is asked with that number. At sparsity s a kernel of n weights keeps the
    ``max(round(n (1 - s)), 1)`` largest magnitudes. Checkpoints hold the sparse weights,
    load in plain Keras, and carry masks and count for a run that goes on from them.

    Args:
        model: A built Keras 3 model, changed in place: the one that is compiled, whose train
            step follows. If only a part of it is given after it has trained, compile it
            again. A single layer or a list of layers is accepted as by TFMOT; one that is
            not built yet is pruned once it is. A tf_keras model goes to TFMOT, which
            returns a wrapped copy.
        pruning_schedule: TFMOT's `ConstantSparsity`, `PolynomialDecay`, or any
            ``step -> (should_prune, sparsity)`` with sparsity in [0, 1).
        layers: Patterns of `select_layers` for what to prune, None for all that can be. Or
            a mapping from patterns to a schedule, to the final sparsity at which
            `pruning_schedule` shall end there, or to None for not at all; where several
            match, the last one holds, and what none matches follows `pruning_schedule`.
        scope: ``"layer"`` gives each kernel the schedule's sparsity. ``"global"`` ranks the
            kernels of one schedule that train together, so that all of them have that sparsity
            as a whole, and each keeps at least one weight. ``"erk"`` does so by the
            Erdős–Rényi-kernel rule: the larger a kernel, the sparser.
        block_size: Rows and columns of tiles that are kept or dropped as one, in the matrix
            of what one output sums by outputs: ``(inputs, units)`` of a Dense kernel,
            ``(height * width * inputs, filters)`` of a convolution's.
        block_pooling_type: ``"AVG"`` or ``"MAX"``, how the magnitudes of a tile become one.
        sparsity_m_by_n: (m, n) for m zeros in every n consecutive inputs to an output, such
            as (2, 4). Masks are drawn at a kernel's first update from the schedule's `begin_step`
            on, and again when the schedule says so; its sparsity has no part.
        pruning_policy: TFMOT's, for tf_keras models only.

    Returns:
        `model` itself (for tf_keras: TFMOT's new model).

    Raises:
        ArgumentTypeError: If `model` is no model or layer, or the schedule cannot be called.
        UnbuiltModelError: If the model has no weights yet.
        ArgumentError: If the schedule returns a sparsity outside [0, 1), or an argument is
            outside its range or excludes another.
        LayerNotFoundError: If a pattern matches nothing.
        PruningError: If nothing is prunable, a selected layer is pruned already, or tiles
            or groups do not fit a kernel.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a")])
        >>> _ = tfkit.prune_low_magnitude(model, tfkit.ConstantSparsity(0.75, begin_step=0, frequency=1))
        >>> model.compile("adam", "mse")
        >>> _ = model.fit(np.ones((2, 8)), np.ones((2, 4)), verbose=0)
        >>> int(np.count_nonzero(model.get_layer("a").kernel))
        8

    Source: Zhu and Gupta, To Prune, or Not to Prune (2017); TFMOT's function of that name;
    Evci et al., Rigging the Lottery (2020), for ERK; Mishra et al., Accelerating Sparse
    Deep Neural Networks (2021), for 2:4.
    """
    if legacy.is_tf_keras(model):
        return legacy.prune_low_magnitude(
            model,
            pruning_schedule,
            layers=layers,
            scope=scope,
            block_size=block_size,
            block_pooling_type=block_pooling_type,
            sparsity_m_by_n=sparsity_m_by_n,
            pruning_policy=pruning_policy,
        )
    if pruning_policy is not None:
        raise ArgumentError(
            "`pruning_policy` is TFMOT's way of choosing layers of tf_keras models. "
            f"Received: pruning_policy={pruning_policy!r}. On Keras 3 give `layers` patterns or a "
            "function of a layer."
        )
    structure = read_structure(scope, block_size, block_pooling_type, sparsity_m_by_n)
    schedule = require_schedule("pruning_schedule", pruning_schedule)
    parts = model if isinstance(model, list) else [model]
    if parts and all(isinstance(each, keras.Layer) and not isinstance(each, keras.Model) for each in parts):
        if layers is not None or structure.scope != "layer":
            raise ArgumentError(
                "`layers` and `scope` are about the layers of a model. "
                f"Received: layers={layers!r}, scope={scope!r} beside "
                f"{'layers' if model is parts else 'a single layer'}. Build the model and prune that."
            )
        _prune_layers(parts, schedule, structure)
        return model
    graph.require_model(model)
    chosen = choose_weights(model, layers, schedule, schedule_reader(schedule, structure))
    _attach(chosen, structure, model)
    _retrace(model)
    return model


def _attach(
    chosen: Sequence[tuple[Weight, Schedule]], structure: Structure, model: keras.Model | None
) -> None:
    """Gives every chosen weight its mask, or none of them."""
    weights = [weight for weight, _ in chosen]
    require_fit(weights, structure)
    for weight in weights:
        if isinstance(weight.variable.constraint, MagnitudeMask):
            raise PruningError(
                "A layer can be pruned once. "
                f"Received: {weight.name}, which carries a mask. "
                "Call tfkit.strip_pruning(model) first, or leave the layer out of `layers`."
            )
    strategy = tf.distribute.get_strategy() if model is None else model.distribute_strategy
    by_layer: dict[int, tuple[keras.Layer, list[MagnitudeMask]]] = {}
    with strategy.scope():
        pruning = Pruning(model)
        for schedule, members in by_rule(chosen):
            kernels = [(weight.variable, weight.layout) for weight in members]
            family = Family(pruning, kernels, schedule, structure)
            for weight, mask in zip(members, family.masks, strict=True):
                weight.variable.constraint = mask
                by_layer.setdefault(id(weight.layer), (weight.layer, []))[1].append(mask)
    for layer, masks in by_layer.values():
        setattr(layer, LayerMasks.NAME, LayerMasks(masks))


def _prune_layers(layers: Sequence[keras.Layer], schedule: Schedule, structure: Structure) -> None:
    """Prunes layers that stand alone: those that have their weights now, the others once they have."""
    for layer in layers:
        if hasattr(layer.build, "prunes"):
            raise PruningError(
                f"A layer can be pruned once. Received: {layer.name}, which will be as soon as it is built."
            )

    def prune(built: Sequence[keras.Layer]) -> None:
        weights = [weight for layer in built for weight in weights_of(layer) if weight.obstacle is None]
        if weights:  # TFMOT, too, takes layers that have nothing to prune
            _attach([(weight, schedule) for weight in weights], structure, None)

    prune([layer for layer in layers if layer.built])
    for layer in layers:
        if not layer.built:
            layer.__dict__["build"] = _build_and(layer, functools.partial(prune, [layer]))


def _build_and(layer: keras.Layer, act: Callable[[], None]) -> Callable[..., Any]:
    """Returns a layer's `build` with something to do after it, once."""
    build = layer.build

    @functools.wraps(build)
    def build_and_act(*args: Any, **kwargs: Any) -> Any:
        if not layer.built:
            build(*args, **kwargs)
        act()  # if it fails, the next build tries again
        layer.__dict__["build"] = build

    build_and_act.__dict__["prunes"] = True
    return build_and_act


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
    masked = masked_weights(graph.require_model(model))
    if not masked:
        raise PruningError(
            "`strip_pruning` takes a model that is being pruned. "
            f"Received: model={model.name!r}, which carries no mask. "
            "Call tfkit.prune_low_magnitude(model) first; a model pruned by tfkit.prune_now, or loaded from "
            "a file, needs no strip."
        )
    warn_of_few_zeros({each.path: each.variable for each in masked})
    for weight in masked:
        weight.variable.constraint = weight.variable.constraint.before
    for layer in graph.sublayers(model):
        if hasattr(layer, LayerMasks.NAME):
            delattr(layer, LayerMasks.NAME)
    _retrace(model)
    return model


def prune_now(
    model: keras.Model,
    sparsity: float | None = None,
    *,
    layers: Pattern | Iterable[Pattern] | Mapping[Pattern, float | None] | None = None,
    scope: Scope = "layer",
    block_size: tuple[int, int] = (1, 1),
    block_pooling_type: PoolingType = "AVG",
    sparsity_m_by_n: tuple[int, int] | None = None,
) -> keras.Model:
    """Sets the smallest weights of each kernel to zero at once, in place.

    Nothing holds the zeros afterwards, unless the model is being pruned: then the masks move
    too. To train on with the zeros held, use `prune_low_magnitude` with
    ``ConstantSparsity(sparsity, begin_step=1, end_step=1, frequency=1)``.

    Args:
        model: A built Keras 3 model.
        sparsity: Fraction of each kernel's weights to drop, in [0, 1); left out with
            `sparsity_m_by_n`.
        layers: As in `prune_low_magnitude`; the values of a mapping are sparsities or None.
        scope: As in `prune_low_magnitude`; kernels of one sparsity are ranked together.
        block_size: As in `prune_low_magnitude`.
        block_pooling_type: As in `prune_low_magnitude`.
        sparsity_m_by_n: As in `prune_low_magnitude`.

    Returns:
        `model` itself.

    Raises:
        ArgumentTypeError: If `model` is no model, or `sparsity` no number.
        ArgumentError: If `sparsity` lies outside [0, 1), or an argument is outside its range
            or excludes another.
        LayerNotFoundError: If a pattern matches nothing.
        PruningError: If nothing is prunable, or tiles or groups do not fit a kernel.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="a")])
        >>> int(np.count_nonzero(tfkit.prune_now(model, sparsity_m_by_n=(1, 4)).get_layer("a").kernel))
        24
        >>> int(np.count_nonzero(tfkit.prune_now(model, 0.5).get_layer("a").kernel))
        16

    Source: Han et al., Learning both Weights and Connections (2015).
    """
    structure = read_structure(scope, block_size, block_pooling_type, sparsity_m_by_n)
    if structure.m_by_n is None:
        require_sparsity("sparsity", sparsity)
    elif sparsity is not None:
        raise ArgumentError(
            "`sparsity_m_by_n` is a sparsity by itself. "
            f"Received: sparsity={sparsity!r}, sparsity_m_by_n={sparsity_m_by_n!r}. Leave `sparsity` out."
        )
    default = 0.0 if sparsity is None else float(sparsity)
    chosen = choose_weights(graph.require_model(model), layers, default, sparsity_reader(structure))
    require_fit([weight for weight, _ in chosen], structure)
    for value, members in by_rule(chosen):
        values = [keras.ops.convert_to_tensor(weight.variable) for weight in members]
        masks = draw_masks(values, value, [weight.layout for weight in members], structure)
        for weight, kernel, mask in zip(members, values, masks, strict=True):
            weight.variable.assign(apply_mask(mask, kernel))
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


def masked_weights(model: keras.Model) -> list[Weight]:
    """Returns the weights that carry a mask."""
    return [each for each in weights_of(model) if isinstance(each.variable.constraint, MagnitudeMask)]


def _retrace(model: keras.Model) -> None:
    """Makes the next train step see the constraints as they are now."""
    if model.train_function is not None:
        model.make_train_function(force=True)
