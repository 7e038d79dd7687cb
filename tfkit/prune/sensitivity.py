"""How much each layer's sparsity costs."""

import contextlib
import dataclasses
import math
import numbers
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError, PruningError
from tfkit.prune.arguments import Patterns, require_png, require_sparsity
from tfkit.prune.groups import Group, Wiring
from tfkit.prune.kernels import Weight, weights_of
from tfkit.prune.mask import apply_mask, draw_masks
from tfkit.prune.score import WEIGHTS, score_units
from tfkit.prune.shrink import zeroed
from tfkit.report import progress
from tfkit.select import select_layers

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["path", "parameters", "sparsity", "score", "change"]


def layer_sensitivity(
    model: keras.Model,
    evaluate: Callable[[keras.Model], float],
    *,
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95),
    layers: Patterns = "*",
    kind: Literal["magnitude", "channels"] = "magnitude",
    criterion: str = "l2",
    plot: str | os.PathLike[str] | None = None,
    verbose: int = 0,
) -> "pd.DataFrame":
    """Measures what the model loses when one layer alone is pruned, layer by layer.

    For every layer and sparsity s the smallest weights of its kernels become zero, or, with
    ``kind="channels"``, what makes and what reads the channels of a group that score lowest.
    The model is judged, and the weights are put back bit for bit, also when `evaluate` fails.
    Nothing is trained in between, so the table tells which layers to spare and which to
    prune harder, not what a pruned model reaches in the end. `evaluate` must not train.

    Args:
        model: A built Keras 3 model.
        evaluate: Judges the model: ``model -> number``.
        sparsities: What to try, each in [0, 1).
        layers: Patterns of `select_layers`; layers without a prunable weight are passed by.
        kind: ``"magnitude"``, single weights; ``"channels"``, groups of channels as
            `plan_channel_pruning` finds them, for its ``scope="sensitivity"``. There a
            normalisation over channels still counts those that are zero.
        criterion: For channels, by what they are ranked: ``"l1"``, ``"l2"``, ``"bn_scale"`` or
            ``"fpgm"``.
        plot: Where to write the table as a picture (`plot_sensitivity`); None for nowhere.
        verbose: 1 shows a progress bar.

    Returns:
        A DataFrame with a row a layer (or group, by its name) and sparsity: `path`,
        `parameters` (those that can be pruned), `sparsity`, `score` and `change`, the score less
        that of the whole model.
        ``table.attrs["baseline"]`` is the score of the whole model.

    Raises:
        ArgumentTypeError: If `model` is no model, or `evaluate` cannot be called or returns
            no number.
        ArgumentError: If a sparsity is outside [0, 1), none is given, or `kind` is unknown.
        LayerNotFoundError: If a pattern matches nothing.
        PruningError: If no layer has a weight that can be pruned, or, for channels, the model
            has no graph.
        OutputPathError: If the folder of `plot` does not exist.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, name="a")])
        >>> _ = model.get_layer("a").kernel.assign([[1.0], [2.0], [3.0], [4.0]])
        >>> table = tfkit.layer_sensitivity(model, lambda model: float(model(np.ones((1, 4)))[0, 0]),
        ...                                 sparsities=[0.5, 0.75])
        >>> table[["path", "sparsity", "score", "change"]].values.tolist()
        [['a', 0.5, 7.0, -3.0], ['a', 0.75, 4.0, -6.0]]

    Source: Han et al., Learning both Weights and Connections (2015), figure 6; Li et
    al., Pruning Filters for Efficient ConvNets (2017), section 3.2, for channels.
    """
    graph.require_model(model)
    if not callable(evaluate):
        raise ArgumentTypeError(
            f"`evaluate` must be a function, model -> number. Received: evaluate={evaluate!r}."
        )
    for name, value, known in (("kind", kind, tuple(KINDS)), ("criterion", criterion, tuple(WEIGHTS))):
        if value not in known:
            raise ArgumentError(f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}.")
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
        require_png("plot", plot)
    trials = KINDS[kind](model, layers, criterion)
    baseline = _score(evaluate, model)
    rows = []
    with _progress(len(trials) * len(steps), verbose) as advance:
        for trial in trials:
            before = [keras.ops.copy(variable) for variable in trial.variables]
            try:
                for sparsity in steps:
                    for variable, values in zip(trial.variables, trial.prune(before, sparsity), strict=True):
                        variable.assign(values)
                    score = _score(evaluate, model)
                    rows.append((trial.path, trial.parameters, float(sparsity), score, score - baseline))
                    advance()
            finally:
                for variable, values in zip(trial.variables, before, strict=True):
                    variable.assign(values)
    import pandas as pd

    table = pd.DataFrame(rows, columns=COLUMNS)
    table.attrs["baseline"] = baseline
    if plot is not None:
        plot_sensitivity(table, plot)
    return table


