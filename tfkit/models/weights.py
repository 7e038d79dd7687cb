"""Weights carried over between models by layer name."""

import collections
import dataclasses
import re
from typing import Any, Literal

import keras

from tfkit import graph
from tfkit.errors import ArgumentError
from tfkit.select import select_layers


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


def transfer_weights(
    source: keras.Model,
    target: keras.Model,
    *,
    match: Literal["name_and_shape", "name"] = "name_and_shape",
) -> WeightTransfer:
    """Copies weights between models by layer name, in place in `target`.

    A layer takes over the weights of the source's layer with the same path, or else
    with the same name where only one has it. All weights of a layer must have the same
    shapes; what happens otherwise, `match` decides. Nothing is copied before all layers
    have been compared.

    Args:
        source: A built Keras model; not changed.
        target: A built Keras model; its weights are overwritten.
        match: ``"name_and_shape"`` skips a layer whose shapes differ in the two models;
            ``"name"`` refuses to copy anything if there is such a layer.

    Returns:
        A record with `.copied`, `.skipped` (each entry has a `.path` and a `.reason`)
        and `.unused`.

    Raises:
        ArgumentTypeError: If either is no Keras model.
        UnbuiltModelError: If either has no weights yet.
        ArgumentError: If no layer could be copied at all, `match` is another word, or it is
            ``"name"`` and shapes differ; all such layers are named.

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
    if match not in ("name_and_shape", "name"):
        raise ArgumentError(f"`match` must be 'name_and_shape' or 'name'. Received: match={match!r}.")
    givers, receivers = _by_place(source), _by_place(target)
    by_name = collections.defaultdict(list)
    for entry in givers.values():
        by_name[entry.layer.name].append(entry)

    pairs, copied, skipped, differing = [], [], [], []
    for place, entry in receivers.items():
        named = by_name[entry.layer.name]
        giver = givers.get(place) or (named[0] if len(named) == 1 else None)
        if giver is None:
            reason = (
                f"the name is not unique in the source: {', '.join(each.path for each in named)}"
                if named
                else "no layer of that name in the source"
            )
            skipped.append(TransferEntry(entry.path, reason))
        elif difference := _difference(giver.weights, entry.weights):
            skipped.append(TransferEntry(entry.path, difference))
            differing.append(f"{entry.path}: {difference}")
        else:
            pairs.append((giver, entry))
            how = "same path" if giver.path == entry.path else f"same name as {giver.path}"
            copied.append(TransferEntry(entry.path, f"{how} and same shapes"))
    if match == "name" and differing:
        raise ArgumentError(
            "With match='name', layers of the same name must have the same shapes. "
            f"Received: source={source.name!r}, target={target.name!r}, where {'; '.join(differing)}. "
            "Nothing was copied. Rename them in one model, or pass match='name_and_shape' to skip them."
        )
    if not copied:
        raise ArgumentError(
            "At least one layer must have the same name and shapes in both models. "
            f"Received: source={source.name!r} with {', '.join(path for path, _ in list(givers)[:5])}; "
            f"target={target.name!r}, where {'; '.join(f'{s.path}: {s.reason}' for s in skipped[:3])}."
        )
    for giver, entry in pairs:
        for old, new in zip(giver.weights, entry.weights, strict=True):
            new.assign(keras.ops.cast(old, new.dtype))
        for layer in graph.sublayers(entry.layer):
            if isinstance(layer, keras.layers.Normalization):
                layer.finalize_state()  # what it computes with, it makes from its weights
    used = {id(giver.layer) for giver, _ in pairs}
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
        if _role(old) != _role(new):
            return f"the weights differ: {old.name} in the source, {new.name} here"
        if old.shape != new.shape:
            return f"shapes differ: {new.name} {tuple(old.shape)} in the source, {tuple(new.shape)} here"
    return None


def _role(variable: keras.Variable) -> str:
    """Returns a variable's name without the number that Keras puts behind one that was not given."""
    return re.sub(r"_\d+$", "", variable.name)
