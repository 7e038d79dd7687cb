"""Where in a model a `.tflite` file's error arises."""

import collections
import os
import pathlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph
from tfkit.errors import ArgumentError
from tfkit.export.artifact import Artifact
from tfkit.export.runtime import kind_of
from tfkit.export.signature import input_specs, samples
from tfkit.export.tensors import TensorFile
from tfkit.export.tflite import convert_model

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["path", "class", "relative_rms", "snr_db", "added", "tensor", "reason"]
TWIN_TOLERANCE = 1e-4  # of the largest value: float32 files stay a hundred times below
TWIN_BATCHES = 4

Values = dict[int, Any]
Place = int | str  # a tensor's number, or why there is none


def quantization_error(
    model: keras.Model, artifact: Artifact | str | os.PathLike[str], x: Any
) -> "pd.DataFrame":
    """Tells for each layer how far a `.tflite` file has strayed from Keras, and how far by itself.

    With ``a`` the file's value of a layer's output, in real numbers, and ``k`` Keras's::

        relative_rms = rms(a - k) / rms(k)        snr_db = -20 · log10(relative_rms)
        added        = rms(a - f(a')) / rms(k)

    f is what Keras computes between the nearest tensors a' that the file has before the
    layer and the layer itself. So `added` is the error that arises here, and sorting by it
    finds the layer to keep in float32, to clip or to retrain.

    Which tensor of the file is which layer's output is proven, not read off its name: the
    model is converted once more to float32, where the right tensor holds the layer's
    numbers, and the file's tensor of the same name and shape is taken. What the converter
    fused into a later operator has no tensor; the later layer's `added` includes it.

    Args:
        model: The Keras model that the file was made from, functional or Sequential.
        artifact: An `Artifact` or the path of a `.tflite` file, of any precision.
        x: Inputs as the device will see them: an array, a list or a dict of arrays (one an input)
            or a tf.data.Dataset; at most 128 samples are used.

    Returns:
        A DataFrame, a row for each input and for each call of a layer or operation, in the
        order in which they run: `path`, `class`, `relative_rms`, `snr_db`, `added`,
        `tensor` (the file's name for it) and `reason`, why a row has no numbers.

    Raises:
        ArgumentTypeError: If `model` is no model.
        ArgumentError: If it computes in Python of its own, the path is no `.tflite` file,
            or `x` does not fit.
        ExportError: If LiteRT cannot load the file.

    Examples:
        >>> import pathlib, tempfile, keras, numpy as np, tfkit
        >>> stack = [keras.layers.Dense(8, "relu", name="a"), keras.layers.Dense(2, name="b")]
        >>> model = keras.Sequential([keras.Input((4,)), *stack])
        >>> x, path = np.random.default_rng(0).random((20, 4)), pathlib.Path(tempfile.mkdtemp(), "m.tflite")
        >>> artifact = tfkit.export_tflite(model, path, precision="int8", representative_data=x)
        >>> table = tfkit.quantization_error(model, artifact, x).set_index("path")
        >>> bool((table.relative_rms["a"] < 0.05) and (table.added["b"] < 0.05))
        True
    """
    return layer_errors(model, artifact, x)


