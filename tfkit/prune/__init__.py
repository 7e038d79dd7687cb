"""Sparsity by magnitude, on Keras 3 models."""

from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay

from tfkit.prune.callbacks import UpdatePruningStep
from tfkit.prune.magnitude import prune_low_magnitude, prune_now, sparsity_table, strip_pruning

__all__ = [
    "ConstantSparsity",
    "PolynomialDecay",
    "UpdatePruningStep",
    "prune_low_magnitude",
    "prune_now",
    "sparsity_table",
    "strip_pruning",
]
