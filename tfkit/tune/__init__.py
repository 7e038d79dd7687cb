"""Searching hyperparameters with keras-tuner's oracles."""

from tfkit.tune.result import SearchResult
from tfkit.tune.search import search
from tfkit.tune.space import SearchSpace

__all__ = ["SearchResult", "SearchSpace", "search"]
