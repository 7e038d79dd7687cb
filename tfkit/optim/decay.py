"""Weight decay, and L1 and L2 penalties, on models that exist already."""

import warnings
from collections.abc import Iterable
from typing import Any

import keras

from tfkit import graph, per_variable
from tfkit.errors import ArgumentError
from tfkit.optim.arguments import require_nonnegative
from tfkit.select import Pattern, select_layers
from tfkit.training import changing_rules, refresh_training

ATTENTIONS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)


def set_weight_decay(
    model: keras.Model,
    rate: float,
    *,
    exclude: Pattern | Iterable[Pattern] = (),
    one_dimensional: bool = False,
) -> keras.Model:
    """Sets decoupled weight decay, in place: at every update ``w ← w - η λ w``.

    η is the learning rate of the moment, λ the decay. Biases and whatever has one
    dimension, as normalisation weights do, stay out unless asked for. `tfkit.training_table` shows
    which weights do.

    The decay may change at any time, also between two batches of a `fit`: another call
    with the same exclusions, or ``model.optimizer.weight_decay = λ``, costs no new trace.
    Saved in a `.keras` file, decay and exclusions come back with the optimizer; the
    process that loads it must have imported `tfkit.per_variable`, as `tfkit.models` does.

    Args:
        model: A built and compiled model. Its optimizer is changed in place.
        rate: λ, at least 0; 0 turns decay off.
        exclude: Patterns of `select_layers`: layers that do not decay at all.
        one_dimensional: Whether biases and weights of one dimension decay too.

    Returns:
        `model` itself.

    Raises:
        ArgumentError: If the model is not compiled, `rate` is negative or the model has
            several optimizers.
        LayerNotFoundError: If a pattern matches nothing.

    Examples:
        >>> import tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4, 8), output_channels=3)
        >>> model.compile("adam", "mse")
        >>> _ = tfkit.set_weight_decay(model, 0.01, exclude="decoder_conv2")
        >>> table = tfkit.training_table(model)
        >>> table[table.weight_decay > 0].path.tolist()
        ['encoder_conv1', 'encoder_conv2', 'decoder_conv1']
        >>> table[table.weight_decay > 0].variable.unique().tolist()
        ['kernel']

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (2019), algorithm
    2, scaled by the rate as in Keras; what is left out, timm's `no_weight_decay`.
    """
    rate = require_nonnegative("rate", rate)
    graph.require_compiled(model)
    spared = {id(variable) for variable in select_layers(model, exclude).variables}
    with changing_rules(model) as (optimizer, variables):
        for name in per_variable.DECAYS:
            if name == "weight_decay" or hasattr(optimizer, name):
                optimizer.rules.set_decay(name, rate)
        for variable in variables:
            decays = id(variable) not in spared and (one_dimensional or _is_matrix(variable))
            decays &= optimizer.allows_decay(variable)
            optimizer.rules.put(variable, optimizer.rules[variable]._replace(decays=decays))
    return model


