"""Removing whole channels: the plan, and the smaller model at once."""

import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import keras
import numpy as np

from tfkit import graph
from tfkit.errors import ArgumentError, PruningError
from tfkit.prune.arguments import Patterns, require_count
from tfkit.prune.budget import Cost, Ladder, SumCost, least, levels, spend
from tfkit.prune.groups import Count, Product, Wiring
from tfkit.prune.latency import plan_latency
from tfkit.prune.plan import ChannelPlan, PlannedGroup, architecture
from tfkit.prune.price import SCOPES, price_of
from tfkit.prune.score import CRITERIA, NEED_DATA, Scores, score_units
from tfkit.prune.shrink import require_dense
from tfkit.prune.target import Target, read_target, require_possible

if TYPE_CHECKING:
    import pandas as pd


def plan_channel_pruning(
    model: keras.Model,
    *,
    flops: float | None = None,
    parameters: float | None = None,
    ratio: float | None = None,
    latency_ms: float | None = None,
    latency: float | None = None,
    criterion: Literal["l1", "l2", "bn_scale", "fpgm", "random", "activation", "taylor"] = "l2",
    scope: Literal["global", "uniform", "sensitivity"] = "global",
    layers: Patterns = "*",
    multiple_of: int = 8,
    max_ratio: float = 0.9,
    min_channels: int | Mapping[str, int] = 1,
    data: Any = None,
    batch_size: int = 32,
    loss: Callable[[Any, Any], Any] | None = None,
    sensitivity: "pd.DataFrame | None" = None,
    input_shape: tuple[int, ...] | None = None,
    seed: int | None = None,
) -> ChannelPlan:
    """Decides which channels a model can do without, to reach a target.

    Channels that only go together, because an addition, a depthwise convolution, a
    flattening or anything else ties them, are found from the graph as a group. Inside a group
    the channels with the lowest scores go first. Which group gives how many is the `scope`:
    ``"global"`` compares scores, divided by the mean of their group, over all groups;
    ``"uniform"`` takes the same fraction of each; ``"sensitivity"`` goes where a table of
    `layer_sensitivity(kind="channels")` says it hurts least for what it saves.

    Args:
        model: A built functional or Sequential model. Not changed.
        flops: What may stay of the multiplications and additions: a fraction in (0, 1), or
            their number for one sample (two for a multiply-add), above 1. Layers whose work is
            not known count as none, with a warning.
        parameters: What may stay of the weights: a fraction in (0, 1), or their number.
        ratio: Fraction of the channels that goes, in (0, 1); counted over the channels of
            all groups that may lose any.
        latency_ms: Milliseconds that LiteRT may take for one sample, one thread, float32, on
            this machine. The plan is made from measurements and ends with one.
        latency: The same as a fraction of what the model takes today, in (0, 1).
        criterion: ``"l1"``, ``"l2"``: norm of the weights that make a channel. ``"bn_scale"``:
            its scale in BatchNormalization. ``"fpgm"``: distance to the other channels.
            ``"random"``. ``"activation"``: mean size of what the layers behind it read, on
            `data`. ``"taylor"``: squared change of the loss, to first order, if it went, on
            `data` with targets.
        scope: How groups share the loss.
        layers: Patterns of `select_layers`: layers that may lose channels. A group is left
            whole when one that makes its channels is not among them.
        multiple_of: Channels that stay are a multiple of this, which kernels like. A group
            too narrow for a smaller multiple takes half of it, and so on.
        max_ratio: Largest fraction of a group that may go, in (0, 1).
        min_channels: Fewest channels that stay in a group; a mapping gives them by the group's
            name, and 1 where it has none.
        data: For ``"activation"`` and ``"taylor"``: an array, a pair (x, y) or a
            tf.data.Dataset.
        batch_size: Samples a batch, for arrays.
        loss: A Keras loss, its name, or ``(y, prediction) -> loss``, for ``"taylor"``; None
            takes the compiled loss. Sample weights in `data` have no part in it.
        sensitivity: What `layer_sensitivity(kind="channels")` returned, for that scope; its
            score must be one that is better when higher.
        input_shape: Shape of a sample, for a model that leaves sizes open, to count its work.
        seed: For ``"random"``.

    Returns:
        A `ChannelPlan`; `.table`, `.mask(model)`, `.apply(model)`, `.save(path)`.

    Raises:
        ArgumentTypeError: If `model` is no model, or a number is none.
        ArgumentError: If not exactly one target is given, a value is outside its range, the
            criterion or scope is unknown, or data, a loss or a table is missing.
        LayerNotFoundError: If a pattern matches nothing.
        PruningError: If the model has no graph, is being pruned by magnitude, no group may lose a
            channel, or the target is below what is possible.
        NonFiniteWeightsError: If a weight is NaN or infinite.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.Sequential([
        ...     keras.Input((8, 8, 3)), keras.layers.Conv2D(32, 3, name="a"), keras.layers.ReLU(),
        ...     keras.layers.Conv2D(16, 3, name="b"), keras.layers.GlobalAveragePooling2D(),
        ...     keras.layers.Dense(10, name="head")])
        >>> plan = tfkit.plan_channel_pruning(model, ratio=0.5, scope="uniform")
        >>> plan.table[["group", "channels_before", "channels_after", "reason"]].values.tolist()
        [['a', 32, 16, ''], ['b', 16, 8, ''], ['head', 10, 10, 'goes out of the network']]
        >>> plan.apply(model).count_params(), model.count_params()
        (1698, 5690)

    Source: Li et al., Pruning Filters for Efficient ConvNets (2017), `l1` and coupled
    additions; Liu et al., Network Slimming (2017), `bn_scale`; He et al., Filter Pruning via
    Geometric Median (2019), section 3.2, `fpgm`; Molchanov et al., Importance Estimation for
    Neural Network Pruning (2019), equation 8, `taylor`; Fang et al., DepGraph (2023), groups.
    """
    target = read_target(
        flops=flops, parameters=parameters, ratio=ratio, latency_ms=latency_ms, latency=latency
    )
    _check(criterion, scope, multiple_of, max_ratio, batch_size, data, sensitivity)
    graph.require_finite(graph.require_model(model))
    require_dense(model)
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if criterion == "taylor" and loss is None and not model.compiled:
        raise ArgumentError(
            "`taylor` differentiates a loss. Received: loss=None and a model that is not compiled. "
            "Compile it, or pass loss=keras.losses.SparseCategoricalCrossentropy()."
        )
    wiring = Wiring(model)
    fixed = model if input_shape is None else with_input_shape(model, input_shape)
    sized = wiring if fixed is model else Wiring(fixed)
    if target.name == "flops" or target.is_latency:
        require_sizes(sized)
    if target.name == "flops" and wiring.uncounted():
        warnings.warn(
            "The work of some layers is not known and counts as none: "
            f"{', '.join(wiring.uncounted()[:5])}{' and more' if wiring.uncounted()[5:] else ''}. "
            "So the fraction is that of the other layers; parameters= and latency= count all.",
            stacklevel=2,
        )
    obstacles = wiring.not_chosen(layers)
    scores = score_units(wiring, criterion, data=data, batch_size=batch_size, loss=loss, seed=seed)
    fewest = _fewest(wiring, min_channels)
    steps = [
        levels(len(group.units), group.width, multiple_of, max_ratio, least_channels)
        for group, least_channels in zip(wiring.groups, fewest, strict=True)
    ]
    ladders = _ladders(wiring, scores, obstacles, steps, criterion)

    def costs(units: Sequence[int] | np.ndarray) -> dict[str, float]:
        counts = {"flops": 2 * _total(sized.works, units), "parameters": _total(wiring.parameters, units)}
        return {name: int(count) for name, count in counts.items() if not math.isnan(count)}

    def plan(at: Sequence[int], **measured: tuple[float, float]) -> ChannelPlan:
        units = [ladder.levels[level] for ladder, level in zip(ladders, at, strict=True)]
        return ChannelPlan(
            model=model.name,
            target=str(target),
            criterion=criterion,
            scope=scope,
            groups=_planned(wiring, ladders, at, scores, obstacles),
            before=costs(wiring.units()) | {name: pair[0] for name, pair in measured.items()},
            after=costs(units) | {name: pair[1] for name, pair in measured.items()},
            architecture=architecture(wiring),
        )

    def allocate(cost: Cost, wanted: float) -> list[int]:
        price = price_of(scope, wiring, ladders, scores, cost, sensitivity, per_saving=target.is_latency)
        return spend(ladders, price, cost, wanted)

    if target.is_latency:
        return plan_latency(wiring, sized, ladders, target, allocate, plan)
    cost = SumCost(_products(target, sized, obstacles), wiring.units())
    wanted = target.of(cost.value())
    require_possible(target, wanted, least(ladders, cost), cost.value())
    return plan(allocate(cost, wanted))


