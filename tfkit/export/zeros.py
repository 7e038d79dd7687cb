"""Are a pruned model's zeros still zeros in the file?"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfkit import graph
from tfkit.export.artifact import Artifact
from tfkit.export.layer_error import read_tflite
from tfkit.export.tensors import TensorFile

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["path", "variable", "sparsity_keras", "sparsity_artifact", "zeros_lost", "reason"]
FITS = 0.1  # of the kernel's norm: int8 is off by 0.01, another kernel by about 1


def zeros_kept(model: keras.Model, artifact: Artifact | str | os.PathLike[str]) -> "pd.DataFrame":
    """Compares the zeros of every kernel with those of the same kernel in a `.tflite` file.

    A weight counts as zero in the file if its real value is exactly 0; in int8 that is the
    zero point. Rounding makes further zeros of small weights, so `sparsity_artifact` may be
    above `sparsity_keras`; a zero that became something else counts in `zeros_lost`.

    A kernel is found in the file by its values, up to one factor for each output channel,
    which is what folding a BatchNormalization does to it.

    Args:
        model: The Keras model that the file was made from.
        artifact: An `Artifact` or the path of a `.tflite` file, of any precision.

    Returns:
        A DataFrame, a row for each weight of two or more dimensions but biases: `path` of the layer,
        `variable`, `sparsity_keras` and `sparsity_artifact` (fractions of zeros),
        `zeros_lost` (the fraction of Keras's zeros that are none in the file), and
        `reason`, why a row has no numbers.

    Raises:
        ArgumentTypeError: If `model` is no model.
        ArgumentError: If the path is no `.tflite` file.
        ExportError: If LiteRT cannot load the file.

    Examples:
        >>> import pathlib, tempfile, keras, tfkit
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64, name="a")])
        >>> path = pathlib.Path(tempfile.mkdtemp(), "model.tflite")
        >>> artifact = tfkit.export_tflite(tfkit.prune_now(model, 0.75), path, precision="int8_weights")
        >>> table = tfkit.zeros_kept(model, artifact)
        >>> float(table.sparsity_keras[0]), float(table.zeros_lost[0])
        (0.75, 0.0)
    """
    import pandas as pd

    kernels = [
        (node.path, each)
        for node, each in graph.learnable(model)
        if len(each.shape) > 1 and each.name != "bias"  # attention has biases of two dimensions
    ]
    constants = _constants(TensorFile(read_tflite(artifact)))
    rows = []
    for path, variable in kernels:
        kernel = np.asarray(variable, "float64")
        row = {"path": path, "variable": variable.name, "sparsity_keras": float(np.mean(kernel == 0))}
        fits: list[tuple[float, int, Any, Any]] = [
            (_residual(stored, wanted), number, wanted, stored)
            for number, (wanted, stored) in enumerate(_pairs(kernel, constants))
        ]
        nothing: tuple[float, int, Any, Any] = (np.inf, 0, None, None)
        distance, _, wanted, stored = min(fits, default=nothing, key=lambda fit: fit[:2])
        if distance <= FITS:
            lost = float(np.mean(stored[wanted == 0] != 0)) if (wanted == 0).any() else 0.0
            row |= {"sparsity_artifact": float(np.mean(stored == 0)), "zeros_lost": lost, "reason": ""}
        else:
            row["reason"] = "no tensor of the file holds this kernel, up to a factor for each channel"
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def _constants(file: TensorFile) -> list[np.ndarray]:
    """Returns every tensor that does not depend on the inputs; packed ones as they are unpacked."""
    file.run([np.zeros(file.shapes[index]) for index in file.inputs])
    return [file.value(index) for index in file.program.frozen(file.inputs)]


def _pairs(kernel: np.ndarray, constants: list[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the kernel beside each tensor of its size, a row an output channel, in every layout."""
    rank, size = kernel.ndim, kernel.size
    output_last = np.moveaxis(kernel, -1, 0).reshape(kernel.shape[-1], -1)  # Dense and Conv: (…, out)
    input_first = kernel.reshape(kernel.shape[0], -1).T  # attention: (in, heads, dim)
    channel_first = kernel.reshape(kernel.shape[0], -1)  # Embedding: (rows, dim)
    outside = [output_last, input_first, channel_first]
    if rank > 2:  # transposed Conv: (…, out, in)
        swapped = np.moveaxis(kernel, -2, 0)
        outside.append(swapped.reshape(len(swapped), -1))
    depthwise = kernel.reshape(-1, kernel.shape[-2] * kernel.shape[-1] if rank > 3 else kernel.shape[-1]).T
    for constant in constants:
        if constant.size != size:
            continue
        pairs = [(wanted, constant.reshape(wanted.shape)) for wanted in outside]
        pairs.append((depthwise, constant.reshape(depthwise.shape[::-1]).T))
        for wanted, stored in pairs:
            if size - len(wanted) >= 3:  # with fewer values than factors to choose, anything would fit
                yield wanted, stored


def _residual(stored: np.ndarray, kernel: np.ndarray) -> float:
    """Returns ``|stored - s · kernel| / |stored|`` with the best factor s for each row."""
    power = np.square(kernel).sum(axis=1)
    scale = np.divide((stored * kernel).sum(axis=1), power, out=np.zeros_like(power), where=power > 0)
    norm = np.linalg.norm(stored)
    if not norm:
        return 0.0 if not power.any() else np.inf
    return float(np.linalg.norm(stored - scale[:, None] * kernel) / norm)
