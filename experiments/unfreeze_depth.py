"""When does it pay to unfreeze deeper? Two tasks, each at three sizes of data.

Digits: a small convolutional network, pretrained on scikit-learn's digits 0–4 under noise,
learns 5–9 with a new head. Photographs: a denoiser of the temple learns the flower under
twice the noise. For each size and seed `compare_unfreezing` trains few layers, more, and
all, with as many updates each, and validation picks; the scores are of data that nothing was
trained or chosen on. A network trained from scratch is the control, and the advice of
`recommend_trainable_layers`, which knows only sizes, stands beside it.

    python -m experiments.unfreeze_depth             about seven minutes, two cores
    python -m experiments.unfreeze_depth --quick     under a minute

Seeded, `runs` seeds from ``1000 * seed`` on;
another processor rounds otherwise, which training magnifies.

Expected (seed 0): with the fewest samples, training all layers is no better than training the
last ones. With 400 digits it is about 4 points better than the last convolution and head,
from 32 patches on about 1 dB better than the last two layers. The digits' head alone stays
below 80% at every size.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import tfkit
from experiments import photographs, results
from tfkit.report import measure


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights, noise, shuffling and which samples are drawn.
        images: How many digits are learned from; a quarter more chooses.
        patches: The same in patches of the flower.
        runs: Repetitions, each with a seed and a pretrained network of its own.
        rounds: Epochs; one is as many updates at every size, for small sets are repeated.
        pretrain_epochs: Epochs on the temple; the digits take two over ten noisy copies of each.
    """

    seed: int = 0
    images: tuple[int, ...] = (20, 100, 400)
    patches: tuple[int, ...] = (4, 32, 192)
    runs: int = 4
    rounds: int = 10
    pretrain_epochs: int = 8


QUICK = Config(images=(20, 400), patches=(4, 64), runs=1, rounds=3, pretrain_epochs=3)

DIGIT_STAGES = {"head only": "head", "last convolution and head": "conv3..head", "all layers": "*"}
PHOTOGRAPH_STAGES = {
    "last two layers": "decoder_conv2..decoder_conv3",
    "decoder": "decoder_*",
    "all layers": "*",
}
DEPTHS = ("#8ecae6", "#219ebc", "#023047")  # the deeper, the darker
SCRATCH, PICKED = "from scratch", "picked by validation"
DIGIT_NOISE, OLD_NOISE, NEW_NOISE = 0.2, 0.1, 0.205  # standard deviations; white is 1
PATCH, TILE = 24, 192  # sides, in pixels
Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """One pretrained network, what it is to learn, and how that is judged.

    Attributes:
        pretrained: The network that knows the old task.
        make: Returns a compiled network for the new task, not pretrained.
        stages: Name to patterns of what trains.
        similarity: How near the new task is, as `recommend_trainable_layers` asks.
        train: Inputs and targets.
        validation: The same, to choose by.
        score: Judges a model by the test data; more is better.
        batch_size: Samples a step.
        draws: Samples an epoch; `train` is repeated until it has as many.
    """

    pretrained: keras.Model
    make: Callable[[], keras.Model]
    stages: Mapping[str, str]
    similarity: str
    train: Arrays
    validation: Arrays
    score: Callable[[keras.Model], float]
    batch_size: int
    draws: int

    def build(self) -> keras.Model:
        """Returns a new network with every pretrained weight that fits."""
        model = self.make()
        tfkit.models.transfer_weights(self.pretrained, model)
        return model

    def compare(self, *, epochs: int, seed: int) -> pd.DataFrame:
        """Returns a row a stage: its score at the epoch that validated best, and if it was picked."""
        order = np.resize(np.arange(len(self.train[0])), self.draws)
        train = tuple(array[order] for array in self.train)
        fit = {"epochs": epochs, "batch_size": self.batch_size, "seed": seed}
        fit["callbacks"] = lambda: [Judge(self.score)]
        tuned = tfkit.compare_unfreezing(self.build, self.stages, train, self.validation, **fit)
        control = tfkit.compare_unfreezing(self.make, {SCRATCH: "*"}, train, self.validation, **fit)
        picked = tuned[tuned.chosen].assign(stage=PICKED)
        control["chosen"] = False
        table = pd.concat([tuned, picked, control])
        return table[["stage", "score", "chosen"]]

    def advised_stage(self, size: int) -> str | None:
        """Returns the stage that trains exactly the weights of the rule of thumb."""
        model = self.make()

        def weights(patterns: str | list[str]) -> set[int]:
            return {id(variable) for variable in tfkit.select_layers(model, patterns).variables}

        advice = tfkit.recommend_trainable_layers(model, n_samples=size, similarity=self.similarity)
        fits = (name for name, patterns in self.stages.items() if weights(patterns) == weights(advice))
        return next(fits, None)


