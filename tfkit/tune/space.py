"""What a search may vary."""

import math
import numbers
from typing import TYPE_CHECKING, Any

from tfkit.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    import keras_tuner

LOGARITHMIC = ("learning_rate", "weight_decay")
COLUMNS = ("trial", "status", "score", "best_epoch", "epochs", "seconds", "worker", "error")  # a result's own


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
            scale, not positive, a list is empty, or a name is one of a result's columns.
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
            if name in COLUMNS:
                raise ArgumentError(
                    "A hyperparameter must not have the name of one of a result's own columns, "
                    f"{', '.join(COLUMNS)}. Received: {name}={entry!r}."
                )
            self.entries[name] = _checked(name, entry)

    def __repr__(self) -> str:
        return f"SearchSpace({', '.join(f'{name}={entry!r}' for name, entry in self.entries.items())})"

    def describe(self) -> dict[str, dict[str, list[Any]]]:
        """Returns the space in a form that JSON can hold."""
        return {
            name: {"choice" if isinstance(entry, list) else "range": list(entry)}
            for name, entry in self.entries.items()
        }

    def hyperparameters(self) -> "keras_tuner.HyperParameters":
        """Returns the space as keras-tuner's HyperParameters."""
        import keras_tuner

        hp = keras_tuner.HyperParameters()
        for name, entry in self.entries.items():
            if isinstance(entry, list) and all(isinstance(value, bool) for value in entry):
                if len(set(entry)) == 1:
                    hp.Fixed(name, entry[0])
                else:  # of a Choice, keras-tuner makes 0 and 1
                    hp.Boolean(name, default=entry[0])
            elif isinstance(entry, list):
                hp.Choice(name, entry, ordered=all(isinstance(value, numbers.Real) for value in entry))
            elif name in LOGARITHMIC:
                hp.Float(name, float(entry[0]), float(entry[1]), sampling="log")
            elif all(isinstance(end, int) for end in entry):
                hp.Int(name, entry[0], entry[1])
            else:
                hp.Float(name, float(entry[0]), float(entry[1]))
        return hp


def _checked(name: str, entry: object) -> Any:
    """Returns an entry in Python's own numbers, once it is known to be one."""
    if isinstance(entry, list):
        return _checked_choice(name, entry)
    if not isinstance(entry, tuple) or len(entry) != 2 or not all(_is_number(end) for end in entry):
        raise ArgumentTypeError(
            "An entry must be a range (low, high) or a list of values to choose from. "
            f"Received: {name}={entry!r}."
        )
    whole = all(isinstance(end, numbers.Integral) for end in entry)
    low, high = (int(end) if whole else float(end) for end in entry)
    if low >= high:
        raise ArgumentError(f"A range must run from low to high. Received: {name}={entry!r}.")
    if name in LOGARITHMIC and low <= 0:
        raise ArgumentError(
            f"`{name}` is searched on a logarithmic scale, so its range must be above 0. "
            f"Received: {name}={entry!r}. Use a list to include 0."
        )
    return low, high


def _checked_choice(name: str, values: list[Any]) -> list[Any]:
    if not values:
        raise ArgumentError(f"A choice must hold at least one value. Received: {name}={values!r}.")
    if name in LOGARITHMIC and not all(_is_number(value) and value >= 0 for value in values):
        raise ArgumentError(f"`{name}` must be at least 0. Received: {name}={values!r}.")
    for kind in (str, bool):
        if all(isinstance(value, kind) for value in values):
            return values
    if not all(_is_number(value) for value in values):
        raise ArgumentTypeError(
            "A choice must be among numbers, among texts, or between True and False. "
            f"Received: {name}={values!r}. Choose among texts and translate them in build(hp)."
        )
    whole = name not in LOGARITHMIC and all(isinstance(value, numbers.Integral) for value in values)
    return [int(value) if whole else float(value) for value in values]


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
