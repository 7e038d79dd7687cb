"""What does weight decay do where a model can learn its data by heart?

The textbook case: 200 inputs, 20 samples to train on and 100 to test. The truth is linear,
y = 0.05 + Σ 0.01 x + noise, so 20 samples leave it wide open and a model without decay
fits them perfectly for the wrong reasons. λ = 0 against λ = 3, coupled (a penalty in the
loss, `add_weight_penalty`) against decoupled (`set_weight_decay`), under SGD and Adam.

    python -m experiments.weight_decay             one to three minutes, two cores
    python -m experiments.weight_decay --quick     under half a minute

Seeded; every row is a mean over `repeats` draws of data and initial weights.

Expected: without decay the training loss goes to zero and the test loss stays at 0.24. With
λ = 3 the weights shrink to less than a tenth and the test loss to 0.01, which is what the
best constant would have: decay takes away what was learnt by heart, it cannot find the
truth in 20 samples. Under SGD coupled and decoupled are one and the same; under Adam they
are not.
"""

import dataclasses
import pathlib
import sys

import keras
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import tfkit
from experiments import results


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds the data and the initial weights of the first repeat; the next one takes
            the next number.
        repeats: Draws of data and weights.
        inputs: Inputs of the model.
        train: Training samples.
        test: Test samples.
        weight: Every true weight.
        bias: The true bias.
        noise: Standard deviation of the noise in the targets.
        decay: λ.
        rate: Learning rate.
        batch: Batch size.
        epochs: Epochs.
    """

    seed: int = 0
    repeats: int = 5
    inputs: int = 200
    train: int = 20
    test: int = 100
    weight: float = 0.01
    bias: float = 0.05
    noise: float = 0.01
    decay: float = 3.0
    rate: float = 0.003
    batch: int = 5
    epochs: int = 100


QUICK = Config(repeats=1, epochs=60)
KINDS = ("none", "coupled", "decoupled")
OPTIMIZERS = {"SGD": keras.optimizers.SGD, "Adam": keras.optimizers.Adam}


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="weight_decay",
        question="What weight decay does where a model can learn its data by heart.",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Trains every combination and returns the table of means and the figure."""
    epochs = pd.concat(
        train(config, optimizer, kind, repeat)
        for optimizer in OPTIMIZERS
        for kind in KINDS
        for repeat in range(config.repeats)
    )
    return {"weight_decay": summary(epochs, config)}, {"weight_decay.png": draw(epochs, config)}


def train(config: Config, optimizer: str, kind: str, repeat: int) -> pd.DataFrame:
    """Trains one model and returns a row an epoch: losses without penalty, and ‖w‖."""
    keras.utils.set_random_seed(config.seed + repeat)
    x, y, x_test, y_test = data(config, config.seed + repeat)
    head = keras.layers.Dense(1, kernel_initializer="random_normal", name="head")
    model = keras.Sequential([keras.Input((config.inputs,)), head])
    model.compile(OPTIMIZERS[optimizer](config.rate), half_squared_error)
    if kind == "coupled":
        tfkit.add_weight_penalty(model, l2=config.decay / 2)  # the textbook's λ/2 · Σw²
    elif kind == "decoupled":
        tfkit.set_weight_decay(model, config.decay)
    weights = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: weights.append([np.array(each) for each in head.get_weights()])
    )
    model.fit(x, y, batch_size=config.batch, epochs=config.epochs, callbacks=[watch], verbose=0)
    return pd.DataFrame(
        {
            "optimizer": optimizer,
            "decay": kind,
            "repeat": repeat,
            "epoch": range(1, config.epochs + 1),
            "train_loss": [float(np.mean((x @ w + b - y) ** 2) / 2) for w, b in weights],
            "test_loss": [float(np.mean((x_test @ w + b - y_test) ** 2) / 2) for w, b in weights],
            "norm": [float(np.linalg.norm(w)) for w, _ in weights],
        }
    )


def data(config: Config, seed: int) -> tuple[np.ndarray, ...]:
    """Draws training and test data from the linear truth."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(config.train + config.test, config.inputs)).astype("float32")
    y = (
        config.bias
        + config.weight * x.sum(axis=1, keepdims=True)
        + random.normal(0, config.noise, (len(x), 1))
    )
    return x[: config.train], y[: config.train], x[config.train :], y[config.train :]


def half_squared_error(truth, prediction):
    """The textbook's loss, (y - ŷ)² / 2."""
    return keras.ops.square(prediction - keras.ops.cast(truth, prediction.dtype)) / 2


def summary(epochs: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Returns the last epoch's means, and the standard deviation of the test loss over repeats."""
    last = epochs[epochs.epoch == config.epochs].drop(columns=["repeat", "epoch"])
    groups = last.groupby(["optimizer", "decay"], sort=False)
    table = groups.mean().reset_index()
    table["decay"] = table.decay.map(
        lambda kind: "λ = 0" if kind == "none" else f"λ = {config.decay:g}, {kind}"
    )
    table["spread of test_loss"] = groups.test_loss.std().fillna(0.0).to_numpy()
    return table


def draw(epochs: pd.DataFrame, config: Config) -> bytes:
    """Draws losses and norms over the epochs, a column an optimizer."""
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    panels = figure.subplots(2, len(OPTIMIZERS), sharex=True, sharey="row")
    colors = dict(zip(KINDS, ("C3", "C0", "C2"), strict=True))
    means = epochs.groupby(["optimizer", "decay", "epoch"]).mean(numeric_only=True)
    for column, optimizer in enumerate(OPTIMIZERS):
        losses, norms = panels[:, column]
        for kind in KINDS:
            curve = means.loc[optimizer, kind]
            label = "λ = 0" if kind == "none" else f"λ = {config.decay:g}, {kind}"
            # where two coincide, the later one is dotted so that both show
            style = {"decoupled": (0, (1, 2))}.get(kind, "solid")
            losses.plot(
                curve.index, curve.test_loss, color=colors[kind], ls=style, lw=2.2, label=f"{label}: test"
            )
            losses.plot(curve.index, curve.train_loss, color=colors[kind], ls=style, lw=1, alpha=0.6,
                        label=f"{label}: train")  # fmt: skip
            norms.plot(curve.index, curve.norm, color=colors[kind], ls=style, lw=2.2, label=label)
        losses.set(title=optimizer, yscale="log")
        norms.set(xlabel="epoch")
        for panel in (losses, norms):
            panel.grid(alpha=0.3)
    truth = config.weight * config.inputs**0.5
    for norms in panels[1]:
        norms.axhline(truth, color="black", lw=1, ls="--", label="‖w‖ of the truth")
    panels[0, 0].set_ylabel("loss without penalty")
    panels[1, 0].set_ylabel("‖w‖")
    panels[0, 1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    panels[1, 1].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return results.png(figure)


if __name__ == "__main__":
    sys.exit(main())
