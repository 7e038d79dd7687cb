"""Measuring, and showing what was measured and how far work is."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submodules=["html", "measure", "plots", "progress"]
)
