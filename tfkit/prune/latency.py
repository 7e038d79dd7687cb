"""Plans for a latency: which channels to remove so that LiteRT is fast enough on this machine.

How long a layer takes for a number of channels is no multiple of its work, for kernels compute
in tiles. So every layer with a kernel is measured at a grid of widths, and the whole model at
the end of each attempt.
"""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers
from scipy.interpolate import RegularGridInterpolator

from tfkit import graph
from tfkit.litert import time_layers
from tfkit.prune.budget import Cost, Ladder, SumCost, least
from tfkit.prune.groups import Count, Product, Wiring
from tfkit.prune.plan import ChannelPlan
from tfkit.prune.shrink import shrink
from tfkit.prune.target import Target, require_possible

INPUT_GRID = (0.1, 0.5, 1.0)
OUTPUT_GRID = (0.1, 0.25, 0.5, 0.75, 1.0)
ATTEMPTS = 8
SLACK = 0.04  # how far under the target a plan may end
WIDTHS = {layers.Dense: "units", layers.DepthwiseConv1D: None, layers.DepthwiseConv2D: None} | {
    getattr(layers, f"Conv{rank}D{kind}"): "filters" for rank in (1, 2, 3) for kind in ("", "Transpose")
}


@dataclasses.dataclass(frozen=True)
class Timed:
    """The milliseconds of one call, by how many channels its axes keep.

    Attributes:
        counts: Channels that come in and go out; for a depthwise convolution, one number.
        table: Milliseconds between the measured widths.
    """

    counts: tuple[Count, ...]
    table: RegularGridInterpolator

    def __call__(self, units: Sequence[int] | np.ndarray) -> float:
        """Returns the milliseconds, given the units of each group."""
        return max(0.0, float(self.table([count(units) for count in self.counts])[0]))


def plan_latency(
    wiring: Wiring,
    sized: Wiring,
    ladders: Sequence[Ladder],
    target: Target,
    allocate: Callable[[Cost, float], list[int]],
    plan: Callable[..., ChannelPlan],
) -> ChannelPlan:
    """Returns a plan whose model takes at most the target, as measured at its end.

    The sum of the layers' times tells how far to go; the whole model is then measured beside
    the unpruned one, and the aim is set anew, until the time is within 4% below the target.

    Args:
        wiring: The model's groups.
        sized: The same of a model whose input sizes are all known.
        ladders: What each group may keep.
        target: The latency that is asked for.
        allocate: Gives each group its level, for a cost and what it may be.
        plan: Makes the plan of levels and measurements.

    Raises:
        PruningError: If the target is below what is possible, or above what the model takes.
    """
    shapes = [[(1, *x.shape[1:]) for x in sized.model.inputs]]

    def measure(at: Sequence[int]) -> tuple[float, float]:
        kept = {
            number: ladder.kept(level) for number, (ladder, level) in enumerate(zip(ladders, at, strict=True))
        }
        smaller, _ = shrink(wiring, kept)
        times = time_layers({"before": (wiring.model, *shapes), "after": (smaller, *shapes)})
        return times["before"], times["after"]

    lowest = [len(ladder.levels) - 1 for ladder in ladders]
    before, fastest = measure(lowest)
    require_possible(target, target.of(before), fastest, before)
    calls = time_calls(sized)
    whole = SumCost(calls, wiring.units()).value()
    aim = whole * target.of(before) / before
    found: tuple[float, list[int], float] | None = None
    for _ in range(ATTEMPTS):
        cost = SumCost(calls, wiring.units())
        at = allocate(cost, max(aim, least(ladders, cost)))
        before, after = measure(at)
        wanted = target.of(before)
        if after <= wanted and (found is None or after / wanted > found[2] / target.of(found[0])):
            found = (before, at, after)
        if (1 - SLACK) * wanted <= after <= wanted:
            break
        aim *= (1 - SLACK / 2) * wanted / after
    if found is None:
        found = (before, lowest, fastest)
    before, at, after = found
    return plan(at, latency_ms=(before, after))


