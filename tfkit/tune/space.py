"""What a search may vary."""

import math
import numbers
from typing import TYPE_CHECKING, Any

from tfkit.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    import keras_tuner

LOGARITHMIC = ("learning_rate", "weight_decay")


class SearchSpace:
    """The hyperparameters of a search: ranges and choices by name.

    A tuple ``(low, high)`` is a range, both ends included: logarithmic for
    `learning_rate` and `weight_decay`, of whole numbers if both ends are, else linear. A
    list is a choice among its values. `search` itself applies the learning rate and the
    weight decay (Keras's: decoupled, scaled by the rate) to the model's optimizer;
    anything else is read in ``build(hp)`` with ``hp.get(name)``.

    Args:
        learning_rate: A range above 0, or a list of rates.
        weight_decay: A range above 0, or a list, which may hold 0.
        **more: Any other names.

    Raises:
        ArgumentError: If nothing varies, a range is empty, reversed or, on a logarithmic
            scale, not positive, or a list is empty.
        ArgumentTypeError: If an entry is neither a pair of numbers nor a list.

    Examples:
        >>> import tfkit
        >>> space = tfkit.SearchSpace(learning_rate=(1e-4, 1e-1), weight_decay=[0.0, 1e-4], units=(8, 64))
        >>> sorted(space.entries)
        ['learning_rate', 'units', 'weight_decay']

    Source: keras-tuner's HyperParameters.
    """

    def __init__(
        self,
        *,
        learning_rate: tuple[float, float] | list[float] | None = None,
        weight_decay: tuple[float, float] | list[float] | None = None,
        **more: tuple[float, float] | list[Any],
    ):
        given = {"learning_rate": learning_rate, "weight_decay": weight_decay, **more}
        self.entries = {name: entry for name, entry in given.items() if entry is not None}
        if not self.entries:
            raise ArgumentError(
                "A space must hold at least one hyperparameter. Received: an empty space. "
                "Write SearchSpace(learning_rate=(1e-5, 1e-2))."
            )
        for name, entry in self.entries.items():
            _check(name, entry)

    def __repr__(self) -> str:
        return f"SearchSpace({', '.join(f'{name}={entry!r}' for name, entry in self.entries.items())})"

    def hyperparameters(self) -> "keras_tuner.HyperParameters":
        """Returns the space as keras-tuner's HyperParameters."""
        import keras_tuner

        hp = keras_tuner.HyperParameters()
        for name, entry in self.entries.items():
            if isinstance(entry, list):
                hp.Choice(name, entry, ordered=all(isinstance(value, numbers.Real) for value in entry))
            elif name in LOGARITHMIC:
                hp.Float(name, float(entry[0]), float(entry[1]), sampling="log")
            elif all(isinstance(end, int) for end in entry):
                hp.Int(name, entry[0], entry[1])
            else:
                hp.Float(name, float(entry[0]), float(entry[1]))
        return hp


def _check(name: str, entry: object) -> None:
    if isinstance(entry, list):
        if not entry:
            raise ArgumentError(f"A choice must hold at least one value. Received: {name}={entry!r}.")
        if name in LOGARITHMIC and any(not _is_number(value) or value < 0 for value in entry):
            raise ArgumentError(f"`{name}` must be at least 0. Received: {name}={entry!r}.")
        return
    if not isinstance(entry, tuple) or len(entry) != 2 or not all(_is_number(end) for end in entry):
        raise ArgumentTypeError(
            "An entry must be a range (low, high) or a list of values to choose from. "
            f"Received: {name}={entry!r}."
        )
    low, high = entry
    if low >= high:
        raise ArgumentError(f"A range must run from low to high. Received: {name}={entry!r}.")
    if name in LOGARITHMIC and low <= 0:
        raise ArgumentError(
            f"`{name}` is searched on a logarithmic scale, so its range must be above 0. "
            f"Received: {name}={entry!r}. Use a list to include 0."
        )


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
