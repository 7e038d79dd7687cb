"""Learning-rate curves: pure functions from a step to a rate.

Every function here returns a curve, a plain ``step -> learning rate``. Steps count
from zero; beyond its end a curve holds its last value. The module needs neither
TensorFlow nor Keras.

Examples:
    >>> from tfkit import curves
    >>> rate = curves.warmup(curves.cosine(0.1, 100), 10)
    >>> [round(rate(step), 4) for step in (0, 5, 10, 60, 110, 999)]
    [0.0, 0.05, 0.1, 0.05, 0.0, 0.0]
"""

import bisect
import math
from collections.abc import Sequence

from tfkit.errors import ArgumentError
from tfkit.optim.arguments import (
    Curve,
    require_boundaries,
    require_count,
    require_curve,
    require_fraction,
    require_positive,
    require_rate,
)

__all__ = [
    "constant",
    "cosine",
    "cosine_restarts",
    "exponential",
    "inverse_sqrt",
    "join",
    "linear",
    "one_cycle",
    "polynomial",
    "step",
    "warmup",
]


def constant(rate: float) -> Curve:
    """The same rate at every step.

    Args:
        rate: The learning rate, at least 0.

    Returns:
        A curve.

    Raises:
        ArgumentError: If the rate is negative or no finite number.

    Examples:
        >>> constant(0.1)(0), constant(0.1)(10**6)
        (0.1, 0.1)
    """
    rate = require_rate("rate", rate)
    return lambda step: rate


def linear(start: float, final: float, steps: int) -> Curve:
    """A straight line: ``start + (final - start) * t / steps``.

    Args:
        start: The rate at step 0.
        final: The rate at `steps` and after.
        steps: Length in steps, at least 1.

    Returns:
        A curve.

    Raises:
        ArgumentError: If a rate is negative or `steps` is below 1.

    Examples:
        >>> curve = linear(0.0, 1.0, 4)
        >>> curve(0), curve(1), curve(4), curve(5)
        (0.0, 0.25, 1.0, 1.0)
    """
    return polynomial(start, final, steps, power=1.0)


def polynomial(start: float, final: float, steps: int, *, power: float = 1.0) -> Curve:
    """Polynomial decay: ``final + (start - final) * (1 - t / steps) ** power``.

    Args:
        start: The rate at step 0.
        final: The rate at `steps` and after.
        steps: Length in steps, at least 1.
        power: The exponent, above 0; 1 is a straight line.

    Returns:
        A curve.

    Raises:
        ArgumentError: If a rate is negative, `steps` is below 1 or `power` is not positive.

    Examples:
        >>> curve = polynomial(1.0, 0.0, 4, power=2)
        >>> curve(0), curve(2), curve(4)
        (1.0, 0.25, 0.0)

    Source: keras.optimizers.schedules.PolynomialDecay.
    """
    start, final = require_rate("start", start), require_rate("final", final)
    steps, power = require_count("steps", steps), require_positive("power", power)

    def curve(step: float) -> float:
        left = 1 - _fraction(step, steps)
        return final + (start - final) * left**power

    return curve


def exponential(start: float, decay_rate: float, steps: int, *, staircase: bool = False) -> Curve:
    """Exponential decay: ``start * decay_rate ** (t / steps)``, without end.

    Args:
        start: The rate at step 0.
        decay_rate: The factor over `steps` steps, above 0.
        steps: Steps for one factor, at least 1.
        staircase: Whether the exponent is rounded down, so that the rate falls at
            multiples of `steps` only.

    Returns:
        A curve.

    Raises:
        ArgumentError: If the rate is negative, or `decay_rate` or `steps` is not positive.

    Examples:
        >>> curve = exponential(1.0, 0.25, 10)
        >>> curve(0), curve(5), curve(10)
        (1.0, 0.5, 0.25)

    Source: keras.optimizers.schedules.ExponentialDecay.
    """
    start, decay_rate = require_rate("start", start), require_positive("decay_rate", decay_rate)
    steps = require_count("steps", steps)

    def curve(step: float) -> float:
        exponent = max(step, 0) / steps
        return start * decay_rate ** (math.floor(exponent) if staircase else exponent)

    return curve


