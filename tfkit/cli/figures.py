"""What a model amounts to: its weights, zeros and work, as `inspect` and `prune` tell them."""

from typing import TYPE_CHECKING, Any

import tfkit
from tfkit.cli.command import as_options

if TYPE_CHECKING:
    import keras
    import pandas as pd


def count_work(
    model: "keras.Model", input_shape: tuple[int | None, ...] | None
) -> "tuple[pd.DataFrame | None, list[str]]":
    """Returns the model's table of work, or None, and notes on what it lacks."""
    try:
        work = tfkit.flops_table(model, input_shape=input_shape)
    except tfkit.TfkitError as error:
        return None, [f"The work was not counted. {as_options(str(error))}"]
    if uncounted := work.attrs["uncounted"]:
        return work, [f"The work of {', '.join(uncounted)} is not known and counts as none."]
    return work, []


def figures(
    model: "keras.Model", input_shape: tuple[int | None, ...] | None
) -> tuple[dict[str, Any], list[str]]:
    """Returns `parameters`, `sparsity` and `flops` (None where not known) of a model, and notes."""
    work, notes = count_work(model, input_shape)
    found = {
        "parameters": int(tfkit.layer_table(model).parameters.sum()),
        "sparsity": share_of_zeros(model),
        "flops": None if work is None else int(work.flops.sum()),
    }
    return found, notes


def share_of_zeros(model: "keras.Model") -> float:
    """Returns the share of zeros among the weights that `layer_table` looks at, of all layers together."""
    import numpy as np

    kernels = [np.asarray(x) for x in model.weights if len(x.shape) > 1 and "bias" not in x.name]
    total = sum(each.size for each in kernels)
    return float(sum((each == 0).sum() for each in kernels) / total) if total else 0.0
