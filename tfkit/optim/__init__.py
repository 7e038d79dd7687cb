"""Learning rates and decay. Loads Keras only when something other than a curve is asked for."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["curves"],
    submod_attrs={
        "callbacks": ["LearningRateCurve", "ReduceLROnPlateau", "WarmupCosine"],
        "decay": ["add_weight_penalty", "set_weight_decay"],
        "finder": ["LearningRateSearch", "find_learning_rate"],
        "multipliers": ["set_learning_rate_multipliers", "training_table"],
    },
)
