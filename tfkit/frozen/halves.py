"""A model as two: the part that runs once for every sample, and the part that trains."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras.src.utils.tracking import DotNotTrackScope

from tfkit import graph
from tfkit.frozen.split import Split
from tfkit.training import local_value

CONSTANT_BYTES = 2**28  # of frozen weights to put into a graph, which holds two gigabytes at most


class Halves:
    """A model as the part that runs once and the part that trains.

    Args:
        model: The whole model.
        parts: Where it is cut.

    Attributes:
        rest: A model that trains in the whole one's place.
        split: The cut.
    """

    def __init__(self, model: keras.Model, parts: Split):
        self.split = parts
        self._masked: tuple[int, ...] = ()  # which features carry a mask
        with model.distribute_strategy.scope():
            self._front = _Front(model, self)
            self.rest = _Rest(model, self)

    def features(self, training: bool) -> Callable[[Any], list[Any]]:
        """Returns a function from a batch of inputs to its features."""
        if self.rest.run_eagerly:
            held = []
        else:  # as constants, so that TensorFlow can fold a normalisation into its convolution
            inside = {id(v): v for call in self.split.front for v in getattr(call.operation, "variables", ())}
            held = [(variable, local_value(variable).numpy()) for variable in inside.values()]
            if sum(value.nbytes for _, value in held) > CONSTANT_BYTES:
                held = []

        def front(x: Any) -> list[Any]:
            constants = [(variable, tf.constant(value)) for variable, value in held]
            with keras.StatelessScope(constants) if held else contextlib.nullcontext():
                return self._front(x, training=training)

        if not self.rest.run_eagerly:
            front = tf.function(front, reduce_retracing=True, autograph=False)

        def compute(x: Any) -> list[Any]:
            return front(keras.tree.map_structure(tf.convert_to_tensor, x, none_is_leaf=False))

        return compute

    def run_front(self, x: Any, training: bool | None) -> list[Any]:
        flow = self.split.flow
        values = dict(zip(flow.inputs, flow.read(x), strict=True))
        for call in self.split.front:
            call.run(values, training)
        features = [values[key] for key in self.split.features]
        masks = [graph.read_mask(feature) for feature in features]
        self._masked = tuple(place for place, mask in enumerate(masks) if mask is not None)
        return features + [masks[place] for place in self._masked]

    def run_rest(self, features: list[Any], training: bool | None) -> Any:
        count = len(self.split.features)
        for place, mask in zip(self._masked, features[count:], strict=True):
            graph.write_mask(features[place], mask)
        values = dict(zip(self.split.features, features[:count], strict=True))
        for call in self.split.rest:
            call.run(values, training)
        return self.split.flow.pack([values[key] for key in self.split.flow.outputs])


class _Part(keras.Model):
    """A model that hands its inputs on as they are, as functional models do."""

    def __init__(self, whole: keras.Model, halves: Halves):
        super().__init__(
            name=f"{whole.name}_{type(self).__name__.lstrip('_').lower()}", dtype=whole.dtype_policy
        )
        self._convert_input_args = False
        self._allow_non_tensor_positional_args = True
        self.halves = halves
        self.built = True


class _Front(_Part):
    """The part that runs once."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.halves.run_front(x, training)


class _Rest(_Part):
    """The part that trains, with the whole model's weights, optimizer, loss, metrics and history."""

    SHARED = (
        "optimizer",
        "loss",
        "compiled",
        "jit_compile",
        "run_eagerly",
        "steps_per_execution",
        "_compile_config",
        "_compile_loss",
        "_compile_metrics",
        "_loss_tracker",
    )

    def __init__(self, whole: keras.Model, halves: Halves):
        super().__init__(whole, halves)
        self.whole = whole
        with DotNotTrackScope():
            for name in self.SHARED:
                setattr(self, name, getattr(whole, name))

    def call(self, features: Any, training: bool | None = None) -> Any:
        return self.halves.run_rest(list(features), training)

    @property
    def stop_training(self) -> bool:
        return self.whole.stop_training

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        with contextlib.suppress(AttributeError):  # Keras sets it before there is a whole
            self.whole.stop_training = value

    @property
    def _initial_epoch(self) -> int | None:
        return getattr(self.whole, "_initial_epoch", None)

    @_initial_epoch.setter
    def _initial_epoch(self, value: int | None) -> None:
        with contextlib.suppress(AttributeError):
            self.whole._initial_epoch = value

    @property
    def history(self) -> keras.callbacks.History:
        return self.whole.history
