"""tf_keras models: handed to TFMOT, which prunes them and nothing else."""

from typing import Any

from tfkit.errors import ArgumentError


def is_tf_keras(thing: object) -> bool:
    """Tells whether an object is a model or layer of tf_keras (Keras 2), or a list of its layers."""
    kinds = [type(each) for each in thing] if isinstance(thing, list) else [type(thing)]
    return any(cls.__module__.split(".")[0] == "tf_keras" for kind in kinds for cls in kind.__mro__)


def hand_over(callback: Any, theirs: Any, model: Any) -> None:
    """Lets TFMOT's callback do the work of tfkit's of that name, for a tf_keras model."""
    for name in dir(theirs):
        if name.startswith(("on_", "set_params", "_implements", "_supports")):
            setattr(callback, name, getattr(theirs, name))
    theirs.set_model(model)


def prune_low_magnitude(
    model: Any, pruning_schedule: Any, *, layers: object, scope: object, **options: Any
) -> Any:
    """Returns TFMOT's wrapped copy of a tf_keras model.

    Args:
        model: A tf_keras model, a layer, or a list of layers.
        pruning_schedule: TFMOT's schedule.
        layers: None, for TFMOT takes no names.
        scope: ``"layer"``, for TFMOT knows no other.
        options: TFMOT's own arguments.

    Raises:
        ArgumentError: If layers or another scope are asked for, which TFMOT cannot do.
    """
    from tensorflow_model_optimization.sparsity import keras as tfmot

    if layers is not None or scope != "layer":
        raise ArgumentError(
            "`layers` and `scope` work on Keras 3 models; TFMOT prunes a tf_keras model as a whole. "
            f"Received: layers={layers!r}, scope={scope!r}. "
            "Wrap single layers with TFMOT, or load the model with Keras 3."
        )
    return tfmot.prune_low_magnitude(model, pruning_schedule, **options)


def strip_pruning(model: Any) -> Any:
    """Returns TFMOT's copy of a tf_keras model without pruning wrappers."""
    from tensorflow_model_optimization.sparsity import keras as tfmot

    return tfmot.strip_pruning(model)
