"""Weight decay, and L1 and L2 penalties, on models that exist already."""

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from tfkit import graph, per_variable
from tfkit.errors import ArgumentError
from tfkit.optim.arguments import require_rate
from tfkit.select import Pattern, select_layers
from tfkit.training import refresh_training


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
    rate = require_rate("rate", rate)
    graph.require_compiled(model)
    spared = {id(variable) for variable in select_layers(model, exclude).variables}
    optimizer = per_variable.tailor(model.optimizer)
    changed = optimizer.rules.set_decay(rate)
    for _, variable in learnable(model):
        key = optimizer._var_key(variable)
        decays = id(variable) not in spared and (one_dimensional or _is_matrix(variable))
        rule = optimizer.rules[key]
        optimizer.rules.put(key, variable.path, rule._replace(decays=decays))
        changed |= rule.decays != decays
    if changed:
        refresh_training(model)
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
    l1, l2 = require_rate("l1", l1), require_rate("l2", l2)
    if l1 == l2 == 0:
        raise ArgumentError(f"A penalty must have `l1` or `l2` above 0. Received: l1={l1!r}, l2={l2!r}.")
    chosen = {id(variable) for variable in select_layers(model, layers).variables}
    targets = [
        (node, variable)
        for node, variable in learnable(model)
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
        if isinstance(node.layer, keras.layers.MultiHeadAttention | keras.layers.GroupQueryAttention):
            inside = {id(v): v for child in graph.descend(node.children) for v in child.layer.weights}
            node.layer._kernel_regularizer = next(
                (v.regularizer for key, v in inside.items() if key in chosen and v.regularizer),
                node.layer._kernel_regularizer,
            )
    if unsaved:
        warnings.warn(
            f"The penalty on {', '.join(unsaved)} will not be saved with the model, "
            "for the layer has no argument that holds it.",
            stacklevel=2,
        )
    refresh_training(model)
    return model


def learnable(model: keras.Model) -> Iterator[tuple[graph.Node, keras.Variable]]:
    """Yields each weight that training could move, once, with the node that owns it."""
    seen: set[int] = set()
    for node in graph.descend(graph.walk(graph.require_model(model))):
        for variable in graph.learnable_variables(node.layer):
            if id(variable) not in seen:
                seen.add(id(variable))
                yield node, variable


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
    return keras.regularizers.L1L2(
        l1=l1 + float(getattr(own, "l1", 0.0)), l2=l2 + float(getattr(own, "l2", 0.0))
    )


def _write_argument(layer: keras.Layer, variable: keras.Variable, penalty: keras.Regularizer) -> bool:
    """Puts the penalty where the layer's config takes it from; tells whether there is such a place."""
    own = ["depthwise"] if variable.name == "kernel" else []  # DepthwiseConv's name for its kernel
    for name in (variable.name, variable.name.removesuffix("_kernel"), *own):
        if hasattr(layer, f"{name}_regularizer"):
            setattr(layer, f"{name}_regularizer", penalty)
            return True
    return False