@dataclasses.dataclass(frozen=True)
class Trial:
    """What is pruned alone.

    Attributes:
        path: Path of the layer, or name of the group.
        parameters: How many weights can be pruned there.
        variables: The weights that change.
        prune: Gives their values at a sparsity, from those before.
    """

    path: str
    parameters: int
    variables: list[keras.Variable]
    prune: Callable[[list[Any], float], list[Any]]


def _magnitude_trials(model: keras.Model, layers: Patterns, criterion: str) -> list[Trial]:
    prunable = {id(weight.variable): weight for weight in weights_of(model) if weight.obstacle is None}

    def trial(path: str, weights: list[Weight]) -> Trial:
        def prune(before: list[Any], sparsity: float) -> list[Any]:
            masks = draw_masks(before, sparsity, [weight.layout for weight in weights])
            return [apply_mask(mask, values) for mask, values in zip(masks, before, strict=True)]

        size = sum(math.prod(weight.variable.shape) for weight in weights)
        return Trial(path, size, [weight.variable for weight in weights], prune)

    trials = []
    for entry in select_layers(model, layers).entries:
        inside = [prunable.pop(id(each)) for each in entry.weights if id(each) in prunable]
        if inside:
            trials.append(trial(entry.path, inside))
    if not trials:
        raise PruningError(
            "A layer must have a kernel that can be pruned. "
            f"Received: layers={layers!r} in the model {model.name!r}, which reach none. "
            "tfkit.sparsity_table(model) gives the reason for each weight."
        )
    return trials


def _channel_trials(model: keras.Model, layers: Patterns, criterion: str) -> list[Trial]:
    wiring = Wiring(model)
    outside = wiring.not_chosen(layers)
    scores = score_units(wiring, criterion)
    units = wiring.units()

    def trial(number: int, group: Group, score: np.ndarray) -> Trial:
        uses = wiring.uses_of(number)
        order = np.argsort(score, kind="stable")

        def prune(before: list[Any], sparsity: float) -> list[Any]:
            gone = min(round(sparsity * len(order)), len(order) - 1)
            alive = wiring.alive({number: order[gone:]})
            return [
                zeroed(keras.ops.convert_to_numpy(values), each, wiring, alive)
                for values, each in zip(before, uses.values(), strict=True)
            ]

        without = units.copy()
        without[number] = 0
        size = sum(product(units) - product(without) for product in wiring.parameters)
        return Trial(group.name, int(size), [each[0].variable for each in uses.values()], prune)

    trials = [
        trial(number, group, score)
        for number, (group, score) in enumerate(zip(wiring.groups, scores, strict=True))
        if number not in outside and score is not None and len(group.units) > 1
    ]
    if not trials:
        raise PruningError(
            "At least one group of channels must be free to lose some. "
            f"Received: layers={layers!r} in the model {model.name!r}, which reach none. "
            "The table of tfkit.plan_channel_pruning gives the reason for each group."
        )
    return trials


KINDS = {"magnitude": _magnitude_trials, "channels": _channel_trials}


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
    with progress.bar(verbose=verbose) as bar:
        task = bar.add_task("sensitivity", total=total)
        yield lambda: bar.advance(task)


def plot_sensitivity(table: "pd.DataFrame", path: str | os.PathLike[str]) -> pathlib.Path:
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
    require_png("path", path)
    paths = list(dict.fromkeys(table.path))
    grids = {name: table.pivot(index="path", columns="sparsity", values=name).loc[paths]
             for name in ("score", "change")}  # fmt: skip
    sparsities = list(grids["score"].columns)
    width = 2.4 + 0.085 * max(map(len, paths)) + 0.95 * len(sparsities)
    figure = Figure(figsize=(width, 1.6 + 0.32 * len(paths)), layout="constrained")
    axes = figure.subplots()
    scores, changes = grids["score"].to_numpy(), np.abs(grids["change"].to_numpy())
    largest = float(changes[np.isfinite(changes)].max(initial=0)) or 1.0
    image = axes.imshow(grids["change"], cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    for row, column in np.ndindex(*scores.shape):
        strong = changes[row, column] > 0.6 * largest
        axes.text(column, row, f"{scores[row, column]:.4g}", ha="center", va="center",
                  fontsize=8, color="white" if strong else "black")  # fmt: skip
    axes.set_xticks(range(len(sparsities)), [f"{100 * each:g}%" for each in sparsities])
    axes.set_yticks(range(len(paths)), paths)
    axes.set(xlabel="sparsity of this layer alone", title="Score when one layer is pruned")
    figure.colorbar(image, ax=axes, label="change of the score")
    figure.savefig(path, format="png", dpi=130)
    return pathlib.Path(path)
