"""What `compare_unfreezing` is given, checked before it trains anything."""

import numbers
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import keras

from tfkit.errors import ArgumentError, ArgumentTypeError, OutputPathError
from tfkit.select import Pattern, Selection, select_layers
from tfkit.transfer.advice import learnable_ids

Patterns = Pattern | Iterable[Pattern]


def check_arguments(
    build_model: object, callbacks: object, epochs: object, batch_size: object, mode: object, seed: object
) -> None:
    """Checks everything but the stages and the data."""
    if not callable(build_model) or isinstance(build_model, keras.Layer):
        raise ArgumentTypeError(
            "`build_model` must be a function that returns a compiled model. "
            f"Received: build_model={build_model!r}. Write a function that loads or makes the model anew."
        )
    if callbacks is not None and not callable(callbacks):
        raise ArgumentTypeError(
            "`callbacks` must be a function that returns a list of new callbacks. "
            f"Received: callbacks={callbacks!r}. Write callbacks=lambda: [...]."
        )
    for name, count, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        whole = isinstance(count, numbers.Integral) and not isinstance(count, bool) and int(count) >= least
        if not whole and not (name == "seed" and count is None):
            raise ArgumentError(
                f"`{name}` must be a whole number of at least {least}. Received: {name}={count!r}."
            )
    if mode not in ("auto", "min", "max"):
        raise ArgumentError(f"`mode` must be 'auto', 'min' or 'max'. Received: mode={mode!r}.")


def name_stages(stages: Mapping[str, Patterns] | Sequence[Patterns]) -> dict[str, Patterns]:
    """Returns name to patterns; patterns without a name are named by what they say."""
    if isinstance(stages, str) or not isinstance(stages, Mapping | Sequence) or not stages:
        raise ArgumentError(
            "`stages` must name at least one choice of layers. "
            f"Received: stages={stages!r}. Write {{'head': 'head', 'all': '*'}} or ['head', '*']."
        )
    if isinstance(stages, Mapping):
        return {str(name): _keep(patterns) for name, patterns in stages.items()}
    stages = [_keep(patterns) for patterns in stages]
    names = [_describe(patterns) for patterns in stages]
    if len(set(names)) < len(names):
        raise ArgumentError(
            f"The stages must differ. Received: stages={stages!r}. Leave the repeated one out."
        )
    return dict(zip(names, stages))


def _keep(patterns: Patterns) -> Patterns:
    """Makes a list of what may be readable only once."""
    if isinstance(patterns, str | Selection) or callable(patterns) or not isinstance(patterns, Iterable):
        return patterns
    return list(patterns)


def _describe(patterns: Patterns) -> str:
    if isinstance(patterns, str):
        return patterns
    if isinstance(patterns, Selection):
        return ", ".join(patterns.paths)
    if isinstance(patterns, Iterable):
        return ", ".join(map(_describe, patterns)) or "nothing"
    return getattr(patterns, "name", None) or getattr(patterns, "__name__", None) or repr(patterns)


def check_stages(
    model: keras.Model, stages: Mapping[str, Patterns], batch_norm: Literal["frozen", "train"]
) -> None:
    """Checks that every pattern matches and every stage trains something."""
    able = learnable_ids(model, batch_norm=batch_norm)
    for name, patterns in stages.items():
        selection = select_layers(model, patterns)
        if not any(id(variable) in able for variable in selection.variables):
            raise ArgumentError(
                "Each stage must train at least one weight. "
                f"Received: stage {name!r}, which selects {', '.join(selection.paths[:5]) or 'no layer'}"
                f"{' under batch_norm=' + repr(batch_norm) if selection.paths else ''}. "
                "Select a layer that has weights."
            )


def fit_arguments(train: Any, validation: Any, batch_size: int) -> dict[str, Any]:
    """Returns what `fit` takes, after a check of the data."""
    batched = [_is_dataset(name, data) for name, data in (("train", train), ("validation", validation))]
    x, y, weight = (train, None, None) if batched[0] else (*train, None)[:3]
    return {
        "x": x,
        "y": y,
        "sample_weight": weight,
        "validation_data": validation,
        "shuffle": not batched[0],  # a Dataset shuffles itself
        "batch_size": None if batched[0] else batch_size,
        "validation_batch_size": None if batched[1] else batch_size,
    }


def _is_dataset(name: str, data: Any) -> bool:
    """Tells a Dataset from arrays and refuses what cannot be read once a stage, whole."""
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset):
        batches = int(data.cardinality())
        if batches in (tf.data.INFINITE_CARDINALITY, 0):
            raise ArgumentError(
                f"`{name}` must end, and hold at least one batch. "
                f"Received: {name}={data!r} with {batches and 'endless'} batches. "
                "A repeated Dataset ends with .take(steps)."
            )
        return True
    if not isinstance(data, tuple) or len(data) not in (2, 3):
        raise ArgumentTypeError(
            f"`{name}` must be (x, y), (x, y, sample_weight) or a tf.data.Dataset of batches. "
            f"Received: {name} of type {type(data).__name__}"
            f"{f' with {len(data)} entries' if isinstance(data, tuple) else ''}."
        )
    shapes: list[Any] = [getattr(array, "shape", ()) for array in keras.tree.flatten(data)]
    lengths = [shape[0] for shape in shapes if len(shape)]
    if len(set(lengths)) > 1 or 0 in lengths:
        raise ArgumentError(
            f"`{name}` must hold as many samples in each array, at least one. "
            f"Received: {name} with {', '.join(map(str, lengths))} samples."
        )
    return False


def check_picture(path: str | os.PathLike[str]) -> None:
    """Checks that an image can be written there."""
    from matplotlib.backend_bases import FigureCanvasBase

    path = pathlib.Path(path)
    known = FigureCanvasBase.get_supported_filetypes()
    if not path.parent.is_dir() or path.suffix[1:].lower() not in known:
        raise OutputPathError(
            f"`plot` must be an image in a folder that exists, ending in {', '.join(sorted(known))}. "
            f"Received: plot={str(path)!r}."
        )
