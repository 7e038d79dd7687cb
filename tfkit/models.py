"""Models to begin with: an encoder–decoder, files, and weights carried over by name."""

import collections
import dataclasses
import json
import numbers
import os
import pathlib
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import layers

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError, UnsafeModelError
from tfkit.select import select_layers

__all__ = [
    "TransferEntry",
    "WeightTransfer",
    "build_encoder_decoder",
    "load_base_model",
    "transfer_weights",
]


def build_encoder_decoder(
    input_shape: Sequence[int | None],
    *,
    filters: Sequence[int],
    output_channels: int,
    residual: bool = False,
    name: str = "encoder_decoder",
) -> keras.Model:
    """Builds a convolutional encoder–decoder with skip connections.

    N = ``len(filters)`` layers each way, all 3×3: `encoder_conv1` works at full
    resolution and every further encoder layer halves it; each decoder layer but the
    last doubles it and joins the encoder's features of that size; `decoder_convN` is
    the linear output layer.

    Args:
        input_shape: ``(height, width, channels)``; height and width may be None, for
            images of any size that is a multiple of ``2 ** (N - 1)``.
        filters: Channels of `encoder_conv1…N`, at least one; the decoder mirrors them.
        output_channels: Channels of the output, at least 1.
        residual: Whether the input is added to the output, so that the network learns
            the difference; needs as many output channels as input channels.
        name: The model's name.

    Returns:
        A functional model, not compiled, from ``(batch, height, width, channels)`` to
        ``(batch, height, width, output_channels)``.

    Raises:
        ArgumentError: If `filters` is empty, a count is below 1, a size is no multiple
            of the strides, or `residual` does not fit the channels.

    Examples:
        >>> import tfkit
        >>> model = tfkit.models.build_encoder_decoder((None, None, 3), filters=(8, 16), output_channels=3)
        >>> [layer.name for layer in model.layers if layer.weights]
        ['encoder_conv1', 'encoder_conv2', 'decoder_conv1', 'decoder_conv2']
        >>> model.compute_output_shape((1, 64, 48, 3))
        (1, 64, 48, 3)

    Source: Ronneberger et al., U-Net (2015); the residual form, Zhang et al., DnCNN
    (2017), section 3.
    """
    filters, shape = _check_encoder_decoder(input_shape, filters, output_channels, residual)
    conv = {"kernel_size": 3, "padding": "same", "kernel_initializer": "he_normal"}

    inputs = keras.Input(shape, name="image")
    x, skips = inputs, []
    for number, width in enumerate(filters, start=1):
        stride = 1 if number == 1 else 2
        x = layers.Conv2D(width, strides=stride, activation="relu", name=f"encoder_conv{number}", **conv)(x)
        skips.append(x)
    for number, skip in enumerate(reversed(skips[:-1]), start=1):
        x = layers.UpSampling2D(name=f"decoder_upsample{number}")(x)
        x = layers.Concatenate(name=f"decoder_join{number}")([x, skip])
        x = layers.Conv2D(skip.shape[-1], activation="relu", name=f"decoder_conv{number}", **conv)(x)
    if residual:  # begin as the identity: a pretrained denoiser that does no harm
        conv["kernel_initializer"] = "zeros"
    outputs = layers.Conv2D(output_channels, name=f"decoder_conv{len(filters)}", **conv)(x)
    if residual:
        outputs = layers.Add(name="residual")([inputs, outputs])
    return keras.Model(inputs, outputs, name=name)


def _check_encoder_decoder(
    input_shape: Sequence[int | None], filters: Sequence[int], output_channels: int, residual: bool
) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    if not isinstance(filters, Iterable) or not isinstance(input_shape, Iterable):
        raise ArgumentTypeError(
            "`filters` and `input_shape` must be sequences of whole numbers. "
            f"Received: filters={filters!r}, input_shape={input_shape!r}."
        )
    filters, shape = tuple(filters), tuple(input_shape)
    if not filters or not all(_is_count(width) for width in filters):
        raise ArgumentError(
            f"`filters` must hold at least one channel count, each at least 1. Received: filters={filters!r}."
        )
    if not _is_count(output_channels):
        raise ArgumentError(
            f"`output_channels` must be at least 1. Received: output_channels={output_channels!r}."
        )
    if len(shape) != 3 or not all(_is_count(size) or size is None for size in shape) or shape[2] is None:
        raise ArgumentError(
            "`input_shape` must be (height, width, channels), each at least 1; height and width may be None. "
            f"Received: input_shape={shape!r}."
        )
    multiple = 2 ** (len(filters) - 1)
    if any(size is not None and size % multiple for size in shape[:2]):
        raise ArgumentError(
            f"Height and width must be multiples of {multiple}, the product of the "
            f"{len(filters) - 1} strides of 2. Received: input_shape={shape!r}. "
            "Pad or crop the images, or pass fewer filters."
        )
    if residual and shape[2] != output_channels:
        raise ArgumentError(
            "A residual model must have as many output channels as input channels. "
            f"Received: input_shape={shape!r}, output_channels={output_channels!r}."
        )
    return tuple(map(int, filters)), tuple(size if size is None else int(size) for size in shape)


