"""Base models: `.keras` files and keras.applications, with weights from files."""

import io
import json
import math
import os
import pathlib
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import h5py
import keras

from tfkit import (
    graph,
    per_variable,  # noqa: F401 - registers the optimizer that a file may hold
)
from tfkit.errors import ArgumentError, ArgumentTypeError, UnsafeModelError
from tfkit.models import applications


def load_base_model(
    source: str | os.PathLike[str],
    *,
    weights: str | os.PathLike[str] | None = None,
    input_shape: Sequence[int | None] | None = None,
    safe_mode: bool = True,
    **options: Any,
) -> keras.Model:
    """Loads a model from a `.keras` file, or builds one of keras.applications.

    An application takes raw RGB images with values from 0 to 255: what its own
    `preprocess_input` does stands in the model as a channel flip (where the network was
    trained on BGR) and a Rescaling layer named `preprocess`, or inside the network where
    Keras put it. The graph is flat, so layer paths are Keras's names: ``"block_1_expand"``.

    Args:
        source: Path of a `.keras` file, or the name of a model in keras.applications; case,
            ``_`` and ``-`` do not matter.
        weights: None for random weights, ``"imagenet"`` for those that Keras offers (a
            download, unless they are in its cache), or the path of a `.weights.h5`, `.h5` or
            `.keras` file of this architecture. On top of a `.keras` source: None or a path.
        input_shape: ``(height, width, 3)`` of an application; needed with
            ``include_top=True``. None leaves height and width open; some networks then pad
            as if they were multiples of 32, so give the size if it is another.
        safe_mode: Whether to refuse Lambda layers in a `.keras` source, which carry code
            that would run.
        **options: Further arguments of the application's constructor, such as ``alpha=0.35``
            or ``pooling="avg"``. `include_top` is False unless given.

    Returns:
        A file's model, compiled as it was saved, or a functional model, not compiled, whose
        layers are all trainable. `.h5` and `.weights.h5` files match by the order of layers.

    Raises:
        ArgumentTypeError: If `source` or `weights` is no text and no path.
        ArgumentError: If there is no such file or application, a file is damaged, the weights
            are of another architecture, or the shape or the options do not fit.
        UnsafeModelError: If the file holds a Lambda layer and `safe_mode` is on.
        DownloadError: If the ImageNet weights cannot be had.

    Examples:
        >>> import tfkit
        >>> model = tfkit.models.load_base_model("MobileNetV2", input_shape=(96, 96, 3), alpha=0.35)
        >>> [layer.name for layer in model.layers[:3]], model.output_shape
        (['image', 'preprocess', 'Conv1'], (None, 3, 3, 1280))

        >>> import pathlib, tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.keras")
        >>> tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4,), output_channels=3).save(path)
        >>> tfkit.models.load_base_model(path).name
        'encoder_decoder'

    Source: keras.applications; keras.models.load_model and its safe mode.
    """
    for argument, value in (("source", source), ("weights", "" if weights is None else weights)):
        if not isinstance(value, str | os.PathLike):
            raise ArgumentTypeError(
                f"`{argument}` must be text or a path. "
                f"Received: {argument}={value!r} of type {type(value).__name__}."
            )
    if not isinstance(source, str) or "." in source or "/" in source or os.sep in source:
        path = _check_model_file(source, weights, input_shape, options)
        if weights is None:
            return _load_model_file(path, safe_mode)
        stored = _check_weights_file(weights)
        return _load_weights(_load_model_file(path, safe_mode), pathlib.Path(weights), stored)
    application = applications.find_application(source)
    if weights is None or weights == "imagenet":
        return application.build(input_shape, options, imagenet=weights is not None)
    stored = _check_weights_file(weights)
    model = application.build(input_shape, options, imagenet=False)
    application.correct_variance(_load_weights(model, pathlib.Path(weights), stored))
    return model


def _check_model_file(source: Any, weights: Any, input_shape: Any, options: dict[str, Any]) -> pathlib.Path:
    path = pathlib.Path(source)
    if not path.is_file() or path.suffix != ".keras":
        raise ArgumentError(
            "`source` must be the path of a .keras file. "
            f"Received: source={str(path)!r}, which is {'no .keras file' if path.is_file() else 'no file'}. "
            "Give a path from this folder or a whole one; an old .h5 model goes through "
            "keras.models.load_model(path).save('model.keras')."
        )
    given = {"input_shape": input_shape, **options} if input_shape is not None else dict(options)
    if weights == "imagenet":
        given["weights"] = weights
    if given:
        received = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ArgumentError(
            "A .keras file holds its own architecture and weights, so it must come without options. "
            f"Received: source={str(path)!r}, {received}. "
            "Only safe_mode= and the path of a weights file fit; options are for keras.applications."
        )
    return path


