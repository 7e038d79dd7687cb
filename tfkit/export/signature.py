"""What goes into a model: names, shapes, and arrays that fit them."""

import itertools
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ArgumentError, UnbuiltModelError

MOST_SAMPLES = 128


def input_specs(
    model: keras.Model, *, batch_size: int | None, input_shape: Sequence[int | None] | None = None
) -> list[tf.TensorSpec]:
    """Returns one spec for each input of the model.

    Args:
        model: A built model that knows its inputs.
        batch_size: The first dimension; None leaves it open.
        input_shape: Sizes without the batch, for a model with one input, to fix what
            the model leaves open.

    Raises:
        UnbuiltModelError: If the model does not know its inputs.
        ArgumentError: If `input_shape` contradicts the model, or `batch_size` is below 1.
    """
    if batch_size is not None and (not isinstance(batch_size, numbers.Integral) or batch_size < 1):
        raise ArgumentError(f"`batch_size` must be at least 1, or None. Received: batch_size={batch_size!r}.")
    inputs = getattr(model, "inputs", None)
    if not inputs:
        raise UnbuiltModelError(
            "The model must know its inputs to be exported. "
            f"Received: model={model.name!r}, a subclassed model. "
            "Wrap it: keras.Model(inputs, model(inputs)) with inputs = keras.Input(shape)."
        )
    if input_shape is not None:
        known = inputs[0].shape[1:]
        fits = len(known) == len(input_shape) and all(
            size is None or size == wanted for size, wanted in zip(known, input_shape)
        )
        if len(inputs) > 1 or not fits:
            raise ArgumentError(
                "`input_shape` must agree with the model's one input. "
                f"Received: input_shape={tuple(input_shape)!r}, "
                f"model inputs {[each.shape for each in inputs]}."
            )
    return [
        tf.TensorSpec(
            (batch_size, *(input_shape if input_shape is not None else each.shape[1:])), each.dtype, name=name
        )
        for each, name in zip(inputs, _names(inputs), strict=True)
    ]


def _names(inputs: Sequence[Any]) -> list[str]:
    """Returns argument names whose alphabetical order is the inputs' order."""
    if len(inputs) == 1:
        return [inputs[0].name]
    return [f"input_{number:02d}_{each.name}" for number, each in enumerate(inputs)]


def serving_function(model: keras.Model) -> Any:
    """Returns the model in inference mode as a function of its inputs, one by one."""

    def serve(*inputs: Any) -> list[Any]:
        packed = keras.tree.pack_sequence_as(graph.input_structure(model), list(inputs))
        return keras.tree.flatten(model(packed, training=False))

    return serve


def samples(
    data: Any,
    specs: Sequence[tf.TensorSpec],
    name: str = "representative_data",
    *,
    model: keras.Model | None = None,
) -> list[np.ndarray]:
    """Returns data as one array for each input, at most `MOST_SAMPLES` samples.

    Args:
        data: An array, a list or tuple of arrays (one for each input), a dict of them, or a batched
            tf.data.Dataset of inputs or of ``(inputs, targets)``.
        specs: The inputs it must fit.
        name: The argument's name, for messages.
        model: Whose inputs a dict names; without it a dict's arrays are taken in its keys' order.

    Raises:
        ArgumentError: If the data is empty or no numbers, or its shape or a dict's keys do not fit.
    """
    if isinstance(data, tf.data.Dataset):
        batches = []
        for batch in itertools.islice(data.as_numpy_iterator(), MOST_SAMPLES):
            batch = batch[0] if isinstance(batch, tuple) and len(batch) > 1 else batch
            batches.append(_in_order(batch, model, name))
            if sum(len(each[0]) for each in batches) >= MOST_SAMPLES:
                break
        arrays = [np.concatenate(parts) for parts in zip(*batches)]
    elif isinstance(data, Mapping):
        arrays = [_array(each) for each in _in_order(data, model, name)]
    else:
        several = isinstance(data, list | tuple) and len(data) == len(specs)
        # a list of samples for one input is an array as well; its rank tells
        several = several and all(np.ndim(_array(each)) == len(spec.shape) for each, spec in zip(data, specs))
        arrays = [_array(each) for each in (data if several else [data])]
    wanted = [tuple(spec.shape[1:]) for spec in specs]
    got = [array.shape[1:] for array in arrays]
    fits = len(got) == len(wanted) and all(
        len(a) == len(b) and all(want is None or want == have for have, want in zip(a, b))
        for a, b in zip(got, wanted)
    )
    counts = [len(array) if array.ndim else 0 for array in arrays]
    numeric = all(_is_numeric(array) or spec.dtype == tf.string for array, spec in zip(arrays, specs))
    if not fits or not numeric or 0 in counts or len(set(counts)) > 1:
        received = f"{name} with {counts} samples of shape {got}" if numeric else _described(data, name)
        order = f" in the order {_keys(model)}" if model is not None and len(wanted) > 1 else ""
        raise ArgumentError(
            f"`{name}` must hold at least one sample, shaped like the model's inputs, as many for each. "
            f"Received: {received}; the model takes {wanted}{order}. "
            "Pass an array, samples first; of several inputs a list or a dict of them; or a tf.data.Dataset "
            "in batches."
        )
    return [array[:MOST_SAMPLES].astype(spec.dtype.as_numpy_dtype) for array, spec in zip(arrays, specs)]


