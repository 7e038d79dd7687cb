"""Pictures of a search."""

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.collections import PathCollection
    from matplotlib.colors import Normalize

COLORS = "viridis"


def draw(table: pd.DataFrame, names: list[str], objective: str, direction: Literal["min", "max"]) -> Figure:
    """Draws the scores by trial, over two hyperparameters, and each trial as a line through all.

    Args:
        table: A search's table with at least one completed trial.
        names: The hyperparameters.
        objective: The name of the score.
        direction: ``"min"`` or ``"max"``.
    """
    completed = table[table.status == "completed"]
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    _by_trial(figure.add_subplot(grid[0, 0]), completed, objective, direction)
    color = _color_of(completed.score, direction)
    axes = figure.add_subplot(grid[0, 1])
    dots = _map(axes, completed, names, objective, color)
    figure.colorbar(dots, ax=axes, label=objective)
    _parallel(figure.add_subplot(grid[1, :]), completed, names, objective, color, direction)
    return figure


def _color_of(score: pd.Series, direction: str) -> "Normalize":
    """Returns the range of colours: the best half of the scores, for the worst can be far off."""
    from matplotlib.colors import Normalize

    ends = (score.min(), score.median()) if direction == "min" else (score.median(), score.max())
    return Normalize(*ends) if ends[0] < ends[1] else Normalize(score.min(), score.max())


def _by_trial(axes: Axes, completed: pd.DataFrame, objective: str, direction: str) -> None:
    best = completed.score.cummin() if direction == "min" else completed.score.cummax()
    axes.plot(completed.trial, completed.score, "o", color="0.6", label="trial")
    axes.step(completed.trial, best, where="post", color="C0", label="best so far")
    axes.set(xlabel="trial", ylabel=objective, title="Score by trial")
    low, high = completed.score.min(), completed.score.max()
    if low > 0 and high > 30 * low:
        axes.set_yscale("log")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    axes.legend()


def _map(
    axes: Axes, completed: pd.DataFrame, names: list[str], objective: str, color: "Normalize"
) -> "PathCollection":
    usual = [name for name in ("learning_rate", "weight_decay") if name in names]
    chosen = (usual + [name for name in names if name not in usual])[:2]
    x, y = chosen[0], chosen[1] if len(chosen) > 1 else "score"
    dots = axes.scatter(
        completed[x], completed[y], c=completed.score, cmap=COLORS, norm=color, edgecolors="black"
    )
    axes.set(xlabel=x, ylabel=objective if y == "score" else y, title="Score over the space")
    for scale, name in ((axes.set_xscale, x), (axes.set_yscale, y)):
        if name in names and _is_logarithmic(completed[name]):
            scale("log")
    axes.grid(alpha=0.3)
    return dots


def _is_logarithmic(values: pd.Series) -> bool:
    return bool(
        pd.api.types.is_numeric_dtype(values) and (values > 0).all() and values.max() > 20 * values.min()
    )


def _parallel(
    axes: Axes, completed: pd.DataFrame, names: list[str], objective: str, color: "Normalize", direction: str
) -> None:
    """Draws parallel coordinates: an axis for each hyperparameter and one for the score."""
    from matplotlib import colormaps

    columns = [*names, "score"]
    heights = np.stack([_height(completed[name]) for name in columns], axis=1)
    order = np.argsort(completed.score.to_numpy() * (-1 if direction == "min" else 1))  # the best on top
    for place in order:
        shade = colormaps[COLORS](color(completed.score.iloc[place]))
        axes.plot(range(len(columns)), heights[place], color=shade, alpha=0.8, lw=1.4)
    for number, name in enumerate(columns):
        values = completed[name]
        axes.axvline(number, color="0.4", lw=0.8)
        for value, height in _ticks(values):
            axes.annotate(
                value, (number, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8
            )
    axes.set_xticks(range(len(columns)), [*names, objective])
    axes.set(yticks=[], title="Each trial as a line", xlim=(-0.1, len(columns) - 0.6))
    for side in ("top", "left", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _height(values: pd.Series) -> np.ndarray:
    """Returns where values stand between 0 and 1."""
    if not pd.api.types.is_numeric_dtype(values) or values.dtype == bool:
        kinds = sorted(values.astype(str).unique())
        return values.astype(str).map({kind: place for place, kind in enumerate(kinds)}).to_numpy() / max(
            1, len(kinds) - 1
        )
    numbers = np.log10(values) if _is_logarithmic(values) else values
    low, high = numbers.min(), numbers.max()
    return ((numbers - low) / (high - low) if high > low else numbers * 0 + 0.5).to_numpy(float)


def _ticks(values: pd.Series) -> list[tuple[str, float]]:
    """Returns texts for an axis and where they stand."""
    if not pd.api.types.is_numeric_dtype(values) or values.dtype == bool:
        kinds = sorted(values.astype(str).unique())
        return [(kind, place / max(1, len(kinds) - 1)) for place, kind in enumerate(kinds)]
    low, high = values.min(), values.max()
    if low == high:
        return [(f"{low:.3g}", 0.5)]
    middle = np.sqrt(low * high) if _is_logarithmic(values) else (low + high) / 2
    return [(f"{low:.3g}", 0.0), (f"{middle:.3g}", 0.5), (f"{high:.3g}", 1.0)]