def _load_model_file(path: pathlib.Path, safe_mode: bool) -> keras.Model:
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"{damaged} is damaged")
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _no_model(path, error) from error
    if safe_mode and (names := list(_lambda_layers(config))):
        raise UnsafeModelError(
            "A Lambda layer runs code from the file, so it is not loaded unasked. "
            f"Received: source={str(path)!r} with {', '.join(names)}. "
            "Pass safe_mode=False if you trust where the file comes from."
        )
    try:
        return keras.models.load_model(path, safe_mode=safe_mode)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise _no_model(path, error) from error


def _no_model(path: pathlib.Path, error: Exception) -> ArgumentError:
    return ArgumentError(
        "`source` must be a whole .keras file whose classes are known. "
        f"Received: source={str(path)!r} ({type(error).__name__}: {str(error)[:500]}). "
        "Save the model again with model.save('name.keras'); import its own classes before loading."
    )


def _lambda_layers(config: object) -> Iterator[str]:
    if isinstance(config, dict):
        if config.get("class_name") in ("Lambda", "__lambda__"):  # a layer, or a lambda elsewhere
            inner = config.get("config")
            yield str(inner.get("name", "a lambda") if isinstance(inner, dict) else "a lambda")
        else:
            for value in config.values():
                yield from _lambda_layers(value)
    elif isinstance(config, list):
        for value in config:
            yield from _lambda_layers(value)


def _check_weights_file(weights: str | os.PathLike[str]) -> int:
    """Returns how many numbers a readable file stores as weights, 0 if Keras will count them."""
    path = pathlib.Path(weights)
    if not path.is_file() or path.suffix not in (".h5", ".keras"):
        raise ArgumentError(
            "`weights` must be None, 'imagenet' or the path of a .weights.h5, .h5 or .keras file. "
            f"Received: weights={str(path)!r}, which is "
            f"{'of another format' if path.is_file() else 'no file'}."
        )
    try:
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as archive:
                content = io.BytesIO(archive.read("model.weights.h5"))  # checks its CRC
            with h5py.File(content) as file:
                return _stored_numbers(file, legacy=False)
        with h5py.File(path) as file:
            return _stored_numbers(file, legacy=not path.name.endswith(".weights.h5"))
    except (OSError, KeyError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise _no_weights(path, error) from error


def _stored_numbers(file: h5py.File, *, legacy: bool) -> int:
    # Keras chooses the layout by the name of the file alone.
    if legacy != ("model_weights" in file or any(key.startswith("layer_names") for key in file.attrs)):
        right, ending = ("Keras 3's", ".weights.h5") if legacy else ("the older", ".h5 alone")
        raise ValueError(f"its layout is {right}, for which its name must end in {ending}")
    count = 0

    def add(name: str, item: object) -> None:
        nonlocal count
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer"):
            count += math.prod(item.shape)

    file.get("model_weights", file).visititems(add)
    if not count:
        raise ValueError("it holds no weights")
    return 0 if legacy else count  # in the older layout Keras compares layer by layer itself


def _load_weights(model: keras.Model, path: pathlib.Path, stored: int) -> keras.Model:
    expected = sum(
        math.prod(variable.shape)
        for layer in graph.sublayers(model)
        for variable in graph.own_variables(layer)
    )
    try:
        if stored > expected:  # Keras would leave the rest aside without a word
            raise ValueError(f"it holds {stored} numbers, the model {expected}")
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            model.load_weights(path)
        for note in map(str, (each.message for each in notes)):
            if "freshly-initialized" in note:  # Keras only warns that it left layers as they were
                raise ValueError(note)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _no_weights(path, error, model) from error
    return model


def _no_weights(path: pathlib.Path, error: Exception, model: keras.Model | None = None) -> ArgumentError:
    target = "" if model is None else f" for model {model.name!r}"
    return ArgumentError(
        "`weights` must be a whole file with the weights of exactly this architecture. "
        f"Received: weights={str(path)!r}{target} ({type(error).__name__}: {str(error)[:500]}). "
        "Save them again with model.save_weights('name.weights.h5'), check the options, or use "
        "tfkit.models.transfer_weights for a model that agrees in parts."
    )
