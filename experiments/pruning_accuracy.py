"""What does sparsity cost, and which way of pruning costs least?

Two small networks are pretrained: a classifier of scikit-learn's digits and a denoiser of its
photographs. Every way of pruning starts from the same weights and goes on with the same
batches in the same order, the same optimizer and the same rates; so does the dense control.
Only "one-shot" does not train on. TFMOT, the library whose schedules tfkit uses, prunes a
tf_keras twin of the same weights. Scores are of data that nothing was trained on.

    python -m experiments.pruning_accuracy             about ten minutes, two cores
    python -m experiments.pruning_accuracy --quick     under a minute

Seeded, `runs` seeds from ``1000 * seed`` on;
another processor rounds otherwise, which training magnifies.

Expected (seed 0): at 80% gradual pruning costs the digits 0.3 points per layer and less under
the other scopes. At 95% per layer costs 6 points, global and ERK under 3. On the photographs
ERK is best at every sparsity, with 0.3 dB lost at 80%, and global is worst of what trains:
the last layer begins at zero and loses nearly all its weights. With that layer left out,
global is ahead of per layer. TFMOT ends beside per layer.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
import tf_keras
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorflow_model_optimization.sparsity import keras as tfmot

import tfkit
from experiments import pruning_tasks, results
from experiments.pruning_tasks import Task, Weights, train


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights, noise, order and which digits are judged.
        runs: Repetitions, each with a seed and a pretrained network of its own.
        sparsities: Fractions of zeros in the kernels.
        digit_epochs: Rounds through the digits in pretraining, and as many again in each way.
        photograph_epochs: The same through the patches of the photographs.
    """

    seed: int = 0
    runs: int = 5
    sparsities: tuple[float, ...] = (0.5, 0.75, 0.8, 0.9, 0.95)
    digit_epochs: int = 10
    photograph_epochs: int = 8


QUICK = Config(runs=1, sparsities=(0.9,), digit_epochs=3, photograph_epochs=1)

DENSE, ONE_SHOT = "dense", "one-shot"
RAMP = 0.5  # the share of the updates over which a gradual way reaches its sparsity


# --- the ways ------------------------------------------------------------------------------------


def prune_untrained(tasks: Sequence[Task], sparsity: float) -> Iterator[Weights]:
    """Prunes at once and leaves it at that."""
    for task in tasks:
        network = task.build(keras)
        network.set_weights(task.weights)
        yield tfkit.prune_now(network, sparsity).get_weights()


def prune_first(tasks: Sequence[Task], sparsity: float) -> Iterator[Weights]:
    """Draws the masks at the first update and holds them."""
    schedule = tfkit.ConstantSparsity(sparsity, begin_step=1, end_step=1, frequency=1)
    return train(tasks, lambda network: tfkit.prune_low_magnitude(network, schedule))


def prune_gradually(tasks: Sequence[Task], sparsity: float, **options: Any) -> Iterator[Weights]:
    """Prunes more and more while it trains; the options are `prune_low_magnitude`'s."""
    schedule = gradual(tasks[0], sparsity)
    return train(tasks, lambda network: tfkit.prune_low_magnitude(network, schedule, **options))


def prune_with_tfmot(tasks: Sequence[Task], sparsity: float) -> Iterator[Weights]:
    """Does the same per layer by TFMOT, on a tf_keras twin."""
    schedule = gradual(tasks[0], sparsity)
    return train(
        tasks,
        lambda network: tfmot.prune_low_magnitude(network, schedule),
        framework=tf_keras,
        callbacks=[tfmot.UpdatePruningStep()],
    )