def _keys(model: keras.Model) -> list[str]:
    """Returns the names by which a dict holds a model's inputs, in the inputs' order."""
    structure = graph.input_structure(model)
    return sorted(structure) if isinstance(structure, dict) else [each.name for each in model.inputs]


def _in_order(data: Any, model: keras.Model | None, name: str) -> list[Any]:
    """Returns the parts of data in the order of the model's inputs: a dict's by their keys, as Keras does."""
    if model is None or not isinstance(data, Mapping):
        return keras.tree.flatten(data)
    keys = _keys(model)
    if set(data) != set(keys):
        raise ArgumentError(
            f"`{name}` as a dict must name the model's inputs. "
            f"Received: {name} with {sorted(map(str, data))}; the model takes {keys}."
        )
    return keras.tree.flatten([data[key] for key in keys])


def _array(data: Any) -> np.ndarray:
    """Returns data as an array; one of objects if it is ragged, which is none to compute with."""
    try:
        return np.asarray(data)
    except ValueError:
        return np.empty(len(data), dtype=object)


def _is_numeric(array: np.ndarray) -> bool:
    return array.dtype.kind not in "OSUc"


def _described(data: Any, name: str) -> str:
    several = isinstance(data, list | tuple) and len(data) <= 8
    shapes = f" of shapes {[np.shape(_array(each)) for each in data]}" if several else ""
    return f"{name} of type {type(data).__name__}{shapes}, which is no array of real numbers"


def random_samples(specs: Sequence[tf.TensorSpec], count: int = 4) -> list[np.ndarray]:
    """Returns seeded numbers that fit the specs: uniform in [0, 1), or 0 and 1 for integers.

    Open sizes become 32.
    """
    generator = np.random.default_rng(0)
    arrays = []
    for spec in specs:
        shape = (count, *(32 if size is None else size for size in spec.shape[1:]))
        numbers = generator.random(shape) if spec.dtype.is_floating else generator.integers(0, 2, shape)
        arrays.append(numbers.astype(spec.dtype.as_numpy_dtype))
    return arrays


def require_range(
    model: keras.Model, arrays: Sequence[np.ndarray], name: str = "representative_data"
) -> None:
    """Checks that data are numbers, and of the size that the model's own scaling expects.

    Args:
        model: The model; what it does first with an input tells what it expects.
        arrays: One array for each input.
        name: The argument's name, for messages.

    Raises:
        ArgumentError: If they are not.
    """
    flow = graph.read_flow(model)
    scalings = (
        {call.inputs[0]: call.operation for call in flow.calls if len(call.inputs) == 1} if flow else {}
    )
    keys = flow.inputs if flow else [None] * len(arrays)
    for key, array in zip(keys, arrays, strict=True):
        low, high = float(np.min(array)), float(np.max(array))
        if not np.isfinite([low, high]).all():
            raise ArgumentError(
                f"`{name}` must hold finite numbers. Received: {name} from {low} to {high}. Clean the data."
            )
        layer = None if key is None else scalings.get(key)
        if not isinstance(layer, keras.layers.Rescaling):
            continue
        scale = np.abs(np.asarray(layer.scale, "float64")).max()
        reach = max(abs(low), abs(high)) * scale
        if high > low and not 0.02 <= reach <= 50:
            raise ArgumentError(
                f"`{name}` must have the range that the model expects. "
                f"Received: {name} from {low:g} to {high:g}; the model begins with a Rescaling by "
                f"{scale:.4g}, so it expects numbers up to about {1 / scale:.4g}. "
                "Pass the data as the model takes them."
            )


def require_varied(arrays: Sequence[np.ndarray], name: str = "representative_data") -> None:
    """Checks that data are not one number over and over: no range, and no proof, comes of that.

    Args:
        arrays: One array for each input.
        name: The argument's name, for messages.

    Raises:
        ArgumentError: If they are.
    """
    if sum(array.size for array in arrays) > 1 and all(array.min() == array.max() for array in arrays):
        raise ArgumentError(
            f"`{name}` must vary, for it sets int8's ranges and is what files are compared on. "
            f"Received: {name} of nothing but {arrays[0].flat[0]}. Pass inputs as the device will see them."
        )
