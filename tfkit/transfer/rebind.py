"""Giving an optimizer that has trained already another set of variables."""

import keras
from keras.src.utils.tracking import DotNotTrackScope


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
    for variable in optimizer.variables:
        if not any(variable is each for each in kept):
            optimizer._untrack_variable(variable)
    optimizer._trainable_variables_indices = {}
    optimizer.built = False
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


def _slots(optimizer: keras.optimizers.Optimizer, count: int) -> dict[str, list]:
    """Returns the optimizer's per-variable state: attribute name -> one entry a variable."""
    return {
        name: list(value)
        for name, value in vars(optimizer).items()
        if name not in ("_variables", "_trainable_variables")
        and isinstance(value, list)
        and len(value) == count
        and all(each is None or isinstance(each, keras.Variable) for each in value)
    }
