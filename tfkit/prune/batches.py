"""Calibration data: batches of inputs, with or without targets."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError


def read_batches(model: keras.Model, data: Any, batch_size: int, name: str = "data") -> list[tuple[Any, Any]]:
    """Returns data as batches of inputs and targets; targets are None where there are none.

    Args:
        model: The model whose inputs they are.
        data: An array, a list or dict of arrays for a model of several inputs, an ``(x, y)``
            pair, a batched tf.data.Dataset of inputs or of pairs, or a keras.utils.PyDataset.
        batch_size: Samples a batch, for arrays.
        name: The argument's name, for messages.

    Raises:
        ArgumentTypeError: If it is none of these.
        ArgumentError: If it is empty, or its shape or names do not fit the model's inputs.
    """
    if isinstance(data, tf.data.Dataset | keras.utils.PyDataset):
        found = [_pair(each) for each in finite(data, name)]
    else:
        x, y = data if isinstance(data, tuple) and len(data) == 2 else (data, None)
        try:
            leaves = [np.asarray(each) for each in keras.tree.flatten((x, y)) if each is not None]
            lengths = {len(each) for each in leaves}
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(
                f"`{name}` must be an array, a pair (x, y) or a tf.data.Dataset. "
                f"Received: {name}={data!r:.200}."
            ) from error
        if len(lengths) != 1:
            raise ArgumentError(
                f"`{name}` must have as many targets as inputs. "
                f"Received: {name} with {sorted(lengths)} samples."
            )

        def cut(start: int) -> tuple[Any, Any]:
            part = slice(start, start + batch_size)
            return keras.tree.map_structure(
                lambda each: None if each is None else np.asarray(each)[part], (x, y)
            )

        found = [cut(start) for start in range(0, lengths.pop(), batch_size)]
    if not found:
        raise ArgumentError(f"`{name}` must hold at least one sample. Received: {name} that is empty.")
    _require_fit(model, found[0][0], name)
    return found


def finite(data: tf.data.Dataset | keras.utils.PyDataset, name: str) -> Iterator[Any]:
    """Returns the batches of a dataset that comes to an end.

    Raises:
        ArgumentError: If it does not.
    """
    endless = isinstance(data, tf.data.Dataset) and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY
    if endless or (isinstance(data, keras.utils.PyDataset) and data.num_batches is None):
        raise ArgumentError(f"`{name}` must come to an end. Received: {name}={data!r}. Write .take(10).")
    if isinstance(data, tf.data.Dataset):
        return iter(data)
    return (data[number] for number in range(data.num_batches))


def _pair(batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, tuple):
        return batch[0], batch[1] if len(batch) > 1 else None
    return batch, None


def _require_fit(model: keras.Model, x: Any, name: str) -> None:
    wanted = [tuple(each.shape[1:]) for each in keras.tree.flatten(getattr(model, "inputs", None) or [])]
    got = [tuple(np.shape(each)[1:]) for each in _flat(model, x, name)]
    fits = len(got) == len(wanted) and all(
        len(a) == len(b) and all(size in (None, have) for have, size in zip(a, b))
        for a, b in zip(got, wanted)
    )
    if wanted and not fits:
        raise ArgumentError(
            f"`{name}` must hold samples shaped like the model's inputs, which are {wanted}. "
            f"Received: {name} with samples of shape {got}. Targets go into a pair: {name}=(x, y)."
        )


def _flat(model: keras.Model, x: Any, name: str) -> list[Any]:
    """Returns a batch in the order of the model's inputs; a dict is read by their names, as Keras does."""
    structure = graph.input_structure(model)
    wanted = [] if structure is None else keras.tree.flatten(structure)
    if not isinstance(x, dict) or not wanted:
        return keras.tree.flatten(x)
    names = sorted(structure) if isinstance(structure, dict) else [each.name for each in wanted]
    if len(names) < len(wanted):  # dicts inside dicts
        return keras.tree.flatten(x)
    if not {*names} <= x.keys():
        raise ArgumentError(
            f"`{name}` as a dict must hold the names of the model's inputs, which are {names}. "
            f"Received: {name} with {sorted(x)}."
        )
    return [x[each] for each in names]


def inputs_of(model: keras.Model, x: Any) -> Any:
    """Returns a batch as the model is called with it."""
    structure = graph.input_structure(model)
    if structure is None:
        return keras.tree.map_structure(keras.ops.convert_to_tensor, x)
    leaves = [keras.ops.convert_to_tensor(each) for each in _flat(model, x, "data")]
    return keras.tree.pack_sequence_as(structure, leaves)
