"""Checks of the numbers that curves and callbacks are made from."""

import itertools
import math
import numbers
from collections.abc import Callable, Sequence

from tfkit.errors import ArgumentError, ArgumentTypeError

Curve = Callable[[float], float]


def require_curve(name: str, value: object) -> Curve:
    """Returns a function, or raises ArgumentTypeError."""
    if not callable(value):
        raise ArgumentTypeError(
            f"`{name}` must be a function from a step to a learning rate. "
            f"Received: {name}={value!r}. Use tfkit.curves.constant(rate) for a fixed rate."
        )
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ArgumentError(f"`{name}` must be a finite number. Received: {name}={value!r}.")
    return float(value)


def require_rate(name: str, value: object) -> float:
    """Returns a learning rate of at least 0, or raises ArgumentError."""
    return require_nonnegative(name, value, "a learning rate of ")


def require_nonnegative(name: str, value: object, kind: str = "") -> float:
    """Returns a number of at least 0, or raises ArgumentError."""
    number = _number(name, value)
    if number < 0:
        raise ArgumentError(f"`{name}` must be {kind}at least 0. Received: {name}={value!r}.")
    return number


def require_fraction(name: str, value: object) -> float:
    """Returns a number between 0 and 1, both excluded, or raises ArgumentError."""
    number = _number(name, value)
    if not 0 < number < 1:
        raise ArgumentError(f"`{name}` must lie between 0 and 1, both excluded. Received: {name}={value!r}.")
    return number


def require_positive(name: str, value: object, least: float = 0.0) -> float:
    """Returns a number above 0 and at least `least`, or raises ArgumentError."""
    number = _number(name, value)
    if 0 < number < least:
        raise ArgumentError(f"`{name}` must be at least {least}. Received: {name}={value!r}.")
    if number <= 0:
        raise ArgumentError(f"`{name}` must be above 0. Received: {name}={value!r}.")
    return number


def require_count(name: str, value: object, least: int = 1) -> int:
    """Returns a number of steps as an int.

    Raises:
        ArgumentError: If it is no whole number or below `least`.
    """
    number = _number(name, value)
    if number != int(number) or number < least:
        raise ArgumentError(
            f"`{name}` must be a whole number of steps, at least {least}. Received: {name}={value!r}."
        )
    return int(number)


def require_boundaries(values: Sequence[int]) -> list[int]:
    """Returns increasing numbers of steps, or raises ArgumentError."""
    marks = [require_count("boundaries", value) for value in values]
    if any(later <= earlier for earlier, later in itertools.pairwise(marks)):
        raise ArgumentError(f"`boundaries` must increase. Received: boundaries={list(values)!r}.")
    return marks
