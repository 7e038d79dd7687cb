"""What tfkit costs and saves while a model trains.

Three questions. How much faster is `fit_cached` than `fit` on a frozen MobileNetV2 (0.35,
96×96) with a new head? How long does `select_layers` take on 5,000 layers? What do the
learning-rate callbacks add to a training step?

    python -m experiments.training_speed             three to four minutes, two cores
    python -m experiments.training_speed --quick     under a minute

Each pair is timed in turns within one run; the tables give medians over the rounds.

Expected: an epoch on cached features at least 10 times as fast, eight epochs with the
features computed at least 5 times; selection under 50 ms; callbacks under 1% of a step.
"""

import dataclasses
import gc
import pathlib
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import tfkit
from experiments import photographs, results


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights and data.
        images: Numbers of training pictures to try.
        side: Their side in pixels.
        epochs: Epochs of a run.
        rounds: Runs of each kind, in turns.
        layers: Layers of the model to select from.
        steps: Training steps to time callbacks by.
    """

    seed: int = 0
    images: tuple[int, ...] = (1024, 2048)
    side: int = 96
    epochs: int = 8
    rounds: int = 3
    layers: int = 5000
    steps: int = 40


QUICK = Config(images=(256,), epochs=2, rounds=1, layers=500, steps=10)
BATCH = 32
CLASSES = 5


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="training_speed",
        question="What tfkit costs and saves while a model trains.",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Measures all three and returns a table for each, and a figure of the first."""
    keras.utils.set_random_seed(config.seed)
    timed = {images: frozen_once(config, images) for images in config.images}
    frozen, epochs = pd.concat([table for table, _ in timed.values()]), timed[config.images[-1]][1]
    tables = {"frozen_once": frozen, "selection": selection(config), "callbacks": callbacks(config)}
    return tables, {"training_speed.png": draw(epochs)}


