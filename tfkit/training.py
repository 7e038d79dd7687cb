"""A compiled model's training state: what its optimizer knows, what its train step was traced for.

Keras fixes both when training begins and tells nobody. Here they can be brought up to
date, checked before a run, and put back as they were.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras.src.utils.tracking import DotNotTrackScope

from tfkit import graph
from tfkit.errors import ArgumentError, PruningError
from tfkit.per_variable import PerVariable, tailor
from tfkit.traced import local_values, traced_graphs, written_variables


def refresh_training(model: keras.Model) -> None:
    """Makes a change of what trains reach the optimizer and the compiled train step.

    Does nothing for a model that is not compiled.
    """
    if not model.compiled:
        return
    settle_rules(model)
    if model.optimizer is not None and model.optimizer.built:
        rebind_optimizer(model.optimizer, model.trainable_variables)
    if model.train_function is not None:
        model.make_train_function(force=True)
    if model.test_function is not None:  # penalties of what trains are part of its loss
        model.make_test_function(force=True)


def settle_rules(model: keras.Model) -> None:
    """Gives every weight of a model whose optimizer has rules the rule that a file holds for it.

    The optimizer alone knows only what trains; what is frozen may have rules as well.
    """
    optimizer = getattr(model, "optimizer", None) if model.compiled else None
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(inner, PerVariable):
        inner.settle([variable for _, variable in graph.learnable(model)])


@contextlib.contextmanager
def changing_rules(model: keras.Model) -> Iterator[tuple[PerVariable, list[keras.Variable]]]:
    """Gives the optimizer that follows rules, and all weights that could train, to change the rules.

    A train step that follows other rules is traced anew in the end.
    """
    optimizer = tailor(model.optimizer)
    settle_rules(model)
    yield optimizer, [variable for _, variable in graph.learnable(model)]
    if optimizer.rules.stale:
        refresh_training(model)
        optimizer.rules.stale = False


# For each model the train step that was checked last, and the ids of what it moves.
_CHECKED: weakref.WeakKeyDictionary[keras.Model, tuple[Callable[[], Any], frozenset[int]]] = (
    weakref.WeakKeyDictionary()
)


def require_current_training(model: keras.Model) -> None:
    """Checks that the compiled train step trains the variables that are trainable now.

    Keras traces its train step once. A layer whose `trainable` is changed by hand after
    that goes on as before, in silence; one that the optimizer has never seen stops the
    training with "Unknown variable". A BatchNormalization that has only statistics counts by those.

    Raises:
        ArgumentError: Naming the weights whose `trainable` changed.
    """
    optimizer = getattr(model, "optimizer", None)
    if optimizer is None:  # in a loop of one's own
        return
    statistics = {
        id(variable): layer.trainable
        for layer in graph.sublayers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and not layer.scale and not layer.center
        for variable in (layer.moving_mean, layer.moving_variance)
    }
    now = {id(variable) for variable in model.trainable_variables}
    now |= {key for key, moves in statistics.items() if moves}
    known = {id(variable) for variable in optimizer._trainable_variables} | statistics.keys()
    function, before = _CHECKED.get(model, (lambda: None, frozenset()))
    if not optimizer.built:
        joined, left = set[int](), set[int]()
    elif not traced_graphs(model):
        joined, left = now - known, set[int]()
    elif function() is model.train_function:
        joined, left = now - before, set(before - now)
    else:  # nobody looked when it was traced; what it does not move may have no gradient
        joined, left = now - known, (known - now) & written_variables(model)
    changed = {
        "made trainable": [variable for variable in model.variables if id(variable) in joined],
        "frozen": [variable for variable in model.variables if id(variable) in left],
    }
    if joined or left:
        raise ArgumentError(
            "What trains must not change by hand once training has begun, for Keras would not notice. "
            f"Received: model={model.name!r}, "
            + " and ".join(
                f"{', '.join(v.path for v in variables[:3])}{' …' if len(variables) > 3 else ''} {what}"
                for what, variables in changed.items()
                if variables
            )
            + " since. Use tfkit.configure_base_model, or compile the model again."
        )
    if model.train_function is not None:
        _CHECKED[model] = (weakref.ref(model.train_function), frozenset(now))


class TrainingState:
    """Everything that training moves in a compiled model, to be put back bit for bit.

    Holds a copy of the weights (seeds and statistics included), of the optimizer's and
    the metrics' state and of what constraints carry, and the traced train step itself.

    Args:
        model: A built and compiled model. Not changed.
    """

    ATTRIBUTES = ("train_function", "steps_per_execution", "stop_training", "history", "_initial_epoch")

    def __init__(self, model: keras.Model):
        self._model = model
        self._built = model.optimizer.built
        self._values = [
            (value, np.array(value.numpy()))
            for variable in _state_variables(model)
            for value in local_values(variable)
        ]
        self._attributes = {name: getattr(model, name) for name in self.ATTRIBUTES if hasattr(model, name)}

    def restore(self, *, keep_trace: bool = False) -> None:
        """Puts everything back; with `keep_trace` the train step of now stays, for the next fit."""
        if not self._built:
            for optimizer in _parts(self._model.optimizer):
                _forget(optimizer)
        self._model.reset_metrics()  # those that were built since
        for value, before in self._values:
            value.assign(before)
        for name in self.ATTRIBUTES:
            if name == "train_function" and keep_trace:
                continue
            if name in self._attributes:
                setattr(self._model, name, self._attributes[name])
            elif hasattr(self._model, name):
                delattr(self._model, name)  # Keras adds `history` at the first fit


def _state_variables(model: keras.Model) -> list[keras.Variable]:
    held = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    for part in _parts(model.optimizer):
        held += part.variables
    for variable in model.variables:
        held += getattr(variable.constraint, "variables", [])
    return list({id(variable): variable for variable in held}.values())


def local_value(variable: keras.Variable) -> Any:
    """Returns a variable's tensor; of one that is mirrored, the first replica's."""
    return local_values(variable)[0]


def _parts(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """Returns an optimizer and those inside it."""
    inner = [optimizer.inner_optimizer] if hasattr(optimizer, "inner_optimizer") else []
    return [optimizer, *inner, *getattr(optimizer, "optimizers", [])]


def rebind_optimizer(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> None:
    """Gives a built optimizer another set of variables, in place.

    `iterations`, the rate and the state of variables that stay are kept. A variable
    that is new starts with zero state, and its moving average (`use_ema`) with the
    variable's own value.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        rebind_optimizer(optimizer.inner_optimizer, variables)  # the state lives there
        _reindex(optimizer, variables)
    elif isinstance(optimizer, keras.optimizers.MultiOptimizer):
        _rebind_parts(optimizer, variables)
        _reindex(optimizer, variables)
    elif list(optimizer._trainable_variables_indices) != [optimizer._var_key(v) for v in variables]:
        _rebuild(optimizer, variables)


