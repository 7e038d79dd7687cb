"""An exact rewrite of a model, after which XNNPACK's sparse kernels take it."""

from collections.abc import Sequence
from typing import cast

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ExportError
from tfkit.export.rewriter import Rewriter
from tfkit.export.signature import input_specs, random_samples


def make_sparse_ready(model: keras.Model, *, input_shape: Sequence[int | None] | None = None) -> keras.Model:
    """Returns a model that computes the same and that XNNPACK's sparse kernels can take.

    Those kernels, which run on phones and in browsers, want a network between a 3x3 stem with
    strides of 2 and a mean over the picture, of 1x1 convolutions, 3x3 and 5x5 depthwise
    convolutions padded alike on all sides, sums, products and activations. Rewritten are:

    - strided convolutions, which TensorFlow pads below and right only: the picture and all kernels
      are turned by 180 degrees, and the padding on all sides then computes the same;
    - BatchNormalization and other factors and summands for each channel: they go into the
      convolution before them, or become a depthwise one with a single weight;
    - 1x1 convolutions of a pooled picture, as in MobileNet's head: they become Dense.

    Zeros stay zeros. Prune before or after; `explain_deployment` tells what still stops a model.

    Args:
        model: A functional or Sequential model, stripped of pruning.
        input_shape: ``(height, width, channels)`` for a model that leaves sizes open: how
            TensorFlow pads depends on them, so they are fixed in the new one.

    Returns:
        A new, uncompiled functional model, models inside it dissolved. The old one is not touched.

    Raises:
        ArgumentTypeError: If `model` is no model.
        UnbuiltModelError: If it has no weights.
        NonFiniteWeightsError: If a weight is NaN or infinite.
        ExportError: If it is a subclassed model, leaves sizes open, or the new model
            would not compute the same.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.applications.MobileNetV2((96, 96, 3), alpha=0.35, weights=None)
        >>> ready = tfkit.make_sparse_ready(model)
        >>> ready.count_params() < model.count_params()  # no BatchNormalization any more
        True

    Source: Elsen et al., Fast Sparse ConvNets (2020), section 3; XNNPACK, subgraph.c.
    """
    graph.require_finite(graph.require_model(model))
    flow = graph.read_flow(model)
    if flow is None:
        raise ExportError(
            "A model must be functional or Sequential to be rewritten. "
            f"Received: model={model.name!r}, a subclassed model. "
            "Build it from layers: keras.Model(inputs, outputs)."
        )
    specs = input_specs(model, batch_size=None, input_shape=input_shape)
    if any(size is None for spec in specs for size in spec.shape[1:]):
        raise ExportError(
            "How TensorFlow pads depends on the picture's size, so it must be known. "
            f"Received: model={model.name!r} with inputs {[tuple(spec.shape) for spec in specs]}. "
            "Pass input_shape=(height, width, channels)."
        )
    if input_shape is not None:
        sized = _sized(model, [tuple(spec.shape) for spec in specs])
        flow = cast(graph.Flow, graph.read_flow(sized))  # as functional as the model
    new = Rewriter(flow).run()
    _require_same(model, new, specs)
    return new


def _sized(model: keras.Model, shapes: Sequence[tuple[int | None, ...]]) -> keras.Model:
    """Returns the model with its sizes fixed."""
    made: list[tuple[keras.Operation, keras.Operation]] = []

    def copied(operation: keras.Operation) -> keras.Operation:
        made.append((operation, graph.copy_operation(operation, {})))
        return made[-1][1]

    new = graph.rebuild(model, copied, shapes)
    for old, twin in made:
        if isinstance(old, keras.Layer):
            twin.set_weights(old.get_weights())
    graph.finish_normalization(new)
    return new


def _require_same(old: keras.Model, new: keras.Model, specs: Sequence[tf.TensorSpec]) -> None:
    """Checks on random pictures that the new model computes what the old one does."""
    x = random_samples(specs, 2)
    packed = keras.tree.pack_sequence_as(graph.input_structure(old), x)
    pairs = zip(*(keras.tree.flatten(each(packed, training=False)) for each in (old, new)), strict=True)
    for one, other in pairs:
        wanted, got = (keras.ops.convert_to_numpy(each).astype("float64") for each in (one, other))
        error = np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-30)
        if not error <= 1e-4:
            raise ExportError(
                "The rewritten model must compute what the old one does. "
                f"Received: model={old.name!r}, where the largest difference is {error:.1e} of the largest "
                "output. If its own answers change as much with rounding, the network magnifies it; "
                "else report this model."
            )
