"""What do learning-rate schedules do on the same task?

A small denoiser learns both of scikit-learn's photographs seven times: at a constant
rate and under six schedules, all from the same weights, on the same batches, for the
same number of Adam updates and with the same highest rate. That rate is the one at which
the *constant* does best on validation pictures, so the constant is no straw man. Warmup
with a cosine is then given its own best rate too. All is repeated with other weights,
noise and order; a gain is the difference in PSNR from the constant of the same seed, on
parts of the photographs that chose nothing.

    python -m experiments.schedules            under 5 minutes, two cores
    python -m experiments.schedules --quick    under a minute, too short to judge by

Seeds: `--seed` and the three that follow. Another processor rounds otherwise, which
training magnifies.

Expected (seed 0): the rate finder's valley lies beside the constant's best rate, 0.004.
There the schedules end within 0.5 dB of the constant, less than it varies between
seeds, and vary less themselves; halving the rate from the start on costs training loss.
Warmup with a cosine does best at four times that rate, where the constant diverges, and
gains 0.5 dB or more.
"""

import dataclasses
import io
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure

import tfkit
from experiments import photographs, results
from tfkit import curves


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: The first seed of weights, noise and order.
        seeds: Repetitions of every schedule.
        rate_seeds: How many of them choose the rate.
        rates: Learning rates to choose from.
        epochs: Rounds through the patches.
        batch: Patches to an update.
        filters: Channels of the encoder's layers.
        patch: Side of the square training patches, in pixels.
        keep_every: Of how many training patches one is used.
        tile: Side of the square pictures that are judged.
        noise: Standard deviation of the noise; white is 1.
    """

    seed: int = 0
    seeds: int = 4
    rate_seeds: int = 2
    rates: tuple[float, ...] = (2e-3, 4e-3, 8e-3, 16e-3, 32e-3)
    epochs: int = 20
    batch: int = 8
    filters: tuple[int, ...] = (8, 16)
    patch: int = 16
    keep_every: int = 4
    tile: int = 96
    noise: float = 0.2


QUICK = Config(seeds=2, rate_seeds=1, rates=(4e-3, 8e-3), epochs=4)
COSINE = "warmup, cosine"

CURVES: dict[str, Callable[[float, int], curves.Curve]] = {
    "constant": lambda peak, steps: curves.constant(peak),
    "factor": lambda peak, steps: curves.step(peak, 0.5, -(-steps // 6)),
    "multi-step": lambda peak, steps: curves.step(peak, 0.1, [steps // 2, steps * 3 // 4]),
    "cosine": lambda peak, steps: curves.cosine(peak, steps),
    COSINE: lambda peak, steps: curves.warmup(curves.cosine(peak, steps - steps // 10), steps // 10),
    "one-cycle": lambda peak, steps: curves.one_cycle(peak, steps),
}
SCHEDULES = [*CURVES, "plateau"]


def callback(schedule: str, peak: float, steps: int) -> keras.callbacks.Callback:
    """Returns what makes a schedule of `steps` updates with the highest rate `peak`."""
    if schedule == "plateau":
        return tfkit.ReduceLROnPlateau(factor=0.3, patience=2, min_delta=0.0, warmup_steps=steps // 10)
    return tfkit.LearningRateCurve(CURVES[schedule](peak, steps))


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        rates: The learning rate of each update.
        losses: The training loss of each batch, mean squared error.
        validation: The validation loss after each epoch.
        test_db: PSNR on the test tiles with the last weights, in dB.
    """

    rates: np.ndarray
    losses: np.ndarray
    validation: np.ndarray
    test_db: float


class Recorder(keras.callbacks.Callback):
    """Keeps the rate of each update and the loss of each batch alone."""

    def __init__(self):
        super().__init__()
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()

    def on_train_batch_end(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))
        self.losses.append(float(logs["loss"]))


