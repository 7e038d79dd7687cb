"""How much each layer's sparsity costs."""

import contextlib
import math
import numbers
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError, OutputPathError, PruningError
from tfkit.prune.arguments import require_sparsity
from tfkit.prune.kernels import Weight, weights_of
from tfkit.prune.mask import apply_mask, draw_masks
from tfkit.select import Pattern, select_layers

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["path", "parameters", "sparsity", "score", "change"]


def layer_sensitivity(
    model: keras.Model,
    evaluate: Callable[[keras.Model], float],
    *,
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    layers: Pattern | Iterable[Pattern] = "*",
    kind: Literal["magnitude"] = "magnitude",
    plot: str | os.PathLike | None = None,
    verbose: int = 0,
) -> "pd.DataFrame":
    """Measures what the model loses when one layer alone is pruned, layer by layer.

    For every layer and sparsity s the smallest weights of its kernels become zero, the
    model is judged, and the weights are put back bit for bit, also when `evaluate` fails.
    Nothing is trained in between, so the table tells which layers to spare and which to
    prune harder, not what a pruned model reaches in the end. `evaluate` must not train.

    Args:
        model: A built Keras 3 model.
        evaluate: Judges the model: ``model -> number``.
        sparsities: What to try, each in [0, 1).
        layers: Patterns of `select_layers`; layers without a prunable weight are passed by.
        kind: ``"magnitude"``, single weights.
        plot: Where to write the table as a picture (`plot_sensitivity`); None for nowhere.
        verbose: 1 shows a progress bar.

    Returns:
        A DataFrame with a row a layer and sparsity: `path`, `parameters` (those that can be
        pruned), `sparsity`, `score` and `change`, the score less that of the whole model.
        ``table.attrs["baseline"]`` is the score of the whole model.

    Raises:
        ArgumentTypeError: If `model` is no model, or `evaluate` cannot be called or returns
            no number.
        ArgumentError: If a sparsity is outside [0, 1), none is given, or `kind` is unknown.
        LayerNotFoundError: If a pattern matches nothing.
        PruningError: If no layer has a weight that can be pruned.
        OutputPathError: If the folder of `plot` does not exist.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="a")])
        >>> _ = model.get_layer("a").kernel.assign([[1.0], [2.0], [3.0], [4.0]])
        >>> table = tfkit.layer_sensitivity(model, lambda model: float(model(np.ones((1, 4)))[0, 0]),
        ...                                 sparsities=[0.5, 0.75])
        >>> table[["path", "sparsity", "score", "change"]].values.tolist()
        [['a', 0.5, 7.0, -3.0], ['a', 0.75, 4.0, -6.0]]

    Source: Han et al., Learning both Weights and Connections (2015), figure 6.
    """
    graph.require_model(model)
    if not callable(evaluate):
        raise ArgumentTypeError(
            f"`evaluate` must be a function, model -> number. Received: evaluate={evaluate!r}."
        )
    if kind != "magnitude":
        raise ArgumentError(f"`kind` must be 'magnitude'. Received: kind={kind!r}.")
    if not isinstance(sparsities, Iterable) or isinstance(sparsities, str):
        raise ArgumentTypeError(
            f"`sparsities` must be a list of numbers. Received: sparsities={sparsities!r}."
        )
    steps = [require_sparsity(f"sparsities[{i}]", each) for i, each in enumerate(sparsities)]
    if not steps or len(set(steps)) < len(steps):
        raise ArgumentError(
            "`sparsities` must hold at least one, and each once. "
            f"Received: sparsities={sparsities!r}. Write [0.5, 0.8, 0.9]."
        )
    if plot is not None:
        _require_path("plot", plot)
    groups = _prunable_by_layer(model, layers)
    baseline = _score(evaluate, model)
    rows = []
    with _progress(len(groups) * len(steps), verbose) as advance:
        for path, weights in groups.items():
            before = [keras.ops.copy(weight.variable) for weight in weights]
            size = sum(math.prod(weight.variable.shape) for weight in weights)
            try:
                for sparsity in steps:
                    masks = draw_masks(before, sparsity, [weight.layout for weight in weights])
                    for weight, values, mask in zip(weights, before, masks, strict=True):
                        weight.variable.assign(apply_mask(mask, values))
                    score = _score(evaluate, model)
                    rows.append((path, size, float(sparsity), score, score - baseline))
                    advance()
            finally:
                for weight, values in zip(weights, before, strict=True):
                    weight.variable.assign(values)
    import pandas as pd

    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["baseline"] = baseline
    if plot is not None:
        plot_sensitivity(table, plot)
    return table


