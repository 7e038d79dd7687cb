"""tf_keras models: handed to TFMOT, which prunes them and nothing else."""

from typing import Any

from tfkit.errors import ArgumentError


def is_tf_keras(model: object) -> bool:
    """Tells whether an object is a model or layer of tf_keras (Keras 2)."""
    return any(cls.__module__.split(".")[0] == "tf_keras" for cls in type(model).__mro__)


def prune_low_magnitude(model: Any, pruning_schedule: Any, *, layers: object = None) -> Any:
    """Returns TFMOT's wrapped copy of a tf_keras model.

    Raises:
        ArgumentError: If layers are named, which TFMOT cannot do on a model.
    """
    from tensorflow_model_optimization.sparsity import keras as tfmot

    if layers is not None:
        raise ArgumentError(
            "`layers` works on Keras 3 models; TFMOT prunes a tf_keras model as a whole. "
            f"Received: layers={layers!r}. Wrap single layers with TFMOT, or load the model with Keras 3."
        )
    return tfmot.prune_low_magnitude(model, pruning_schedule)


def strip_pruning(model: Any) -> Any:
    """Returns TFMOT's copy of a tf_keras model without pruning wrappers."""
    from tensorflow_model_optimization.sparsity import keras as tfmot

    return tfmot.strip_pruning(model)
