"""How much quicker is `tfkit.search` than the script one would write with keras-tuner alone?

Both search learning rate and weight decay in the same space, with the same oracle and seed,
on the same data, in turns within one run: a frozen MobileNetV2 (0.35, 96×96) with a new
head, and a small convolutional network that trains as a whole. Then: the memory that 200
trials take, and what a second worker brings.

    python -m experiments.search_speed             about eight minutes, two cores
    python -m experiments.search_speed --quick     under two minutes

Expected: at least 12 times as fast with the frozen network, its features computed once and
its step traced once; at least twice as fast with the small one; the best validation losses
within 1%; as much memory after 200 trials as after 20, within 10%; two workers at least
1.5 times the trials of one on one core.
"""

import dataclasses
import gc
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import keras
import keras_tuner
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import tfkit
from experiments import results, training_speed


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights, data, oracles and trials.
        images: Training pictures of the frozen network; a quarter as many validate.
        side: Their side in pixels.
        trials: Trials of each search.
        epochs: Epochs of each trial.
        rounds: Searches of each kind, in turns.
        memory_trials: Numbers of trials after which memory is looked at.
        worker_trials: Trials of a search by one worker and by two.
    """

    seed: int = 0
    images: int = 512
    side: int = 96
    trials: int = 20
    epochs: int = 5
    rounds: int = 1
    memory_trials: tuple[int, int] = (20, 200)
    worker_trials: int = 40


QUICK = Config(images=64, side=48, trials=3, epochs=2, memory_trials=(5, 20), worker_trials=6)
BATCH = 32
RATES, DECAYS = (1e-4, 1e-1), (1e-5, 1e-1)


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="search_speed",
        question="How much quicker is tfkit.search than keras-tuner alone?",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Runs the searches and returns their times, the memory and two figures."""
    x, y = training_speed.pictures(training_speed.Config(seed=config.seed, side=config.side), config.images)
    held = len(x) // 4
    tasks = {
        "frozen MobileNetV2, new head": (
            frozen_network(config),
            (x[held:], y[held:]),
            (x[:held], y[:held]),
        ),
        "small network, all trains": (small_network, *digits()),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        speed = pd.DataFrame(
            [
                compare(config, name, task, folder / str(number))
                for number, (name, task) in enumerate(tasks.items())
            ]
        )
        memory = memory_use(config, folder / "memory")
        workers = trials_a_minute(config, folder / "workers")
        tfkit.SearchResult.load(folder / "1" / "tfkit_0").plot(output / "search.png")
    pictures = {"search_speed.png": draw(speed), "search.png": (output / "search.png").read_bytes()}
    return {"speed": speed, "memory": memory, "workers": workers}, pictures


def compare(config: Config, name: str, task: tuple, folder: pathlib.Path) -> dict[str, object]:
    """Runs both searches in turns and returns a row: median seconds, their ratio and the best losses."""
    seconds: dict[str, list[float]] = {"keras_tuner": [], "tfkit": []}
    best = {}
    for number in range(config.rounds):
        for way, search in (("keras_tuner", with_keras_tuner), ("tfkit", with_tfkit)):
            gc.collect()
            start = time.perf_counter()
            best[way] = search(config, *task, folder / f"{way}_{number}")
            seconds[way].append(time.perf_counter() - start)
    plain, mine = (float(np.median(seconds[way])) for way in seconds)
    return {
        "task": name,
        "trials": config.trials,
        "keras-tuner, s": plain,
        "tfkit, s": mine,
        "times as fast": plain / mine,
        "best val_loss, keras-tuner": best["keras_tuner"],
        "best val_loss, tfkit": best["tfkit"],
    }


def frozen_network(config: Config) -> Callable[[], keras.Model]:
    """Returns a function that builds a frozen MobileNetV2 with a new head."""
    return lambda: training_speed.classifier(training_speed.Config(side=config.side))


def small_network() -> keras.Model:
    """Builds a network for 8×8 digits that trains as a whole."""
    layers = keras.layers
    stack = [keras.Input((8, 8, 1))]
    for width in (16, 32):
        stack += [layers.Conv2D(width, 3, padding="same", use_bias=False), layers.BatchNormalization()]
        stack += [layers.ReLU(), layers.MaxPooling2D()]
    model = keras.Sequential([*stack, layers.Flatten(), layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
    return model


def digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Returns 640 digits to train on and 160 to validate by."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).reshape(-1, 8, 8, 1).astype("float32")
    return (x[:640], y[:640]), (x[640:800], y[640:800])


def with_tfkit(
    config: Config, build: Callable[[], keras.Model], train: tuple, held: tuple, folder: pathlib.Path
) -> float:
    """Searches with tfkit and returns the best validation loss."""
    found = tfkit.search(
        build,
        *train,
        space=tfkit.SearchSpace(learning_rate=RATES, weight_decay=DECAYS),
        validation_data=held,
        tuner="random",
        max_trials=config.trials,
        epochs=config.epochs,
        batch_size=BATCH,
        seed=config.seed,
        directory=folder,
        verbose=0,
    )
    found.best_model()
    return float(found.best.score)


def with_keras_tuner(
    config: Config, build: Callable[[], keras.Model], train: tuple, held: tuple, folder: pathlib.Path
) -> float:
    """Searches with keras-tuner alone and returns the best validation loss."""

    def build_trial(hp: keras_tuner.HyperParameters) -> keras.Model:
        rate = hp.Float("learning_rate", *RATES, sampling="log")
        decay = hp.Float("weight_decay", *DECAYS, sampling="log")
        keras.utils.set_random_seed(config.seed)
        model = build()
        model.optimizer.learning_rate = rate
        model.optimizer.weight_decay = decay
        return model

    tuner = keras_tuner.RandomSearch(
        build_trial,
        objective="val_loss",
        max_trials=config.trials,
        seed=config.seed + 1,  # as tfkit seeds the oracle
        directory=folder,
        project_name="search",
    )
    tuner.search(*train, validation_data=held, epochs=config.epochs, batch_size=BATCH, verbose=0)
    tuner.get_best_models()
    return float(tuner.oracle.get_best_trials()[0].score)


class Memory(keras.callbacks.Callback):
    """Notes the process's memory at the end of each trial; all trials share one."""

    def __init__(self) -> None:
        super().__init__()
        self.megabytes: list[float] = []

    def __deepcopy__(self, memo: dict) -> "Memory":
        return self

    def on_train_end(self, logs=None):
        if len(self.megabytes) % 10 == 9:
            gc.collect()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        self.megabytes.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def memory_use(config: Config, folder: pathlib.Path) -> pd.DataFrame:
    """Searches for many trials and returns the memory after a few and after all."""
    memory = Memory()
    train, held = digits()
    few, many = config.memory_trials
    tfkit.search(
        small_network,
        *train,
        space=tfkit.SearchSpace(learning_rate=RATES, weight_decay=DECAYS),
        validation_data=held,
        tuner="random",
        max_trials=many,
        epochs=1,
        batch_size=160,
        directory=folder,
        seed=config.seed,
        callbacks=[memory],
        verbose=0,
    )
    used = [memory.megabytes[count - 1] for count in (few, many)]
    rows = [{"trials": count, "memory, MB": size, "against the first": size / used[0]}
            for count, size in zip((few, many), used, strict=True)]  # fmt: skip
    return pd.DataFrame(rows)


JOB = """
from experiments.search_speed import DECAYS, RATES, digits, small_network as build
import tfkit
space = tfkit.SearchSpace(learning_rate=RATES, weight_decay=DECAYS)
def data():
    (x, y), held = digits()
    return {"x": x, "y": y, "validation_data": held}
"""


def trials_a_minute(config: Config, folder: pathlib.Path) -> pd.DataFrame:
    """Searches with one worker on one core and with two on two, from the first trial's end to the last's."""
    folder.mkdir()
    (folder / "job.py").write_text(JOB)
    cores = sorted(os.sched_getaffinity(0))
    rows = []
    for workers in (1, 2):
        own = folder / str(workers)
        command = [sys.executable, "-c", "from tfkit.cli import main; main()", "tune", str(folder / "job.py")]
        command += ["-d", str(own), "--max-trials", str(config.worker_trials), "--epochs", "10"]
        command += ["--tuner", "random", "--seed", "0", "--workers", str(workers), "--json"]
        subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path])},
            preexec_fn=lambda count=workers: os.sched_setaffinity(0, cores[:count]),
            stdout=subprocess.DEVNULL,
            check=True,
        )
        ends = sorted(path.stat().st_mtime for path in own.glob("trials/*.json"))
        rows.append(
            {
                "workers": workers,
                "trials": len(ends),
                "trials a minute": 60 * (len(ends) - 1) / (ends[-1] - ends[0]),
            }
        )
    frame = pd.DataFrame(rows)
    frame["times as many"] = frame["trials a minute"] / frame["trials a minute"].iloc[0]
    return frame


def draw(speed: pd.DataFrame) -> bytes:
    """Draws the seconds of both ways as bars, a panel for each task."""
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    for axes, row in zip(figure.subplots(1, len(speed)), speed.itertuples(index=False), strict=True):
        task, trials, plain, mine, ratio = row[:5]
        bars = axes.barh(["tfkit", "keras-tuner"], [mine, plain], color=["C0", "C3"])
        axes.bar_label(bars, fmt="%.0f s", padding=3)
        axes.set(title=f"{task}\n{trials} trials, {ratio:.1f} times as fast", xlabel="seconds")
        axes.margins(x=0.2)
    return results.png(figure)


if __name__ == "__main__":
    sys.exit(main())