def add_weight_penalty(
    model: keras.Model, *, l1: float = 0.0, l2: float = 0.0, layers: Pattern | Iterable[Pattern] = "*"
) -> keras.Model:
    """Adds ``l1 · Σ|w| + l2 · Σw²`` to the loss, in place, on a model that exists already.

    The sums run over the weights of two and more dimensions of each layer; biases and
    normalisation weights are left out. A penalty adds to what the layer has already, and
    counts while the layer trains. It is saved with the model for every layer that has an
    argument for it, as Keras's own have; others are named in a warning.

    Args:
        model: A built model; compiled or not. Changed in place.
        l1: Factor of the sum of magnitudes, at least 0.
        l2: Factor of the sum of squares, at least 0.
        layers: Patterns of `select_layers`.

    Returns:
        `model` itself.

    Raises:
        ArgumentError: If a factor is negative, both are 0, no selected layer has a weight
            to penalise, or one has a penalty that L1 and L2 cannot be added to.
        LayerNotFoundError: If a pattern matches nothing.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.Sequential([keras.Input((2,)),
        ...     keras.layers.Dense(1, kernel_initializer="ones", name="head")])
        >>> _ = tfkit.add_weight_penalty(model, l1=0.1, l2=0.5)
        >>> [round(float(loss), 6) for loss in model.losses]
        [1.2]

    Source: keras-team/keras#12053; Goodfellow et al., Deep Learning (2016), section 7.1.
    """
    l1, l2 = require_nonnegative("l1", l1), require_nonnegative("l2", l2)
    if l1 == l2 == 0:
        raise ArgumentError(f"A penalty must have `l1` or `l2` above 0. Received: l1={l1!r}, l2={l2!r}.")
    chosen = {id(variable) for variable in select_layers(model, layers).variables}
    targets = [
        (node, variable)
        for node, variable in graph.learnable(model)
        if id(variable) in chosen and _is_matrix(variable)
    ]
    if not targets:
        raise ArgumentError(
            "A penalty needs a weight of two or more dimensions. "
            f"Received: layers={layers!r}, which have none."
        )
    made = [_sum(node, variable, l1, l2) for node, variable in targets]  # may refuse
    unsaved = []
    for (node, variable), penalty in zip(targets, made, strict=True):
        variable.regularizer = penalty
        if not _write_argument(node.layer, variable, penalty):
            unsaved.append(f"{node.path}/{variable.name}")
    for node in graph.descend(graph.walk(model)):
        if isinstance(node.layer, ATTENTIONS):
            unsaved += _write_attention(node, chosen)
    if unsaved:
        warnings.warn(
            f"The penalty on {', '.join(unsaved)} will not be saved with the model, "
            "for the layer has no argument that holds it.",
            stacklevel=2,
        )
    refresh_training(model)
    return model


def _is_matrix(variable: keras.Variable) -> bool:
    """Tells a kernel from biases and norms; an attention's or a GRU's bias has two dimensions."""
    return len(variable.shape) > 1 and "bias" not in variable.name


def _sum(node: graph.Node, variable: keras.Variable, l1: float, l2: float) -> keras.Regularizer:
    """Returns a penalty that is the weight's own and the new one together."""
    own: Any = variable.regularizer
    if own is not None and type(own) not in (
        keras.regularizers.L1,
        keras.regularizers.L2,
        keras.regularizers.L1L2,
    ):
        raise ArgumentError(
            "L1 and L2 can be added to a weight that has none or one of them. "
            f"Received: {node.path}/{variable.name} with {type(own).__name__}. "
            "Leave the layer out: layers=['*', '!" + node.path + "']."
        )
    own_l1, own_l2 = _factors(variable)
    return keras.regularizers.L1L2(l1=l1 + own_l1, l2=l2 + own_l2)


def _write_attention(attention: graph.Node, chosen: set[int]) -> list[str]:
    """Puts a penalty where an attention's config takes it from: one argument for all its kernels.

    Returns the paths of the chosen kernels if they are not all under one penalty.
    """
    kernels = {
        f"{node.path}/{variable.name}": variable
        for node in graph.descend(attention.children)
        for variable in graph.own_variables(node.layer)
        if _is_matrix(variable)
    }
    touched = [path for path, variable in kernels.items() if id(variable) in chosen]
    if touched and len({_factors(variable) for variable in kernels.values()}) > 1:
        return touched
    if touched:
        private = hasattr(attention.layer, "_kernel_regularizer")  # in one of the two classes
        name = "_kernel_regularizer" if private else "kernel_regularizer"
        setattr(attention.layer, name, kernels[touched[0]].regularizer)
    return []


def _factors(variable: keras.Variable) -> tuple[float, float]:
    own = variable.regularizer
    return float(getattr(own, "l1", 0.0)), float(getattr(own, "l2", 0.0))


def _write_argument(layer: keras.Layer, variable: keras.Variable, penalty: keras.Regularizer) -> bool:
    """Puts the penalty where the layer's config takes it from; tells whether there is such a place."""
    own = ["depthwise"] if variable.name == "kernel" else []  # DepthwiseConv's name for its kernel
    for name in (variable.name, variable.name.removesuffix("_kernel"), *own):
        if hasattr(layer, f"{name}_regularizer"):
            setattr(layer, f"{name}_regularizer", penalty)
            return True
    return False