def prune_channels(model: keras.Model, *, keep_optimizer: bool = False, **options: Any) -> keras.Model:
    """Returns a smaller model without the channels that it needs least.

    ``plan_channel_pruning(model, **options).apply(model)``; make the plan yourself to look at
    it, to keep it or to try it with `.mask`.

    Args:
        model: A built functional or Sequential model. Not changed.
        keep_optimizer: Whether the new model is compiled as the old one is, with what its
            optimizer has learned; see `ChannelPlan.apply`.
        **options: The arguments of `plan_channel_pruning`.

    Returns:
        A new model.

    Raises:
        TfkitError: As `plan_channel_pruning` and `ChannelPlan.apply` do.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3), alpha=0.35)
        >>> smaller = tfkit.prune_channels(model, parameters=0.5)
        >>> 0.49 < smaller.count_params() / model.count_params() <= 0.5
        True
    """
    return plan_channel_pruning(model, **options).apply(model, keep_optimizer=keep_optimizer)


def require_sizes(wiring: Wiring) -> None:
    """Checks that the work of every layer is known.

    Raises:
        ArgumentError: If it hangs on a size that is open.
    """
    if any(math.isnan(work.factor) for work in wiring.works):
        raise ArgumentError(
            "The work of a model depends on the size of its inputs, so it must be known. "
            f"Received: model={wiring.model.name!r} with inputs {[x.shape for x in wiring.model.inputs]}. "
            "Pass input_shape=(height, width, channels)."
        )


