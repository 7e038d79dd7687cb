"""Choosing which layers learn, and when."""

from tfkit.transfer.advice import Recommendation, recommend_trainable_layers
from tfkit.transfer.cache import fit_cached
from tfkit.transfer.comparison import compare_unfreezing
from tfkit.transfer.freeze import configure_base_model
from tfkit.transfer.unfreeze import GradualUnfreezing

__all__ = [
    "GradualUnfreezing",
    "Recommendation",
    "compare_unfreezing",
    "configure_base_model",
    "fit_cached",
    "recommend_trainable_layers",
]
