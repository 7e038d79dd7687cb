"""Are smaller networks faster, and do measured plans beat counted ones?

ResNet50, MobileNetV2 and EfficientNetB0 lose channels until 75, 50 and 25% of their
multiplications and additions stay, and run on LiteRT, one thread, as float32 and as int8. Then
a plan is made for the latency that the half reached: at equal time, how much of the
channels' scores stays? The proxy is the geometric mean, over the groups, of the share of the
score that stays.

Weights are random, with scales drawn for each channel (lognormal, 0.5) as the spread of
trained filters has it, and statistics are measured on photographs, so that int8 has numbers
to work with: time does not depend on values, and nothing is claimed of accuracy.

    python -m experiments.channel_latency             ten minutes to a quarter of an hour, two cores
    python -m experiments.channel_latency --quick     MobileNetV2 only, about two minutes

All networks of one kind are timed in turns in one run; the tables give medians.

Expected: at 50% ResNet50 1.8 times and MobileNetV2 1.6 times as fast in float32 or more; at
equal time a plan that was made for the time keeps more of the scores.
"""

import dataclasses
import pathlib
import sys

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure

import tfkit
from experiments import photographs, results
from tfkit import litert

DENSE = "unpruned"


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights and inputs.
        networks: Constructors of keras.applications.
        flops: Fractions of the multiplications and additions that stay.
        compared: Those of them at which a plan for the time is made as well.
        multiple_of: What channel counts are a multiple of.
        int8: Whether to measure int8 as well.
        runs: Timed rounds.
        side: Side of the pictures.
    """

    seed: int = 0
    networks: tuple[str, ...] = ("ResNet50", "MobileNetV2", "EfficientNetB0")
    flops: tuple[float, ...] = (0.75, 0.5, 0.25)
    compared: tuple[float, ...] = (0.5,)
    multiple_of: int = 16
    int8: bool = True
    runs: int = 50
    side: int = 224


QUICK = Config(networks=("MobileNetV2",), flops=(0.5,), int8=False, runs=10, side=96)


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="channel_latency",
        question="Are smaller networks faster, and do measured plans beat counted ones?",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Prunes and times every network and returns the tables and their figure."""
    rows, pairs = [], []
    for name in config.networks:
        network = build(name, config)
        options = {"multiple_of": config.multiple_of}
        plans = {
            f"{100 * flops:g}% of the work": tfkit.plan_channel_pruning(network, flops=flops, **options)
            for flops in config.flops
        }
        networks = {DENSE: network} | {way: smaller(plan, network, config) for way, plan in plans.items()}
        times = measure(networks, config, output)
        for way, found in times.items():
            plan = plans.get(way)
            left = 1.0 if plan is None else plan.after["flops"] / plan.before["flops"]
            speed = {f"{kind}, times as fast": times[DENSE][kind] / found[kind] for kind in found}
            rows.append(
                {"network": name, "left": way, "FLOPs left": left}
                | {f"{kind}, ms": milliseconds for kind, milliseconds in found.items()}
                | speed
            )
            print(rows[-1], file=sys.stderr)
        for flops, (way, plan) in zip(config.flops, plans.items(), strict=True):
            if flops not in config.compared:
                continue
            pairs += compare_plans(name, network, plan, networks[way], times, way, config, output)
            print(pairs[-1], file=sys.stderr)
    tables = {"speed": pd.DataFrame(rows), "plans": pd.DataFrame(pairs)}
    return tables, {"channel_latency.png": draw(tables["speed"], tables["plans"])}


def build(name: str, config: Config) -> keras.Model:
    """Returns a network whose channels differ in scale."""
    keras.utils.set_random_seed(config.seed)
    network = getattr(keras.applications, name)(
        weights=None, input_shape=(config.side, config.side, 3), classifier_activation=None
    )
    generator = np.random.default_rng(config.seed)
    for variable in network.weights:
        if len(variable.shape) == 4:
            last = variable.shape[3] > 1  # a depthwise kernel has its channels on the axis before
            scale = generator.lognormal(0, 0.5, variable.shape[3 if last else 2])
            scale /= np.sqrt(np.mean(np.square(scale)))  # so that activations keep their size
            variable.assign(variable * scale.reshape((-1,) if last else (-1, 1)))
    return tfkit.recalibrate_batch_norm(network, samples(config))


