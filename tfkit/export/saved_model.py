"""SavedModel: for servers, desktops and GPUs."""

import errno
import functools
import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ParityError
from tfkit.export.apart import run_apart
from tfkit.export.artifact import Artifact, Parity, output_path
from tfkit.export.parity import PROOF_SAMPLES, TOLERANCE, compare, require_parity
from tfkit.export.serving import raw_samples, with_preprocessing
from tfkit.export.signature import input_specs, random_samples, samples, serving_function
from tfkit.files import staged

_TABLES = (keras.layers.StringLookup, keras.layers.IntegerLookup, keras.layers.TextVectorization)
RAW = "raw"  # the signature that takes pictures as they come
HERE = "TensorFlow on this processor"


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    representative_data: Any = None,
    preprocessing: Any = None,
) -> Artifact:
    """Writes a SavedModel that needs neither Keras nor tfkit, once it is proven.

    The model is written under a temporary name, served to a separate process through
    ``tf.saved_model`` without tfkit or Keras, run on real inputs and compared with Keras;
    only then it gets its name. Its signature
    ``serving_default`` takes any batch size, and any height and width the model leaves
    open. What stood at `path` before is replaced.

    `preprocessing` adds a second signature, so that a client need not know it:

    ===================  ==================================  =====================
    signature            takes                               preprocessing
    ===================  ==================================  =====================
    ``serving_default``  what the model takes                as the model has it
    ``raw``              uint8 pictures ``(batch, H, W, 3)``  runs on the server
    ===================  ==================================  =====================

    Args:
        model: A built Keras model.
        path: The directory to make.
        representative_data: Inputs for the comparison: an array, a list or a dict of arrays (one
            an input) or a tf.data.Dataset. None compares on seeded uniform numbers.
        preprocessing: From raw input to the model's input, for a model with one input: a
            function, layer or model of TensorFlow or Keras operations. Its input is uint8 on
            the server and comes as float32 from 0 to 255. A model may take another size
            than `model`, for example ``keras.Input((None, None, 3))`` before a Resizing, and
            gets integers if its own input is of an integer type. All else is given the
            shape that `model` takes.
            ``"inside"`` says that the model itself takes pixels from 0 to 255, as those of
            `load_base_model` do; ``raw`` then takes them as uint8. The signature ``raw``
            is compared with Keras on seeded whole numbers from 0 to 255. None: no ``raw``.

    Returns:
        An `Artifact`.

    Raises:
        ArgumentTypeError: If `model` is no model, or `preprocessing` can not be called.
        UnbuiltModelError: If it has no weights, or does not know its inputs.
        NonFiniteWeightsError: If a weight is NaN or infinite.
        ArgumentError: If the data or the preprocessing does not fit the model.
        OutputPathError: If nothing can be written at `path`.
        ExportError: If TensorFlow alone cannot load or run what was written.
        ParityError: If a signature does not compute what Keras computes.

    Examples:
        >>> import pathlib, tempfile, tfkit
        >>> model = tfkit.models.build_encoder_decoder((16, 16, 3), filters=(4, 8), output_channels=3)
        >>> artifact = tfkit.export_saved_model(model, pathlib.Path(tempfile.mkdtemp(), "model"))
        >>> artifact.kind, artifact.parity.passed
        ('saved_model', True)
        >>> import tensorflow as tf
        >>> served = tfkit.export_saved_model(
        ...     model, artifact.path, preprocessing=lambda pixels: pixels / 255)
        >>> loaded = tf.saved_model.load(str(served.path))
        >>> answer = loaded.signatures["raw"](tf.zeros((2, 16, 16, 3), tf.uint8))
        >>> answer["output_0"].shape
        TensorShape([2, 16, 16, 3])

    Source: keras.export.ExportArchive.
    """
    graph.require_finite(graph.require_model(model))
    specs = input_specs(model, batch_size=None)
    arrays = random_samples(specs)
    if representative_data is not None:
        arrays = samples(representative_data, specs, model=model)
    whole = None if preprocessing is None else with_preprocessing(model, preprocessing)
    path = output_path(path, "saved_model")
    with staged(path) as temporary:
        write_saved_model(model, temporary, specs, whole)
        proof = [each[:PROOF_SAMPLES] for each in arrays]
        parity = compare(model, functools.partial(run_apart, temporary), proof, TOLERANCE["float32"])
        require_parity(parity, "float32")
        if whole is not None:
            serve = functools.partial(run_apart, temporary, signature=RAW)
            raw = compare(whole, serve, raw_samples(whole), TOLERANCE["float32"])
            _require_raw(raw)
    return Artifact.at(path, "float32", parity, proofs=(HERE,))


def _require_raw(parity: Parity) -> None:
    if not parity.passed:
        raise ParityError(
            "The signature raw must agree with Keras's preprocessing and model within "
            f"{parity.tolerance:g} of the largest output. Received: relative error "
            f"{parity.relative_error:.3g} on {parity.samples} samples. Nothing was written. Some layers "
            "compute otherwise in a graph: a Resizing of uint8 does not round there. Give them floats."
        )


def write_saved_model(
    model: keras.Model,
    path: os.PathLike[str],
    specs: Sequence[tf.TensorSpec],
    whole: keras.Model | None = None,
) -> None:
    """Writes the model's inference function for the given input specs.

    Args:
        model: The model.
        path: The directory to make.
        specs: Its inputs.
        whole: The same model with its preprocessing, for a second signature.
    """
    archive = keras.export.ExportArchive()
    for layer in graph.sublayers(model if whole is None else whole):
        if isinstance(layer, _TABLES):  # endpoints bring their variables; `track` would write them twice
            archive.track(layer)
    archive.add_endpoint("serve", serving_function(model), input_signature=list(specs))
    if whole is not None:
        archive.add_endpoint(
            RAW, serving_function(whole), input_signature=input_specs(whole, batch_size=None)
        )
    try:
        archive.write_out(str(path), verbose=False)
    except tf.errors.ResourceExhaustedError as error:  # so it calls a full disk
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
