"""Can every network of keras.applications lose channels, and compute the same as its masked self?

Each network, with random weights and random statistics, is pruned to 60% of its multiplications
and additions. Then it must hold, within 1e-5 of the largest output: the masked network computes
what the smaller one does, the smaller one comes back from a `.keras` file unchanged, and its
TFLite file computes the same on LiteRT. Every network runs in a process of its own.

    python -m experiments.channel_coverage             half an hour to an hour, two cores
    python -m experiments.channel_coverage --quick     two small networks, under a minute

Expected: all 40. For comparison: Torch-Pruning reports 77 of 85 networks of torchvision.
"""

import dataclasses
import inspect
import multiprocessing
import pathlib
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import tfkit
from experiments import results

LIMIT = 1e-5
PICTURES = 2
NUDGE = 2e-7  # of the input; about two steps of float32
RANGED = ("EfficientNet", "ConvNeXt", "MobileNetV3")  # they take pixels of 0 to 255 and scale them


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights, statistics and inputs.
        flops: What may stay of the multiplications and additions.
        networks: Names to try; None for all of keras.applications.
    """

    seed: int = 0
    flops: float = 0.6
    networks: tuple[str, ...] | None = None


QUICK = Config(networks=("MobileNetV2", "MobileNetV3Small"))


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="channel_coverage",
        question="Can every network of keras.applications lose channels?",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def constructors() -> tuple[str, ...]:
    """Returns the names of all networks in keras.applications."""
    return tuple(
        name for name in dir(keras.applications) if inspect.isfunction(getattr(keras.applications, name))
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Tries every network, one at a time, and returns the table and its picture."""
    rows = []
    for name in config.networks or constructors():
        start = time.perf_counter()
        context = multiprocessing.get_context("spawn")  # TensorFlow keeps memory; a process gives it back
        with ProcessPoolExecutor(1, mp_context=context) as process:
            try:
                rows.append(process.submit(try_network, name, config).result())
            except BrokenProcessPool:
                rows.append({"network": name, "verdict": "its process was killed, as for want of memory"})
        print(f"{name}: {rows[-1]['verdict']}, {time.perf_counter() - start:.0f} s", file=sys.stderr)
    table = pd.DataFrame(rows)
    passed = int((table.verdict == "passes").sum())
    summary = pd.DataFrame([{"networks": len(table), "pass": passed, "fail": len(table) - passed}])
    return {"coverage": table, "summary": summary}, {"channel_coverage.png": draw(table)}


def try_network(name: str, config: Config) -> dict[str, Any]:
    """Prunes one network and returns a row of the table; what fails stands in its verdict."""
    network = randomized(name, config.seed)
    row: dict[str, Any] = {"network": name, "parameters": network.count_params()}
    try:
        start = time.perf_counter()
        plan = tfkit.plan_channel_pruning(network, flops=config.flops, input_shape=sample_shape(network))
        planned = time.perf_counter()
        smaller = plan.apply(network)
        applied = time.perf_counter()
        groups = plan.table
        free = groups[groups.channels_after < groups.channels_before]
        row |= {
            "groups": len(groups),
            "pruned": len(free),
            "flops left": plan.after["flops"] / plan.before["flops"],
            "parameters left": smaller.count_params() / network.count_params(),
            "plan, s": planned - start,
            "apply, s": applied - planned,
        }
        x = inputs(name, network, config.seed)
        wanted = np.asarray(smaller(x))
        row["magnified"] = difference(smaller(x * np.float32(1 + NUDGE)), wanted) / NUDGE
        row["masked"] = difference(plan.mask(network)(x), wanted)
        shape = sample_shape(network)
        del network  # the largest need the room
        with tempfile.TemporaryDirectory() as folder:
            smaller.save(f"{folder}/smaller.keras")
            row["reloaded"] = difference(keras.models.load_model(f"{folder}/smaller.keras")(x), wanted)
            artifact = tfkit.export_tflite(
                smaller, f"{folder}/smaller.tflite", representative_data=x, input_shape=shape
            )
        row["TFLite"] = artifact.parity.relative_error
        worst = max(row["masked"], row["reloaded"], row["TFLite"])
        return row | {"verdict": "passes" if worst <= LIMIT else f"differs by {worst:.1e}"}
    except tfkit.TfkitError as error:
        return row | {"verdict": str(error)}


def sample_shape(network: keras.Model) -> tuple[int, ...]:
    """Returns the shape of a sample; 224 pixels where the network leaves it open."""
    return tuple(size or 224 for size in network.inputs[0].shape[1:])


def randomized(name: str, seed: int) -> keras.Model:
    """Returns a network whose weights and statistics are all random, channel by channel.

    Statistics are measured on random pictures, and variances then made larger. With those that a
    network begins with EfficientNetV2L puts out 3e9 and magnifies a change of its input by two
    ten-millionths to one of the output by 73%, and so it does rounding. With these it stays below
    2e-6, and outputs depend on the picture: by 1 to 5% in MobileNetV2, DenseNet201, NASNetLarge
    and InceptionResNetV2, by less in EfficientNets.
    """
    keras.utils.set_random_seed(seed)
    network = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    generator = np.random.default_rng(seed)
    for variable in network.weights:
        values, shape = keras.ops.convert_to_numpy(variable), variable.shape
        if len(shape) > 1:
            variable.assign(values * generator.uniform(0.8, 1.2, shape[-1]).astype("float32"))
        elif variable.name not in ("count", "moving_mean", "moving_variance"):
            variable.assign(values + generator.normal(0, 0.02, shape))
    normalizations = [each for each in network.layers if isinstance(each, keras.layers.BatchNormalization)]
    if normalizations:
        tfkit.recalibrate_batch_norm(network, inputs(name, network, seed + 1), batch_size=PICTURES)
    for layer in normalizations:
        variance = layer.moving_variance
        variance.assign(variance * generator.uniform(1.2, 2.0, variance.shape).astype("float32"))
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with a copy of its weights
    return network


def inputs(name: str, network: keras.Model, seed: int) -> np.ndarray:
    """Returns random pictures in the range that the network takes."""
    top = 255 if name.startswith(RANGED) else 1
    shape = (PICTURES, *sample_shape(network))
    return np.random.default_rng(seed).uniform(0, top, shape).astype("float32")


def difference(answer: Any, wanted: np.ndarray) -> float:
    """Returns the largest difference, as a fraction of the largest output."""
    return float(np.abs(np.asarray(answer) - wanted).max() / np.abs(wanted).max())


def draw(table: pd.DataFrame) -> bytes:
    """Draws what is left of each network, and the largest differences."""
    figure = Figure(figsize=(10, 1.2 + 0.24 * len(table)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(table))
    left.barh(places, 100 * table["flops left"], color="#2a6fbb", label="multiply-adds", height=0.7)
    left.plot(100 * table["parameters left"], places, "o", color="#d97b29", label="parameters")
    left.set_yticks(places, table.network)
    left.invert_yaxis()
    left.set(xlabel="left, %", xlim=(0, 100), title="What is left")
    left.legend(loc="lower right")
    for name, marker in (("masked", "o"), ("reloaded", "s"), ("TFLite", "^")):
        right.plot(table[name].clip(lower=1e-9), places, marker, label=name, alpha=0.8)
    right.axvline(LIMIT, color="#b03030", linestyle="--", label="limit")
    right.set(xscale="log", xlabel="difference, of the largest output", title="Against the smaller network")
    right.legend(loc="lower right")
    return results.png(figure)


if __name__ == "__main__":
    sys.exit(main())
