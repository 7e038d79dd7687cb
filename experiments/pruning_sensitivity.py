"""Which layers of a denoiser bear pruning, and which do not?

The denoiser of `pruning_accuracy`, pretrained on the photographs. Each layer alone loses its
smallest weights, nothing trains after it, and the noisy test tiles judge.

    python -m experiments.pruning_sensitivity             under half a minute, two cores
    python -m experiments.pruning_sensitivity --quick     a few seconds less

Expected (seed 0): the first convolution and the last two, a seventh of the weights, cost 5 to
9 dB at 80% sparsity; the three in the middle 0.4 to 3.
"""

import dataclasses
import pathlib
import sys

import keras
import pandas as pd

import tfkit
from experiments import pruning_tasks, results


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the outcome.

    Attributes:
        seed: Seeds weights, noise and order.
        epochs: Rounds through the patches in pretraining.
        sparsities: What each layer is pruned to.
    """

    seed: int = 0
    epochs: int = 8
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.75, 0.8, 0.9, 0.95)


QUICK = Config(epochs=1, sparsities=(0.5, 0.9))


def main(arguments: list[str] | None = None) -> int:
    """Runs the experiment and returns the process's exit code."""
    return results.command(
        arguments,
        name="pruning_sensitivity",
        question="Which layers of a denoiser bear pruning, and which do not?",
        config=Config(),
        quick=QUICK,
        run=run,
    )


def run(config: Config, output: pathlib.Path) -> tuple[dict[str, pd.DataFrame], dict[str, bytes]]:
    """Prunes every layer alone; returns the table and the figure."""
    task = pruning_tasks.photographs(config.epochs, config.seed)
    model = task.build(keras)
    model.set_weights(task.weights)
    table = tfkit.layer_sensitivity(model, task.judge, sparsities=config.sparsities)
    picture = tfkit.plot_sensitivity(table, output / "pruning_sensitivity.png").read_bytes()
    return {"pruning_sensitivity": table}, {"pruning_sensitivity.png": picture}


if __name__ == "__main__":
    sys.exit(main())
