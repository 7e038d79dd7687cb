"""SavedModel: for servers, desktops and GPUs."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkit import graph
from tfkit.export.apart import run_apart
from tfkit.export.artifact import Artifact, output_path, staged
from tfkit.export.parity import PROOF_SAMPLES, TOLERANCE, compare, require_parity
from tfkit.export.signature import input_specs, random_samples, samples, serving_function


def export_saved_model(
    model: keras.Model, path: str | os.PathLike, *, representative_data: Any = None
) -> Artifact:
    """Writes a SavedModel that needs neither Keras nor tfkit, once it is proven.

    The model is written under a temporary name, served to a separate process through
    ``tf.saved_model`` without tfkit or Keras, run on real inputs and compared with Keras;
    only then it gets its name. Its signature
    ``serving_default`` takes any batch size, and any height and width the model leaves
    open. What stood at `path` before is replaced.

    Args:
        model: A built Keras model.
        path: The directory to make.
        representative_data: Inputs for the comparison: an array, a list of arrays (one
            an input) or a tf.data.Dataset. None compares on seeded uniform numbers.

    Returns:
        An `Artifact`.

    Raises:
        ArgumentTypeError: If `model` is no model.
        UnbuiltModelError: If it has no weights, or does not know its inputs.
        NonFiniteWeightsError: If a weight is NaN or infinite.
        ArgumentError: If the data does not fit the model.
        OutputPathError: If nothing can be written at `path`.
        ExportError: If TensorFlow alone cannot load or run what was written.
        ParityError: If the SavedModel does not compute what Keras computes.

    Examples:
        >>> import pathlib, tempfile, tfkit
        >>> model = tfkit.models.build_encoder_decoder((16, 16, 3), filters=(4, 8), output_channels=3)
        >>> artifact = tfkit.export_saved_model(model, pathlib.Path(tempfile.mkdtemp(), "model"))
        >>> artifact.kind, artifact.parity.passed
        ('saved_model', True)

    Source: keras.export.ExportArchive.
    """
    graph.require_finite(graph.require_model(model))
    specs = input_specs(model, batch_size=None)
    arrays = random_samples(specs) if representative_data is None else samples(representative_data, specs)
    path = output_path(path, "saved_model")
    with staged(path) as temporary:
        write_saved_model(model, temporary, specs)
        proof = [each[:PROOF_SAMPLES] for each in arrays]
        parity = compare(model, functools.partial(run_apart, temporary), proof, TOLERANCE["float32"])
        require_parity(parity, "float32")
    return Artifact.at(path, "float32", parity)


def write_saved_model(model: keras.Model, path: os.PathLike, specs: Sequence[tf.TensorSpec]) -> None:
    """Writes the model's inference function for the given input specs."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serving_function(model), input_signature=list(specs))
    archive.write_out(str(path), verbose=False)
