"""What is fastest on which target?

MobileNetV2 with random weights, as dense and with most weights of its 1x1 convolutions zero, in every
form in which it can ship, against its dense float32 file: milliseconds of LiteRT on this x86
and of LiteRT.js on WebAssembly in headless Chromium, one thread each, all files in turns; and
instructions on two ARM64 under qemu: a Cortex-A76 with dot products of int8, as phones have since
2018, and a Cortex-A72 without. Dynamic-range int8 is measured to show why tfkit never chooses it. What
`tfkit.export` chooses for the pruned network stands in a table of its own.

    python -m experiments.deploy_targets             ten minutes to half an hour
    python -m experiments.deploy_targets --quick     96 pixels, without ARM64, two minutes

Needs Debian's chromium, npm (then `npm install`), qemu-user and gcc.

Expected: on x86 with AVX-512 VNNI int8 is twice as fast as float32, with half the work pruned away
three times; with AVX2 alone it is slower. At 90% zeros, after `make_sparse_ready`, 2.6 times fewer
instructions on ARM64 and 2.5 times as fast in the browser, where channels and zeros together reach
3.5; without the rewrite nothing is gained.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure

import tfkit
from experiments import channel_latency, results
from experiments.instructions import count_instructions
from tfkit import litert
from tfkit.export.browser import time_in_browser
from tfkit.export.signature import input_specs, serving_function
from tfkit.export.tflite import convert_model

FLOAT = "dense float32"
CORES = {"A76": "arm64-dot", "A72": "arm64"}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights, zeros and pictures.
        side: Pixels of a picture's side.
        sparsities: Shares of zeros in the 1x1 convolutions.
        runs: Rounds that are timed on this processor.
        browser_runs: Rounds that are timed in the browser.
        arm64: Whether to count instructions on ARM64.
    """

    seed: int = 0
    side: int = 224
    sparsities: tuple[float, ...] = (0.7, 0.8, 0.9, 0.95)
    runs: int = 100
    browser_runs: int = 60
    arm64: bool = True