def layer_errors(
    model: keras.Model,
    artifact: Artifact | str | os.PathLike[str],
    x: Any,
    *,
    float32: pathlib.Path | None = None,
) -> "pd.DataFrame":
    """Does what `quantization_error` does.

    Args:
        model: See there.
        artifact: See there.
        x: See there.
        float32: The file of the same model and sizes in float32, which else is converted.
    """
    import pandas as pd

    flow = graph.read_flow(graph.require_model(model))
    if flow is None:
        raise ArgumentError(
            "The model's layers must be known: a functional or Sequential model. "
            f"Received: model={model.name!r}, which computes in Python of its own."
        )
    file = TensorFile(read_tflite(artifact))
    arrays = samples(x, input_specs(model, batch_size=None), name="x", model=model)
    file.require_fit(arrays)
    batches = _Batches(arrays, file.batch_size)
    twin = TensorFile(_convert_float32(model, file) if float32 is None else float32.read_bytes())
    places = _places(flow, file, twin, batches)
    sums = _compare(flow, file, batches, places)
    rows = []
    for key, path, kind in _stations(flow):
        place = places[key]
        row: dict[str, Any] = {"path": path, "class": kind, "tensor": None, "reason": ""}
        if isinstance(place, str):
            row["reason"] = place
        else:
            error, added, signal = np.sqrt(sums[key])
            row["tensor"] = file.names[place]
            if signal:
                row |= {"relative_rms": error / signal, "added": added / signal}
                row["snr_db"] = -20 * np.log10(error / signal) if error else np.inf
            else:
                row["reason"] = "Keras puts out nothing but zeros"
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def read_tflite(artifact: Artifact | str | os.PathLike[str]) -> bytes:
    """Returns the bytes of a `.tflite` file.

    Raises:
        ArgumentError: If it is none.
    """
    path = artifact.path if isinstance(artifact, Artifact) else pathlib.Path(artifact)
    if kind_of(path) != "tflite":
        raise ArgumentError(
            "`artifact` must be a .tflite file, for only that shows its tensors. "
            f"Received: artifact={str(path)!r}, a SavedModel."
        )
    return path.read_bytes()


