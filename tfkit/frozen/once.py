"""Training of a model whose frozen part has run already."""

from collections.abc import Callable
from typing import Any

import keras

from tfkit.errors import ArgumentError
from tfkit.frozen.features import Features, Source, Storage, cut
from tfkit.frozen.halves import Halves
from tfkit.frozen.split import NotSplittable, Split, is_foreign, split


class FrozenOnce:
    """Trains as `model.fit` does, any number of times, with the frozen part run once.

    Args:
        model: A built and compiled model; the `trainable` flags of now decide.
        x: The data, as `fit` takes it.
        y: Targets, where `x` holds none.
        arguments: The other arguments of `fit`, by name, all of them.

    Attributes:
        uncached: For each frozen layer with weights that has to run in every epoch, why.

    Raises:
        NotSplittable: If nothing can be computed beforehand.
        ArgumentError: If arguments contradict each other.
    """

    def __init__(self, model: keras.Model, x: Any, y: Any, arguments: dict[str, Any]):
        self._model = model
        self._train, self._validation = _sources(x, y, arguments)
        self._halves = Halves(model, _cut(model, self._train, self._validation, arguments["callbacks"]))
        self.uncached = self._halves.split.uncached

    def compute(self, storage: Storage, progress: Callable[[], None] = lambda: None) -> None:
        """Runs the frozen part on all data, with the weights of now.

        Raises:
            NotSplittable: If the results are not one for each sample.
        """
        features = Features(self._train, self._halves.features(training=True), storage, progress)
        self._data = features.training_data()
        self._batches = len(features.sizes)
        if self._validation is not None:
            held = Features(self._validation, self._halves.features(training=False), storage, progress)
            self._data |= held.validation_data()

    def fit(self, arguments: dict[str, Any]) -> keras.callbacks.History:
        """Trains the rest with the arguments of `fit`; callbacks see the whole model."""
        names = (
            "epochs",
            "class_weight",
            "initial_epoch",
            "steps_per_epoch",
            "validation_steps",
            "validation_freq",
        )
        listeners = keras.callbacks.CallbackList(
            arguments["callbacks"],
            add_history=True,
            add_progbar=arguments["verbose"] != 0,
            model=self._model,
            verbose=arguments["verbose"],
            epochs=arguments["epochs"],
            steps=arguments["steps_per_epoch"] or self._batches,
        )
        chosen = {name: arguments[name] for name in names}
        return self._halves.rest.fit(**self._data, **chosen, callbacks=listeners)


def _sources(x: Any, y: Any, plain: dict[str, Any]) -> tuple[Source, Source | None]:
    """Returns the training and the validation data; Keras's rule for the split: the last samples."""
    weight, share, given = plain["sample_weight"], plain["validation_split"], plain["validation_data"]
    size, shuffle = plain["batch_size"], plain["shuffle"]
    if given is None and share:
        if not hasattr(keras.tree.flatten(x)[0], "shape"):
            raise ArgumentError(
                "`validation_split` needs arrays. Received: "
                f"validation_split={share!r} and x of type {type(x).__name__}. Pass validation_data."
            )
        border = int(len(keras.tree.flatten(x)[0]) * (1.0 - share))
        given = cut((x, y, weight), slice(border, None))
        x, y, weight = cut((x, y, weight), slice(border))
    train = Source(x, y, weight, size, shuffle, plain["steps_per_epoch"])
    if given is None:
        return train, None
    if isinstance(given, tuple | list):
        held_size = plain["validation_batch_size"] or size
        x, y, weight = keras.utils.unpack_x_y_sample_weight(tuple(given))
        return train, Source(x, y, weight, held_size, False, plain["validation_steps"])
    held = Source(given, None, None, None, False)
    held.shuffle = held.reorders = False  # its order changes no metric
    return train, held


def _cut(
    model: keras.Model,
    train: Source,
    validation: Source | None,
    callbacks: list[keras.callbacks.Callback],
) -> Split:
    for each in callbacks:
        if getattr(each, "moves_boundary", False):
            raise NotSplittable(f"{type(each).__name__} moves the boundary while the model trains")
    fixed = model.inputs[0].shape[0] if getattr(model, "inputs", None) else None
    parts = split(model, cut(next(iter(train))[0], slice(fixed or 2)))
    if fixed is None and not any(is_foreign(call.operation) for call in parts.front):
        for source in filter(None, (train, validation)):
            source.enlarge()  # the layers are known to take each sample by itself
    return parts
