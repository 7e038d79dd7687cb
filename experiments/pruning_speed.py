"""What pruning costs while a model trains, beside TensorFlow Model Optimization (TFMOT).

Three questions. How long does one update of all masks take, on the same values? What does a
training step of a small convolutional network cost beyond the dense one? How many bytes do
the masks add?

    python -m experiments.pruning_speed             about two minutes, two cores
    python -m experiments.pruning_speed --quick     under a minute

The ways are timed in turns within one run; the tables give medians.

Expected: masks identical, drawn at least 15 times as fast as by TFMOT at 2.4 million weights
and 12 times at 25 million; a step with rare updates at most 1.03 times the dense one, with an
update at every step at most 1.10 times; one byte a weight, where TFMOT takes four.
"""

import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import tf_keras
from matplotlib.figure import Figure
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl
from tensorflow_model_optimization.sparsity import keras as tfmot

import tfkit
from experiments import results
from tfkit.prune.kernels import weights_of
from tfkit.prune.mask import draw_masks


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds the values.
        sparsity: The masks' sparsity.
        whole_model: Whether all 25 million weights of a ResNet50 are masked too.
        updates: Mask updates of each kind.
        steps: Training steps of each kind.
    """

    seed: int = 0
    sparsity: float = 0.8
    whole_model: bool = True
    updates: int = 7
    steps: int = 300


QUICK = Config(whole_model=False, updates=3, steps=20)
BATCH, SIDE, CLASSES = 64, 32, 10
KERNEL = (3, 3, 256, 1024)
OURS, THEIRS = "tfkit", "TFMOT"


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="pruning_speed",
        question="What pruning costs while a model trains, beside TFMOT.",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Measures all three and returns a table for each, and a figure of the first two."""
    keras.utils.set_random_seed(config.seed)
    tables = {"updates": updates(config), "steps": steps(config), "memory": memory()}
    return tables, {"pruning_speed.png": draw(tables["updates"], tables["steps"])}


def updates(config: Config) -> pd.DataFrame:
    """Times one update of all masks, a row a model and state of its weights."""
    random = np.random.default_rng(config.seed)
    kernels = {"one convolution": [random.normal(scale=0.02, size=KERNEL).astype("float32")]}
    if config.whole_model:
        model = keras.applications.ResNet50(weights=None)
        kernels["ResNet50"] = [
            keras.ops.convert_to_numpy(weight.variable)
            for weight in weights_of(model)
            if weight.obstacle is None
        ]
    rows = []
    for name, values in kernels.items():
        for state, arrays in (("initial", values), ("sparse already", [half_pruned(v) for v in values])):
            rows.append({"kernels": name, "weights": state} | time_updates(config, arrays))
    return pd.DataFrame(rows)


def half_pruned(kernel: np.ndarray) -> np.ndarray:
    """Returns a kernel as it is between two updates: three quarters lie a small step from zero."""
    bound = np.quantile(np.abs(kernel), 0.75)
    return np.where(np.abs(kernel) >= bound, kernel, np.float32(1e-3) * kernel)


def time_updates(config: Config, arrays: list[np.ndarray]) -> dict[str, Any]:
    """Times both ways of drawing the same masks, in turns."""
    ours, theirs = our_update(config, arrays), their_update(config, arrays)
    for mask, legacy in zip(ours(), theirs(), strict=True):
        if not np.array_equal(mask.numpy(), legacy.numpy() != 0):
            raise RuntimeError("The two draw different masks, so their times cannot be compared.")
    medians = in_turns({OURS: ours, THEIRS: theirs}, config.updates)
    return {
        "number": sum(array.size for array in arrays),
        "TFMOT, ms": 1000 * medians[THEIRS],
        "tfkit, ms": 1000 * medians[OURS],
        "times as fast": medians[THEIRS] / medians[OURS],
    }


def our_update(config: Config, arrays: list[np.ndarray]) -> Callable[[], list[tf.Variable]]:
    """Returns a call that draws all masks anew."""
    kernels = [tf.Variable(array) for array in arrays]
    masks = [tf.Variable(np.ones(array.shape, bool)) for array in arrays]

    @tf.function
    def update() -> None:
        drawn = draw_masks([kernel.value() for kernel in kernels], tf.constant(config.sparsity))
        for mask, values in zip(masks, drawn, strict=True):
            mask.assign(values)

    return lambda: update() or masks


def their_update(config: Config, arrays: list[np.ndarray]) -> Callable[[], list[tf.Variable]]:
    """Returns a call of TFMOT's own update."""
    variables = [(tf.Variable(array), tf.Variable(np.ones_like(array)), tf.Variable(0.0)) for array in arrays]
    pruning = pruning_impl.Pruning(
        training_step_fn=lambda: tf.constant(0, tf.int64),
        pruning_vars=variables,
        pruning_schedule=tfkit.ConstantSparsity(config.sparsity, 0, frequency=1),
        block_size=(1, 1),
        block_pooling_type="AVG",
    )
    update = tf.function(pruning.conditional_mask_update)

    def call() -> list[tf.Variable]:
        update()
        return [mask for _, mask, _ in variables]

    return call


