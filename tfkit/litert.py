"""How long layers take on LiteRT, on this machine."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfkit import graph

Shapes = Sequence[Sequence[int]]


def interleave(calls: Sequence[Callable[[], Any]], runs: int) -> list[list[float]]:
    """Times calls round by round, so that whatever else the machine does hits all alike.

    Args:
        calls: What to time.
        runs: Rounds that count. A tenth of them, at least three, warm up before.

    Returns:
        For each call the seconds of each round.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    warmup = max(3, runs // 10)
    for number in range(warmup + runs):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if number >= warmup:
                taken.append(time.perf_counter() - start)
    return seconds


def time_layers(
    layers: Mapping[str, tuple[keras.Layer, Shapes]], *, runs: int = 15, threads: int = 1
) -> dict[str, float]:
    """Measures layers or models as float32 on LiteRT, side by side.

    Args:
        layers: By name a built or unbuilt layer, and the shapes of its inputs with the batch.
        runs: Rounds that count.
        threads: Threads of LiteRT.

    Returns:
        The median milliseconds of one call of each.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=_convert(layers), num_threads=threads)
    generator = np.random.default_rng(0)
    calls = []
    for name in layers:
        runner = interpreter.get_signature_runner(name)
        details = runner.get_input_details()
        inputs = {
            key: generator.random(detail["shape"]).astype(detail["dtype"]) for key, detail in details.items()
        }
        calls.append(lambda runner=runner, inputs=inputs: runner(**inputs))
    taken = interleave(calls, runs)
    return {name: 1000 * float(np.median(each)) for name, each in zip(layers, taken, strict=True)}


def _convert(layers: Mapping[str, tuple[keras.Layer, Shapes]]) -> bytes:
    """Returns a file with a signature a layer.

    Weights go in as constants, which is several times as fast as freezing variables.
    """
    functions = {}
    for name, (layer, shapes) in layers.items():
        if not layer.built:
            layer.build(*shapes)
        kinds = [x.dtype for x in getattr(layer, "inputs", None) or []] or ["float32"] * len(shapes)
        specs = [tf.TensorSpec(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]
        functions[name] = _as_function(layer).get_concrete_function(*specs)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tf.Module(), folder, signatures=functions)
        return tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(layers)).convert()


def _as_function(layer: keras.Layer) -> Callable[..., Any]:
    weights = [[keras.ops.convert_to_numpy(each) for each in group] for group in _state(layer)]
    options = {"training": False} if isinstance(layer, keras.Model) else {}

    @tf.function(autograph=False)
    def call(*inputs: Any) -> Any:
        packed = inputs[0] if len(inputs) == 1 else list(inputs)
        if isinstance(layer, keras.Model):
            packed = keras.tree.pack_sequence_as(graph.input_structure(layer), list(inputs))
        constants = [[tf.constant(each) for each in group] for group in weights]
        outputs, _ = layer.stateless_call(*constants, packed, **options)
        return {f"output_{i}": each for i, each in enumerate(keras.tree.flatten(outputs))}

    return call


def _state(layer: keras.Layer) -> tuple[list[keras.Variable], list[keras.Variable]]:
    return layer.trainable_variables, layer.non_trainable_variables
