"""The public names: lazy_loader reads them here when tfkit is imported, and type checkers do."""

import typing

import tfkit.export as _export

from . import errors as errors
from . import models as models
from . import optim as optim
from . import prune as prune
from . import report as report
from . import transfer as transfer
from . import tune as tune
from .errors import ArgumentError as ArgumentError
from .errors import ArgumentTypeError as ArgumentTypeError
from .errors import DownloadError as DownloadError
from .errors import ExportError as ExportError
from .errors import LayerNotFoundError as LayerNotFoundError
from .errors import NonFiniteWeightsError as NonFiniteWeightsError
from .errors import OutputPathError as OutputPathError
from .errors import ParityError as ParityError
from .errors import PruningError as PruningError
from .errors import SearchError as SearchError
from .errors import TfkitError as TfkitError
from .errors import UnbuiltModelError as UnbuiltModelError
from .errors import UnsafeModelError as UnsafeModelError
from .export import Artifact as Artifact
from .export import ExportReport as ExportReport
from .export import Parity as Parity
from .export import benchmark as benchmark
from .export import check_parity as check_parity
from .export import explain_deployment as explain_deployment
from .export import explain_tflite as explain_tflite
from .export import export_saved_model as export_saved_model
from .export import export_tflite as export_tflite
from .export import make_sparse_ready as make_sparse_ready
from .export import quantization_error as quantization_error
from .export import quantize_weights as quantize_weights
from .export import zeros_kept as zeros_kept
from .optim import LearningRateCurve as LearningRateCurve
from .optim import LearningRateSearch as LearningRateSearch
from .optim import ReduceLROnPlateau as ReduceLROnPlateau
from .optim import WarmupCosine as WarmupCosine
from .optim import add_weight_penalty as add_weight_penalty
from .optim import curves as curves
from .optim import find_learning_rate as find_learning_rate
from .optim import set_learning_rate_multipliers as set_learning_rate_multipliers
from .optim import set_weight_decay as set_weight_decay
from .optim import training_table as training_table
from .prune import ChannelPlan as ChannelPlan
from .prune import ConstantSparsity as ConstantSparsity
from .prune import GradualPruning as GradualPruning
from .prune import PolynomialDecay as PolynomialDecay
from .prune import PrunableLayer as PrunableLayer
from .prune import PruningSchedule as PruningSchedule
from .prune import PruningSummaries as PruningSummaries
from .prune import UpdatePruningStep as UpdatePruningStep
from .prune import flops_table as flops_table
from .prune import layer_sensitivity as layer_sensitivity
from .prune import plan_channel_pruning as plan_channel_pruning
from .prune import plot_sensitivity as plot_sensitivity
from .prune import prune_channels as prune_channels
from .prune import prune_channels_gradually as prune_channels_gradually
from .prune import prune_low_magnitude as prune_low_magnitude
from .prune import prune_now as prune_now
from .prune import prune_scope as prune_scope
from .prune import recalibrate_batch_norm as recalibrate_batch_norm
from .prune import sparsity_table as sparsity_table
from .prune import strip_pruning as strip_pruning
from .select import Selection as Selection
from .select import layer_table as layer_table
from .select import select_layers as select_layers
from .transfer import GradualUnfreezing as GradualUnfreezing
from .transfer import Recommendation as Recommendation
from .transfer import compare_unfreezing as compare_unfreezing
from .transfer import configure_base_model as configure_base_model
from .transfer import fit_cached as fit_cached
from .transfer import recommend_trainable_layers as recommend_trainable_layers
from .tune import SearchResult as SearchResult
from .tune import SearchSpace as SearchSpace
from .tune import search as search

__version__: str

if typing.TYPE_CHECKING:
    export: _export._Room  # a module that may be called, which no import says
else:
    from . import export as export
