"""The experiment "train the head, then deeper", decided by validation."""

import dataclasses
import gc
import math
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.select import select_layers
from tfkit.transfer.comparison_arguments import (
    Patterns,
    check_arguments,
    check_picture,
    check_stages,
    fit_arguments,
    name_stages,
)
from tfkit.transfer.freeze import configure_base_model

if TYPE_CHECKING:
    import pandas as pd


def compare_unfreezing(
    build_model: Callable[[], keras.Model],
    stages: Mapping[str, Patterns] | Sequence[Patterns],
    train: Any,
    validation: Any,
    *,
    epochs: int,
    batch_size: int = 32,
    objective: str = "val_loss",
    mode: Literal["auto", "min", "max"] = "auto",
    batch_norm: Literal["frozen", "train"] = "frozen",
    callbacks: Callable[[], Sequence[keras.callbacks.Callback]] | None = None,
    seed: int | None = 0,
    plot: str | os.PathLike[str] | None = None,
    verbose: int | str = 0,
) -> "pd.DataFrame":
    """Trains a fresh model for each choice of layers and picks the choice that validates best.

    The stages differ in what trains and in nothing else: each begins from a new model, after
    the same seed. Name the shallower stages first, for a tie goes to the earlier one. No
    model is kept; train the chosen layers again with `configure_base_model`.

    Args:
        build_model: Returns a new compiled model with its pretrained weights at each call. It
            is called once more at first, and so is `callbacks`, to check what they make.
        stages: Name to patterns of `select_layers`, or a list of patterns, which then are
            the names: ``["head", "block5*..head", "*"]``.
        train: ``(x, y)``, ``(x, y, sample_weight)`` or a finite, batched tf.data.Dataset.
        validation: The same, of samples that are not in `train`.
        epochs: Epochs a stage, at least 1.
        batch_size: Samples a step, at least 1; a Dataset has batches of its own.
        objective: What decides, at its best epoch: any name in the history of `fit`.
        mode: Whether a ``"min"`` or ``"max"`` is best; ``"auto"`` asks Keras, as its EarlyStopping does.
        batch_norm: As in `configure_base_model`.
        callbacks: Returns a list of new callbacks for each stage, for callbacks keep state.
            What they add to the logs becomes a column.
        seed: Seeds each stage alike through `keras.utils.set_random_seed`, which a Dataset that
            shuffles does not obey; None leaves randomness alone.
        plot: An image to write: the scores, and the objective over the epochs. Its ending
            gives the format.
        verbose: As `fit` takes it; unless 0 a line is printed after each stage.

    Returns:
        One row a stage with the columns `stage`, `trainable_layers` and `trainable_parameters`
        (counts), `epochs` that ran, `best_epoch` (from 1), the objective, its counterpart in
        training, everything else that was logged at that epoch, `seconds`, and `chosen`: True
        for one stage. A stage whose objective was never finite has NaN. The frame's
        ``attrs["history"]`` has the values of every epoch: stage to name to list.

    Raises:
        ArgumentTypeError: If an argument is of the wrong kind, or `build_model` returns no Keras model.
        UnbuiltModelError: If its model has no weights yet.
        LayerNotFoundError: If a pattern matches nothing.
        ArgumentError: If a value is outside its range, the model is not compiled or not new, a
            stage trains nothing, the objective is not in the history or was never finite.
        OutputPathError: If the image cannot be written.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> def build():
        ...     base = keras.layers.Dense(2, activation="relu", name="base")
        ...     model = keras.Sequential([keras.Input((3,)), base, keras.layers.Dense(1, name="head")])
        ...     model.compile("sgd", "mse")
        ...     return model
        >>> data = np.ones((8, 3)), np.ones((8, 1))
        >>> table = tfkit.compare_unfreezing(build, ["head", "*"], data, data, epochs=2)
        >>> table[["stage", "trainable_layers", "trainable_parameters"]].values.tolist()
        [['head', 1, 3], ['*', 2, 11]]
        >>> int(table.chosen.sum()), list(table.attrs["history"]["head"])
        (1, ['loss', 'val_loss'])
    """
    check_arguments(build_model, callbacks, epochs, batch_size, mode, seed)
    named = name_stages(stages)
    fit = fit_arguments(train, validation, batch_size) | {"epochs": epochs, "verbose": verbose}
    if plot is not None:
        check_picture(plot)
    factory = _Factory(build_model, callbacks, seed)
    check_stages(factory.model(), named, batch_norm)
    factory.callbacks()

    found: list[_Stage] = []
    for name, patterns in named.items():
        gc.collect()  # Keras ties a model in circles: the last one goes before the next is built
        model = configure_base_model(factory.model(), patterns, batch_norm=batch_norm)
        watch = _Watch(objective, mode)
        start = time.perf_counter()
        model.fit(**fit, callbacks=[*factory.callbacks(), watch])
        found.append(_Stage.of(name, model, patterns, watch, time.perf_counter() - start))
        if verbose:
            print(found[-1].describe(objective))
        del model, watch
    table = _tabulate(found, objective)
    if plot is not None:
        _draw(found, table, objective, plot)
    return table


