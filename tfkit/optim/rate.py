"""Reading and setting an optimizer's learning rate, and counting its updates."""

import keras

from tfkit.errors import ArgumentError
from tfkit.training import local_value


def require_assignable_rate(optimizer: keras.optimizers.Optimizer) -> None:
    """Checks that the optimizer has one rate, which can be set while it trains.

    Raises:
        ArgumentError: If the optimizer was made with a schedule or a function, or consists
            of several.
    """
    optimizer = _inner(optimizer)
    if hasattr(optimizer, "optimizers"):
        raise ArgumentError(
            "One optimizer must train the model, for its learning rate is set. "
            f"Received: optimizer={type(optimizer).__name__} of {len(optimizer.optimizers)} optimizers. "
            "Use one optimizer, with tfkit.set_learning_rate_multipliers where layers differ."
        )
    rate = optimizer._learning_rate
    if not isinstance(rate, keras.Variable):
        raise ArgumentError(
            "The optimizer must be made with a number as its learning rate, for the rate is set while it "
            f"trains. Received: learning_rate={rate!r}. "
            "Pass a float to the optimizer and the curve to tfkit.LearningRateCurve."
        )


def read_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the learning rate."""
    return float(local_value(_inner(optimizer)._learning_rate))


def set_rate(optimizer: keras.optimizers.Optimizer, rate: float) -> None:
    """Sets the learning rate: in a quarter of the time that Keras's setter takes."""
    _inner(optimizer)._learning_rate.value.assign(rate, read_value=False)


def count_updates(optimizer: keras.optimizers.Optimizer) -> int:
    """Returns how often the optimizer has moved the weights; accumulated steps are not updates."""
    inner = _inner(optimizer)
    return int(local_value(inner._iterations)) // (inner.gradient_accumulation_steps or 1)


def accumulation(optimizer: keras.optimizers.Optimizer) -> int:
    """Returns the number of steps to one update."""
    return _inner(optimizer).gradient_accumulation_steps or 1


def _inner(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    return getattr(optimizer, "inner_optimizer", optimizer)
