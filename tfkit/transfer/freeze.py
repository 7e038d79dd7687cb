"""Which layers train, also on a model that is compiled or has trained already."""

from collections.abc import Iterable
from typing import Literal

import keras

from tfkit import graph
from tfkit.errors import ArgumentError
from tfkit.select import Pattern, select_layers
from tfkit.training import refresh_training


def configure_base_model(
    base_model: keras.Model,
    trainable_layers: Pattern | Iterable[Pattern],
    *,
    batch_norm: Literal["frozen", "train"] = "frozen",
) -> keras.Model:
    """Lets exactly the selected layers train and freezes the rest, in place.

    Works at any time. On a compiled model the next `fit` uses the new selection:
    Keras alone would go on with the old one, or stop with "Unknown variable". The
    optimizer stays the same object; its `iterations` and the state (momentum, moving
    averages) of variables that keep training are kept, newly trained variables start
    with fresh state. When the base is part of a larger compiled model, pass the larger
    model and name layers by path, for it is that model which trains.

    Args:
        base_model: A built Keras model of any kind. Changed in place.
        trainable_layers: Patterns of `select_layers`; ``[]`` freezes everything.
        batch_norm: ``"frozen"`` keeps every BatchNormalization in inference mode, even
            inside a trainable selection, so that small data cannot spoil its pretrained
            statistics; ``"train"`` lets the selected ones learn.

    Returns:
        `base_model` itself.

    Raises:
        ArgumentTypeError: If `base_model` is no Keras model.
        UnbuiltModelError: If it has no weights yet.
        LayerNotFoundError: If a pattern matches nothing.
        ArgumentError: If `batch_norm` is neither value.

    Examples:
        >>> import tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4, 8), output_channels=3)
        >>> _ = tfkit.configure_base_model(model, "decoder_conv2")
        >>> [v.path for v in model.trainable_variables]
        ['decoder_conv2/kernel', 'decoder_conv2/bias']
        >>> len(tfkit.configure_base_model(model, []).trainable_variables)
        0

    Source: frozen statistics while fine-tuning, Keras's guide "Transfer learning and
    fine-tuning"; the stale train step is keras-team/keras#9477.
    """
    require_batch_norm(batch_norm)
    selection = select_layers(base_model, trainable_layers)
    chosen = {id(variable) for variable in selection.variables}
    bare = {id(layer) for layer in selection.layers if not layer.weights}

    base_model.trainable = bool(chosen)
    for node in graph.descend(graph.walk(base_model)):
        layer = node.layer  # parents come first: setting one sets all inside it
        layer.trainable = id(layer) in bare or any(id(v) in chosen for v in layer.weights)
    for layer in graph.sublayers(base_model):
        frozen = batch_norm == "frozen" and isinstance(layer, keras.layers.BatchNormalization)
        if frozen:
            layer.trainable = False
        for variable in graph.learnable_variables(layer):
            variable.trainable = id(variable) in chosen and not frozen
    refresh_training(base_model)
    return base_model


class Trainability:
    """Which layers and weights of a model train, to be put back.

    Args:
        model: A built model. Not changed.
    """

    def __init__(self, model: keras.Model):
        layers = graph.sublayers(model)  # parents come first: setting one sets all inside it
        self._flags = [(each, each.trainable) for each in [*layers, *model.variables]]

    def restore(self, model: keras.Model) -> None:
        """Puts the flags back; the optimizer and the train step of `model` follow."""
        for each, flag in self._flags:
            each.trainable = flag
        refresh_training(model)


def require_batch_norm(value: object) -> Literal["frozen", "train"]:
    """Returns the policy for BatchNormalization, or raises ArgumentError."""
    if value not in ("frozen", "train"):
        raise ArgumentError(f"`batch_norm` must be 'frozen' or 'train'. Received: batch_norm={value!r}.")
    return value