class Judge(keras.callbacks.Callback):
    """Logs the score of the test data after every epoch; nothing is chosen by it."""

    def __init__(self, score: Callable[[keras.Model], float]):
        super().__init__()
        self.judge = score

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        logs["score"] = self.judge(self.model)


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="unfreeze_depth",
        question="When does it pay to unfreeze deeper layers of a pretrained network?",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Runs both tasks; returns their tables and the figure."""
    digits = repeat(digit_adaptations, config)
    pictures = repeat(photograph_adaptations, config)
    tables = {
        "digits": tabulate(digits, 1).rename(columns={"size": "images", "score": "accuracy_percent"}),
        "photographs": tabulate(pictures, 2).rename(columns={"size": "patches", "score": "psnr_db"}),
    }
    return tables, {"depth.png": draw(tables)}


def repeat(
    adaptations: Callable[[Config, int], Iterator[tuple[int, Adaptation]]], config: Config
) -> pd.DataFrame:
    """Returns a row a run, size and stage."""
    rows = []
    for number in range(config.runs):
        seed = 1000 * config.seed + number
        for size, adaptation in adaptations(config, seed):
            table = adaptation.compare(epochs=config.rounds, seed=seed)
            advised = table.stage == adaptation.advised_stage(size)
            rows.append(table.assign(run=number, size=size, advised=advised))
            picked = table.stage[table.chosen].iloc[0]
            print(f"run {number + 1} of {config.runs}, {size} samples: {picked} picked", flush=True)
    return pd.concat(rows, ignore_index=True)


def tabulate(rows: pd.DataFrame, decimals: int) -> pd.DataFrame:
    """Returns a row a size and stage: means and standard deviations over the runs.

    `gain` is over the first stage of the same run, so that what its stages have in common
    drops out.
    """
    first = rows[rows.stage == rows.stage.iloc[0]].set_index(["run", "size"]).score
    rows = rows.assign(gain=rows.score - first.loc[zip(rows.run, rows["size"])].to_numpy())
    table = []
    for (size, stage), group in rows.groupby(["size", "stage"], sort=False):
        own = stage not in (SCRATCH, PICKED)
        table.append(
            {
                "size": size,
                "stage": stage,
                "score": group.score.mean(),
                "spread": group.score.std(),
                "gain": group.gain.mean(),
                "gain_spread": group.gain.std(),
                "picked": f"{group.chosen.sum()} of {len(group)}" if own else None,
                "advised": ("yes" if group.advised.all() else "no") if own else None,
            }
        )
    return pd.DataFrame(table).round(decimals).sort_values("size", kind="stable", ignore_index=True)


# --- digits --------------------------------------------------------------------------------------


def digit_adaptations(config: Config, seed: int) -> Iterator[tuple[int, Adaptation]]:
    """Pretrains on 0–4 and yields, for each number of images, what is to learn 5–9."""
    random = np.random.default_rng(seed)
    known, groups = load_digits()
    keras.utils.set_random_seed(seed)
    pretrained = digit_net("old_head")
    copies = np.concatenate([add_noise(shift(known[0], random), random) for _ in range(10)])
    pretrained.fit(copies, np.tile(known[1], 10), batch_size=32, epochs=2, verbose=0)

    parts = split_digits(groups, config.images, random)
    test = add_noise(parts["test"][0], random), parts["test"][1]
    for size in config.images:
        train, validation = (parts[name, size] for name in ("train", "validation"))
        yield (
            size,
            Adaptation(
                pretrained=pretrained,
                make=digit_net,
                stages=DIGIT_STAGES,
                similarity="similar",
                train=(add_noise(train[0], random), train[1]),
                validation=(add_noise(validation[0], random), validation[1]),
                score=lambda model: 100 * float(np.mean(np.argmax(model(test[0]), axis=-1) == test[1])),
                batch_size=16,
                draws=max(config.images),
            ),
        )


def load_digits() -> tuple[Arrays, list[np.ndarray]]:
    """Returns images and labels of 0–4, and the images of each digit from 5 to 9."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images[..., None] / 16).astype("float32")
    known = digits.target < 5
    return (images[known], digits.target[known]), [images[digits.target == label] for label in range(5, 10)]


