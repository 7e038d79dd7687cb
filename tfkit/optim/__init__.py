"""Learning rates and decay. Loads Keras only when a callback is asked for."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["curves"],
    submod_attrs={"callbacks": ["LearningRateCurve", "ReduceLROnPlateau", "WarmupCosine"]},
)