class _Watch(keras.callbacks.Callback):
    """Keeps the logs of every epoch and the best epoch, and stops a fit that lacks the objective.

    `sign` is 1 where the objective should be low, -1 where it should be high.
    """

    def __init__(self, objective: str, mode: str):
        super().__init__()
        self.objective = objective
        self.sign = {"min": 1, "max": -1}.get(mode, 0)
        self.rows: list[dict[str, float]] = []
        self.best: int | None = None

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        row = {name: float(value) for name, value in (logs or {}).items() if np.ndim(value) == 0}
        if not self.rows and self.objective not in row:
            raise ArgumentError(
                "`objective` must be in the history of training. "
                f"Received: objective={self.objective!r}; the history has {', '.join(sorted(row))}."
            )
        self.sign = self.sign or _find_sign(self.model, self.objective)
        self.rows.append(row)
        value = row.get(self.objective, math.nan)
        if math.isfinite(value) and (
            self.best is None or self.sign * value < self.sign * self.rows[self.best][self.objective]
        ):
            self.best = len(self.rows) - 1


@dataclasses.dataclass(frozen=True)
class _Stage:
    """What one stage did; `rows` are its epochs, and `best` the best one, None if none was finite."""

    name: str
    layers: int
    parameters: int
    seconds: float
    rows: list[dict[str, float]]
    best: int | None
    sign: int

    @classmethod
    def of(cls, name: str, model: keras.Model, patterns: Patterns, watch: _Watch, seconds: float) -> "_Stage":
        """Counts what trained and takes over what was watched."""
        training = {id(variable) for variable in model.trainable_variables}
        entries = select_layers(model, patterns).entries
        layers = sum(any(id(weight) in training for weight in entry.weights) for entry in entries)
        parameters = sum(math.prod(variable.shape) for variable in model.trainable_variables)
        return cls(name, layers, parameters, seconds, watch.rows, watch.best, watch.sign)

    def value(self, name: str) -> float:
        """Returns what was logged under a name at the best epoch, NaN if nothing was."""
        return math.nan if self.best is None else self.rows[self.best].get(name, math.nan)

    @property
    def history(self) -> dict[str, list[float]]:
        """Name to one value an epoch."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name, math.nan) for row in self.rows] for name in names}

    def describe(self, objective: str) -> str:
        """Returns one line for people who wait."""
        score = "never finite"
        if self.best is not None:
            score = f"{self.value(objective):.4g} at epoch {self.best + 1} of {len(self.rows)}"
        return (
            f"{self.name}: {objective} {score}, "
            f"{self.parameters:,} weights in {self.layers} layers trained in {self.seconds:.1f} s"
        )


def _find_sign(model: keras.Model, objective: str) -> int:
    """Returns 1 if Keras holds a low value of a metric for good, -1 for a high one."""
    if objective.endswith("loss"):  # one output's loss too, which Keras has no direction for
        return 1
    judge = keras.callbacks.EarlyStopping(objective)
    judge.set_model(model)
    try:
        judge.on_epoch_end(0, {objective: 0.0})
    except ValueError as error:
        raise ArgumentError(
            "Keras must know whether the objective should be low or high. "
            f"Received: objective={objective!r}, mode='auto'. Pass mode='min' or mode='max'."
        ) from error
    return 1 if judge.monitor_op(0.0, 1.0) else -1


class _Factory:
    """Makes the models and callbacks of the stages and sees to it that they are new."""

    def __init__(self, build: Callable[[], Any], callbacks: Callable[[], Any] | None, seed: int | None):
        self._build = build
        self._callbacks = callbacks
        self._seed = seed
        self._used: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()  # by id

    def model(self) -> keras.Model:
        """Returns a new model, after seeding."""
        if self._seed is not None:
            keras.utils.set_random_seed(self._seed)
        model = self._build()
        if not isinstance(model, keras.Model):
            raise ArgumentTypeError(
                "`build_model` must return a Keras 3 model (keras.Model). "
                f"Received: {model!r} of type {type(model).__module__}.{type(model).__name__}."
            )
        graph.require_model(model)
        if not model.compiled or model.optimizer is None:
            lack = "without optimizer" if model.compiled else "not compiled"
            raise ArgumentError(
                f"`build_model` must return a compiled model. Received: model={model.name!r}, {lack}. "
                "Call model.compile(optimizer, loss) in it."
            )
        parts = {id(weight): (weight, weight.path) for weight in model.weights}
        optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
        parts[id(optimizer)] = (optimizer, f"optimizer {optimizer.name!r}")
        if shared := [name for key, (_, name) in parts.items() if key in self._used]:
            raise ArgumentError(
                "`build_model` must make everything anew, or a stage would go on where another ended. "
                f"Received: model={model.name!r}, twice with the same {', '.join(shared[:3])}"
                f"{' …' if len(shared) > 3 else ''}. Load or clone the pretrained model in `build_model`, "
                "and compile it there with a new optimizer."
            )
        self._used.update({key: part for key, (part, _) in parts.items()})
        return model

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Returns new callbacks."""
        made = [] if self._callbacks is None else self._callbacks()
        if not isinstance(made, Sequence) or not all(
            isinstance(each, keras.callbacks.Callback) for each in made
        ):
            raise ArgumentTypeError(
                f"`callbacks` must return a list of Keras callbacks. Received: {made!r} from callbacks()."
            )
        if any(id(each) in self._used for each in made):
            raise ArgumentError(
                "`callbacks` must make new callbacks each time, for callbacks keep state. "
                f"Received: {made!r}, which an earlier stage has used. Create them inside the function."
            )
        self._used.update({id(each): each for each in made})
        return list(made)