def frozen_once(config: Config, images: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Times fit and fit_cached; returns medians, and seconds since the start by epoch."""
    x, y = pictures(config, images)
    timed = []
    for number in range(config.rounds):
        for name, fit in (("fit", keras.Model.fit), ("fit_cached", tfkit.fit_cached)):
            model = classifier(config)
            clock = Clock()
            fit(model, x, y, batch_size=BATCH, epochs=config.epochs, verbose=0, callbacks=[clock])
            timed.append({"way": name, "round": number, "total": time.perf_counter() - clock.start,
                          "epoch": float(np.median(np.diff(clock.ends))), "ends": clock.ends})  # fmt: skip
    frame = pd.DataFrame(timed)
    medians = frame.groupby("way")[["epoch", "total"]].median()
    rows = [
        {
            "pictures": images,
            "what": what,
            "fit, s": medians.loc["fit", column],
            "fit_cached, s": medians.loc["fit_cached", column],
            "times as fast": medians.loc["fit", column] / medians.loc["fit_cached", column],
        }
        for what, column in (
            ("one epoch after the first", "epoch"),
            (f"{config.epochs} epochs, tracing and features included", "total"),
        )
    ]
    ends = frame.groupby("way").ends.apply(lambda runs: np.median(list(runs), axis=0))
    return pd.DataFrame(rows), pd.DataFrame(ends.to_dict())


class Clock(keras.callbacks.Callback):
    """Notes when each epoch ends, in seconds since this callback was made."""

    def __init__(self) -> None:
        super().__init__()
        self.start = time.perf_counter()
        self.ends: list[float] = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(time.perf_counter() - self.start)


def pictures(config: Config, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts squares out of the photographs, with random labels: time does not depend on them."""
    random = np.random.default_rng(config.seed)
    photos = photographs.load()
    x = np.empty((images, config.side, config.side, 3), "float32")
    for number in range(images):
        photo = photos[number % len(photos)]
        top, left = (random.integers(size - config.side + 1) for size in photo.shape[:2])
        x[number] = 255 * photo[top : top + config.side, left : left + config.side]
    return x, random.integers(CLASSES, size=images)


def classifier(config: Config) -> keras.Model:
    """Builds a frozen MobileNetV2 with a new head."""
    base = tfkit.models.load_base_model("MobileNetV2", alpha=0.35, input_shape=(config.side, config.side, 3))
    model = tfkit.models.attach_head(base, CLASSES)
    tfkit.configure_base_model(model, "head")
    # XLA's convolutions take twice as long as oneDNN's on these processors
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    return model


def selection(config: Config) -> pd.DataFrame:
    """Times select_layers on a model of many layers, a row a pattern."""
    model = many_layers(config.layers)
    patterns = ("layer_7", "layer_*", "layer_1..layer_40", "re:layer_1.*", ["*", "!layer_1*"])
    rows = []
    for pattern in patterns:
        found = tfkit.select_layers(model, pattern)
        gc.collect()
        milliseconds = 1000 * median_seconds(lambda pattern=pattern: tfkit.select_layers(model, pattern), 7)
        rows.append({"pattern": str(pattern), "selected": len(found), "milliseconds": milliseconds})
    return pd.DataFrame(rows)


def many_layers(count: int) -> keras.Model:
    """Builds a model of `count` Dense layers in chains of 50; Keras cannot build one long chain."""
    inputs = keras.Input((2,))
    ends = []
    for start in range(0, count, 50):
        x = inputs
        for number in range(start, start + 50):
            x = keras.layers.Dense(2, name=f"layer_{number}")(x)
        ends.append(x)
    return keras.Model(inputs, keras.layers.Add(name="sum")(ends))


def callbacks(config: Config) -> pd.DataFrame:
    """Times what a step's callback calls take, against the step itself."""
    x, y = pictures(config, BATCH)
    rows = []
    for name, patterns in (("MobileNetV2, all layers train", "*"), ("MobileNetV2, head trains", "head")):
        model = classifier(config)
        tfkit.configure_base_model(model, patterns)
        model.fit(x, y, batch_size=BATCH, verbose=0)
        step = median_seconds(lambda model=model: model.train_on_batch(x, y), config.steps)
        for label, callback in (
            ("WarmupCosine", tfkit.WarmupCosine(1e-3, warmup_steps=10**5, total_steps=10**6)),
            ("ReduceLROnPlateau in its warmup", tfkit.ReduceLROnPlateau(warmup_steps=10**6)),
        ):
            spent = 1e-3 * step_overhead_ms(model, callback, 1000)
            row = {"model": name, "callback": label, "step, ms": 1000 * step, "callback, ms": 1000 * spent}
            rows.append(row | {"share of the step, %": 100 * spent / step})
    return pd.DataFrame(rows)


def step_overhead_ms(model: keras.Model, callback: keras.callbacks.Callback, calls: int) -> float:
    """Returns the milliseconds that a callback takes before and after one batch."""
    rate = float(model.optimizer.learning_rate)
    spent = []
    for given in ([], [callback]):
        listeners = keras.callbacks.CallbackList(given, add_history=True, model=model, steps=calls, epochs=1)
        listeners.on_train_begin()
        listeners.on_epoch_begin(0)

        def batch(listeners=listeners):
            listeners.on_train_batch_begin(0)
            listeners.on_train_batch_end(0, {})

        spent.append(median_seconds(batch, calls))
    model.optimizer.learning_rate = rate
    return 1000 * (spent[1] - spent[0])


def median_seconds(call: Callable[[], object], times: int) -> float:
    """Returns the median time of a call, after one that is not counted."""
    call()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def draw(epochs: pd.DataFrame) -> bytes:
    """Draws the seconds since the start at the end of every epoch."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    numbers = range(1, len(epochs) + 1)
    for way, color in (("fit", "C3"), ("fit_cached", "C0")):
        axes.plot(numbers, epochs[way], "o-", color=color, label=way)
        axes.annotate(f"{epochs[way].iloc[-1]:.1f} s", (numbers[-1], epochs[way].iloc[-1]), xytext=(6, 0),
                      textcoords="offset points", va="center", color=color)  # fmt: skip
    axes.set(
        xlabel="epoch", ylabel="seconds since the start", title="Frozen MobileNetV2 with a new head", ylim=0
    )
    axes.margins(x=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend()
    return results.png(figure)


if __name__ == "__main__":
    sys.exit(main())
