"""Channel pruning in steps, with training in between."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.prune.arguments import require_count
from tfkit.prune.batches import inputs_of, read_batches
from tfkit.prune.budget import levels
from tfkit.prune.channels import plan_channel_pruning
from tfkit.prune.groups import Wiring
from tfkit.prune.plan import ChannelPlan
from tfkit.prune.recalibration import recalibrate_batch_norm
from tfkit.prune.shrink import shrink
from tfkit.prune.target import Target, read_target
from tfkit.training import compile_settings

if TYPE_CHECKING:
    import pandas as pd

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
    callbacks: Sequence[keras.callbacks.Callback] = (),
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
        x: Training data as `fit` takes them.
        y: Targets; None for datasets.
        flops: Target as in `plan_channel_pruning`; exactly one of the three.
        parameters: Target as in `plan_channel_pruning`.
        ratio: Target as in `plan_channel_pruning`.
        steps: Removals, at least 1.
        epochs: Epochs of training after each removal, at least 1.
        batch_size: Samples a batch, for arrays.
        validation_data: As `fit` takes them, for the table and the callbacks.
        callbacks: Callbacks of each training. Under distillation their model is Keras's
            Distiller, and ``callback.model.student`` the model.
        recalibrate: Whether to measure the statistics of BatchNormalization anew after each
            removal, on up to 64 batches.
        distillation: A loss of `keras.distillation`, or a list of them, between the unpruned
            model and the smaller one: ``LogitsDistillation(temperature=3.0)`` for logits,
            ``FeatureDistillation(loss="mse")`` for outputs as they are. None for none.
        distillation_weight: Share of distillation in the loss, in (0, 1].
        keep_optimizer: Whether the optimizer keeps, over removals, what it has learned of the
            weights that stay; otherwise it begins anew each time, as it is configured.
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
    losses = _read_distillation(distillation, distillation_weight)
    arrays = (x, y) if y is not None else x
    options.setdefault("batch_size", batch_size)
    if options.get("criterion") in ("activation", "taylor"):
        options.setdefault("data", _some(arrays, batch_size))
    whole = plan_channel_pruning(model, **{target.name: target.amount}, **options)  # refuses early
    options["min_channels"] = _fewest(whole, options)
    has_norm = any(isinstance(each, keras.layers.BatchNormalization) for each in graph.sublayers(model))
    calibration = _some(arrays, batch_size) if recalibrate and has_norm else None
    teacher = shrink(Wiring(model), {})[0] if losses else None  # a copy: Keras freezes its teacher
    if teacher is not None:
        first, *_ = read_batches(model, _some(arrays, batch_size), batch_size)
        _require_distillable(teacher, losses, first[0])
    fit = {
        "batch_size": None if y is None else batch_size,
        "epochs": epochs,
        "callbacks": [*callbacks],
        "validation_data": validation_data,
        "verbose": 2 if verbose > 1 else 0,
    }
    judge = {"x": x, "y": y} if validation_data is None else _as_arguments(validation_data)
    smaller, plans, rows = model, [], []
    with _progress(steps, verbose) as advance:
        for step in range(1, steps + 1):
            aim = _aim(target, whole, plans, step / steps)
            if aim is not None:
                plans.append(plan_channel_pruning(smaller, **{target.name: aim}, **options))
                before, smaller = smaller, plans[-1].apply(smaller, keep_optimizer=keep_optimizer)
                if not keep_optimizer:
                    smaller.compile(**compile_settings(before))
                if calibration is not None:
                    recalibrate_batch_norm(smaller, calibration, batch_size=batch_size)
            pruned = smaller.evaluate(**judge, verbose=0, return_dict=True)
            _train(smaller, teacher, losses, distillation_weight, x, y, fit)
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
        may = [count for count, group in zip(now, groups) if not plans or len(group.kept) > 1]
        gone = sum(now) - total * (1 - target.amount) ** share
        return gone / sum(may) if gone > 1e-9 * total else None
    before = whole.before[target.name]
    end = target.amount / before if target.amount > 1 else target.amount
    wanted = before * end**share
    return wanted if wanted < (plans[-1].after[target.name] if plans else before) else None


def _read_distillation(distillation: Any, weight: float) -> list[Any]:
    if distillation is None:
        return []
    losses = list(distillation) if isinstance(distillation, list | tuple) else [distillation]
    if not losses or not all(isinstance(each, keras.distillation.DistillationLoss) for each in losses):
        raise ArgumentTypeError(
            "`distillation` must be a loss of keras.distillation or a list of them. "
            f"Received: distillation={distillation!r}. "
            "Write keras.distillation.LogitsDistillation(temperature=3.0)."
        )
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 1:
        raise ArgumentError(
            "`distillation_weight` is the share of distillation in the loss, in (0, 1]. "
            f"Received: distillation_weight={weight!r}."
        )
    return losses


def _require_distillable(teacher: keras.Model, losses: list[Any], x: Any) -> None:
    """Checks that each loss can compare the model's outputs, before anything is trained."""
    outputs = teacher(inputs_of(teacher, x), training=False)
    for loss in losses:
        if getattr(loss, "teacher_layer_name", None) is not None:
            continue
        try:
            loss.compute_loss(outputs, outputs)
        except Exception as error:  # whatever a loss of one's own may raise
            raise ArgumentError(
                "A loss of `distillation` must fit the model's outputs. "
                f"Received: {type(loss).__name__}, which fails on them: {str(error)[:200]} "
                "For several outputs give it a loss for each: LogitsDistillation(loss=[…])."
            ) from error


