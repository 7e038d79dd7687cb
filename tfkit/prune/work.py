"""How much a model computes, layer by layer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import keras

from tfkit.prune.channels import require_sizes, with_input_shape
from tfkit.prune.groups import Wiring

if TYPE_CHECKING:
    import pandas as pd


def flops_table(model: keras.Model, *, input_shape: Sequence[int | None] | None = None) -> "pd.DataFrame":
    """Counts the multiplications and additions of each layer for one sample.

    A multiply-add counts as two. Counted is what kernels do, as in ``plan_channel_pruning(flops=…)``;
    what works value by value, as activations and normalizations, counts as nothing.

    Args:
        model: A built functional or Sequential model.
        input_shape: ``(height, width, channels)`` for a model that leaves sizes open.

    Returns:
        A DataFrame, a row for each layer that multiplies, in the order of the graph: `path` and
        `flops`. ``attrs["uncounted"]`` holds the paths of layers with kernels whose work is not known.

    Raises:
        ArgumentTypeError: If `model` is no model.
        ArgumentError: If a size is open, or `input_shape` contradicts the model.
        PruningError: If the model has no graph, or two layers hold the same weight.

    Examples:
        >>> import keras, tfkit
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 1, name="mix"),
        ...                           keras.layers.Flatten(), keras.layers.Dense(10, name="last")])
        >>> tfkit.flops_table(model).values.tolist()
        [['mix', 1536], ['last', 5120]]
    """
    import pandas as pd

    wiring = Wiring(model)
    if input_shape is not None:
        wiring = Wiring(with_input_shape(model, input_shape))
    require_sizes(wiring)
    flops: dict[str, int] = {}
    for work in wiring.works:
        count = 2 * work(wiring.units())
        flops[work.path] = flops.get(work.path, 0) + round(count)
    table = pd.DataFrame(list(flops.items()), columns=["path", "flops"])
    table.attrs["uncounted"] = wiring.uncounted()
    return table