class Bench:
    """One task, to be trained on again and again from the same start."""

    def __init__(self, config: Config):
        self.config = config
        pictures = photographs.cut(
            photographs.load(), patch=config.patch, tile=config.tile, stride=config.patch
        )
        self.clean = pictures.train[:: config.keep_every]
        self.clean_test, self.noisy_test = pictures.test, self._noisy(pictures.test, 1)
        self.validation = self._noisy(pictures.validation, 2), pictures.validation
        self.epoch_steps = len(self.clean) // config.batch
        self.steps = config.epochs * self.epoch_steps
        self.model = self._build()
        # XLA's convolutions take twice as long as oneDNN's on these processors
        self.model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False)
        self.done: dict[tuple, Run] = {}

    def find(self) -> tfkit.LearningRateSearch:
        """Returns what the rate finder says."""
        self._reset(self.config.seed, 1e-3)
        return tfkit.find_learning_rate(self.model, self._data(self.config.seed), start=1e-5, stop=1.0)

    def run(self, schedule: str, peak: float, seed: int) -> Run:
        """Trains with one schedule, from the seed's own start."""
        if (schedule, peak, seed) in self.done:
            return self.done[schedule, peak, seed]
        self._reset(seed, peak)
        recorder = Recorder()
        history = self.model.fit(
            self._data(seed),
            epochs=self.config.epochs,
            validation_data=self.validation,
            validation_batch_size=256,
            shuffle=False,  # the stream shuffles itself
            callbacks=[callback(schedule, peak, self.steps), recorder],
            verbose=0,
        )
        output = np.clip(self.model(self.noisy_test, training=False), 0, 1)
        errors = np.mean((output - self.clean_test) ** 2, axis=(1, 2, 3))
        run = Run(
            np.array(recorder.rates),
            np.array(recorder.losses),
            np.array(history.history["val_loss"]),
            float(decibel(errors).mean()),
        )
        self.done[schedule, peak, seed] = run
        print(f"{schedule:15} {peak:.0e} seed {seed}  test {run.test_db:.2f} dB", flush=True)
        return run

    def _reset(self, seed: int, rate: float) -> None:
        """Gives the model a seed's first weights and its optimizer a blank state, without a new trace."""
        keras.utils.set_random_seed(seed)
        self.model.set_weights(self._build().get_weights())
        for variable in self.model.optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        self.model.optimizer.learning_rate = rate

    def _build(self) -> keras.Model:
        return tfkit.models.build_encoder_decoder(
            (None, None, 3), filters=self.config.filters, output_channels=3, residual=True
        )

    def _data(self, seed: int) -> tf.data.Dataset:
        pairs = tf.data.Dataset.from_tensor_slices((self._noisy(self.clean, 100 + seed), self.clean))
        return (
            pairs.shuffle(len(self.clean), seed=seed)
            .batch(self.config.batch, drop_remainder=True)
            .prefetch(2)
        )

    def _noisy(self, clean: np.ndarray, seed: int) -> np.ndarray:
        return photographs.add_noise(clean, self.config.noise, seed)


