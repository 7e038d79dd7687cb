"""What does it cost to lose channels, and what gives the accuracy back?

Two networks are trained: a residual classifier of scikit-learn's digits with
BatchNormalization, and a denoiser of its photographs, an encoder–decoder with skip connections.
Each is pruned to 75, 50 and 25% of its multiplications and additions by every scope. Judged on
data that nothing was trained or pruned by: as it is, with the statistics of
BatchNormalization measured anew, trained on, and trained on with the unpruned network as its
teacher. Training on takes as many epochs as training, on the photographs at a third of the rate:
at the whole rate the dense control overfits. It trains on in the same way. Sensitivity is measured
on training data.

    python -m experiments.channel_accuracy             half an hour to three quarters, two cores
    python -m experiments.channel_accuracy --quick     about a minute

Seeded, `runs` seeds from ``1000 * seed`` on;
another processor rounds otherwise, which training magnifies.

Expected (seed 0): trained on at 50%, `sensitivity` is 0.1 points and 0.05 dB behind the dense
control, `uniform` 0.5 points and 0.3 dB; before training on, `sensitivity` is ahead of `uniform` by
15 points and 4 dB.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pandas as pd
from keras import layers
from matplotlib.figure import Figure

import tfkit
from experiments import photographs as pictures
from experiments import results
from experiments.pruning_tasks import split_digits
from tfkit.report import measure

SCOPES = ("uniform", "global", "sensitivity")
STAGES = ("pruned", "recalibrated", "trained on", "with a teacher")
RATE = 3e-3  # where Adam begins
BATCH = 32
NOISE = 0.2  # standard deviation; white is 1
PATCH, STRIDE, TILE = 16, 24, 96  # sides and steps, in pixels
JUDGED_BY = 512  # samples of the training data on which sensitivity is measured


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights, noise, order and which digits are judged.
        runs: Repetitions, each with a seed and a network of its own.
        flops: Fractions of the multiplications and additions that stay.
        digit_epochs: Epochs on the digits, and as many again behind the pruning.
        photograph_epochs: The same on the patches of the photographs, each with other noise.
        multiple_of: What channel counts are a multiple of.
    """

    seed: int = 0
    runs: int = 3
    flops: tuple[float, ...] = (0.75, 0.5, 0.25)
    digit_epochs: int = 24
    photograph_epochs: int = 12
    multiple_of: int = 4


QUICK = Config(runs=1, flops=(0.5,), digit_epochs=2, photograph_epochs=2)


@dataclasses.dataclass(frozen=True)
class Task:
    """A trained network and its data.

    Attributes:
        name: The task.
        model: The trained network.
        x: What it is trained on.
        y: The targets.
        loss: The loss.
        teach: The loss of distillation.
        judge: Judges a network by the test data; more is better.
        examine: Judges it by training data, for sensitivity; more is better.
        epochs: Epochs of training, and of training on.
        rate_on: Where Adam begins when it trains on.
    """

    name: str
    model: keras.Model
    x: np.ndarray
    y: np.ndarray
    loss: Any
    teach: Any
    judge: Callable[[keras.Model], float]
    examine: Callable[[keras.Model], float]
    epochs: int
    rate_on: float


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="channel_accuracy",
        question="What does it cost to lose channels, and what gives the accuracy back?",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Prunes both networks in every way and returns the tables and their figure."""
    rows = []
    for number in range(config.runs):
        for task in (
            digits(config, 1000 * config.seed + number),
            denoiser(config, 1000 * config.seed + number),
        ):
            for row in compare(task, config):
                rows.append({"task": task.name, "run": number} | row)
                print(rows[-1], file=sys.stderr)
    scores = pd.DataFrame(rows)
    tables = {name: summarise(part) for name, part in scores.groupby("task", sort=False)}
    return tables | {"runs": scores}, {"channel_accuracy.png": draw(scores)}


def compare(task: Task, config: Config) -> Iterator[dict[str, Any]]:
    """Yields a row for the dense control, and for each scope and target."""
    control = copied(task.model)
    train_on(control, task)
    yield {"scope": "dense", "flops": 1.0, "FLOPs left": 1.0, "pruned": task.judge(task.model),
           "trained on": task.judge(control)}  # fmt: skip
    sensitivity = tfkit.layer_sensitivity(
        task.model, task.examine, kind="channels", sparsities=(0.25, 0.5, 0.75)
    )
    for flops in config.flops:
        for scope in SCOPES:
            plan = tfkit.plan_channel_pruning(
                task.model,
                flops=flops,
                scope=scope,
                sensitivity=sensitivity if scope == "sensitivity" else None,
                multiple_of=config.multiple_of,
                input_shape=task.x.shape[1:],
            )
            left = plan.after["flops"] / plan.before["flops"]
            yield {"scope": scope, "flops": flops, "FLOPs left": left} | stages(plan, task)


def stages(plan: tfkit.ChannelPlan, task: Task) -> dict[str, float]:
    """Returns the scores of a plan's network, stage by stage."""
    network = plan.apply(task.model)
    scores = {"pruned": task.judge(network)}
    if any(isinstance(layer, layers.BatchNormalization) for layer in network.layers):
        tfkit.recalibrate_batch_norm(network, task.x, batch_size=64)
        scores["recalibrated"] = task.judge(network)
    taught = copied(network)
    train_on(network, task)
    distill(taught, task)
    return scores | {"trained on": task.judge(network), "with a teacher": task.judge(taught)}


def copied(network: keras.Model) -> keras.Model:
    """Returns a network with the same weights."""
    twin = keras.models.clone_model(network)
    twin.set_weights(network.get_weights())
    return twin


def train(task: Task) -> Task:
    """Trains a task's network and returns the task."""
    fit(task.model, task, RATE)
    return task


