"""Artifacts for devices, each proven against Keras before it gets its name."""

import sys

from tfkit.export.artifact import Artifact, Parity
from tfkit.export.benchmark import benchmark
from tfkit.export.deployment import explain_deployment, explain_tflite
from tfkit.export.layer_error import quantization_error
from tfkit.export.manifest import ExportReport
from tfkit.export.parity import check_parity
from tfkit.export.quantization import quantize_weights
from tfkit.export.room import Room
from tfkit.export.saved_model import export_saved_model
from tfkit.export.sparse import make_sparse_ready
from tfkit.export.targets import export
from tfkit.export.tflite import export_tflite
from tfkit.export.zeros import zeros_kept

__all__ = [
    "Artifact",
    "ExportReport",
    "Parity",
    "benchmark",
    "check_parity",
    "explain_deployment",
    "explain_tflite",
    "export",
    "export_saved_model",
    "export_tflite",
    "make_sparse_ready",
    "quantization_error",
    "quantize_weights",
    "zeros_kept",
]

sys.modules[__name__].__class__ = Room
