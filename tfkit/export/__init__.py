"""Artifacts for devices, each proven against Keras before it gets its name."""

import sys
import types
from typing import TYPE_CHECKING

from tfkit.export.artifact import Artifact, Parity
from tfkit.export.benchmark import benchmark
from tfkit.export.deployment import explain_deployment, explain_tflite
from tfkit.export.layer_error import quantization_error
from tfkit.export.manifest import ExportReport
from tfkit.export.parity import check_parity
from tfkit.export.quantization import quantize_weights
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


class _Room(types.ModuleType):
    """The room carries the name of its main function, so that `tfkit.export(model, …)` may be called."""

    if TYPE_CHECKING:
        __call__ = staticmethod(export)
    else:

        def __call__(self, *args, **kwargs):
            return export(*args, **kwargs)


_Room.__call__.__doc__ = export.__doc__

sys.modules[__name__].__class__ = _Room
