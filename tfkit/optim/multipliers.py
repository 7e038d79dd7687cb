"""Learning rates that differ by layer, and the table of what training does to each weight."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import keras

from tfkit import graph, per_variable
from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.optim.arguments import require_positive
from tfkit.select import Pattern, select_layers
from tfkit.training import changing_rules, settle_rules

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = ["path", "variable", "shape", "trainable", "learning_rate_multiplier", "weight_decay", "l1", "l2"]


def set_learning_rate_multipliers(model: keras.Model, multipliers: Mapping[Pattern, float]) -> keras.Model:
    """Gives layers their own learning rates, in place, as multiples of the optimizer's.

    One optimizer goes on training all of them, so the ratios hold under every schedule,
    callback and plateau. Weight decay scales with the layer's rate, as it does in
    parameter groups. The multipliers come back with a saved optimizer, and stay with
    layers that are frozen later and unfrozen again.

    Args:
        model: A built and compiled model. Its optimizer is changed in place.
        multipliers: Patterns of `select_layers` and factors above 0. Where several match,
            the last one holds; where none does, the factor is 1. The call replaces all
            multipliers set before; an empty mapping removes them.

    Returns:
        `model` itself.

    Raises:
        ArgumentTypeError: If `multipliers` is no mapping.
        ArgumentError: If the model is not compiled, a factor is not above 0, or a pattern
            matches only weights that do not train.
        LayerNotFoundError: If a pattern matches nothing.

    Examples:
        >>> import tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4, 8), output_channels=3)
        >>> model.compile("adam", "mse")
        >>> _ = tfkit.set_learning_rate_multipliers(model, {"encoder_*": 0.1, "encoder_conv2": 0.5})
        >>> tfkit.training_table(model).learning_rate_multiplier.tolist()
        [0.1, 0.1, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0]

    Source: Howard and Ruder, ULMFiT (2018), section 3.2; keras-team/keras#21741.
    """
    if not isinstance(multipliers, Mapping):
        raise ArgumentTypeError(
            "`multipliers` must map patterns to factors, such as {'backbone': 0.1}. "
            f"Received: multipliers={multipliers!r}."
        )
    graph.require_compiled(model)
    trained = {id(variable) for variable in model.trainable_variables}
    factors: dict[int, float] = {}
    for pattern, factor in multipliers.items():
        factor = require_positive(f"multipliers[{pattern!r}]", factor)
        matched = [id(variable) for variable in select_layers(model, pattern).variables]
        if trained.isdisjoint(matched):
            raise ArgumentError(
                "A multiplier must reach at least one weight that trains. "
                f"Received: {pattern!r}, which matches frozen layers only. "
                "Let them train first with tfkit.configure_base_model, or leave the pattern out."
            )
        factors |= dict.fromkeys(matched, factor)
    with changing_rules(model) as (optimizer, variables):
        for variable in variables:
            rule = optimizer.rules[variable]._replace(factor=factors.get(id(variable), 1.0))
            optimizer.rules.put(variable, rule)
    return model


def training_table(model: keras.Model) -> "pd.DataFrame":
    """Lists what training does to each weight: one row for each that could learn.

    Args:
        model: A built model; where it is not compiled, decay is 0.

    Returns:
        A DataFrame in model order with the columns `path`, `variable`, `shape`,
        `trainable`, `learning_rate_multiplier`, `weight_decay` (λ, 0 where it does not
        apply), `l1` and `l2` (the penalty's factors).

    Raises:
        ArgumentTypeError: If `model` is no model.
        UnbuiltModelError: If its weights do not exist yet.

    Examples:
        >>> import tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4,), output_channels=3)
        >>> model.compile("adamw", "mse")
        >>> table = tfkit.training_table(tfkit.set_weight_decay(model, 0.5))
        >>> table[["variable", "weight_decay"]].values.tolist()
        [['kernel', 0.5], ['bias', 0.0], ['kernel', 0.5], ['bias', 0.0]]
    """
    import pandas as pd

    settle_rules(graph.require_model(model))
    optimizer = model.optimizer if model.compiled else None
    rows = []
    for node, variable in graph.learnable(model):
        factor, decay = per_variable.read_rule(optimizer, variable) if optimizer else (1.0, 0.0)
        rows.append(
            {
                "path": node.path,
                "variable": variable.name,
                "shape": tuple(variable.shape),
                "trainable": variable.trainable,
                "learning_rate_multiplier": factor,
                "weight_decay": decay,
                "l1": float(getattr(variable.regularizer, "l1", 0.0)),
                "l2": float(getattr(variable.regularizer, "l2", 0.0)),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)