def _tabulate(found: Sequence[_Stage], objective: str) -> "pd.DataFrame":
    """Returns a row a stage and marks the best; a tie goes to the earlier one."""
    import pandas as pd

    finite = [stage for stage in found if stage.best is not None]
    if not finite:
        raise ArgumentError(
            "The objective must be a finite number in at least one epoch of one stage. "
            f"Received: {objective}={found[0].rows[0][objective]} and the like in every epoch of "
            f"{', '.join(stage.name for stage in found)}. "
            "Lower the learning rate, clip gradients, or look for NaN in the data."
        )
    best = min(finite, key=lambda stage: stage.sign * stage.value(objective))
    logged = dict.fromkeys(name for stage in found for row in stage.rows for name in row)
    names = [name for name in (objective, objective.removeprefix("val_")) if name in logged]
    names = list(dict.fromkeys([*names, *logged]))
    rows = [
        {
            "stage": stage.name,
            "trainable_layers": stage.layers,
            "trainable_parameters": stage.parameters,
            "epochs": len(stage.rows),
            "best_epoch": None if stage.best is None else stage.best + 1,
            **{name: stage.value(name) for name in names},
            "seconds": stage.seconds,
            "chosen": stage is best,
        }
        for stage in found
    ]
    table = pd.DataFrame(rows).astype({"best_epoch": "Int64"})
    table.attrs["history"] = {stage.name: stage.history for stage in found}
    return table


def _draw(
    found: Sequence[_Stage], table: "pd.DataFrame", objective: str, path: str | os.PathLike[str]
) -> None:
    """Draws each stage's score, the chosen one marked, and the objective over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, max(3.8, 1.6 + 0.45 * len(found))), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = [stage.name[:40].replace("$", r"\$") for stage in found]  # $ would begin a formula
    for place, (stage, chosen) in enumerate(zip(found, table.chosen)):
        style = {"color": f"C{place}", "zorder": 4 if chosen else 3}
        shape = {"marker": "*", "markersize": 17} if chosen else {"marker": "o", "markersize": 9}
        left.plot(stage.value(objective), place, **shape, **style)
        values = [row.get(objective, math.nan) for row in stage.rows]
        width = 2.5 if chosen else 1.3
        right.plot(range(1, len(values) + 1), values, ".-", label=names[place], linewidth=width, **style)
    labels = [f"{name}\n{stage.parameters:,} weights" for name, stage in zip(names, found)]
    left.set_yticks(range(len(found)), labels)
    left.set_ylim(len(found) - 0.5, -0.5)
    left.set(xlabel=f"{objective} at the best epoch", title="By what trains (★ chosen)")
    right.set(xlabel="epoch", ylabel=objective, title="Over the epochs")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)
