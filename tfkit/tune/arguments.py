"""Checks of what `search` is called with, before anything long begins."""

import inspect
import numbers
import re
from collections.abc import Sequence
from typing import Any

from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.tune.space import LOGARITHMIC, SearchSpace

TUNERS = ("bayesian", "random", "hyperband", "grid")


def check_call(build: object, space: object, tuner: str, validation_split: float) -> bool:
    """Checks what can be checked before anything is loaded; tells if `build` takes `hp`."""
    if not callable(build) or hasattr(build, "trainable_variables"):
        raise ArgumentTypeError(
            "`build` must be a function that returns a compiled model. "
            f"Received: build={build!r}. Write a function that makes the model anew."
        )
    if not isinstance(space, SearchSpace):
        raise ArgumentTypeError(
            "`space` must be a tfkit.SearchSpace. "
            f"Received: space={space!r}. Write SearchSpace(learning_rate=(1e-5, 1e-2))."
        )
    if tuner not in TUNERS:
        raise ArgumentError(f"`tuner` must be one of {', '.join(TUNERS)}. Received: tuner={tuner!r}.")
    if not isinstance(validation_split, numbers.Real) or not 0 <= validation_split < 1:
        raise ArgumentError(
            "`validation_split` is the fraction held out and must lie in [0, 1). "
            f"Received: validation_split={validation_split!r}."
        )
    try:
        parameters = inspect.signature(build).parameters
    except ValueError as error:
        raise ArgumentTypeError(
            f"`build` must be a function whose arguments can be told. Received: build={build!r} ({error}). "
            "Wrap it: lambda: ..."
        ) from error
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [each for each in parameters.values() if each.default is each.empty and each.kind in places]
    takes_hp = bool(required) or ("hp" in parameters and parameters["hp"].kind in places)
    if len(required) > 1 or ("hp" in parameters and not takes_hp):
        raise ArgumentTypeError(
            "`build` must take nothing or one argument, the hyperparameters. "
            f"Received: build={build!r} with {len(required)} required arguments. Write def build(hp)."
        )
    unread = [name for name in space.entries if name not in LOGARITHMIC]
    if unread and not takes_hp:
        raise ArgumentError(
            "`search` applies `learning_rate` and `weight_decay`; anything else `build(hp)` must read. "
            f"Received: space={space!r} and a build() without hp, so nothing reads {', '.join(unread)}. "
            "Correct the name, or write build(hp) and use hp.get(name)."
        )
    return takes_hp


def check_fit(x: Any, y: Any, validation_split: float, callbacks: Any, seed: Any, batch_size: Any) -> None:
    """Checks what every trial's `fit` would stumble over."""
    import keras
    import tensorflow as tf

    if not isinstance(callbacks, Sequence) or not all(
        isinstance(each, keras.callbacks.Callback) for each in callbacks
    ):
        raise ArgumentTypeError(
            f"`callbacks` must be a list of Keras callbacks. Received: callbacks={callbacks!r}."
        )
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, numbers.Integral)):
        raise ArgumentTypeError(f"`seed` must be a whole number or None. Received: seed={seed!r}.")
    if seed is not None and not 0 <= int(seed) < 2**32 - 1:
        raise ArgumentError(f"`seed` must be at least 0 and below 2**32 - 1. Received: seed={seed!r}.")
    whole = isinstance(batch_size, numbers.Integral) and not isinstance(batch_size, bool)
    if batch_size is not None and not (whole and batch_size >= 1):
        raise ArgumentError(f"`batch_size` must be at least 1. Received: batch_size={batch_size!r}.")
    if x is None:
        raise ArgumentTypeError("`x` must be arrays or a data set. Received: x=None.")
    if inspect.isgenerator(x):
        raise ArgumentTypeError(
            "`x` must be readable once for every trial. Received: a generator, which ends with the first. "
            "Make arrays or a tf.data.Dataset of it."
        )
    if isinstance(x, tf.data.Dataset) and (y is not None or validation_split):
        raise ArgumentError(
            "A tf.data.Dataset holds its own targets and cannot be split. Received: a Dataset with "
            f"y={'given' if y is not None else None}, validation_split={validation_split!r}. "
            "Pass (x, y) batches as `x` and a second Dataset as validation_data."
        )
    if hasattr(x, "shape") and hasattr(y, "shape") and x.shape[:1] != y.shape[:1]:
        raise ArgumentError(
            "`x` and `y` must hold as many samples. "
            f"Received: x of shape {tuple(x.shape)}, y of shape {tuple(y.shape)}."
        )


def check_places(workers: int, chief: str | None, worker: str | None, strategy: Any, overwrite: bool) -> None:
    """Checks that a search is asked to run in one place, and that addresses are some."""
    if (workers > 1) + (chief is not None) + (worker is not None) > 1:
        raise ArgumentError(
            "A process is a chief, or a worker, or starts workers of its own. "
            f"Received: workers={workers!r}, chief={chief!r}, worker={worker!r}. Pass one of them."
        )
    if worker is not None and overwrite:
        raise ArgumentError(
            "A worker must not delete what its chief keeps. Received: overwrite=True with a worker. "
            "Pass overwrite to the chief alone."
        )
    for name, address in (("chief", chief), ("worker", worker)):
        shape = r"([^\s:]+|\[[^\]]+\]):(\d{1,5})"
        match = re.fullmatch(shape, address) if isinstance(address, str) else None
        if address is not None and not (match and int(match[2]) < 2**16):
            raise ArgumentError(
                f"`{name}` must be an address such as '127.0.0.1:9000'. Received: {name}={address!r}."
            )
    if workers > 1 and strategy is not None:
        raise ArgumentError(
            "A strategy belongs to one process. "
            f"Received: workers={workers!r} and distribution_strategy={strategy!r}. "
            "Use one of them, or start workers with `tfkit tune` from a job that makes its strategy."
        )


def find_objective(objective: Any) -> Any:
    """Returns keras-tuner's Objective for a metric's name, or raises ArgumentError."""
    import keras_tuner
    from keras_tuner.engine.metrics_tracking import infer_metric_direction

    if isinstance(objective, keras_tuner.Objective):
        return objective
    direction = infer_metric_direction(objective) if isinstance(objective, str) else None
    if direction is None:
        raise ArgumentError(
            "The direction of `objective` must be known. "
            f"Received: objective={objective!r}. "
            f"Write keras_tuner.Objective({objective!r}, direction='max'), or 'min'."
        )
    return keras_tuner.Objective(objective, direction)