QUICK = Config(side=96, sparsities=(0.9,), runs=20, browser_runs=10, arm64=False)


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="deploy_targets",
        question="What is fastest on which target?",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Makes and measures every form and returns the tables and their figure."""
    folder = output / "files"
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for number, (name, make) in enumerate(forms(config).items()):
        files[name] = folder / f"{number}.tflite"
        files[name].write_bytes(make())
        print(f"{name}: {files[name].stat().st_size / 1e6:.2f} MB", file=sys.stderr)
    table = tfkit.benchmark(files, runs=config.runs)
    x86 = dict(zip(table.name, table.latency_ms, strict=True))
    wasm = {
        name: float(np.median(taken))
        for name, taken in time_in_browser(files, runs=config.browser_runs, time_limit_s=1800).items()
    }
    cost = pd.DataFrame({"x86, ms": x86, "wasm, ms": wasm})
    print(cost.to_string(), file=sys.stderr)
    for core, processor in CORES.items() if config.arm64 else ():
        counted = {name: count_instructions(path, processor=processor) for name, path in files.items()}
        cost[f"{core}, M instructions"] = pd.Series(counted) / 1e6
    sizes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    ratios = (cost.loc[FLOAT] / cost).rename(columns=lambda column: column.split(",")[0])
    ratios.insert(0, "MB", pd.Series(sizes))
    tables = {
        name: table.rename_axis("form").reset_index()
        for name, table in (("forms", ratios), ("measured", cost))
    }
    tables["choices"] = choices(config, output)
    return tables, {"deploy_targets.png": draw(tables["forms"])}


def forms(config: Config) -> dict[str, Callable[[], bytes]]:
    """Returns how each form is made, by name."""
    network = channel_latency.build("MobileNetV2", channel(config))
    pictures = channel_latency.samples(channel(config))

    def converted(
        model: keras.Model, precision: str = "float32", sparse: bool = False
    ) -> Callable[[], bytes]:
        specs = input_specs(model, batch_size=1)
        return lambda: convert_model(model, specs, precision, [pictures], sparse=sparse)

    half = tfkit.plan_channel_pruning(network, flops=0.5, multiple_of=16)
    smaller = tfkit.recalibrate_batch_norm(half.apply(network), pictures)
    lighter = tfkit.plan_channel_pruning(network, parameters=0.5).apply(network)
    made = {
        FLOAT: converted(network),
        "float16": converted(network, "float16"),
        "int8": converted(network, "int8"),
        "int8 weights": converted(network, "int8_weights"),
        "dynamic-range int8": lambda: dynamic_range(network),
        "half the channels' work, float32": converted(smaller),
        "half the channels' work, int8": converted(smaller, "int8"),
    }
    for sparsity in config.sparsities:
        sparse = zeroed(network, sparsity, config.seed)
        ready = tfkit.make_sparse_ready(sparse)
        share = f"{100 * sparsity:g}% zeros"
        made[f"{share}, sparse float32"] = converted(ready, sparse=True)
        if sparsity == 0.9:
            made[f"{share}, not rewritten, sparse float32"] = converted(sparse, sparse=True)
            made[f"{share}, sparse float16"] = converted(ready, "float16", sparse=True)
            made[f"{share}, sparse, rest int8 weights"] = converted(ready, "int8_weights", sparse=True)
            made[f"{share}, int8"] = converted(sparse, "int8")
    both = tfkit.make_sparse_ready(zeroed(lighter, 0.8, config.seed))
    made["half the weights by channels, 80% zeros, sparse float32"] = converted(both, sparse=True)
    return made


def channel(config: Config) -> channel_latency.Config:
    """Returns the settings of the network and the pictures, which channel_latency has too."""
    return channel_latency.Config(seed=config.seed, side=config.side)


def zeroed(network: keras.Model, sparsity: float, seed: int) -> keras.Model:
    """Returns the network with random zeros in its 1x1 convolutions, and statistics that fit."""
    twin = keras.models.clone_model(network)
    twin.set_weights(network.get_weights())
    generator = np.random.default_rng(seed)
    for layer in twin.layers:
        if type(layer) is keras.layers.Conv2D and layer.kernel_size == (1, 1):
            kernel = keras.ops.convert_to_numpy(layer.kernel)
            layer.kernel.assign(kernel * (generator.random(kernel.shape) >= sparsity) / np.sqrt(1 - sparsity))
    side = twin.input_shape[1]
    return tfkit.recalibrate_batch_norm(
        twin, channel_latency.samples(channel_latency.Config(seed, side=side))
    )


def dynamic_range(network: keras.Model) -> bytes:
    """Returns what the converter makes when it is told to optimise and given no data."""

    def configure(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]

    specs = input_specs(network, batch_size=1)
    return litert.convert({"serve": litert.trace(serving_function(network), specs)}, configure)


def choices(config: Config, output: pathlib.Path) -> pd.DataFrame:
    """Returns what `tfkit.export` chooses for the network with 90% zeros.

    Its variances are made larger, for a network with random weights magnifies rounding, and nothing
    that does could pass.
    """
    network = zeroed(channel_latency.build("MobileNetV2", channel(config)), 0.9, config.seed)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(1.5 * layer.moving_variance)
    pictures = channel_latency.samples(channel(config))
    report = tfkit.export(network, output / "export", representative_data=pictures, overwrite=True, runs=0)
    table = report.table[
        ["target", "runtime", "file", "relative_error", "size_bytes", "proofs", "reason"]
    ].copy()
    table["size_bytes"] /= 1e6
    table["proofs"] = table.proofs.map(", ".join)
    return table.rename(columns={"size_bytes": "MB", "relative_error": "off by", "proofs": "proven on"})


def draw(table: pd.DataFrame) -> bytes:
    """Draws how many times as fast each form is, by target."""
    targets = [name for name in ("x86", "wasm", *CORES) if name in table]
    figure = Figure(figsize=(10, 1.4 + 0.5 * len(table)), layout="constrained")
    axes = figure.subplots()
    places, height = np.arange(len(table)), 0.8 / len(targets)
    for number, (name, colour) in enumerate(zip(targets, ("#2a6fbb", "#d97b29", "#5a9a4a", "#a8cf9d"))):
        axes.barh(places + (number - 1.5) * height, table[name], height=height, label=name, color=colour)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(places, table.form)
    axes.invert_yaxis()
    axes.set(xlabel="times as fast as dense float32 (A76, A72: times fewer instructions)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower right")
    return results.png(figure)


if __name__ == "__main__":
    sys.exit(main())