def train_on(network: keras.Model, task: Task) -> None:
    """Trains a network that was trained before."""
    fit(network, task, task.rate_on)


def distill(network: keras.Model, task: Task) -> None:
    """Trains a network on for as long, half towards the outputs of the unpruned one."""
    teacher = copied(task.model)
    distiller = keras.distillation.Distiller(teacher, network, task.teach, student_loss_weight=0.5)
    fit(distiller, task, task.rate_on)


def fit(network: keras.Model, task: Task, rate: float) -> None:
    """Trains by Adam, whose rate falls along a cosine."""
    keras.utils.set_random_seed(0)
    updates = task.epochs * -(-len(task.x) // BATCH)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, updates))
    network.compile(optimizer, task.loss, jit_compile=False)
    network.fit(task.x, task.y, batch_size=BATCH, epochs=task.epochs, verbose=0)


# --- digits --------------------------------------------------------------------------------------


def digits(config: Config, seed: int) -> Task:
    """Returns the classifier of digits, trained."""
    keras.utils.set_random_seed(seed)
    (images, labels), (judged, answers) = split_digits(np.random.default_rng(seed))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return train(
        Task(
            name="digits",
            model=residual_network(),
            x=images,
            y=labels,
            loss=loss,
            teach=keras.distillation.LogitsDistillation(temperature=3.0, loss=keras.losses.KLDivergence()),
            judge=lambda model: 100 * float(np.mean(np.argmax(model(judged), axis=-1) == answers)),
            examine=lambda model: -float(loss(labels[:JUDGED_BY], model(images[:JUDGED_BY]))),
            epochs=config.digit_epochs,
            rate_on=RATE,
        )
    )


def residual_network() -> keras.Model:
    """Returns a stem, three residual blocks and a head that gives logits."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    for number, (width, stride) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
        skip = x
        if stride > 1:
            skip = layers.Conv2D(width, 1, strides=stride, use_bias=False, name=f"skip{number}")(x)
            skip = layers.BatchNormalization(momentum=0.9)(skip)
        x = layers.Conv2D(width, 3, stride, "same", use_bias=False, name=f"block{number}_1")(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"block{number}_2")(x)
        x = layers.ReLU()(layers.Add()([layers.BatchNormalization(momentum=0.9)(x), skip]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="head")(x), name="residual")


# --- photographs ---------------------------------------------------------------------------------


def denoiser(config: Config, seed: int) -> Task:
    """Returns the denoiser of both photographs, trained."""
    keras.utils.set_random_seed(seed)
    cuts = pictures.cut(pictures.load(), patch=PATCH, tile=TILE, stride=STRIDE)
    noisy_test = pictures.add_noise(cuts.test, NOISE, seed)
    clean = np.tile(cuts.train, (config.photograph_epochs, 1, 1, 1))  # each with noise of its own
    noisy = pictures.add_noise(clean, NOISE, seed + 1)
    judge = lambda model: measure.psnr(cuts.test, np.clip(model(noisy_test), 0, 1))  # noqa: E731
    return train(
        Task(
            name="photographs",
            model=tfkit.models.build_encoder_decoder(
                (None, None, 3), filters=(16, 32, 64), output_channels=3, residual=True
            ),
            x=noisy,
            y=clean,
            loss="mse",
            teach=keras.distillation.FeatureDistillation(loss="mse"),
            judge=judge,
            examine=lambda model: measure.psnr(clean[:JUDGED_BY], np.clip(model(noisy[:JUDGED_BY]), 0, 1)),
            epochs=1,
            rate_on=RATE / 3,
        )
    )


# --- what comes out ------------------------------------------------------------------------------


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns means over the runs, and what is lost against the control, with its deviation."""
    control = scores[scores.scope == "dense"].set_index("run")["trained on"]
    rows = []
    for (flops, scope), part in scores.groupby(["flops", "scope"], sort=False):
        row = {"scope": scope, "FLOPs asked": flops, "FLOPs left": part["FLOPs left"].mean()}
        row |= {name: part[name].mean() for name in STAGES if name in part and part[name].notna().any()}
        lost = control.loc[part.run].to_numpy() - part["trained on"].to_numpy()
        rows.append(row | {"lost": f"{lost.mean():.2f} ± {lost.std(ddof=1) if len(lost) > 1 else 0:.2f}"})
    return pd.DataFrame(rows)


def draw(scores: pd.DataFrame) -> bytes:
    """Draws the score of every stage against what is left of the work."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    colours = dict(zip(SCOPES, ("#8a8f98", "#2a6fbb", "#d97b29")))
    lines = {"pruned": ":", "recalibrated": "-.", "trained on": "-", "with a teacher": "--"}
    units = {"digits": "accuracy, %", "photographs": "PSNR, dB"}
    for axes, (name, part) in zip(figure.subplots(1, 2), scores.groupby("task", sort=False)):
        for scope, colour in colours.items():
            mine = part[part.scope == scope].groupby("flops").mean(numeric_only=True)
            for stage, line in lines.items():
                if stage in mine and mine[stage].notna().any():
                    axes.plot(100 * mine["FLOPs left"], mine[stage], line, color=colour, marker="o", ms=3)
        axes.axhline(part[part.scope == "dense"]["trained on"].mean(), color="black", lw=0.8)
        axes.set(xlabel="multiply-adds left, %", ylabel=units[name], title=name)
        axes.invert_xaxis()
    handles = [axes.plot([], [], color=colour, label=scope)[0] for scope, colour in colours.items()]
    handles += [axes.plot([], [], line, color="black", label=stage)[0] for stage, line in lines.items()]
    handles += [axes.plot([], [], color="black", lw=0.8, label="dense, trained on")[0]]
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return results.png(figure)


if __name__ == "__main__":
    sys.exit(main())
