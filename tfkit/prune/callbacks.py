"""Callbacks of TFMOT's names. On Keras 3 none is needed to prune."""

import math
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.sparsity import keras as tfmot

from tfkit.errors import ArgumentTypeError
from tfkit.prune import legacy
from tfkit.prune.magnitude import masked_weights
from tfkit.training import local_value, require_current_training


class UpdatePruningStep(keras.callbacks.Callback):
    """Writes the pruned kernels' joint sparsity into the logs of each epoch.

    TFMOT cannot prune without its callback of this name; here it only reports, so a
    script written for TFMOT runs as it is. For a tf_keras model it is TFMOT's.

    Examples:
        >>> import keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> _ = tfkit.prune_low_magnitude(model, tfkit.ConstantSparsity(0.5, 0, frequency=1))
        >>> model.compile("sgd", "mse")
        >>> history = model.fit(np.ones((2, 8)), np.ones((2, 4)), verbose=0,
        ...                     callbacks=[tfkit.UpdatePruningStep()])
        >>> history.history["sparsity"]
        [0.5]

    Source: TFMOT's callback of that name.
    """

    def set_model(self, model: Any) -> None:
        if legacy.is_tf_keras(model):
            legacy.hand_over(self, tfmot.UpdatePruningStep(), model)
        else:
            super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        require_current_training(self.model)

    def on_epoch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None:
            return
        pruned = [weight.variable for weight in masked_weights(self.model)]
        if pruned:
            kept = sum(int(keras.ops.count_nonzero(variable)) for variable in pruned)
            logs["sparsity"] = 1 - kept / sum(math.prod(variable.shape) for variable in pruned)


class PruningSummaries(keras.callbacks.TensorBoard):
    """Writes each pruned kernel's sparsity and threshold for TensorBoard, before every epoch.

    The scalars ``PATH/VARIABLE/sparsity``, the fraction of zeros, and
    ``PATH/VARIABLE/threshold``, the smallest magnitude that is not zero, go to
    ``LOG_DIR/metrics`` over the optimizer's updates. All else is Keras's TensorBoard callback.
    For a tf_keras model it is TFMOT's.

    Args:
        log_dir: Folder of the event files.
        update_freq: As in Keras's TensorBoard: ``"epoch"``, ``"batch"`` or a number of batches.
        **options: Further arguments of Keras's TensorBoard.

    Raises:
        ArgumentTypeError: If `log_dir` is no path.

    Examples:
        >>> import pathlib, tempfile, keras, numpy as np, tfkit
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> _ = tfkit.prune_low_magnitude(model, tfkit.ConstantSparsity(0.5, 0, frequency=1))
        >>> model.compile("sgd", "mse")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = model.fit(np.ones((2, 8)), np.ones((2, 4)), verbose=0,
        ...                   callbacks=[tfkit.PruningSummaries(folder)])
        ...     len(list(pathlib.Path(folder, "metrics").iterdir()))
        1

    Source: TFMOT's callback of that name.
    """

    def __init__(self, log_dir: str | os.PathLike[str], update_freq: str | int = "epoch", **options: Any):
        if not isinstance(log_dir, str | os.PathLike) or not str(log_dir):
            raise ArgumentTypeError(f"`log_dir` must be the path of a folder. Received: log_dir={log_dir!r}.")
        self._options = {"log_dir": os.fspath(log_dir), "update_freq": update_freq, **options}
        super().__init__(**self._options)
        self._scalars: Any = None

    def set_model(self, model: Any) -> None:
        if legacy.is_tf_keras(model):
            legacy.hand_over(self, tfmot.PruningSummaries(**self._options), model)
        else:
            super().set_model(model)
            self._scalars = tf.summary.create_file_writer(os.path.join(self.log_dir, "metrics"))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        step = int(local_value(self.model.optimizer.iterations))
        with self._scalars.as_default():
            for weight in masked_weights(self.model):
                magnitudes = np.abs(np.asarray(local_value(weight.variable)))
                kept = magnitudes[magnitudes > 0]
                threshold = kept.min() if kept.size else 0.0
                tf.summary.scalar(f"{weight.name}/sparsity", 1 - kept.size / magnitudes.size, step=step)
                tf.summary.scalar(f"{weight.name}/threshold", threshold, step=step)
        self._scalars.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        self._scalars.flush()
