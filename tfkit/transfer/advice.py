"""Which layers to train, from how much data there is and how near it is to what the model knows."""

import collections
import math
import numbers
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import keras

from tfkit import graph
from tfkit.errors import ArgumentError
from tfkit.select import Entry, Selection, select_layers

SMALL, LARGE = 1_000, 10_000  # samples: small is below the first, large from the second on
SIZES = {
    "small": f"fewer than {SMALL:,}",
    "medium": f"{SMALL:,} to {LARGE - 1:,}",
    "large": f"{LARGE:,} or more",
}
# The part of the depth that trains, counted from the top.
SHARES = {
    "small": {"similar": Fraction(1, 6), "different": Fraction(1, 3)},
    "medium": {"similar": Fraction(1, 2), "different": Fraction(2, 3)},
    "large": {"similar": Fraction(1), "different": Fraction(1)},
}


class Recommendation(list[str]):
    """Patterns of the layers that should train, in model order, and why these.

    Attributes:
        reason: The rule that was applied, with its numbers.

    Examples:
        >>> Recommendation(["head"], reason="9 samples are few.")
        ['head']  # 9 samples are few.
        >>> Recommendation(["head"], reason="9 samples are few.") == ["head"]
        True
    """

    def __init__(self, patterns: Sequence[str] = (), *, reason: str = ""):
        super().__init__(patterns)
        self.reason = reason

    def __repr__(self) -> str:
        return f"{super().__repr__()}  # {self.reason}"


def recommend_trainable_layers(
    model: keras.Model, *, n_samples: int, similarity: Literal["similar", "different"]
) -> Recommendation:
    """Recommends the layers to train, by two rules: more data, more layers; farther data, more layers.

    Of N layers the last ``ceil(share · N)`` train. The share is 1/6 below 1,000 samples,
    1/2 below 10,000, and all from there on; for different data it is 1/3, 2/3 and all.
    Layers are counted in model order where they hold a kernel. One that only scales and
    shifts, as normalisation does, goes with the layer before it. This is where to begin;
    `compare_unfreezing` tries it on your data.

    Args:
        model: A built Keras model of any kind, with its new head. Not changed; what is
            frozen in it now plays no part.
        n_samples: Samples to train on, at least 1.
        similarity: ``"similar"`` if the new data and task are close to what the model was
            pretrained on, ``"different"`` if they are not.

    Returns:
        A list of patterns for `configure_base_model`, with a `.reason`: the layers' paths,
        or ``"re:<path>"`` where a layer inside a nested model has the same name. It is
        the end of the model: all layers after its first are in it too.

    Raises:
        ArgumentTypeError: If `model` is no Keras model.
        UnbuiltModelError: If it has no weights yet.
        ArgumentError: If `n_samples` is no whole number of at least 1, `similarity` is
            neither word, or the model has nothing that could train.

    Examples:
        >>> import tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4, 8), output_channels=3)
        >>> tfkit.recommend_trainable_layers(model, n_samples=999, similarity="similar").reason
        '999 samples (small: fewer than 1,000), similar: the last 1 of 4 layers trains, 111 of 955 weights.'
        >>> list(tfkit.recommend_trainable_layers(model, n_samples=1000, similarity="similar"))
        ['decoder_conv1', 'decoder_conv2']
        >>> len(tfkit.recommend_trainable_layers(model, n_samples=10_000, similarity="similar"))
        4

    Source: Stanford CS231n, notes on transfer learning, "When and how to fine-tune?"; the
    thresholds and shares are tfkit's own.
    """
    graph.require_model(model)
    if isinstance(n_samples, bool) or not isinstance(n_samples, numbers.Integral) or n_samples < 1:
        raise ArgumentError(
            f"`n_samples` must be a whole number of at least 1. Received: n_samples={n_samples!r}."
        )
    if similarity not in ("similar", "different"):
        raise ArgumentError(
            f"`similarity` must be 'similar' or 'different'. Received: similarity={similarity!r}."
        )
    able = learnable_ids(model, batch_norm="train")
    entries = [each for each in select_layers(model, lambda _: True).entries if _belongs(each, able)]
    depth = [
        place
        for place, entry in enumerate(entries)
        if any(id(weight) in able and len(weight.shape) > 1 for weight in entry.weights)
    ] or list(range(len(entries)))
    if not depth:
        raise ArgumentError(
            "`model` must have layers with weights that can train. "
            f"Received: model={model.name!r}, which has none."
        )
    size = "small" if n_samples < SMALL else "medium" if n_samples < LARGE else "large"
    count = math.ceil(SHARES[size][similarity] * len(depth))
    start = depth[-count] if count < len(depth) else 0  # what stands before the first goes with it
    start, patterns, selection = _name(model, entries, start)
    count = sum(place >= start for place in depth)
    others = ", normalisation included" if len(entries) - start > count else ""
    verb = "trains" if count == 1 else "train"
    return Recommendation(
        patterns,
        reason=f"{n_samples:,} samples ({size}: {SIZES[size]}), {similarity}: the last {count} of "
        f"{len(depth)} layers {verb}{others}, {_weigh(model, selection)} weights.",
    )


def learnable_ids(model: keras.Model, *, batch_norm: Literal["frozen", "train"]) -> set[int]:
    """Returns the ids of the weights that train when every layer of a model is selected."""
    return {
        id(variable)
        for layer in graph.sublayers(model)
        if batch_norm == "train" or not isinstance(layer, keras.layers.BatchNormalization)
        for variable in graph.learnable_variables(layer)
    }


def _belongs(entry: Entry, able: set[int]) -> bool:
    """Tells whether training can move anything in a layer, its moving statistics included."""
    learns = any(id(weight) in able for weight in entry.weights)
    return learns or isinstance(entry.layer, keras.layers.BatchNormalization)


def _name(model: keras.Model, entries: Sequence[Entry], start: int) -> tuple[int, list[str], Selection]:
    """Returns patterns that select the layers from `start` on and none before, and what they select.

    Where siblings have the same name, no pattern can tell them apart: the start, which is
    returned too, then moves to the first of them.
    """
    nodes = graph.descend(graph.walk(model))
    names = collections.Counter(node.path.rpartition("/")[2] for node in nodes)
    while True:
        patterns = [
            f"re:{re.escape(path)}" if "/" not in path and names[path] > 1 else path
            for path in (entry.path for entry in entries[start:])
        ]
        selection = select_layers(model, patterns)
        covered = {id(layer) for layer in selection.layers}
        first = next(place for place, entry in enumerate(entries) if id(entry.layer) in covered)
        if first >= start:
            return start, list(dict.fromkeys(patterns)), selection
        start = first


def _weigh(model: keras.Model, selection: Selection) -> str:
    able = learnable_ids(model, batch_norm="frozen")
    training = sum(math.prod(weight.shape) for weight in selection.variables if id(weight) in able)
    return f"{training:,} of {model.count_params():,}"