def split_digits(
    groups: Sequence[np.ndarray], sizes: Sequence[int], random: np.random.Generator
) -> dict[Any, Arrays]:
    """Returns ``"test"`` and, for each size, ``("train", size)`` and ``("validation", size)``.

    The test has 70 images of each digit. A smaller set is a part of each larger one.
    """
    groups = [random.permutation(group) for group in groups]

    def take(start: int, count: int) -> Arrays:
        labels = np.repeat(np.arange(len(groups)), count)
        return np.concatenate([group[start : start + count] for group in groups]), labels

    parts = {"test": take(0, 70)}
    most = max(sizes) // len(groups)
    for size in sizes:
        parts["train", size] = take(70, size // len(groups))
        parts["validation", size] = take(70 + most, max(size // len(groups) // 4, 2))
    return parts


def digit_net(head: str = "head") -> keras.Model:
    """Returns three convolutions and a head for five classes, compiled."""
    conv = {"kernel_size": 3, "padding": "same", "activation": "relu"}
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, name="conv1", **conv),
            layers.Conv2D(32, name="conv2", **conv),
            layers.Conv2D(64, strides=2, name="conv3", **conv),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.LayerNormalization(center=False, scale=False, name="scale"),
            layers.Dense(5, name=head),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return compile_fast(model, 5e-3, loss, steps=25)


def compile_fast(model: keras.Model, rate: float, loss: Any, *, steps: int) -> keras.Model:
    # XLA's convolutions take longer here than oneDNN's, and small steps wait for Python
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False, steps_per_execution=steps)
    return model


def shift(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Moves each image by at most a pixel in each direction."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = random.integers(0, 3, (len(images), 2))
    return np.stack([each[row : row + 8, col : col + 8] for each, (row, col) in zip(wide, corners)])


def add_noise(images: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Adds the noise of all digits."""
    return (images + random.normal(0, DIGIT_NOISE, images.shape)).astype("float32")


# --- photographs ---------------------------------------------------------------------------------


def photograph_adaptations(config: Config, seed: int) -> Iterator[tuple[int, Adaptation]]:
    """Pretrains on the temple and yields, for each number of patches, what is to learn the flower."""
    random = np.random.default_rng(seed)
    old, new = (photographs.cut([each], patch=PATCH, tile=TILE, stride=16) for each in photographs.load())
    noisy_test = photographs.add_noise(new.test, NEW_NOISE, seed=seed)
    keras.utils.set_random_seed(seed)
    pretrained = denoiser()
    stream = photographs.noisy_patches(old.train, OLD_NOISE, batch_size=8, seed=seed)
    pretrained.fit(stream, epochs=config.pretrain_epochs, shuffle=False, verbose=0)

    patches, choosing = random.permutation(new.train), random.permutation(new.validation)
    for size in config.patches:
        train, validation = patches[:size], choosing[: max(size // 4, 2)]
        yield (
            size,
            Adaptation(
                pretrained=pretrained,
                make=denoiser,
                stages=PHOTOGRAPH_STAGES,
                similarity="different",
                train=(photographs.add_noise(train, NEW_NOISE, seed + 1), train),
                validation=(photographs.add_noise(validation, NEW_NOISE, seed + 2), validation),
                score=lambda model: measure.psnr(new.test, np.clip(model(noisy_test), 0, 1)),
                batch_size=8,
                draws=max(config.patches),
            ),
        )


def denoiser() -> keras.Model:
    """Returns an encoder–decoder of three layers each way, compiled."""
    model = tfkit.models.build_encoder_decoder(
        (None, None, 3), filters=(12, 24, 48), output_channels=3, residual=True
    )
    return compile_fast(model, 2e-3, "mse", steps=8)


# --- the figure ----------------------------------------------------------------------------------


def draw(tables: Mapping[str, pd.DataFrame]) -> bytes:
    """Draws score over size, a line a stage and a panel a task; bars are standard deviations."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, tables["digits"], "images", "accuracy_percent")
    _panel(right, tables["photographs"], "patches", "psnr_db")
    left.set(title="Digits 0–4 → 5–9", xlabel="images to train on", ylabel="test accuracy, %")
    right.set(title="Temple → flower, twice the noise", xlabel="patches to train on", ylabel="test PSNR, dB")
    return results.png(figure)


def _panel(axes: Axes, table: pd.DataFrame, size: str, score: str) -> None:
    stages = table.stage.unique()
    for number, stage in enumerate(stages):
        rows = table[table.stage == stage]
        apart = 1.05 ** (number - (len(stages) - 1) / 2)  # so that bars do not hide each other
        style = {"marker": "o", "markersize": 7, "linewidth": 2.2, "color": DEPTHS[min(number, 2)]}
        bars = rows.spread.fillna(0)
        if stage == SCRATCH:
            style |= {"marker": "s", "linestyle": "--", "linewidth": 1.6, "color": "#888888"}
        elif stage == PICKED:  # one of the others in each run, so its bars are theirs
            style |= {"marker": "*", "linestyle": ":", "linewidth": 1.6, "markersize": 13, "color": "#d1495b"}
            apart, bars = 1.0, None
        axes.errorbar(
            rows[size] * apart, rows[score], bars, capsize=3, elinewidth=1, label=stage, zorder=3, **style
        )
    axes.set_xscale("log")
    axes.set_xticks(table[size].unique(), [f"{each:,}" for each in table[size].unique()])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False, loc="lower right")


if __name__ == "__main__":
    sys.exit(main())
