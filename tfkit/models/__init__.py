"""Models to begin with: an encoder–decoder, files, keras.applications, heads, weights by name."""

from tfkit.models.encoder_decoder import build_encoder_decoder
from tfkit.models.heads import attach_head
from tfkit.models.loading import load_base_model
from tfkit.models.weights import TransferEntry, WeightTransfer, transfer_weights

__all__ = [
    "TransferEntry",
    "WeightTransfer",
    "attach_head",
    "build_encoder_decoder",
    "load_base_model",
    "transfer_weights",
]
