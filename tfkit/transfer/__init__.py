"""Choosing which layers learn, and when."""

from tfkit.transfer.freeze import configure_base_model
from tfkit.transfer.unfreeze import GradualUnfreezing

__all__ = ["GradualUnfreezing", "configure_base_model"]
