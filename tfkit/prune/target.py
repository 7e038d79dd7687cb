"""What a smaller model may cost."""

import dataclasses
import math
import numbers

from tfkit.errors import ArgumentError, ArgumentTypeError, PruningError

UNITS = {
    "flops": "multiplications and additions a sample",
    "parameters": "weights",
    "ratio": "of the channels",
    "latency_ms": "milliseconds",
    "latency": "milliseconds",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A target: its argument's name, and the amount as it was given."""

    name: str
    amount: float

    @property
    def is_latency(self) -> bool:
        """Whether it is reached by measuring time."""
        return self.name in ("latency", "latency_ms")

    def of(self, whole: float) -> float:
        """Returns what may stay of a whole cost, in its unit."""
        if self.name == "ratio":
            return (1 - self.amount) * whole
        if self.name == "flops" and self.amount > 1:
            return self.amount / 2  # the cost counts multiply-adds
        if self.name == "latency_ms" or self.amount > 1:
            return self.amount
        return self.amount * whole

    def __str__(self) -> str:
        """Returns it as it is written."""
        return f"{self.name}={self.amount:g}"


def read_target(**amounts: float | None) -> Target:
    """Returns the one target that is given.

    Raises:
        ArgumentTypeError: If it is no number.
        ArgumentError: If there is not exactly one, or it is outside its range.
    """
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    if len(given) != 1:
        raise ArgumentError(
            f"Exactly one target must be given: {', '.join(amounts)}. "
            f"Received: {', '.join(f'{name}={amount!r}' for name, amount in given.items()) or 'none'}."
        )
    name, amount = given.popitem()
    if isinstance(amount, bool) or not isinstance(amount, numbers.Real):
        raise ArgumentTypeError(f"`{name}` must be a number. Received: {name}={amount!r}.")
    if name in ("ratio", "latency"):
        what = "of the channels that goes" if name == "ratio" else "of today's latency that may stay"
        if not 0 < amount < 1:
            raise ArgumentError(
                f"`{name}` is the fraction {what} and must lie in (0, 1). Received: {name}={amount!r}. "
                "Write 0.5 for a half."
            )
    elif not amount > 0 or math.isinf(amount) or (amount == 1 and name != "latency_ms"):
        more = "" if name == "latency_ms" else ", or a fraction in (0, 1) of today's"
        raise ArgumentError(f"`{name}` must be a number of {UNITS[name]}{more}. Received: {name}={amount!r}.")
    return Target(name, float(amount))


def require_possible(target: Target, wanted: float, least: float, whole: float) -> None:
    """Checks that a target lies between the least that is possible and all there is.

    Raises:
        PruningError: Naming the least, or what the model costs now.
    """
    if wanted >= whole:
        raise PruningError(
            f"A target must be below what the model costs now. Received: {target}; the model takes "
            f"{_said(target, whole)}. Ask for less, or leave the model as it is."
        )
    if least > wanted * (1 + 1e-9):
        if target.name == "ratio":
            limit = f"The most is ratio={1 - least / whole:.4g}"
        else:
            limit = f"The least is {_said(target, least)}, {least / whole:.4g} of today's"
        share = f"A share is a fraction: {target.amount / 100:g} for {target.amount:g}%. "
        raise PruningError(
            f"A target must be possible. Received: {target}. {limit}. "
            f"{share if target.name in ('flops', 'parameters') and 1 < target.amount < 100 else ''}"
            "Ask for less to go, raise max_ratio, lower multiple_of, or let more `layers` lose channels."
        )


def _said(target: Target, cost: float) -> str:
    cost *= 2 if target.name == "flops" else 1
    number = f"{cost:.0f}" if cost >= 1000 else f"{cost:.4g}"
    return f"{number} {'channels' if target.name == 'ratio' else UNITS[target.name]}"