def _reindex(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> None:
    with DotNotTrackScope():  # or the model's weights would be saved as the optimizer's own
        optimizer._trainable_variables = variables[:]
        optimizer._trainable_variables_indices = {
            optimizer._var_key(variable): i for i, variable in enumerate(variables)
        }


def _rebind_parts(optimizer: keras.optimizers.MultiOptimizer, variables: list[keras.Variable]) -> None:
    """Gives each part of a MultiOptimizer the variables that its map assigns to it."""
    parts: dict[int, list[keras.Variable]] = {}
    with DotNotTrackScope():
        optimizer._var_to_optimizer_idx = {}
        for variable in variables:
            part = optimizer._optimizer_map(variable)
            if part not in optimizer.optimizers:
                optimizer.optimizers.append(part)
            place = optimizer.optimizers.index(part)
            optimizer._var_to_optimizer_idx[optimizer._var_key(variable)] = place
            parts.setdefault(place, []).append(variable)
    for place, own in parts.items():
        if optimizer.optimizers[place].built:  # an unused part is built by its first update
            rebind_optimizer(optimizer.optimizers[place], own)


def _rebuild(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> None:
    """Builds the optimizer's state anew and carries over what still belongs to a variable."""
    before = dict(optimizer._trainable_variables_indices)
    keys = [optimizer._var_key(variable) for variable in variables]
    slots = _slots(optimizer, len(before))
    kept = (optimizer._iterations, optimizer._learning_rate)
    scalars = {
        name: value
        for name, value in vars(optimizer).items()
        if isinstance(value, keras.Variable) and not any(value is each for each in kept)
    }
    _forget(optimizer)
    with (
        optimizer._distribution_strategy.scope(),
        keras.name_scope(optimizer.name, caller=optimizer),
    ):
        optimizer.build(variables)
    optimizer.built = True

    for name, old in scalars.items():
        getattr(optimizer, name).assign(old)
    for name, new in _slots(optimizer, len(variables)).items():
        for place, (key, variable) in enumerate(zip(keys, variables, strict=True)):
            if new[place] is None:
                continue
            if key in before and name in slots:
                new[place].assign(slots[name][before[key]])
            elif name == "_model_variables_moving_average":
                new[place].assign(variable)


def compile_settings(model: keras.Model) -> dict[str, Any]:
    """Returns what another model is compiled with to train as this one does.

    The optimizer and the metrics are new ones of the same configuration; the loss is the same.

    Raises:
        ArgumentError: If the model was compiled in a way of its own.
    """
    known = getattr(model, "_compile_config", None)
    if known is None:
        raise ArgumentError(
            "The model must have been compiled by Keras's own `compile`. "
            f"Received: model={model.name!r} of type {type(model).__name__}, which overrides it. "
            "Wrap its parts in a keras.Model and compile that."
        )
    settings = dict(known.config)

    def renewed(metric: Any) -> Any:
        return type(metric).from_config(metric.get_config()) if isinstance(metric, keras.Metric) else metric

    for name in ("metrics", "weighted_metrics"):
        settings[name] = keras.tree.map_structure(renewed, settings[name])
    optimizer = model.optimizer
    settings["optimizer"] = type(optimizer).from_config(optimizer.get_config())
    for old, new in zip(_parts(optimizer), _parts(settings["optimizer"])):
        pattern = getattr(old, "_exclude_from_weight_decay_pattern", None)
        if pattern is not None:  # names that decay spares are no part of a configuration
            new.exclude_from_weight_decay(var_names=[pattern.pattern])
    return settings


def carry_state(
    old: keras.optimizers.Optimizer,
    new: keras.optimizers.Optimizer,
    pairs: Mapping[int, keras.Variable],
    fit: Callable[[keras.Variable, np.ndarray], np.ndarray],
) -> None:
    """Copies what an optimizer has learned to one of the same kind for another model.

    Args:
        old: A built optimizer.
        new: A built optimizer of the same class and settings.
        pairs: For the `id` of each variable of the old model the variable of the new one.
        fit: Gives the state of an old variable the shape that the new one needs.

    Raises:
        PruningError: If state of a variable has no counterpart, or another shape.
    """
    inner = [(a, b) for a, b in zip(_parts(old)[1:], _parts(new)[1:], strict=True)]
    for before, after in [(old, new), *inner]:
        for name, value in vars(before).items():
            twin = getattr(after, name, None)
            if isinstance(value, keras.Variable) and isinstance(twin, keras.Variable):
                twin.assign(value)
        spared = getattr(before, "_exclude_from_weight_decay", None) or ()
        for variable in before._trainable_variables:
            if before._var_key(variable) in spared and id(variable) in pairs:
                after._exclude_from_weight_decay = getattr(after, "_exclude_from_weight_decay", set()) | {
                    after._var_key(pairs[id(variable)])
                }
        places = {id(variable): place for place, variable in enumerate(after._trainable_variables)}
        slots = _slots(after, len(places))
        for name, states in _slots(before, len(before._trainable_variables)).items():
            for variable, state in zip(before._trainable_variables, states, strict=True):
                place = places.get(id(pairs.get(id(variable))))
                target = slots[name][place] if place is not None and name in slots else None
                if state is None and target is None:
                    continue
                values = None if state is None else fit(variable, keras.ops.convert_to_numpy(state))
                if values is None or target is None or values.shape != tuple(target.shape):
                    raise PruningError(
                        "An optimizer's state is carried over where it has the shape of the weights. "
                        f"Received: {type(before).__name__} with {name} of {variable.path}, which does not. "
                        "Compile the smaller model anew."
                    )
                target.assign(values)


def _forget(optimizer: keras.optimizers.Optimizer) -> None:
    """Takes an optimizer back to before it was built; keeps `iterations` and the rate."""
    for variable in optimizer.variables:
        if variable is not optimizer._iterations and variable is not optimizer._learning_rate:
            optimizer._untrack_variable(variable)
    optimizer._trainable_variables_indices = {}
    optimizer.built = False


def _slots(optimizer: keras.optimizers.Optimizer, count: int) -> dict[str, list[Any]]:
    """Returns the optimizer's per-variable state: attribute name -> one entry a variable."""
    return {
        name: list(value)
        for name, value in vars(optimizer).items()
        if name not in ("_variables", "_trainable_variables")
        and isinstance(value, list)
        and len(value) == count
        and all(each is None or isinstance(each, keras.Variable) for each in value)
    }
