"""Choosing which layers learn."""

from tfkit.transfer.freeze import configure_base_model

__all__ = ["configure_base_model"]
