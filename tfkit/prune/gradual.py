"""Channel pruning in steps, with training in between."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import tensorflow as tf
from keras.callbacks import Callback

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.prune.arguments import require_count
from tfkit.prune.batches import finite, read_batches
from tfkit.prune.budget import levels
from tfkit.prune.channels import plan_channel_pruning
from tfkit.prune.distillation import distill, read_distillation, require_distillable
from tfkit.prune.groups import Wiring
from tfkit.prune.plan import ChannelPlan
from tfkit.prune.recalibration import recalibrate_batch_norm
from tfkit.prune.shrink import shrink
from tfkit.prune.target import Target, read_target
from tfkit.report import progress
from tfkit.select import select_layers
from tfkit.training import compile_settings

if TYPE_CHECKING:
    import pandas as pd

Callbacks: TypeAlias = Callback | Sequence[Callback] | None
CALIBRATION_BATCHES = 64  # enough for statistics, however large the data


@dataclasses.dataclass(frozen=True)
class GradualPruning:
    """What `prune_channels_gradually` did.

    Attributes:
        model: The smaller model, trained and compiled.
        plans: The plan of each step that removed channels, for the model of the step before.
        table: A row a step: `step`, `flops` and `parameters` of the smaller model, and for
            each metric its value behind the removal (``pruned_…``, statistics measured anew
            where they were) and after training; on the validation data if there are any, else
            on the training data.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(2)])
        >>> model.compile("sgd", "mse")
        >>> x = np.ones((8, 4))
        >>> done = tfkit.prune_channels_gradually(model, x, x[:, :2], parameters=0.5, steps=1)
        >>> list(done.table.columns)
        ['step', 'flops', 'parameters', 'pruned_loss', 'loss']
    """

    model: keras.Model
    plans: tuple[ChannelPlan, ...]
    table: "pd.DataFrame"


def prune_channels_gradually(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    flops: float | None = None,
    parameters: float | None = None,
    ratio: float | None = None,
    steps: int = 5,
    epochs: int = 1,
    batch_size: int = 32,
    validation_data: Any = None,
    callbacks: Callbacks | Callable[[int], Callbacks] = (),
    recalibrate: bool = True,
    distillation: Any = None,
    distillation_weight: float = 0.5,
    keep_optimizer: bool = False,
    verbose: int = 0,
    **options: Any,
) -> GradualPruning:
    """Removes channels in steps and trains in between, so that the model recovers on its way.

    Step i of n leaves ``target^(i/n)`` of the model, so each takes the same share of what is
    left. After each the statistics of BatchNormalization are measured anew and the model is
    trained, with its own loss and metrics and, on request, towards the unpruned model's
    outputs. A step that the one before has reached already, as widths are coarse, only trains.

    Args:
        model: A compiled functional or Sequential model. Not changed.
        x: Training data: an array, a list or dict of arrays, or a dataset of pairs, or of triples
            with sample weights: a tf.data.Dataset that comes to an end, or a PyDataset.
        y: Targets; None for datasets.
        flops: Target as in `plan_channel_pruning`; exactly one of the three.
        parameters: Target as in `plan_channel_pruning`.
        ratio: Target as in `plan_channel_pruning`.
        steps: Removals, at least 1.
        epochs: Epochs of training after each removal, at least 1.
        batch_size: Samples a batch, for arrays.
        validation_data: A tuple ``(x, y)`` or ``(x, y, weights)``, or a dataset, for the table
            and the callbacks.
        callbacks: Callbacks of each training, whose model is the smaller model, under
            distillation as well; or a function that gives those of a step, counted from 1. What
            keeps a best score over trainings, as ModelCheckpoint does, keeps that of the widest
            model: give it to the last step only.
        recalibrate: Whether to measure the statistics of BatchNormalization anew after each
            removal, on up to 64 batches.
        distillation: A loss of `keras.distillation`, or a list of them, between the unpruned
            model and the smaller one, ``FeatureDistillation(loss="mse")`` for outputs as they are;
            for logits ``LogitsDistillation(temperature=3.0, loss=keras.losses.KLDivergence())``,
            as Keras 3.15 makes no probabilities without that loss. None for none.
        distillation_weight: Share of distillation in the loss, in (0, 1].
        keep_optimizer: Whether the optimizer keeps, over removals, what it has learned of the
            weights that stay; otherwise it begins anew each time, as it is configured. A
            schedule of its rate goes on with the first, and begins anew with the second.
        verbose: 1 shows the steps, 2 also Keras's own progress.
        **options: More arguments of `plan_channel_pruning`: criterion, scope, layers,
            multiple_of, data, … Data for a criterion default to the training data. A table
            of sensitivity is read anew for the narrower model of each step.

    Returns:
        A `GradualPruning`: `.model`, `.table`, `.plans`.

    Raises:
        ArgumentTypeError: If an argument is of the wrong kind.
        ArgumentError: If the model is not compiled, a count is below 1, or what
            `plan_channel_pruning` refuses.
        PruningError: As `plan_channel_pruning` does, before anything is trained.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> x = np.random.default_rng(0).normal(size=(64, 4))
        >>> done = tfkit.prune_channels_gradually(model, x, x[:, :2], parameters=0.5, steps=2)
        >>> done.model.count_params(), model.count_params(), list(done.table.step)
        (114, 226, [1, 2])

    Source: Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient
    Inference (2017), section 2, iterative pruning; Hinton et al., Distilling the Knowledge in a
    Neural Network (2015).
    """
    graph.require_compiled(model)
    target = read_target(flops=flops, parameters=parameters, ratio=ratio)
    for name, value in (("steps", steps), ("epochs", epochs), ("batch_size", batch_size)):
        require_count(name, value)
    losses = read_distillation(distillation, distillation_weight)
    _check_data(x, y, validation_data, verbose)
    arrays = (x, y) if y is not None else x
    if "layers" in options:  # a layer, or what tells layers, would be that of the first model only
        options["layers"] = list(select_layers(model, options["layers"]).paths)
    options.setdefault("batch_size", batch_size)
    if options.get("criterion") in ("activation", "taylor"):
        options.setdefault("data", _some(arrays, batch_size))
    whole = plan_channel_pruning(model, **{**options, target.name: target.amount})  # refuses early
    options["min_channels"] = _fewest(whole, options)
    has_norm = any(isinstance(each, keras.layers.BatchNormalization) for each in graph.sublayers(model))
    calibration = _some(arrays, batch_size) if recalibrate and has_norm else None
    teacher = shrink(Wiring(model), {})[0] if losses else None  # a copy: Keras freezes its teacher
    if teacher is not None:
        first, *_ = read_batches(model, _some(arrays, batch_size), batch_size)
        require_distillable(teacher, losses, first[0])
    fit = {
        "batch_size": None if y is None else batch_size,
        "epochs": epochs,
        "shuffle": not isinstance(x, tf.data.Dataset),  # which shuffles itself
        "validation_data": validation_data,
        "verbose": 2 if verbose > 1 else 0,
    }
    judge = {"x": x, "y": y} if validation_data is None else _as_arguments(validation_data)
    smaller, rows = model, []
    plans: list[ChannelPlan] = []
    with _progress(steps, verbose) as advance:
        for step in range(1, steps + 1):
            aim = _aim(target, whole, plans, step / steps)
            if aim is not None:
                plans.append(plan_channel_pruning(smaller, **{**options, target.name: aim}))
                before, smaller = smaller, plans[-1].apply(smaller, keep_optimizer=keep_optimizer)
                if not keep_optimizer:
                    smaller.compile(**compile_settings(before))
                if calibration is not None:
                    recalibrate_batch_norm(smaller, calibration, batch_size=batch_size)
            pruned = smaller.evaluate(**judge, verbose=0, return_dict=True)
            fit["callbacks"] = _callbacks_of(callbacks, step)
            if teacher is None:
                smaller.fit(x, y, **fit)
            else:
                distill(smaller, teacher, losses, distillation_weight, x, y, fit)
            trained = smaller.evaluate(**judge, verbose=0, return_dict=True)
            rows.append(
                {"step": step} | plans[-1].after | {f"pruned_{k}": v for k, v in pruned.items()} | trained
            )
            advance(f"step {step}: {plans[-1].after['parameters']:.0f} weights, loss {trained['loss']:.4g}")
    import pandas as pd

    return GradualPruning(smaller, tuple(plans), pd.DataFrame(rows))


def _fewest(whole: ChannelPlan, options: Mapping[str, Any]) -> dict[str, int]:
    """Returns the fewest channels of each group, counted from the whole model.

    A group of a later step is narrower, and its own multiples and fractions would be, too.
    """
    multiple_of, most = options.get("multiple_of", 8), options.get("max_ratio", 0.9)
    given = options.get("min_channels", 1)
    fewest = {}
    for group in whole.groups:
        if group.kept is not None:
            width = group.channels_after // len(group.kept)
            own = given.get(group.name, 1) if isinstance(given, Mapping) else given
            steps = levels(group.channels_before // width, width, multiple_of, most, own)
            fewest[group.name] = steps[-1] * width
    return fewest


def _aim(target: Target, whole: ChannelPlan, plans: Sequence[ChannelPlan], share: float) -> float | None:
    """Returns the target of a step for the model as it is now; None if it has reached it.

    A step ends below its aim where widths are coarse, so each is counted from the whole model.

    Args:
        target: The target of all steps.
        whole: A plan for the whole model.
        plans: The plans of the steps before.
        share: Which part of the way the step is to reach, in (0, 1].
    """
    if target.name == "ratio":
        free = {group.name for group in whole.groups if group.kept is not None and group.reason is None}
        total = sum(group.channels_before for group in whole.groups if group.name in free)
        groups = [group for group in (plans[-1] if plans else whole).groups if group.name in free]
        now = [group.channels_after if plans else group.channels_before for group in groups]
        may = [count for count, group in zip(now, groups) if not plans or len(group.kept or ()) > 1]
        gone = sum(now) - total * (1 - target.amount) ** share
        return gone / sum(may) if gone > 1e-9 * total else None
    before = whole.before[target.name]
    end = target.amount / before if target.amount > 1 else target.amount
    wanted = before * end**share
    return wanted if wanted < (plans[-1].after[target.name] if plans else before) else None


def _callbacks_of(callbacks: Callbacks | Callable[[int], Callbacks], step: int) -> list[Any]:
    found = callbacks(step) if callable(callbacks) and not isinstance(callbacks, Callback) else callbacks
    return [] if found is None else [found] if isinstance(found, Callback) else list(found)


def _check_data(x: Any, y: Any, validation_data: Any, verbose: Any) -> None:
    """Checks what would fail inside Keras once channels have gone.

    Raises:
        ArgumentTypeError: If an argument is of the wrong kind.
        ArgumentError: If targets are missing, or given twice, or data never end.
    """
    datasets = tf.data.Dataset | keras.utils.PyDataset
    for name, data in (("x", x), ("validation_data", validation_data)):
        if isinstance(data, datasets):
            finite(data, name)
    if isinstance(x, datasets) == (y is not None):
        raise ArgumentError(
            "Targets must be given once: a dataset holds them, beside other data they are `y`. "
            f"Received: x of type {type(x).__name__}, {'no y' if y is None else 'and y'}. "
            "Pass x and y, or a tf.data.Dataset of pairs."
        )
    if y is not None and not all(hasattr(leaf, "shape") for leaf in keras.tree.flatten((x, y))):
        raise ArgumentTypeError(
            f"Training data must be arrays or a dataset. Received: x of type {type(x).__name__}. "
            "Make arrays of lists with np.array, and a tf.data.Dataset of a generator."
        )
    pair = isinstance(validation_data, tuple | list) and len(validation_data) in (2, 3)
    if validation_data is not None and not isinstance(validation_data, datasets) and not pair:
        raise ArgumentTypeError(
            "`validation_data` must be a pair (x, y), a triple with weights, or a dataset. "
            f"Received: validation_data of type {type(validation_data).__name__}."
        )
    if isinstance(verbose, bool | str) or verbose not in (0, 1, 2):
        raise ArgumentError(f"`verbose` must be 0, 1 or 2. Received: verbose={verbose!r}.")


def _some(data: Any, batch_size: int) -> Any:
    """Returns a first part of data, as a dataset may be too large to be looked at whole."""
    if isinstance(data, tf.data.Dataset):
        return data.take(CALIBRATION_BATCHES)
    if isinstance(data, keras.utils.PyDataset):
        return data
    part = slice(CALIBRATION_BATCHES * batch_size)
    return keras.tree.map_structure(lambda each: None if each is None else each[part], data)


def _as_arguments(validation_data: Any) -> dict[str, Any]:
    """Returns validation data as `evaluate` takes them."""
    if isinstance(validation_data, tuple | list):
        return dict(zip(("x", "y", "sample_weight"), validation_data))
    return {"x": validation_data}


@contextlib.contextmanager
def _progress(steps: int, verbose: int) -> Iterator[Callable[[str], None]]:
    """Shows how far the steps are, and a line for each."""
    with progress.bar(verbose=verbose) as bar:
        task = bar.add_task("pruning", total=steps)

        def advance(line: str) -> None:
            bar.console.print(line) if verbose else None
            bar.advance(task)

        yield advance