def gradual(task: Task, sparsity: float) -> tfkit.PolynomialDecay:
    """Returns the schedule from dense to a sparsity, masks drawn at every fortieth of the updates."""
    frequency = max(task.updates // 40, 1)
    end = 1 + frequency * int(RAMP * task.updates / frequency)  # where masks are drawn
    return tfkit.PolynomialDecay(0.0, sparsity, begin_step=1, end_step=end, frequency=frequency)


WAYS: dict[str, Callable[[Sequence[Task], float], Iterator[Weights]]] = {
    ONE_SHOT: prune_untrained,
    "one-shot, then trained": prune_first,
    "gradual, per layer": functools.partial(prune_gradually, scope="layer"),
    "gradual, global": functools.partial(prune_gradually, scope="global"),
    "gradual, ERK": functools.partial(prune_gradually, scope="erk"),
    "TFMOT": prune_with_tfmot,
}
WHOLE = ("gradual, global", "gradual, ERK")  # sparse as a whole, not kernel by kernel


def require_sparsity(weights: Weights, sparsity: float, way: str) -> None:
    """Checks that a network is as sparse as it claims, to within one weight a kernel.

    Raises:
        PruningError: If it is not.
    """
    kernels = [weight for weight in weights if weight.ndim > 1]
    excess = [np.count_nonzero(kernel) - kernel.size * (1 - sparsity) for kernel in kernels]
    wrong = abs(sum(excess)) > len(kernels) if way in WHOLE else max(map(abs, excess)) > 1
    if wrong:
        raise tfkit.PruningError(
            "A pruned network must have the sparsity it is judged by. "
            f"Received: {way} at {sparsity:g}, which keeps {np.round(excess, 1).tolist()} weights too many "
            "in its kernels."
        )


# --- the runs ------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="pruning_accuracy",
        question="What does sparsity cost, and which way of pruning costs least?",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Prunes in every way on both data sets; returns the tables and the figure."""
    seeds = range(1000 * config.seed, 1000 * config.seed + config.runs)
    tasks = {
        "digits": [pruning_tasks.digits(config.digit_epochs, seed) for seed in seeds],
        "photographs": [pruning_tasks.photographs(config.photograph_epochs, seed) for seed in seeds],
    }
    scores = []
    for data in tasks:
        for way, sparsity, weights in prune(tasks[data], config.sparsities):
            for number, (task, each) in enumerate(zip(tasks[data], weights, strict=True)):
                if sparsity:
                    require_sparsity(each, sparsity, way)
                scores.append((data, way, sparsity, number, task.score(each)))
            print(f"{data}, {way}, {sparsity:.0%}: {scores[-1][-1]:.2f} in the last run", flush=True)
    table = summary(pd.DataFrame(scores, columns=["data", "way", "sparsity", "run", "score"]))
    tables = {data: wide(table[table.data == data]) for data in tasks}
    middle = config.sparsities[len(config.sparsities) // 2]
    tables |= {"last_layer": spare_last_layer(tasks["photographs"], middle), "runs": table}
    return tables, {"pruning_accuracy.png": draw(table)}


def prune(
    tasks: Sequence[Task], sparsities: Sequence[float]
) -> Iterator[tuple[str, float, Iterable[Weights]]]:
    """Yields way, sparsity and the weights for each task; one-shot at 0 is what all begin with."""
    yield DENSE, 0.0, train(tasks)
    yield ONE_SHOT, 0.0, [task.weights for task in tasks]
    for sparsity in sparsities:
        for way, weights_of in WAYS.items():
            yield way, sparsity, weights_of(tasks, sparsity)


def spare_last_layer(tasks: Sequence[Task], sparsity: float) -> pd.DataFrame:
    """Returns what the denoiser gains if its last layer, whose weights begin at zero, stays whole.

    `zeros` is the share of zeros in all kernels, `last_layer_weights` how many the last one keeps;
    both are of the first run.
    """
    rows = []
    for scope in ("layer", "global"):
        for name, layers in (("pruned", "*"), ("left out", ["*", "!decoder_conv3"])):
            ends = list(prune_gradually(tasks, sparsity, scope=scope, layers=layers))
            scores = [task.score(weights) for task, weights in zip(tasks, ends, strict=True)]
            kernels = [weight for weight in ends[0] if weight.ndim > 1]
            kept = [np.count_nonzero(kernel) for kernel in kernels]
            rows.append(
                {
                    "scope": scope,
                    "last_layer": name,
                    "psnr_db": np.mean(scores).round(2),
                    "spread": pd.Series(scores).std().round(2),
                    "zeros": f"{1 - sum(kept) / sum(kernel.size for kernel in kernels):.1%}",
                    "last_layer_weights": f"{kept[-1]} of {kernels[-1].size}",
                }
            )
    return pd.DataFrame(rows)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Returns a row a way and sparsity: mean and standard deviation over the runs.

    `cost` is what the dense control of the same run has more, so that what a run's networks
    have in common drops out.
    """
    dense = scores[scores.way == DENSE].set_index(["data", "run"]).score
    cost = dense.loc[zip(scores.data, scores.run)].to_numpy() - scores.score
    groups = scores.assign(cost=cost).groupby(["data", "way", "sparsity"], sort=False)
    columns = {"mean": ("score", "mean"), "spread": ("score", "std")}
    columns |= {"cost": ("cost", "mean"), "cost_spread": ("cost", "std")}
    return (groups.agg(**columns).round(3) + 0.0).reset_index()  # no -0.0


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Returns a row a way with a column a sparsity: mean ± standard deviation."""
    decimals = 1 if table.data.iloc[0] == "digits" else 2

    def text(row: Any) -> str:
        spread = "" if np.isnan(row.spread) else f" ± {row.spread:.{decimals}f}"
        return f"{row.mean:.{decimals}f}{spread}"

    rows: dict[str, dict[str, str]] = {}
    for row in table.sort_values("sparsity", kind="stable").itertuples():
        rows.setdefault(row.way, {"way": row.way})[f"{row.sparsity:.0%}"] = text(row)
    wide = pd.DataFrame(rows.values())
    return wide.astype(object).where(wide.notna(), None)


# --- the figure ----------------------------------------------------------------------------------

STYLES = {
    ONE_SHOT: {"color": "#999999", "marker": "x", "linestyle": ":"},
    "one-shot, then trained": {"color": "#e09f3e", "marker": "s", "linestyle": "--"},
    "gradual, per layer": {"color": "#219ebc", "marker": "o"},
    "gradual, global": {"color": "#023047", "marker": "o"},
    "gradual, ERK": {"color": "#7b2cbf", "marker": "o"},
    "TFMOT": {"color": "#d1495b", "marker": "D", "linestyle": "--"},
}


def draw(table: pd.DataFrame) -> bytes:
    """Draws the score over the sparsity, a line a way and a panel a data set; bars are the spread."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _panel(left, table[table.data == "digits"])
    _panel(right, table[table.data == "photographs"])
    left.set(title="Digits", ylabel="test accuracy, %")
    right.set(title="Photographs, denoised", ylabel="test PSNR, dB")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    return results.png(figure)


def _panel(axes: Axes, table: pd.DataFrame) -> None:
    dense = table[table.way == DENSE].iloc[0]
    half = 0.0 if np.isnan(dense.spread) else dense.spread
    axes.axhspan(dense["mean"] - half, dense["mean"] + half, color="#2a9d8f", alpha=0.15, linewidth=0)
    axes.axhline(dense["mean"], color="#2a9d8f", linewidth=1.4, label="dense, trained on as long")
    for number, (way, style) in enumerate(STYLES.items()):
        rows = table[(table.way == way) & (table.sparsity > 0)]
        bars = rows.spread.fillna(0) if way != ONE_SHOT else None  # they would stand there without it
        apart = 1.02 ** (number - (len(STYLES) - 1) / 2)  # so that bars do not hide each other
        axes.errorbar(
            apart / (1 - rows.sparsity), rows["mean"], bars, capsize=2.5, elinewidth=1,
            markersize=5, linewidth=1.7, label=way, **style,
        )  # fmt: skip
    axes.set_xscale("log")  # of one weight in how many stays, which tells 75% and 95% apart
    ticks = table.sparsity[table.sparsity > 0].unique()
    axes.set_xticks(1 / (1 - ticks), [f"{tick:.0%}" for tick in ticks])
    axes.minorticks_off()
    trained = table[table.way != ONE_SHOT]
    low, high = (trained["mean"] + sign * trained.spread.fillna(0) for sign in (-1, 1))
    margin = 0.05 * (high.max() - low.min())
    axes.set_ylim(low.min() - margin, high.max() + margin)  # one-shot falls out of it
    axes.set_xlabel("sparsity")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main())