def step(start: float, factor: float, boundaries: int | Sequence[int]) -> Curve:
    """Steps down: ``start * factor ** n``, where n boundaries have been reached.

    Args:
        start: The rate at step 0.
        factor: What the rate is multiplied by at each boundary, above 0.
        boundaries: Increasing steps (multi-step), or one number n for every n steps.

    Returns:
        A curve.

    Raises:
        ArgumentError: If the rate is negative, `factor` is not positive, or the
            boundaries do not increase.

    Examples:
        >>> curve = step(1.0, 0.5, [10, 20])
        >>> curve(9), curve(10), curve(20), curve(99)
        (1.0, 0.5, 0.25, 0.25)
        >>> step(1.0, 0.5, 10)(35)
        0.125
    """
    start, factor = require_rate("start", start), require_positive("factor", factor)
    if isinstance(boundaries, Sequence):
        marks = require_boundaries(boundaries)
        return lambda step: start * factor ** bisect.bisect_right(marks, step)
    every = require_count("boundaries", boundaries)
    return lambda step: start * factor ** (max(step, 0) // every)


def cosine(peak: float, steps: int, *, final: float = 0.0) -> Curve:
    """Cosine decay: ``final + (peak - final) * (1 + cos(pi * t / steps)) / 2``.

    Args:
        peak: The rate at step 0.
        steps: Length in steps, at least 1.
        final: The rate at `steps` and after.

    Returns:
        A curve.

    Raises:
        ArgumentError: If a rate is negative or `steps` is below 1.

    Examples:
        >>> curve = cosine(1.0, 10)
        >>> curve(0), round(curve(5), 12), curve(10), curve(11)
        (1.0, 0.5, 0.0, 0.0)

    Source: Loshchilov and Hutter, SGDR (2017), equation 5 without restarts.
    """
    peak, final, steps = (
        require_rate("peak", peak),
        require_rate("final", final),
        require_count("steps", steps),
    )
    return lambda step: _half_cosine(peak, final, _fraction(step, steps))


def cosine_restarts(
    peak: float, steps: int, *, t_mul: float = 2.0, m_mul: float = 1.0, final: float = 0.0
) -> Curve:
    """Cosine decay that starts anew, each cycle `t_mul` times as long, without end.

    Args:
        peak: The rate at step 0.
        steps: Length of the first cycle in steps, at least 1.
        t_mul: Each cycle's length over that of the one before, at least 1.
        m_mul: Each cycle's peak over that of the one before, above 0.
        final: The rate each cycle falls towards.

    Returns:
        A curve.

    Raises:
        ArgumentError: If a rate is negative, `steps` or `t_mul` is below 1, or `m_mul`
            is not positive.

    Examples:
        >>> curve = cosine_restarts(1.0, 10, m_mul=0.5)
        >>> curve(0), round(curve(5), 12), curve(10), round(curve(20), 12), curve(30)
        (1.0, 0.5, 0.5, 0.25, 0.25)

    Source: Loshchilov and Hutter, SGDR (2017), section 3; keras's CosineDecayRestarts.
    """
    peak, final, steps = (
        require_rate("peak", peak),
        require_rate("final", final),
        require_count("steps", steps),
    )
    m_mul = require_positive("m_mul", m_mul)
    t_mul = require_positive("t_mul", t_mul, least=1)

    def curve(step: float) -> float:
        left, length, top = max(step, 0), float(steps), peak
        while left >= length:
            left, length, top = left - length, length * t_mul, top * m_mul
        return _half_cosine(top, final, left / length)

    return curve


def one_cycle(
    peak: float,
    steps: int,
    *,
    warmup_fraction: float = 0.3,
    start_divisor: float = 25.0,
    final_divisor: float = 1e4,
) -> Curve:
    """One cycle: a half cosine up to `peak`, then a half cosine far down.

    The rate runs from ``peak / start_divisor`` up to `peak` and then down to
    ``peak / start_divisor / final_divisor``.

    Args:
        peak: The highest rate.
        steps: Length of the whole cycle in steps, at least 2.
        warmup_fraction: The share of steps that rise, between 0 and 1, both excluded.
        start_divisor: `peak` over the first rate, above 0.
        final_divisor: The first rate over the last, above 0.

    Returns:
        A curve.

    Raises:
        ArgumentError: If a value lies outside its range.

    Examples:
        >>> curve = one_cycle(1.0, 10, warmup_fraction=0.5)
        >>> round(curve(0), 9), curve(5), round(curve(10), 9)
        (0.04, 1.0, 4e-06)

    Source: Smith and Topin, Super-Convergence (2018); defaults as in fastai and PyTorch.
    """
    peak, steps = require_rate("peak", peak), require_count("steps", steps, least=2)
    warmup_fraction = require_fraction("warmup_fraction", warmup_fraction)
    start = peak / require_positive("start_divisor", start_divisor)
    final = start / require_positive("final_divisor", final_divisor)
    rise = warmup_fraction * steps

    def curve(step: float) -> float:
        if step < rise:
            return _half_cosine(start, peak, _fraction(step, rise))
        return _half_cosine(peak, final, _fraction(step - rise, steps - rise))

    return curve


def inverse_sqrt(peak: float, timescale: int = 1) -> Curve:
    """Inverse square root: ``peak / sqrt(1 + t / timescale)``, without end.

    Args:
        peak: The rate at step 0.
        timescale: Steps after which the rate has fallen by the square root of 2.

    Returns:
        A curve.

    Raises:
        ArgumentError: If the rate is negative or `timescale` is below 1.

    Examples:
        >>> curve = inverse_sqrt(1.0, 100)
        >>> curve(0), curve(300)
        (1.0, 0.5)

    Source: Vaswani et al., Attention Is All You Need (2017), section 5.3, in the form
    of big_vision's rsqrt.
    """
    peak, timescale = require_rate("peak", peak), require_count("timescale", timescale)
    return lambda step: peak / math.sqrt(1 + max(step, 0) / timescale)


def warmup(curve: Curve, steps: int, start: float = 0.0) -> Curve:
    """Puts a straight rise before a curve.

    From `start` at step 0 to ``curve(0)`` at `steps`; from there the curve itself,
    which counts from zero at its own start.

    Args:
        curve: The curve to begin after the rise.
        steps: Length of the rise in steps, at least 0; 0 changes nothing.
        start: The rate at step 0.

    Returns:
        A curve.

    Raises:
        ArgumentTypeError: If `curve` is not callable.
        ArgumentError: If `steps` or `start` is negative.

    Examples:
        >>> curve = warmup(constant(1.0), 4)
        >>> curve(0), curve(1), curve(4), curve(5)
        (0.0, 0.25, 1.0, 1.0)

    Source: Goyal et al., Accurate, Large Minibatch SGD (2017), section 2.2.
    """
    steps, start = require_count("steps", steps, least=0), require_rate("start", start)
    curve = require_curve("curve", curve)
    if steps == 0:
        return curve
    return join([linear(start, curve(0), steps), curve], [steps])


def join(curves: Sequence[Curve], boundaries: Sequence[int]) -> Curve:
    """Puts curves one after another; each counts from zero at its own start.

    Args:
        curves: The curves, at least one.
        boundaries: The steps at which the second and each later curve begins,
            increasing, one fewer than there are curves.

    Returns:
        A curve.

    Raises:
        ArgumentTypeError: If a curve is not callable.
        ArgumentError: If the boundaries do not increase or their number does not fit.

    Examples:
        >>> curve = join([constant(1.0), linear(0.5, 0.0, 10)], [100])
        >>> curve(99), curve(100), curve(105), curve(110)
        (1.0, 0.5, 0.25, 0.0)

    Source: optax's join_schedules.
    """
    curves = [require_curve("curves", each) for each in curves]
    marks = require_boundaries(boundaries)
    if not curves or len(marks) != len(curves) - 1:
        raise ArgumentError(
            "`boundaries` must hold one step fewer than there are curves. "
            f"Received: {len(curves)} curves and boundaries={list(boundaries)!r}."
        )
    starts = [0, *marks]

    def curve(step: float) -> float:
        place = bisect.bisect_right(marks, step)
        return curves[place](step - starts[place])

    return curve


def _half_cosine(start: float, final: float, fraction: float) -> float:
    return final + (start - final) * (1 + math.cos(math.pi * fraction)) / 2


def _fraction(step: float, steps: float) -> float:
    return min(max(step, 0) / steps, 1.0)