class _Batches:
    """Samples in batches of a file's size, the last one filled up with the first samples."""

    def __init__(self, arrays: list[np.ndarray], size: int):
        self.count, self.size = len(arrays[0]), size
        whole = -(-self.count // size) * size
        self._arrays = [np.resize(each, (whole, *each.shape[1:])) for each in arrays]

    def __iter__(self) -> Iterator[tuple[list[np.ndarray], int]]:
        """Yields each batch and how many of its samples count."""
        for start in range(0, self.count, self.size):
            batch = [each[start : start + self.size] for each in self._arrays]
            yield batch, min(self.size, self.count - start)


def _stations(flow: graph.Flow) -> list[tuple[int, str, str]]:
    """Returns key, path and class of each input and each call, in the order in which they run."""
    layers = {
        id(each.output): each.name for each in flow.model.layers if isinstance(each, keras.layers.InputLayer)
    }
    inputs = [
        (key, layers.get(id(x), x.name), "InputLayer")
        for key, x in zip(flow.inputs, flow.model.inputs, strict=True)
    ]
    return inputs + [(call.outputs[0], call.path, type(call.operation).__name__) for call in flow.calls]


def _forward(flow: graph.Flow, batch: list[np.ndarray]) -> Values:
    values = {key: tf.constant(array) for key, array in zip(flow.inputs, batch, strict=True)}
    for call in flow.calls:
        call.run(values, training=False)
    return values


# --- which tensor is which layer's output ---------------------------------------------------------


def _places(flow: graph.Flow, file: TensorFile, twin: TensorFile, batches: _Batches) -> dict[int, Place]:
    """Returns the file's tensor for the output of each station."""
    found = _match_values(flow, twin, batches)
    here, there = _activations_by_name(file), _activations_by_name(twin)
    places: dict[int, Place] = {}
    for key, place in found.items():
        if isinstance(place, str):
            places[key] = place
            continue
        label = _label(twin, place)
        same, mine = there[label], here.get(label, [])
        if len(same) > 1:  # then only the full names can tell, if the files agree on them
            exact = [index for index in mine if file.names[index] == twin.names[place]]
            agree = {twin.names[i] for i in same} == {file.names[i] for i in mine}
            mine = exact if agree else mine
        if len(mine) == 1:
            places[key] = mine[0]
        else:
            places[key] = "several tensors of the file have its name" if mine else "not in the file by name"
    for key, index in zip(flow.outputs, file.outputs, strict=True):
        places[key] = index  # the signature names them
    for key, index in zip(flow.inputs, file.inputs, strict=True):
        takers = (each for each in file.program.operations if [x.number for x in each.inputs] == [index])
        quantized = [each.outputs[0].number for each in takers if each.kind == "QUANTIZE"]
        places[key] = quantized[0] if quantized else index
    return places


def _convert_float32(model: keras.Model, file: TensorFile) -> bytes:
    specs = input_specs(model, batch_size=file.batch_size)
    fixed = [
        tf.TensorSpec(file.shapes[index], spec.dtype, name=spec.name)
        for spec, index in zip(specs, file.inputs, strict=True)
    ]
    return convert_model(model, fixed, "float32", [])


def _match_values(flow: graph.Flow, twin: TensorFile, batches: _Batches) -> dict[int, Place]:
    """Returns the twin's tensor that holds each call's output."""
    live = twin.program.activations(twin.inputs)
    candidates: dict[int, set[int]] = {}
    shapes: dict[int, tuple[int, ...]] = {}
    silent = set()
    for number, (batch, _) in enumerate(batches):
        if number == TWIN_BATCHES:
            break
        values = _forward(flow, batch)
        twin.run(batch)
        held = collections.defaultdict(list)
        for index in live:
            value = twin.value(index)
            held[value.size].append((index, value.ravel()))
        for call in flow.calls:
            key = call.outputs[0]
            want = np.asarray(values[key], "float64")
            shapes[key] = want.shape
            scale = np.abs(want).max(initial=0)
            silent |= set() if scale else {key}
            same = {
                index
                for index, value in held[want.size]
                if np.abs(value - want.ravel()).max(initial=0) <= TWIN_TOLERANCE * scale
            }
            candidates[key] = candidates.get(key, same) & same
    found: dict[int, Place] = {}
    for call in flow.calls:
        key = call.outputs[0]
        if len(call.outputs) > 1:
            found[key] = "it has several outputs"
        elif key in silent:
            found[key] = "Keras puts out nothing but zeros"
        else:
            found[key] = _choose(twin, candidates[key], shapes[key], call.operation.name)
    return found


def _choose(twin: TensorFile, candidates: set[int], shape: tuple[int, ...], name: str) -> Place:
    """Returns the one tensor among those with the right numbers; by shape, then by name."""
    if not candidates:
        return "fused into a later operator"
    alike = {index for index in candidates if twin.shapes[index] == shape} or candidates
    part = re.compile(rf"(?:^|[/;]){re.escape(name)}(?:_\d+)?/")
    named = {index for index in alike if part.search(twin.names[index])} or alike
    return named.pop() if len(named) == 1 else "several tensors hold the same numbers"


def _label(file: TensorFile, index: int) -> tuple[str, tuple[int, ...]]:
    """Returns a tensor's name without the digits that make it unique, and its shape."""
    return re.sub(r"\d+$", "", file.names[index]), file.shapes[index]


def _activations_by_name(file: TensorFile) -> dict[tuple[str, tuple[int, ...]], list[int]]:
    named = collections.defaultdict(list)
    for index in file.program.activations(file.inputs):
        named[_label(file, index)].append(index)
    return named


# --- how far it is off ----------------------------------------------------------------------------


def _compare(
    flow: graph.Flow, file: TensorFile, batches: _Batches, places: dict[int, Place]
) -> dict[int, np.ndarray]:
    """Returns for each station found the sums of squares: of the error, of what it adds, of the signal."""
    sums: dict[int, np.ndarray] = collections.defaultdict(lambda: np.zeros(3))
    for batch, count in batches:
        expected = _forward(flow, batch)
        file.run(batch)
        local = {key: tf.constant(array) for key, array in zip(flow.inputs, batch, strict=True)}

        def visit(
            key: int, expected: dict[int, Any] = expected, local: dict[int, Any] = local, count: int = count
        ) -> None:
            place = places[key]
            if isinstance(place, str):
                return
            want, alone = (np.asarray(each[key], "float64") for each in (expected, local))
            got = file.value(place).reshape(want.shape)
            parts = ((got - want)[:count], (got - alone)[:count], want[:count])
            sums[key] += [np.square(part).sum() for part in parts]
            local[key] = tf.cast(got, local[key].dtype)  # the next layer starts from the file's own value

        for key in flow.inputs:
            visit(key)
        for call in flow.calls:
            call.run(local, training=False)
            visit(call.outputs[0])
    return sums
