"""Which layers train, also on a model that is compiled or has trained already."""

from collections.abc import Iterable
from typing import Literal

import keras

from tfkit import graph
from tfkit.errors import ArgumentError
from tfkit.select import Pattern, select_layers


def configure_base_model(
    base_model: keras.Model,
    trainable_layers: Pattern | Iterable[Pattern],
    *,
    batch_norm: Literal["frozen", "train"] = "frozen",
) -> keras.Model:
    """Lets exactly the selected layers train and freezes the rest, in place.

    Works at any time. On a compiled model the next `fit` uses the new selection:
    Keras alone would go on with the old one, or stop with "Unknown variable". The
    optimizer stays the same object; its `iterations` and the state (momentum, moving
    averages) of variables that keep training are kept, newly trained variables start
    with fresh state. When the base is part of a larger compiled model, pass the larger
    model and name layers by path, for it is that model which trains.

    Args:
        base_model: A built Keras model of any kind. Changed in place.
        trainable_layers: Patterns of `select_layers`; ``[]`` freezes everything.
        batch_norm: ``"frozen"`` keeps every BatchNormalization in inference mode, even
            inside a trainable selection, so that small data cannot spoil its pretrained
            statistics; ``"train"`` lets the selected ones learn.

    Returns:
        `base_model` itself.

    Raises:
        ArgumentTypeError: If `base_model` is no Keras model.
        UnbuiltModelError: If it has no weights yet.
        LayerNotFoundError: If a pattern matches nothing.
        ArgumentError: If `batch_norm` is neither value.

    Examples:
        >>> import tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4, 8), output_channels=3)
        >>> _ = tfkit.configure_base_model(model, "decoder_conv2")
        >>> [v.path for v in model.trainable_variables]
        ['decoder_conv2/kernel', 'decoder_conv2/bias']
        >>> len(tfkit.configure_base_model(model, []).trainable_variables)
        0

    Source: frozen statistics while fine-tuning, Keras's guide "Transfer learning and
    fine-tuning"; the stale train step is keras-team/keras#9477.
    """
    if batch_norm not in ("frozen", "train"):
        raise ArgumentError(f"`batch_norm` must be 'frozen' or 'train'. Received: batch_norm={batch_norm!r}.")
    selection = select_layers(base_model, trainable_layers)
    chosen = {id(variable) for variable in selection.variables}
    bare = {id(layer) for layer in selection.layers if not layer.weights}

    base_model.trainable = bool(chosen)
    for node in graph.descend(graph.walk(base_model)):
        layer = node.layer  # parents come first: setting one sets all inside it
        layer.trainable = id(layer) in bare or any(id(v) in chosen for v in layer.weights)
    for layer in graph.sublayers(base_model):
        frozen = batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)
        if frozen:
            layer.trainable = False
        for variable in graph.own_variables(layer):
            if id(variable) not in chosen:
                variable.trainable = False
    refresh_training(base_model)
    return base_model


def refresh_training(model: keras.Model) -> None:
    """Makes a change of what trains reach the optimizer and the compiled train step.

    Does nothing for a model that is not compiled.
    """
    if not model.compiled:
        return
    if model.optimizer.built:
        rebind_optimizer(model.optimizer, model.trainable_variables)
    if model.train_function is not None:
        model.make_train_function(force=True)


def rebind_optimizer(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> None:
    """Gives a built optimizer another set of variables, in place.

    `iterations`, the rate and the state of variables that stay are kept. A variable
    that is new starts with zero state, and its moving average (`use_ema`) with the
    variable's own value.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:  # LossScaleOptimizer: the state lives in the inner one
        rebind_optimizer(inner, variables)
        optimizer._trainable_variables = variables[:]
        optimizer._trainable_variables_indices = {
            optimizer._var_key(variable): i for i, variable in enumerate(variables)
        }
        return
    before = dict(optimizer._trainable_variables_indices)
    keys = [optimizer._var_key(variable) for variable in variables]
    if list(before) == keys:
        return

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