def time_calls(sized: Wiring) -> list[Timed | Product]:
    """Measures every call that multiplies, alone, at a grid of widths where its kind allows."""
    works = defaultdict(list)
    for work, product in zip(sized.coupling.works, sized.works, strict=True):
        works[work.call].append(product)
    tables: dict[str, RegularGridInterpolator | float] = {}
    timed: list[Timed | Product] = []
    for call in sized.flow.calls:
        products = works.get(call.outputs[0])
        if not products:
            continue
        key = _signature(call)
        if key not in tables:
            tables[key] = _time_grid(call, products[0].counts) if _has_grid(call) else _time_once(call)
        table = tables[key]
        if isinstance(table, float):  # scaled with its work
            whole = sum(product(sized.units()) for product in products)
            timed += [dataclasses.replace(each, factor=each.factor * table / whole) for each in products]
        else:
            timed.append(Timed(products[0].counts, table))
    return timed


def _signature(call: graph.Call) -> str:
    """Returns what the time of a call depends on."""
    layer = call.operation
    config = {name: value for name, value in layer.get_config().items() if name not in ("name", "trainable")}
    config = {
        name: value for name, value in config.items() if not name.endswith(("initializer", "regularizer"))
    }
    shapes = [list(x.shape) for x in call.arguments.keras_tensors]
    return json.dumps([type(layer).__name__, config, shapes], default=str, sort_keys=True)


def _has_grid(call: graph.Call) -> bool:
    return type(call.operation) in WIDTHS and getattr(call.operation, "groups", 1) == 1


def _shape(call: graph.Call) -> list[tuple[int, ...]]:
    return [(1, *x.shape[1:]) for x in call.arguments.keras_tensors]


def _time_once(call: graph.Call) -> float:
    shapes = _shape(call)
    twin = graph.copy_operation(call.operation, {})
    inputs = [keras.Input(batch_shape=shape) for shape in shapes]
    args, kwargs = call.arguments.fill_in(
        {id(x): y for x, y in zip(call.arguments.keras_tensors, inputs, strict=True)}
    )
    model = keras.Model(inputs, twin(*args, **kwargs))
    return time_layers({"call": (model, shapes)}, runs=7)["call"]


def _time_grid(call: graph.Call, counts: Sequence[Count]) -> RegularGridInterpolator:
    layer, (shape,) = call.operation, _shape(call)
    axis = 1 if getattr(layer, "data_format", None) == "channels_first" else len(shape) - 1
    key = WIDTHS[type(layer)]
    widths_in = _grid(shape[axis], INPUT_GRID if key else OUTPUT_GRID)
    widths_out = _grid(getattr(layer, key), OUTPUT_GRID) if key else [None]
    twins = {}
    for i, taken in enumerate(widths_in):
        for j, made in enumerate(widths_out):
            changes = {"name": f"width_{i}_{j}", "activation": None} | ({key: made} if key else {})
            twins[f"w{i}_{j}"] = (
                graph.copy_operation(layer, changes),
                [(*shape[:axis], taken, *shape[axis + 1 :])],
            )
    times = np.array(list(time_layers(twins, runs=7).values())).reshape(len(widths_in), len(widths_out))
    multiplier = getattr(layer, "depth_multiplier", 1)
    axes: list[list[Any]] = [widths_in, widths_out] if key else [[each * multiplier for each in widths_in]]
    if any(len(each) == 1 for each in axes):  # a single width: as good as constant along that axis
        axes = [each if len(each) > 1 else [each[0], each[0] + 1] for each in axes]
        times = np.broadcast_to(times, [len(each) for each in axes] if key else (len(axes[0]), 1))
    table = times if key else times[:, 0]
    return RegularGridInterpolator(axes, table, bounds_error=False, fill_value=None)


def _grid(width: int, fractions: Sequence[float]) -> list[int]:
    """Returns widths to measure: multiples of 8 where the layer is wide enough."""
    step = 8 if width >= 32 else 1
    return sorted({max(step, round(each * width / step) * step) if each < 1 else width for each in fractions})
