"""Keras to TFLite, and how long it takes on LiteRT on this machine."""

import functools
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


def convert(
    functions: Mapping[str, Any],
    configure: Callable[[tf.lite.TFLiteConverter], None] = lambda converter: None,
) -> bytes:
    """Returns a TFLite file with a signature for each function.

    A SavedModel stands in between, for without one the converter does not freeze the variables
    of Keras. It is a plain one: by `keras.export` MobileNetV2 took 14.7 seconds, so it takes 4.1.

    Args:
        functions: Concrete functions that return a dict, by the signature's name.
        configure: Sets the converter's options.
    """
    module = tf.Module()
    module.held = [variable for function in functions.values() for variable in function.variables]
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=dict(functions))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        configure(converter)
        return converter.convert()


def trace(call: Callable[..., Sequence[Any]], specs: Sequence[tf.TensorSpec]) -> Any:
    """Returns a call with flat inputs and outputs as a concrete function for `convert`."""

    @tf.function(autograph=False)
    def function(*inputs: Any) -> dict[str, Any]:
        return {f"output_{i}": each for i, each in enumerate(call(*inputs))}

    return function.get_concrete_function(*specs)


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

    functions = {name: _function(layer, shapes) for name, (layer, shapes) in layers.items()}
    interpreter = Interpreter(model_content=convert(functions), num_threads=threads)
    generator = np.random.default_rng(0)
    calls = []
    for name in layers:
        runner = interpreter.get_signature_runner(name)
        details = runner.get_input_details()
        inputs = {
            key: generator.random(detail["shape"]).astype(detail["dtype"]) for key, detail in details.items()
        }
        calls.append(functools.partial(runner, **inputs))
    taken = interleave(calls, runs)
    return {name: 1000 * float(np.median(each)) for name, each in zip(layers, taken, strict=True)}


def _function(layer: keras.Layer, shapes: Shapes) -> Any:
    if not layer.built:
        layer.build(*shapes)
    is_model = isinstance(layer, keras.Model)
    kinds = [x.dtype for x in layer.inputs] if is_model else ["float32"] * len(shapes)

    def call(*inputs: Any) -> list[Any]:
        if not is_model:
            return keras.tree.flatten(layer(*inputs))
        packed = keras.tree.pack_sequence_as(graph.input_structure(layer), list(inputs))
        return keras.tree.flatten(layer(packed, training=False))

    return trace(call, [tf.TensorSpec(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)])
