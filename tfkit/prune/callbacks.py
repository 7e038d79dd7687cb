"""Callbacks of TFMOT's names. On Keras 3 none is needed to prune."""

import math
from typing import Any

import keras

from tfkit.prune.magnitude import masked_weights
from tfkit.training import require_current_training


class UpdatePruningStep(keras.callbacks.Callback):
    """Writes the pruned kernels' joint sparsity into the logs of each epoch.

    TFMOT cannot prune without its callback of this name; here it only reports, so a
    script written for TFMOT runs as it is.

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

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        require_current_training(self.model)

    def on_epoch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if logs is None:
            return
        pruned = [weight.variable for weight in masked_weights(self.model)]
        if pruned:
            kept = sum(int(keras.ops.count_nonzero(variable)) for variable in pruned)
            logs["sparsity"] = 1 - kept / sum(math.prod(variable.shape) for variable in pruned)