def samples(config: Config, count: int = 8) -> np.ndarray:
    """Returns parts of the photographs, values in [0, 1]."""
    random = np.random.default_rng(config.seed)
    parts = []
    for number in range(count):
        picture = photographs.load()[number % 2]
        top, left = (random.integers(size - config.side + 1) for size in picture.shape[:2])
        parts.append(picture[top : top + config.side, left : left + config.side])
    return np.stack(parts).astype("float32")


def smaller(plan: tfkit.ChannelPlan, network: keras.Model, config: Config) -> keras.Model:
    """Returns a plan's network with statistics of its own."""
    return tfkit.recalibrate_batch_norm(plan.apply(network), samples(config))


def measure(
    networks: dict[str, keras.Model], config: Config, output: pathlib.Path
) -> dict[str, dict[str, float]]:
    """Returns the milliseconds of each network, for float32 and int8, all in turns."""
    kinds = ("float32", "int8") if config.int8 else ("float32",)
    artifacts = {}
    for number, (way, network) in enumerate(networks.items()):
        for kind in kinds:
            path = output / f"{number}_{kind}.tflite"
            path.write_bytes(convert(network, kind, config))
            artifacts[f"{way}/{kind}"] = path
    table = tfkit.benchmark(artifacts, runs=config.runs).set_index("name")
    for path in artifacts.values():
        path.unlink()
    return {way: {kind: float(table.latency_ms[f"{way}/{kind}"]) for kind in kinds} for way in networks}


def convert(network: keras.Model, kind: str, config: Config) -> bytes:
    """Returns a TFLite file. Not by `export_tflite`, which proves what is of no meaning here."""

    def configure(converter: tf.lite.TFLiteConverter) -> None:
        if kind == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([each[None]] for each in samples(config))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    spec = tf.TensorSpec((1, config.side, config.side, 3), "float32", name="images")
    serve = litert.trace(lambda images: [network(images, training=False)], [spec])
    return litert.convert({"serve": serve}, configure)


def compare_plans(
    name: str,
    network: keras.Model,
    counted: tfkit.ChannelPlan,
    pruned: keras.Model,
    times: dict[str, dict[str, float]],
    way: str,
    config: Config,
    output: pathlib.Path,
) -> list[dict[str, object]]:
    """Plans for the time that a counted plan reached, and returns a row for each of the two."""
    fraction = times[way]["float32"] / times[DENSE]["float32"]
    measured = tfkit.plan_channel_pruning(network, latency=fraction, multiple_of=config.multiple_of)
    both = {DENSE: network, "FLOPs": pruned, "latency": smaller(measured, network, config)}
    again = measure(both, dataclasses.replace(config, int8=False), output)
    return [
        {
            "network": name,
            "left": way,
            "planned for": kind,
            "FLOPs left": plan.after["flops"] / plan.before["flops"],
            "time left": again[kind]["float32"] / again[DENSE]["float32"],
            "score left": proxy(plan),
        }
        for kind, plan in (("FLOPs", counted), ("latency", measured))
    ]


def proxy(plan: tfkit.ChannelPlan) -> float:
    """Returns the geometric mean of the share of the score that stays in each group."""
    return float(np.exp(np.log(plan.table.score.dropna().to_numpy(float)).mean()))


def draw(speed: pd.DataFrame, plans: pd.DataFrame) -> bytes:
    """Draws how much faster networks are than their share of the work, and both kinds of plans."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = dict(zip(speed.network.unique(), ("#2a6fbb", "#d97b29", "#4c9a52")))
    for name, part in speed.groupby("network", sort=False):
        for kind, line in (("float32", "-o"), ("int8", "--s")):
            if f"{kind}, times as fast" in part:
                values = part[f"{kind}, times as fast"]
                left.plot(
                    100 * part["FLOPs left"], values, line, color=colours[name], label=f"{name}, {kind}"
                )
    work = np.linspace(0.25, 1, 50)
    left.plot(100 * work, 1 / work, ":", color="#888888", label="as the work")
    left.invert_xaxis()
    left.set(xlabel="multiply-adds left, %", ylabel="times as fast", title="LiteRT, one thread")
    left.legend(fontsize=8)
    for (name, kind), part in plans.groupby(["network", "planned for"], sort=False):
        line = "-o" if kind == "latency" else "--s"
        right.plot(100 * part["time left"], part["score left"], line, color=colours[name],
                   label=f"{name}, for {kind}")  # fmt: skip
    right.invert_xaxis()
    right.set(xlabel="time left, % (float32)", ylabel="share of the scores left", title="Plans at equal time")
    right.legend(fontsize=8)
    return results.png(figure)


if __name__ == "__main__":
    sys.exit(main())
