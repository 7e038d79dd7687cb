"""Statistics of BatchNormalization, measured anew."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ArgumentError, PruningError
from tfkit.prune.arguments import require_count
from tfkit.prune.batches import inputs_of, read_batches
from tfkit.report import progress

Sums = dict[int, tuple[float, np.ndarray, np.ndarray]]


def recalibrate_batch_norm(
    model: keras.Model, x: Any, *, batch_size: int = 32, verbose: int = 0
) -> keras.Model:
    """Measures the moving statistics of every BatchNormalization anew, in place.

    A model that has lost weights or channels gives its normalisations other numbers than those
    whose mean and variance they hold. Here the batches go through the model once, each normalised
    by its own statistics as in training, and what is kept is the mean over all samples::

        mean = E[mean of a batch],  variance = E[variance + mean²] - mean²

    Nothing is trained, dropout is off, and frozen layers are measured as well. Take enough
    samples: a thousand, in batches of the size that training used.

    Args:
        model: A built Keras model with BatchNormalization.
        x: Inputs as in training: an array, a list or dict of arrays, an ``(x, y)`` pair, whose
            targets are not used, or a tf.data.Dataset.
        batch_size: Samples a batch, for arrays.
        verbose: 1 shows a progress bar.

    Returns:
        The same model. When a batch fails, its statistics are as they were.

    Raises:
        ArgumentTypeError: If `model` is no model, or `x` no data.
        ArgumentError: If `x` is empty, does not fit the model or gives NaN or infinity.
        PruningError: If the model has no BatchNormalization.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((1,)), keras.layers.BatchNormalization(name="bn")])
        >>> _ = tfkit.recalibrate_batch_norm(model, np.array([[1.0], [3.0], [5.0], [7.0]]), batch_size=2)
        >>> norm = model.get_layer("bn")
        >>> float(norm.moving_mean[0]), float(norm.moving_variance[0])
        (4.0, 5.0)

    Source: Izmailov et al., Averaging Weights Leads to Wider Optima (2018), section 3.2; Li et al.,
    EagleEye (2020), section 3.3, for pruned networks.
    """
    graph.require_model(model)
    require_count("batch_size", batch_size)
    norms = [each for each in graph.sublayers(model) if isinstance(each, keras.layers.BatchNormalization)]
    if not norms:
        raise PruningError(
            "The model must have statistics to measure. "
            f"Received: model={model.name!r} without BatchNormalization. Leave this step out."
        )
    batches = read_batches(model, x, batch_size, name="x")
    before = [(v, keras.ops.convert_to_numpy(v)) for each in norms for v in each.non_trainable_variables]
    sums: Sums = {}
    try:
        with progress.bar(verbose=verbose) as bar, contextlib.ExitStack() as stack:
            for layer in norms:
                stack.enter_context(_observed(layer, sums))
            for inputs, _ in bar.track(batches, description="statistics"):
                model(inputs_of(model, inputs), training=False)
    finally:
        for variable, values in before:
            variable.assign(values)
    seen = [layer for layer in norms if id(layer) in sums]
    broken = [layer.name for layer in seen if not np.isfinite(sums[id(layer)][2]).all()]
    if broken:
        raise ArgumentError(
            "Statistics must be finite numbers. "
            f"Received: x that gives {broken[0]} NaN or infinity. Look for such in `x` or the weights."
        )
    for layer in seen:
        count, mean, square = sums[id(layer)]
        layer.moving_mean.assign(mean / count)
        layer.moving_variance.assign(np.maximum(square / count - np.square(mean / count), 0))
    return model


@contextlib.contextmanager
def _observed(layer: keras.layers.BatchNormalization, sums: Sums) -> Iterator[None]:
    """Lets a layer normalise by each batch's own statistics, and adds them up."""
    original, momentum, trains = layer.call, layer.momentum, layer._trainable

    def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        outputs = original(inputs, training=True, mask=mask)
        count = float(inputs.shape[0])
        mean = keras.ops.convert_to_numpy(layer.moving_mean).astype("float64")
        variance = keras.ops.convert_to_numpy(layer.moving_variance).astype("float64")
        old = sums.get(id(layer), (0.0, np.zeros_like(mean), np.zeros_like(mean)))
        sums[id(layer)] = (
            old[0] + count,
            old[1] + count * mean,
            old[2] + count * (variance + np.square(mean)),
        )
        return outputs

    # momentum 0: what Keras moves becomes the batch's own; `trainable` would reach its weights
    layer.call, layer.momentum, layer._trainable = call, 0.0, True
    try:
        yield
    finally:
        layer.momentum, layer._trainable = momentum, trains
        del layer.call
