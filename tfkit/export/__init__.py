"""Artifacts for devices, each proven against Keras before it gets its name."""

from tfkit.export.artifact import Artifact
from tfkit.export.benchmark import benchmark
from tfkit.export.layer_error import quantization_error
from tfkit.export.parity import Parity, check_parity
from tfkit.export.quantization import quantize_weights
from tfkit.export.saved_model import export_saved_model
from tfkit.export.tflite import export_tflite
from tfkit.export.zeros import zeros_kept

__all__ = [
    "Artifact",
    "Parity",
    "benchmark",
    "check_parity",
    "export_saved_model",
    "export_tflite",
    "quantization_error",
    "quantize_weights",
    "zeros_kept",
]
