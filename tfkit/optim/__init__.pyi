"""The public names: lazy_loader reads them here, and type checkers do."""

from . import curves as curves
from .callbacks import LearningRateCurve as LearningRateCurve
from .callbacks import ReduceLROnPlateau as ReduceLROnPlateau
from .callbacks import WarmupCosine as WarmupCosine
from .decay import add_weight_penalty as add_weight_penalty
from .decay import set_weight_decay as set_weight_decay
from .finder import LearningRateSearch as LearningRateSearch
from .finder import find_learning_rate as find_learning_rate
from .multipliers import set_learning_rate_multipliers as set_learning_rate_multipliers
from .multipliers import training_table as training_table
