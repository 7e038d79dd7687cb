"""A new head on a base model, in one flat graph."""

import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import keras
from keras import layers

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.models.encoder_decoder import is_count

_POOLINGS = {"avg": "GlobalAveragePooling", "max": "GlobalMaxPooling"}


def attach_head(
    base_model: keras.Model,
    units: int,
    *,
    activation: str | Callable[..., Any] | None = None,
    dropout: float = 0.0,
    hidden: Sequence[int] = (),
    pooling: Literal["avg", "max", "flatten"] | None = "avg",
    name: str = "head",
) -> keras.Model:
    """Puts pooling and Dense layers on a base model's output.

    The result is one flat graph: the base's layers are in it themselves, under their own
    names and with their `trainable` flags, so patterns that select them in the base select
    them here. Training the result trains the base.

    Args:
        base_model: A built functional or Sequential model with one output, of shape
            ``(batch, …, channels)``; not changed.
        units: Width of the output layer, at least 1.
        activation: Activation of the output layer, by name or as a function; None gives
            logits.
        dropout: Fraction of features dropped before the output layer, in [0, 1).
        hidden: Widths of the Dense layers with ReLU between pooling and output.
        pooling: What turns an output of rank 3, 4 or 5 into features: ``"avg"`` or
            ``"max"`` over all positions, or ``"flatten"``, which needs fixed sizes. An
            output of rank 2 is taken as it is.
        name: Name of the output layer; the others are called ``{name}_pool`` (or
            ``{name}_flatten``), ``{name}_hidden1`` and so on, and ``{name}_dropout``.

    Returns:
        A new functional model that shares the base's layers, not compiled, named
        ``{base_model.name}_{name}``. Under a mixed-precision policy its output is float32.

    Raises:
        ArgumentTypeError: If `base_model` is no Keras model or `hidden` no sequence.
        UnbuiltModelError: If the base has no weights yet.
        ArgumentError: If a value is outside its range, a layer of that name exists, the base
            has several outputs or no graph, or its output does not fit `pooling`.

    Examples:
        >>> import keras, tfkit
        >>> base = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="conv")])
        >>> model = tfkit.models.attach_head(base, 10, dropout=0.2, hidden=(16,))
        >>> [layer.name for layer in model.layers[1:]]
        ['conv', 'head_pool', 'head_hidden1', 'head_dropout', 'head']
        >>> model.output_shape
        (None, 10)

    Source: the order pooling, Dropout, Dense of Keras's transfer learning guide.
    """
    hidden = _check_arguments(units, activation, dropout, hidden, pooling, name)
    x = _output(base_model)
    stack = _pooling_layers(base_model, x, pooling, name)
    stack += [
        layers.Dense(width, activation="relu", name=f"{name}_hidden{number}")
        for number, width in enumerate(hidden, start=1)
    ]
    if dropout:
        stack.append(layers.Dropout(dropout, name=f"{name}_dropout"))
    dtype = keras.config.dtype_policy().variable_dtype  # half precision is too coarse for logits
    stack.append(layers.Dense(int(units), activation=activation, dtype=dtype, name=name))

    _check_names(base_model, [layer.name for layer in stack])
    for layer in stack:
        x = layer(x)
    model = keras.Model(graph.input_structure(base_model), x, name=f"{base_model.name}_{name}")
    _check_nothing_lost(base_model, model)
    return model


def _check_arguments(
    units: Any, activation: Any, dropout: float, hidden: Any, pooling: Any, name: Any
) -> tuple[int, ...]:
    if not is_count(units):
        raise ArgumentError(f"`units` must be a whole number of at least 1. Received: units={units!r}.")
    if isinstance(hidden, str) or not isinstance(hidden, Iterable):
        raise ArgumentTypeError(
            "`hidden` must be a sequence of widths, empty for no hidden layer. "
            f"Received: hidden={hidden!r}. Write hidden=(128,) for one layer."
        )
    hidden = tuple(hidden)
    if not all(is_count(width) for width in hidden):
        raise ArgumentError(f"`hidden` must hold whole numbers of at least 1. Received: hidden={hidden!r}.")
    if isinstance(dropout, bool) or not isinstance(dropout, numbers.Real) or not 0 <= dropout < 1:
        raise ArgumentError(f"`dropout` must be a fraction in [0, 1). Received: dropout={dropout!r}.")
    if pooling not in (*_POOLINGS, "flatten", None):
        raise ArgumentError(
            f"`pooling` must be 'avg', 'max', 'flatten' or None. Received: pooling={pooling!r}."
        )
    if not isinstance(name, str) or not name or "/" in name:
        raise ArgumentError(f"`name` must be a layer name without '/'. Received: name={name!r}.")
    try:
        keras.activations.get(activation)
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            "`activation` must be a name from keras.activations, a function or None. "
            f"Received: activation={activation!r}."
        ) from error
    return tuple(map(int, hidden))


def _output(base_model: keras.Model) -> keras.KerasTensor:
    base = graph.require_model(base_model)
    outputs = getattr(base, "outputs", None)
    if not outputs or not type(base).call.__module__.startswith("keras."):
        raise ArgumentError(
            "`base_model` must be a functional or Sequential model, so that its graph can be extended. "
            f"Received: base_model={base.name!r} of class {type(base).__name__}, whose own `call` computes. "
            "Call it on a keras.Input, and pass keras.Model(inputs, outputs)."
        )
    if len(outputs) != 1:
        raise ArgumentError(
            "`base_model` must have one output. "
            f"Received: base_model={base.name!r} with {len(outputs)} outputs. "
            "Pass keras.Model(base.inputs, base.outputs[0]), or whichever output it is."
        )
    return outputs[0]


def _pooling_layers(
    base_model: keras.Model, output: keras.KerasTensor, pooling: str | None, name: str
) -> list[keras.Layer]:
    shape = tuple(output.shape)
    received = f"Received: base_model={base_model.name!r} with output shape {shape}"
    if not 2 <= len(shape) <= 5:
        raise ArgumentError(f"The base's output must have rank 2, 3, 4 or 5. {received}.")
    if len(shape) == 2:
        return []
    if pooling is None:
        raise ArgumentError(
            f"A base whose output has positions must be pooled. {received}, pooling=None. "
            "Pass pooling='avg', 'max' or 'flatten'."
        )
    if pooling != "flatten":
        return [getattr(layers, f"{_POOLINGS[pooling]}{len(shape) - 2}D")(name=f"{name}_pool")]
    if None in shape[1:]:
        raise ArgumentError(
            f"pooling='flatten' must have fixed sizes. {received}. "
            "Pass pooling='avg' or 'max', or build the base with a fixed input shape."
        )
    return [layers.Flatten(name=f"{name}_flatten")]


def _check_names(base_model: keras.Model, names: list[str]) -> None:
    taken = {each.name for each in (*base_model.layers, *base_model.inputs)}
    taken.update(each.name for each in getattr(base_model, "operations", ()))
    if clash := [each for each in names if each in taken]:
        raise ArgumentError(
            "The head's layers must have names of their own. "
            f"Received: base_model={base_model.name!r}, which already has {', '.join(clash)}. "
            "Pass another name=."
        )


def _check_nothing_lost(base_model: keras.Model, model: keras.Model) -> None:
    kept = {id(variable) for variable in model.weights}
    if lost := [variable.path for variable in base_model.weights if id(variable) not in kept]:
        raise ArgumentError(
            "Every weight of `base_model` must belong to its graph. "
            f"Received: base_model={base_model.name!r}, whose output does not use {', '.join(lost[:5])}. "
            "Pass keras.Model(base.inputs, base.outputs) to leave them out."
        )