def _prunable_by_layer(model: keras.Model, layers: Pattern | Iterable[Pattern]) -> dict[str, list[Weight]]:
    prunable = {id(weight.variable): weight for weight in weights_of(model) if weight.obstacle is None}
    groups = {}
    for entry in select_layers(model, layers).entries:
        inside = [prunable.pop(id(each)) for each in entry.weights if id(each) in prunable]
        if inside:
            groups[entry.path] = inside
    if not groups:
        raise PruningError(
            "A layer must have a kernel that can be pruned. "
            f"Received: layers={layers!r} in the model {model.name!r}, which reach none. "
            "tfkit.sparsity_table(model) gives the reason for each weight."
        )
    return groups


def _score(evaluate: Callable[[keras.Model], float], model: keras.Model) -> float:
    score = evaluate(model)
    if isinstance(score, bool) or not isinstance(score, numbers.Real):
        raise ArgumentTypeError(
            f"`evaluate` must return a number. Received: {score!r} of type {type(score).__name__}. "
            "Pick one value of model.evaluate(...), or convert a tensor with float(...)."
        )
    return float(score)


@contextlib.contextmanager
def _progress(total: int, verbose: int) -> Iterator[Callable[[], None]]:
    from rich import progress as bars

    with bars.Progress(disable=not verbose) as bar:
        task = bar.add_task("sensitivity", total=total)
        yield lambda: bar.advance(task)


def plot_sensitivity(table: "pd.DataFrame", path: str | os.PathLike) -> pathlib.Path:
    """Draws a table of `layer_sensitivity`: layers by sparsities, coloured by the change.

    Args:
        table: What `layer_sensitivity` returned, also after a round trip through a file.
        path: Where to write the PNG.

    Returns:
        The path.

    Raises:
        OutputPathError: If its folder does not exist.

    Examples:
        >>> import tempfile, pandas as pd, tfkit
        >>> table = pd.DataFrame([("a", 8, 0.5, 0.9, -0.1), ("b", 8, 0.5, 0.7, -0.3)],
        ...                      columns=["path", "parameters", "sparsity", "score", "change"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tfkit.plot_sensitivity(table, f"{folder}/sensitivity.png").read_bytes()[1:4]
        b'PNG'
    """
    import pandas as pd
    from matplotlib.figure import Figure

    if not isinstance(table, pd.DataFrame) or not {"path", "sparsity", "score", "change"} <= {*table.columns}:
        raise ArgumentTypeError(
            "`table` must be what layer_sensitivity returned, with path, sparsity, score and change. "
            f"Received: table={table!r}."
        )
    _require_path("path", path)
    paths = list(dict.fromkeys(table.path))
    grids = {name: table.pivot(index="path", columns="sparsity", values=name).loc[paths]
             for name in ("score", "change")}  # fmt: skip
    sparsities = list(grids["score"].columns)
    width = 2.4 + 0.085 * max(map(len, paths)) + 0.95 * len(sparsities)
    figure = Figure(figsize=(width, 1.6 + 0.32 * len(paths)), layout="constrained")
    axes = figure.subplots()
    changes = np.abs(grids["change"].to_numpy())
    largest = float(changes[np.isfinite(changes)].max(initial=0)) or 1.0
    image = axes.imshow(grids["change"], cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    for row, column in np.ndindex(*grids["score"].shape):
        strong = abs(grids["change"].iloc[row, column]) > 0.6 * largest
        axes.text(column, row, f"{grids['score'].iloc[row, column]:.4g}", ha="center", va="center",
                  fontsize=8, color="white" if strong else "black")  # fmt: skip
    axes.set_xticks(range(len(sparsities)), [f"{100 * each:g}%" for each in sparsities])
    axes.set_yticks(range(len(paths)), paths)
    axes.set(xlabel="sparsity of this layer alone", title="Score when one layer is pruned")
    figure.colorbar(image, ax=axes, label="change of the score")
    figure.savefig(path, format="png", dpi=130)
    return pathlib.Path(path)


def _require_path(name: str, path: str | os.PathLike) -> None:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"`{name}` must be the path of a PNG. Received: {name}={path!r}.")
    if not str(path) or pathlib.Path(path).is_dir():
        raise OutputPathError(
            f"`{name}` must name a file. Received: {name}={os.fspath(path)!r}. Write 'sensitivity.png'."
        )
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise OutputPathError(
            f"The folder of `{name}` must exist. Received: {name}={os.fspath(path)!r}. Make it first."
        )