def decibel(error: np.ndarray) -> np.ndarray:
    """Returns the PSNR of mean squared errors of values in [0, 1]."""
    return -10 * np.log10(error)


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Chooses the rate, trains with every schedule and returns tables and pictures."""
    bench = Bench(config)
    found = bench.find()
    found.plot(output / "finder.png")
    rates = rate_table(bench)
    peak, cosine_peak = (
        float(rates.learning_rate[rates[name].idxmax()]) for name in ("constant_db", "cosine_db")
    )
    seeds = range(config.seed, config.seed + config.seeds)
    runs = {(name, peak): [bench.run(name, peak, seed) for seed in seeds] for name in SCHEDULES}
    own = {(COSINE, cosine_peak): [bench.run(COSINE, cosine_peak, seed) for seed in seeds]}
    tables = {
        "suggestions": pd.DataFrame([found.suggestions]),
        "rates": rates,
        "schedules": schedule_table(runs | own, bench.epoch_steps),
    }
    return tables, {"schedules.png": draw(runs | own), "finder.png": (output / "finder.png").read_bytes()}


def rate_table(bench: Bench) -> pd.DataFrame:
    """Returns the final validation PSNR at each rate: of the constant, and of warmup with a cosine."""
    config = bench.config
    rows = []
    for rate in config.rates:
        row = {"learning_rate": rate}
        for name, column in (("constant", "constant_db"), (COSINE, "cosine_db")):
            chosen = [bench.run(name, rate, config.seed + place) for place in range(config.rate_seeds)]
            row[column] = np.mean([decibel(each.validation[-1]) for each in chosen]).round(2)
        rows.append(row)
    return pd.DataFrame(rows)


def schedule_table(runs: Mapping[tuple[str, float], Sequence[Run]], epoch_steps: int) -> pd.DataFrame:
    """Returns a row a schedule: means over the seeds, and standard deviations.

    Args:
        runs: For each schedule and highest rate one run a seed, in the same order; the
            first is the constant, which the gains are measured from.
        epoch_steps: Updates to an epoch.
    """
    constant = np.array([run.test_db for run in next(iter(runs.values()))])
    rows = []
    for (name, peak), each in runs.items():
        validation = decibel(np.array([run.validation[-1] for run in each]))
        test = np.array([run.test_db for run in each])
        rows.append(
            {
                "schedule": name,
                "peak_rate": peak,
                "train_loss": np.mean([run.losses[-epoch_steps:].mean() for run in each]).round(5),
                "validation_db": validation.mean().round(2),
                "validation_spread": _spread(validation),
                "test_db": test.mean().round(2),
                "test_spread": _spread(test),
                "gain_db": (test - constant).mean().round(2),
                "gain_spread": _spread(test - constant),
                "best_epoch": np.mean([1 + run.validation.argmin() for run in each]).round(1),
            }
        )
    return pd.DataFrame(rows)


def _spread(values: np.ndarray) -> float:
    """Returns the standard deviation over seeds; NaN for one."""
    return values.std(ddof=1).round(2) if len(values) > 1 else np.nan


def draw(runs: Mapping[tuple[str, float], Sequence[Run]]) -> bytes:
    """Draws rate, training loss and validation loss of each schedule over the updates.

    Losses are means over the seeds; the rate is the first seed's, for a plateau falls
    where it falls. A run at another highest rate than the first shows its losses only.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    rate, train, validation = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.1))
    first = next(iter(runs))
    for (name, peak), each in runs.items():
        steps, epochs = len(each[0].rates), len(each[0].validation)
        style = {"color": f"C{SCHEDULES.index(name)}", "linewidth": 1.7, "label": name}
        if name == "constant":
            style |= {"color": "black", "linestyle": (0, (4, 1.5))}
        if peak == first[1]:
            rate.plot(range(steps), 1000 * each[0].rates, **style)
        else:
            style |= {"linestyle": (0, (1, 1)), "linewidth": 2.2, "label": f"{name}, peak {peak:g}"}
        losses = pd.Series(np.mean([run.losses for run in each], axis=0))
        train.plot(range(steps), 1000 * losses.ewm(halflife=steps / 40).mean(), **style)
        ends = np.arange(1, epochs + 1) * steps / epochs
        validation.plot(ends, 1000 * np.mean([run.validation for run in each], axis=0), **style)
    rate.set(title=f"Learning rate, peak {first[1]:g}", ylabel="rate × 1000")
    train.set(title="Training loss, smoothed", ylabel="mean squared error × 1000")
    validation.set(title="Validation loss", ylabel="mean squared error × 1000")
    for axes in (rate, train, validation):
        axes.set(xlabel="update")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (train, validation):
        least = min(line.get_ydata()[-1] for line in axes.lines)
        axes.set_ylim(0.95 * least, 1.9 * least)  # the first fall is steep and much the same
    figure.legend(
        *train.get_legend_handles_labels(), loc="outside lower center", ncols=len(runs), frameon=False
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="schedules",
        question="What do learning-rate schedules do on the same task?",
        config=Config(),
        quick=QUICK,
        run=run,
    )


if __name__ == "__main__":
    sys.exit(main())