def in_turns(calls: Mapping[str, Callable[[], object]], times: int) -> dict[str, float]:
    """Returns the median seconds of each call, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(times + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(each)) for name, each in seconds.items()}


def network(library: Any) -> Any:
    """Builds the small convolutional network in Keras 3 or in tf_keras."""
    layers = library.layers
    shape = (SIDE, SIDE, 3)
    return library.Sequential(
        [
            library.Input(shape) if library is keras else layers.InputLayer(shape),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, strides=2, activation="relu"),
            layers.Conv2D(64, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ]
    )


def compiled(model: Any, library: Any) -> Any:
    """Compiles a model as all are compiled here; XLA's convolutions are slow on these processors."""
    loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(library.optimizers.Adam(1e-4), loss, jit_compile=False)
    return model


def steps(config: Config) -> pd.DataFrame:
    """Times training steps, a row a way, as multiples of the same library's dense step."""
    random = np.random.default_rng(config.seed)
    x = tf.constant(random.normal(size=(BATCH, SIDE, SIDE, 3)), "float32")
    y = tf.constant(random.integers(CLASSES, size=BATCH))
    schedules = {
        "update every 100 steps": tfkit.ConstantSparsity(config.sparsity, 1, frequency=100),
        "update every step": tfkit.ConstantSparsity(config.sparsity, 1, frequency=1),
    }
    models = {}
    for name, library, prune in (
        (OURS, keras, tfkit.prune_low_magnitude),
        (THEIRS, tf_keras, tfmot.prune_low_magnitude),
    ):
        models[name, "dense"] = compiled(network(library), library)
        for way, schedule in schedules.items():
            models[name, way] = compiled(prune(network(library), schedule), library)
            if name == THEIRS:
                callback = tfmot.UpdatePruningStep()
                callback.set_model(models[name, way])
                callback.on_train_begin()
    calls = {key: lambda model=model: model.train_on_batch(x, y) for key, model in models.items()}
    medians = in_turns(calls, config.steps)
    rows = []
    for way in ("dense", *schedules):
        row: dict[str, Any] = {"step": way}
        for name in (THEIRS, OURS):
            row[f"{name}, ms"] = 1000 * medians[name, way]
            row[f"{name}, times dense"] = medians[name, way] / medians[name, "dense"]
        rows.append(row)
    return pd.DataFrame(rows)


def memory() -> pd.DataFrame:
    """Counts the bytes of the variables that pruning adds to the small network."""
    model, legacy = network(keras), network(tf_keras)
    weights = sum(math.prod(w.variable.shape) for w in weights_of(model) if not w.obstacle)
    tfkit.prune_low_magnitude(model)
    pruned = tfmot.prune_low_magnitude(legacy)
    ours = {id(v): v for w in weights_of(model) for v in getattr(w.variable.constraint, "variables", [])}
    theirs = [each for layer in pruned.layers for _, *pair in layer.pruning_vars for each in pair]
    theirs += [layer.pruning_step for layer in pruned.layers]
    added = {OURS: [v.value for v in ours.values()], THEIRS: theirs}
    return pd.DataFrame(
        [
            {"added by": name, "bytes": size, "bytes a weight": size / weights}
            for name, variables in added.items()
            if (size := sum(v.dtype.size * math.prod(v.shape) for v in variables))
        ]
    )


def draw(updated: pd.DataFrame, stepped: pd.DataFrame) -> bytes:
    """Draws both ways' times of an update, and of a step beside the dense one."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = [f"{row.kernels},\n{row.weights}" for row in updated.itertuples()]
    for shift, name, color in ((-0.2, THEIRS, "C3"), (0.2, OURS, "C0")):
        bars = left.bar(np.arange(len(labels)) + shift, updated[f"{name}, ms"], 0.4, color=color, label=name)
        left.bar_label(bars, fmt="{:,.0f}", fontsize=8)
        bars = right.bar(
            np.arange(len(stepped)) + shift, stepped[f"{name}, times dense"], 0.4, color=color, label=name
        )
        right.bar_label(bars, fmt="%.2f", fontsize=8)
    left.set_xticks(range(len(labels)), labels, fontsize=8)
    left.set(yscale="log", ylabel="ms", title="One update of all masks")
    left.margins(y=0.15)
    right.margins(y=0.15)
    right.set_xticks(range(len(stepped)), stepped.step, fontsize=8)
    right.axhline(1, color="0.5", linewidth=0.8)
    right.set(ylabel="times the dense step", title="A training step of a small network")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    return results.png(figure)


if __name__ == "__main__":
    sys.exit(main())