def _is_count(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 1


def load_base_model(source: str | os.PathLike, *, safe_mode: bool = True) -> keras.Model:
    """Loads a model from a `.keras` file.

    Args:
        source: Path of a `.keras` file.
        safe_mode: Whether to refuse Lambda layers, which carry code that would run.

    Returns:
        The model, compiled as it was saved.

    Raises:
        ArgumentError: If there is no such file, or it is no `.keras` file.
        UnsafeModelError: If it holds a Lambda layer and `safe_mode` is on.

    Examples:
        >>> import pathlib, tempfile, tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4,), output_channels=3)
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.keras")
        >>> model.save(path)
        >>> tfkit.models.load_base_model(path).name
        'encoder_decoder'

    Source: keras.models.load_model and its safe mode.
    """
    path = pathlib.Path(source)
    if not path.is_file() or path.suffix != ".keras":
        raise ArgumentError(
            "`source` must be the path of a .keras file. "
            f"Received: source={str(path)!r}, which is {'no .keras file' if path.is_file() else 'no file'}."
        )
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


@dataclasses.dataclass(frozen=True)
class TransferEntry:
    """A layer of the target, and why its weights were copied or not.

    Attributes:
        path: The layer's path in the target model.
        reason: One sentence.
    """

    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class WeightTransfer:
    """What `transfer_weights` did.

    Attributes:
        copied: One entry for each layer of the target that took over weights.
        skipped: One entry for each layer with weights that did not, with the reason.
        unused: Paths of the source's layers that nothing was taken from.
    """

    copied: tuple[TransferEntry, ...]
    skipped: tuple[TransferEntry, ...]
    unused: tuple[str, ...]


def transfer_weights(source: keras.Model, target: keras.Model) -> WeightTransfer:
    """Copies weights between models by layer name, in place in `target`.

    A layer takes over the weights of the source's layer with the same path, or else
    with the same name where only one has it. All weights of a layer must have the same
    shapes; otherwise the whole layer is skipped.

    Args:
        source: A built Keras model; not changed.
        target: A built Keras model; its weights are overwritten.

    Returns:
        A record with `.copied`, `.skipped` (each entry has a `.path` and a `.reason`)
        and `.unused`.

    Raises:
        ArgumentTypeError: If either is no Keras model.
        UnbuiltModelError: If either has no weights yet.
        ArgumentError: If no layer could be copied at all.

    Examples:
        >>> import tfkit
        >>> build = tfkit.models.build_encoder_decoder
        >>> old = build((8, 8, 3), filters=(4, 8), output_channels=3)
        >>> new = build((16, 16, 3), filters=(4, 8), output_channels=1)
        >>> record = tfkit.models.transfer_weights(old, new)
        >>> [entry.path for entry in record.copied]
        ['encoder_conv1', 'encoder_conv2', 'decoder_conv1']
        >>> record.skipped[0].path, record.skipped[0].reason
        ('decoder_conv2', 'shapes differ: kernel (3, 3, 4, 3) in the source, (3, 3, 4, 1) here')

    Source: Keras's load_weights(by_name, skip_mismatch), between models in memory.
    """
    givers = _by_place(source)
    by_name = collections.defaultdict(list)
    for entry in givers.values():
        by_name[entry.layer.name].append(entry)

    copied, skipped, used = [], [], set()
    for place, entry in _by_place(target).items():
        named = by_name[entry.layer.name]
        giver = givers.get(place) or (named[0] if len(named) == 1 else None)
        if giver is None:
            reason = (
                f"the name is not unique in the source: {', '.join(each.path for each in named)}"
                if named
                else "no layer of that name in the source"
            )
            skipped.append(TransferEntry(entry.path, reason))
        elif reason := _difference(giver.weights, entry.weights):
            skipped.append(TransferEntry(entry.path, reason))
        else:
            for old, new in zip(giver.weights, entry.weights, strict=True):
                new.assign(keras.ops.cast(old, new.dtype))
            used.add(id(giver.layer))
            how = "same path" if giver.path == entry.path else f"same name as {giver.path}"
            copied.append(TransferEntry(entry.path, f"{how} and same shapes"))
    if not copied:
        raise ArgumentError(
            "At least one layer must have the same name and shapes in both models. "
            f"Received: source={source.name!r} with {', '.join(path for path, _ in list(givers)[:5])}; "
            f"target={target.name!r}, where {'; '.join(f'{s.path}: {s.reason}' for s in skipped[:3])}."
        )
    unused = tuple(entry.path for entry in givers.values() if id(entry.layer) not in used)
    return WeightTransfer(tuple(copied), tuple(skipped), unused)


def _by_place(model: keras.Model) -> dict[tuple[str, int], Any]:
    """Returns the layers with weights by path, and by order where siblings share a name."""
    places: dict[tuple[str, int], Any] = {}
    for entry in select_layers(graph.require_model(model), lambda _: True).entries:
        if entry.weights:
            number = sum(path == entry.path for path, _ in places) if (entry.path, 0) in places else 0
            places[entry.path, number] = entry
    return places


def _difference(source: list[keras.Variable], target: list[keras.Variable]) -> str | None:
    if len(source) != len(target):
        return f"the source layer has {len(source)} weights, this one {len(target)}"
    for old, new in zip(source, target, strict=True):
        if old.shape != new.shape:
            return f"shapes differ: {new.name} {tuple(old.shape)} in the source, {tuple(new.shape)} here"
    return None
