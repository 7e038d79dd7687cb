"""Figures that a report shows. Drawn without a display and returned as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tfkit.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def training_curves(histories: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Draws loss and learning rate over the epochs of several training runs.

    Args:
        histories: For each run's name, Keras's ``history.history``: metric name to one
            value an epoch. `loss`, `val_loss` and `learning_rate` are drawn.

    Returns:
        A PNG.

    Raises:
        ArgumentError: If there is no run.

    Examples:
        >>> training_curves({"run": {"loss": [2.0, 1.0], "learning_rate": [0.1, 0.01]}})[1:4]
        b'PNG'
    """
    if not histories:
        raise ArgumentError(f"`histories` must hold at least one run. Received: histories={histories!r}.")
    figure = _figure(11, 3.8)
    losses, rates = figure.subplots(1, 2)
    for number, (name, history) in enumerate(histories.items()):
        color = f"C{number}"
        for key, style in (("loss", "--"), ("val_loss", "-")):
            if values := history.get(key):
                label = f"{name}, {'validation' if key == 'val_loss' else 'training'}"
                losses.plot(range(1, len(values) + 1), values, style, color=color, label=label)
        if values := history.get("learning_rate"):
            rates.plot(range(1, len(values) + 1), values, "o-", color=color, label=name, markersize=3)
    losses.set(xlabel="epoch", ylabel="loss", yscale="log", title="Loss")
    rates.set(xlabel="epoch", ylabel="learning rate", title="Learning rate at the end of each epoch")
    for axes in (losses, rates):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    return _png(figure)


def picture_strip(pictures: Mapping[str, np.ndarray]) -> bytes:
    """Draws pictures side by side under their captions, pixel for pixel.

    Args:
        pictures: For each caption an array ``(height, width, 3)`` with values in [0, 1].

    Returns:
        A PNG.

    Raises:
        ArgumentError: If there is no picture.

    Examples:
        >>> import numpy as np
        >>> picture_strip({"grey": np.full((8, 8, 3), 0.5)})[1:4]
        b'PNG'
    """
    if not pictures:
        raise ArgumentError(f"`pictures` must hold at least one. Received: pictures={pictures!r}.")
    figure = _figure(2.6 * len(pictures), 3.1)
    for axes, (caption, picture) in zip(np.ravel(figure.subplots(1, len(pictures))), pictures.items()):
        axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
        axes.set_title(caption, fontsize=10)
        axes.axis("off")
    return _png(figure)


def trade_offs(table: "pd.DataFrame", *, score_label: str = "score") -> bytes:
    """Draws artifacts by latency, size and quality, with the Pareto front.

    Args:
        table: A row an artifact: `name`, `latency_ms`, `size_bytes`, and `score` (more is better) or none.
            Without scores the height shows the size.
        score_label: What the score is, with its unit.

    Returns:
        A PNG. Scores stand over what differs more between the artifacts, size or latency; the
        areas and the labels show the other. The line joins those that no other beats in
        everything shown.

    Raises:
        ArgumentError: If there is no row with a latency.

    Examples:
        >>> import pandas as pd
        >>> rows = {"name": ["a", "b"], "latency_ms": [1.0, 2.0], "size_bytes": [1e6, 4e6]}
        >>> trade_offs(pd.DataFrame(rows))[1:4]
        b'PNG'
    """
    table = table[table.latency_ms.notna()]
    if table.empty:
        raise ArgumentError(f"`table` must hold a row with a latency. Received: {len(table)} such rows.")
    scored = "score" in table and table.score.notna().all()
    size = table.size_bytes / 1e6
    height = table.score.astype(float) if scored else size
    shown = [(table.latency_ms, "latency, ms", "{:.3g} ms"), (size, "size, MB", "{:.2g} MB")]
    if scored and size.max() / size.min() > table.latency_ms.max() / table.latency_ms.min():
        shown.reverse()
    (across, title, _), (area, _, told) = shown
    figure = _figure(8, 4.8)
    axes = figure.subplots()
    axes.scatter(across, height, s=60 + 900 * area / area.max(), alpha=0.55, color="#2a6fbb")
    costs = np.stack([table.latency_ms, size, -height if scored else size], axis=1).astype(float)
    best = [row for row in range(len(costs)) if not _beaten(costs, row)]
    best.sort(key=lambda row: across.iloc[row])
    axes.plot(across.iloc[best], height.iloc[best], "--", color="#d97b29", label="Pareto front")
    middle = (across.min() + across.max()) / 2
    labels = sorted(zip(across, height, table.name, area, strict=True))
    for number, (x, y, name, other) in enumerate(labels):
        right = x > middle  # a label there would leave the picture
        axes.annotate(
            f"{name}, {told.format(other)}",
            (x, y),
            textcoords="offset points",
            xytext=(-9 if right else 9, -30 if number % 2 else 20),  # neighbours on different sides
            ha="right" if right else "left",
            fontsize=9,
        )
    axes.set(xlabel=title, ylabel=score_label if scored else "size, MB")
    axes.margins(0.18)
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    return _png(figure)


def _beaten(costs: np.ndarray, row: int) -> bool:
    """Tells whether another row costs no more in anything, and less in something."""
    no_more, less = (costs <= costs[row]).all(axis=1), (costs < costs[row]).any(axis=1)
    return bool((no_more & less).any())


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