def _some(data: Any, batch_size: int) -> Any:
    """Returns a first part of data, as a dataset may be too large to be looked at whole."""
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset):
        return data.take(CALIBRATION_BATCHES)
    if isinstance(data, keras.utils.PyDataset):
        return data
    part = slice(CALIBRATION_BATCHES * batch_size)
    return keras.tree.map_structure(lambda each: None if each is None else each[part], data)


def _train(
    student: keras.Model,
    teacher: keras.Model | None,
    losses: list[Any],
    weight: float,
    x: Any,
    y: Any,
    fit: dict[str, Any],
) -> None:
    if teacher is None:
        student.fit(x, y, **fit)
        return
    distiller = Distiller(teacher, student, losses, [1.0] * len(losses), student_loss_weight=1 - weight)
    settings = compile_settings(student)
    metrics = settings["metrics"]
    distiller.compile(
        student.optimizer,
        settings["loss"],
        metrics if isinstance(metrics, list | tuple) else None,  # Keras takes no dict here
        jit_compile=settings["jit_compile"],
        run_eagerly=settings["run_eagerly"],
    )
    distiller.fit(x, y, **fit)


class Distiller(keras.distillation.Distiller):
    """Keras's Distiller, whose student keeps all of its own loss.

    Keras computes the student's loss from its loss functions alone: without sample weights,
    without loss weights, and without penalties on weights.
    """

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the loss of the student and of distillation, each by its share."""
        share = self.student_loss_weight
        own = self.student.compute_loss(x, y, y_pred, sample_weight, training) if share else 0.0
        others = super().compute_loss(x, None, y_pred, None, training)
        total = share * own + others
        # Keras has counted a student's loss of 0; a second entry puts both means right
        self.student_loss_tracker.update_state(2.0 * own)
        self.total_loss_tracker.update_state(2.0 * total - others)
        return total


def _as_arguments(validation_data: Any) -> dict[str, Any]:
    """Returns validation data as `evaluate` takes them."""
    if isinstance(validation_data, tuple | list):
        return dict(zip(("x", "y", "sample_weight"), validation_data))
    return {"x": validation_data}


@contextlib.contextmanager
def _progress(steps: int, verbose: int) -> Iterator[Callable[[str], None]]:
    """Shows how far the steps are, and a line for each."""
    from rich import progress as bars

    with bars.Progress(disable=not verbose) as bar:
        task = bar.add_task("pruning", total=steps)

        def advance(line: str) -> None:
            bar.console.print(line) if verbose else None
            bar.advance(task)

        yield advance
