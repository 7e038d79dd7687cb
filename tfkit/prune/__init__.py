"""Fewer weights: sparsity by magnitude, and whole channels removed, on Keras 3 models."""

from tensorflow_model_optimization.sparsity.keras import (
    ConstantSparsity,
    PolynomialDecay,
    PrunableLayer,
    PruneForLatencyOnXNNPack,
    PruningPolicy,
    PruningSchedule,
    prune_scope,
)

from tfkit.prune.callbacks import PruningSummaries, UpdatePruningStep
from tfkit.prune.channels import plan_channel_pruning, prune_channels
from tfkit.prune.gradual import GradualPruning, prune_channels_gradually
from tfkit.prune.magnitude import prune_low_magnitude, prune_now, sparsity_table, strip_pruning
from tfkit.prune.plan import ChannelPlan
from tfkit.prune.recalibration import recalibrate_batch_norm
from tfkit.prune.sensitivity import layer_sensitivity, plot_sensitivity
from tfkit.prune.work import flops_table

__all__ = [
    "ChannelPlan",
    "ConstantSparsity",
    "GradualPruning",
    "PolynomialDecay",
    "PrunableLayer",
    "PruneForLatencyOnXNNPack",
    "PruningPolicy",
    "PruningSchedule",
    "PruningSummaries",
    "UpdatePruningStep",
    "flops_table",
    "layer_sensitivity",
    "plan_channel_pruning",
    "plot_sensitivity",
    "prune_channels",
    "prune_channels_gradually",
    "prune_low_magnitude",
    "prune_now",
    "prune_scope",
    "recalibrate_batch_norm",
    "sparsity_table",
    "strip_pruning",
]