def with_input_shape(model: keras.Model, input_shape: Sequence[int | None]) -> keras.Model:
    """Returns a model whose one input has a fixed shape: the same, or one with initial weights.

    Raises:
        ArgumentError: If the shape contradicts the model.
    """
    known = [tuple(x.shape[1:]) for x in model.inputs]
    fits = (
        len(known) == 1
        and len(known[0]) == len(input_shape)
        and all(size in (None, wanted) for size, wanted in zip(known[0], input_shape))
    )
    if not fits:
        raise ArgumentError(
            "`input_shape` is the shape of a sample, for a model with one input, and agrees with it. "
            f"Received: input_shape={tuple(input_shape)!r}, model inputs {known}."
        )
    if None not in known[0]:
        return model
    return graph.rebuild(model, lambda each: graph.copy_operation(each, {}), [(None, *input_shape)])


def _total(products: Sequence[Product], units: Sequence[int] | np.ndarray) -> float:
    return sum(product(units) for product in products)


def _products(target: Target, wiring: Wiring, obstacles: Mapping[int, str]) -> list[Product]:
    """Returns what a target counts."""
    if target.name == "flops":
        return wiring.works
    if target.name == "parameters":
        return wiring.parameters
    free = [(i, group.width) for i, group in enumerate(wiring.groups) if i not in obstacles]
    return [Product(wiring.groups[each[0]].name, 1.0, (Count(0, (each,)),)) for each in free]


def _fewest(wiring: Wiring, min_channels: int | Mapping[str, int]) -> list[int]:
    """Returns the fewest channels of each group.

    Raises:
        ArgumentError: If a number is below 1, or a name is that of no group.
    """
    if not isinstance(min_channels, Mapping):
        return [require_count("min_channels", min_channels)] * len(wiring.groups)
    names = [group.name for group in wiring.groups]
    unknown = [name for name in min_channels if name not in names]
    if unknown:
        raise ArgumentError(
            "`min_channels` must hold names of groups. "
            f"Received: min_channels with {unknown[0]!r}; the groups are {', '.join(names[:8])}"
            f"{' and more' if names[8:] else ''}."
        )
    return [require_count(f"min_channels[{name!r}]", min_channels.get(name, 1)) for name in names]


