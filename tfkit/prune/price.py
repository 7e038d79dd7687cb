"""What it costs a model's quality that a group loses channels: how groups are compared."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.prune.budget import Cost, Ladder, Price
from tfkit.prune.groups import Wiring
from tfkit.prune.score import Scores

if TYPE_CHECKING:
    import pandas as pd

SCOPES = ("global", "uniform", "sensitivity")


def price_of(
    scope: str,
    wiring: Wiring,
    ladders: Sequence[Ladder],
    scores: Scores,
    cost: Cost,
    sensitivity: "pd.DataFrame | None",
    *,
    per_saving: bool = False,
) -> Price:
    """Returns the price of a step down a ladder, by the scope.

    `per_saving` lets ``"global"`` weigh scores against what a step saves.
    """
    if scope == "uniform":
        return price_by_fraction(ladders)
    if scope == "global":
        known = cast(list[np.ndarray], scores)  # a group without scores has no step to be priced
        return price_by_share(ladders, known, cost) if per_saving else price_by_score(ladders, known)
    return price_by_sensitivity(wiring, ladders, sensitivity, cost)


def price_by_fraction(ladders: Sequence[Ladder]) -> Price:
    """Returns the fraction of the group that is gone after a step: all groups fall alike."""
    return lambda group, level: 1 - ladders[group].levels[level] / ladders[group].levels[0]


def price_by_score(ladders: Sequence[Ladder], scores: Sequence[np.ndarray]) -> Price:
    """Returns the mean score of the units that go."""
    return lambda group, level: float(np.mean(scores[group][ladders[group].removed(level)]))


def price_by_share(ladders: Sequence[Ladder], scores: Sequence[np.ndarray], cost: Cost) -> Price:
    """Returns by what factor the share of the score that stays falls, for what a step saves.

    ``-(log s' - log s) / saving``, where s is the share of a group's score that stays: the
    groups work one behind the other, so that their shares multiply.
    """
    highest: dict[int, float] = {}

    def price(group: int, level: int) -> float:
        ladder = ladders[group]
        before, after = (float(scores[group][ladder.kept(each)].sum()) for each in (level - 1, level))
        saved = cost.value() - cost.after(group, ladder.levels[level])
        lost = np.log(max(before, 1e-12) / max(after, 1e-12))
        highest[group] = max(highest.get(group, 0.0), float(lost / max(saved, 1e-12)))
        return highest[group]

    return price


def price_by_sensitivity(
    wiring: Wiring, ladders: Sequence[Ladder], table: "pd.DataFrame | None", cost: Cost
) -> Price:
    """Returns what the score falls by, by a table, for each part of the cost that is saved.

    Between the measured fractions the loss is a straight line, from 0 at none; it never falls
    where more goes.
    """
    losses = read_sensitivity(wiring, table, ladders)
    whole = cost.value()
    highest: dict[int, float] = {}

    def price(group: int, level: int) -> float:
        ladder = ladders[group]
        gone = [1 - ladder.levels[each] / ladder.levels[0] for each in (level - 1, level)]
        lost = losses[group](gone[1]) - losses[group](gone[0])
        saved = (cost.value() - cost.after(group, ladder.levels[level])) / whole
        highest[group] = max(highest.get(group, 0.0), lost / max(saved, 1e-12))
        return highest[group]

    return price


def read_sensitivity(
    wiring: Wiring, table: "pd.DataFrame | None", ladders: Sequence[Ladder]
) -> list[Callable[[float], float]]:
    """Returns for each group the loss of the score as a function of the fraction that goes.

    A thousandth of the largest loss, times the fraction squared, is added, so that groups
    whose loss was too small to measure give evenly.

    Raises:
        ArgumentTypeError: If the table is none of `layer_sensitivity`.
        ArgumentError: If it lacks a group, or its score rises where channels go.
    """
    import pandas as pd

    columns = {"path", "sparsity", "change"}
    if not isinstance(table, pd.DataFrame) or not columns <= {*table.columns}:
        raise ArgumentTypeError(
            "`sensitivity` must be what layer_sensitivity(model, evaluate, kind='channels') returned. "
            f"Received: sensitivity={table!r:.200}."
        )
    names = [group.name for group in wiring.groups]
    missing = [n for n, ladder in zip(names, ladders) if len(ladder.levels) > 1 and n not in {*table.path}]
    if missing:
        raise ArgumentError(
            "`sensitivity` must hold every group that may lose channels. "
            f"Received: a table without {', '.join(missing[:5])}{' and more' if missing[5:] else ''}. "
            "Measure it on this model with kind='channels', or leave these out of `layers`."
        )
    harshest = table[table.sparsity == table.sparsity.max()].change
    noise = 0.01 * float(table.score.abs().mean()) if "score" in table else 0.0
    if not np.isfinite(table.change).all() or harshest.mean() > noise:
        raise ArgumentError(
            "`sensitivity` must be of a finite score that is better when higher. "
            f"Received: a table whose score changes by {harshest.mean():.3g} on average where most goes. "
            "Let `evaluate` return an accuracy, or the negative of a loss."
        )
    grain = 1e-3 * max(float(-table.change.min()), 1e-12)

    def loss_of(name: str) -> Callable[[float], float]:
        rows = table[table.path == name].sort_values("sparsity")
        gone = np.array([0.0, *rows.sparsity])
        lost = np.maximum.accumulate([0.0, *-rows.change])
        slope = (lost[-1] - lost[-2]) / (gone[-1] - gone[-2]) if len(gone) > 1 else 0.0

        def loss(fraction: float) -> float:
            beyond = max(0.0, fraction - gone[-1])
            return float(np.interp(fraction, gone, lost)) + slope * beyond + grain * fraction**2

        return loss

    return [loss_of(name) for name in names]
