"""The raw side of a served model: pictures in, the model's outputs out."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError

INSIDE = "inside"


class _Prepare(keras.Layer):
    """Calls a preprocessing, then casts to what the model takes."""

    def __init__(self, prepare: Callable[[Any], Any] | None, kind: str, as_float: bool):
        super().__init__(name="prepare", dtype="float32", autocast=False)
        self.prepare, self._kind, self._as_float = prepare, kind, as_float

    def call(self, x: Any) -> Any:
        x = keras.ops.cast(x, "float32") if self._as_float else x
        return keras.ops.cast(x if self.prepare is None else self.prepare(x), self._kind)


def with_preprocessing(model: keras.Model, preprocessing: Any) -> keras.Model:
    """Returns a model from raw input to the outputs of `model`, which it shares.

    Args:
        model: A model with one input.
        preprocessing: See `export_saved_model`.

    Raises:
        ArgumentTypeError: If `preprocessing` can not be called.
        ArgumentError: If the model has several inputs, or its input does not fit what
            the preprocessing gives.
    """
    if preprocessing != INSIDE and not callable(preprocessing):
        raise ArgumentTypeError(
            "`preprocessing` must be a Keras layer or model, a function of a batch, or 'inside'. "
            f"Received: preprocessing={preprocessing!r}."
        )
    if len(model.inputs) != 1:
        raise ArgumentError(
            "`preprocessing` needs a model with one input. "
            f"Received: model={model.name!r} with {len(model.inputs)} inputs. "
            "Put the preprocessing inside: keras.Model(raw_inputs, model(preprocessed))."
        )
    known: Any = getattr(preprocessing, "inputs", None) if isinstance(preprocessing, keras.Model) else None
    if known and len(known) != 1:
        raise ArgumentError(
            "`preprocessing` must have one input. "
            f"Received: preprocessing={preprocessing.name!r} with {len(known)} inputs."
        )
    (takes,) = model.inputs
    shape = known[0].shape if known else takes.shape
    as_float = not known or keras.backend.is_float_dtype(known[0].dtype)
    kind = "uint8" if as_float else known[0].dtype
    raw = keras.Input(shape[1:], dtype=kind, name="raw")
    prepare = None if preprocessing == INSIDE else preprocessing
    try:
        ready = _Prepare(prepare, takes.dtype, as_float)(raw)
        fits = len(ready.shape) == len(takes.shape) and all(
            have is None or want is None or have == want for have, want in zip(ready.shape, takes.shape)
        )
    except Exception as error:  # whatever a function of the user's raises
        said = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(error)).split())[:500]  # Keras writes in bold
        raise ArgumentError(
            "`preprocessing` must work on a batch of raw inputs. "
            f"Received: preprocessing={preprocessing!r}, which fails on {shape} of {kind}: {said}. "
            "Build it from TensorFlow or Keras operations; NumPy does not become part of a SavedModel."
        ) from error
    if not fits:
        raise ArgumentError(
            "`preprocessing` must give what the model takes. "
            f"Received: a preprocessing that gives shape {ready.shape}; the model takes {takes.shape}."
        )
    inputs = keras.tree.pack_sequence_as(graph.input_structure(model), [ready])
    return keras.Model(raw, model(inputs, training=False))


def raw_samples(model: keras.Model, count: int = 4) -> list[np.ndarray]:
    """Returns seeded raw inputs: whole numbers from 0 to 255. Open sizes become 32."""
    generator = np.random.default_rng(0)
    shapes: Sequence[Any] = [each.shape[1:] for each in model.inputs]
    return [
        generator.integers(0, 256, (count, *(32 if size is None else size for size in shape))).astype(
            each.dtype
        )
        for shape, each in zip(shapes, model.inputs, strict=True)
    ]