def _ladders(
    wiring: Wiring,
    scores: Scores,
    obstacles: dict[int, str],
    levels_of: Sequence[tuple[int, ...]],
    criterion: str,
) -> list[Ladder]:
    """Returns what each group may keep; writes into `obstacles` why one may lose nothing.

    Raises:
        PruningError: If none may.
    """
    ladders = []
    broken = [g.name for g, score in zip(wiring.groups, scores, strict=True) if not _is_finite(score)]
    if broken:
        raise ArgumentError(
            "Scores must be finite numbers. "
            f"Received: criterion={criterion!r}, which gives {broken[0]} NaN or infinity. "
            "Look for such numbers in `data`."
        )
    for number, (score, steps) in enumerate(zip(scores, levels_of, strict=True)):
        count = steps[0]
        if score is None:
            obstacles.setdefault(number, f"no layer in it has what {criterion} looks at")
        elif len(steps) == 1:
            obstacles.setdefault(number, "no channel can go: they go together, or as many must stay")
        order = np.arange(count) if score is None else np.argsort(score, kind="stable")
        ladders.append(Ladder((count,) if number in obstacles else steps, order))
    if len(obstacles) == len(wiring.groups):
        found = [f"{wiring.groups[number].name}: {reason}" for number, reason in obstacles.items()]
        found += [f"{group.name}: {group.reason}" for group in wiring.left]
        found += [each for each in wiring.coupling.stops.values() if each not in " ".join(found)]
        raise PruningError(
            "At least one group of channels must be free to lose some. "
            f"Received: model={wiring.model.name!r}, where none is ({'; '.join(found[:5])}"
            f"{' and more' if len(found) > 5 else ''}). Change `layers`, or the operation that stops it."
        )
    return ladders


def _is_finite(score: np.ndarray | None) -> bool:
    return score is None or bool(np.isfinite(score).all())


def _planned(
    wiring: Wiring,
    ladders: Sequence[Ladder],
    at: Sequence[int],
    scores: Scores,
    obstacles: Mapping[int, str],
) -> tuple[PlannedGroup, ...]:
    planned = []
    for number, (group, ladder, level) in enumerate(zip(wiring.groups, ladders, at, strict=True)):
        kept = ladder.kept(level)
        share = None
        score = scores[number]
        if score is not None:
            total = float(score.sum())
            share = float(score[kept].sum()) / total if total > 0 else 1.0
        planned.append(
            PlannedGroup(
                group.name,
                group.layers,
                group.channels,
                len(kept) * group.width,
                share,
                tuple(kept.tolist()),
                obstacles.get(number),
            )
        )
    planned += [
        PlannedGroup(group.name, group.layers, group.channels, group.channels, None, None, group.reason)
        for group in wiring.left
    ]
    return tuple(planned)


def _check(
    criterion: str,
    scope: str,
    multiple_of: int,
    max_ratio: float,
    batch_size: int,
    data: Any,
    sensitivity: Any,
) -> None:
    for name, value, known in (("criterion", criterion, CRITERIA), ("scope", scope, SCOPES)):
        if value not in known:
            raise ArgumentError(f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}.")
    require_count("multiple_of", multiple_of)
    require_count("batch_size", batch_size)
    if isinstance(max_ratio, bool) or not isinstance(max_ratio, numbers.Real) or not 0 < max_ratio < 1:
        raise ArgumentError(
            "`max_ratio` is the largest fraction of a group that may go, in (0, 1). "
            f"Received: max_ratio={max_ratio!r}."
        )
    if criterion in NEED_DATA and data is None:
        what = "data=(x, y), for it needs the loss" if criterion == "taylor" else "data=x"
        raise ArgumentError(
            f"The criterion {criterion!r} is measured on data. Received: criterion={criterion!r}, data=None. "
            f"Pass {what}."
        )
    if (scope == "sensitivity") != (sensitivity is not None):
        raise ArgumentError(
            "`sensitivity` is the table that scope='sensitivity' follows. "
            f"Received: scope={scope!r}, sensitivity={'a table' if sensitivity is not None else None}. "
            "Measure it with tfkit.layer_sensitivity(model, evaluate, kind='channels')."
        )
