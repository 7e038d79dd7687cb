"""Moving the boundary between frozen and trained layers while a fit runs."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import keras

from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.resume import ResumableCallback
from tfkit.select import Pattern, list_patterns, select_layers
from tfkit.transfer.freeze import Trainability, configure_base_model, require_batch_norm


class GradualUnfreezing(ResumableCallback):
    """Changes which layers train at given epochs of one `fit`.

    At the start of each epoch that `stages` names, exactly the layers of its patterns
    train, as after `configure_base_model`: the optimizer stays, with its `iterations` and
    the state of weights that keep training; the rest of that fit uses one new trace of the
    train step. Before the first named epoch the model trains as it was configured. A run
    that Keras's BackupAndRestore resumes goes on in its stage, with its optimizer's state.

    Args:
        stages: Epochs, counted from 0, and the patterns of `select_layers` that train from
            there on.
        batch_norm: ``"frozen"`` keeps every BatchNormalization in inference mode,
            ``"train"`` lets the selected ones learn.
        verbose: 1 prints a line at every change.

    Raises:
        ArgumentError: If there is no stage, an epoch is no whole number of at least 0 or
            `batch_norm` is neither value; at the start of training, before anything is
            changed, also LayerNotFoundError if a pattern matches nothing.
        ArgumentTypeError: If `stages` is no mapping.

    Examples:
        >>> import numpy as np, tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4, 8), output_channels=3)
        >>> model.compile("adam", "mse")
        >>> x = np.zeros((4, 8, 8, 3))
        >>> unfreeze = tfkit.GradualUnfreezing({0: "decoder_conv2", 2: "decoder_*", 4: "*"})
        >>> history = model.fit(x, x, epochs=3, verbose=0, callbacks=[unfreeze])
        >>> sorted({variable.path.split("/")[0] for variable in model.trainable_variables})
        ['decoder_conv1', 'decoder_conv2']
        >>> int(model.optimizer.iterations)
        3

    Source: Howard and Ruder, ULMFiT (2018), section 3.3; keras-team/keras#9477.
    """

    moves_boundary = True  # what trains is not settled before the fit

    def __init__(
        self,
        stages: Mapping[int, Pattern | Iterable[Pattern]],
        *,
        batch_norm: Literal["frozen", "train"] = "frozen",
        verbose: int = 0,
    ):
        super().__init__()
        if not isinstance(stages, Mapping):
            raise ArgumentTypeError(
                "`stages` must map epochs to patterns, such as {0: 'head', 3: ['block_5*', 'head']}. "
                f"Received: stages={stages!r}."
            )
        whole = all(isinstance(each, numbers.Integral) and not isinstance(each, bool) for each in stages)
        if not stages or not whole or min(stages) < 0:
            raise ArgumentError(
                "`stages` must name at least one epoch, each a whole number of at least 0. "
                f"Received: epochs {list(stages)!r}."
            )
        self.stages = {int(epoch): list_patterns(patterns) for epoch, patterns in sorted(stages.items())}
        self.batch_norm = require_batch_norm(batch_norm)
        self.verbose = verbose
        self._stage = -1  # the epoch of the stage in force
        self._before: Trainability | None = None  # what trained before the first stage

    def set_model(self, model: keras.Model) -> None:
        if model is not self.model:
            self._before = None
        super().set_model(model)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        for patterns in self.stages.values():
            select_layers(self.model, patterns)  # a misspelt name must not wait for its epoch
        if not self.restored:
            self._stage = -1

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        super().on_epoch_begin(epoch, logs)
        stage = max((start for start in self.stages if start <= epoch), default=-1)
        if stage != self._stage:
            self._enter(stage)
            if self.verbose:
                count = sum(keras.ops.size(v) for v in self.model.trainable_variables)
                print(f"\nEpoch {epoch + 1}: {self.stages[stage]!r} trains, {count:,} weights.")

    def _enter(self, stage: int) -> None:
        if self._stage == -1:
            self._before = Trainability(self.model)
        configure_base_model(self.model, self.stages[stage], batch_norm=self.batch_norm)
        self._stage = stage

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_end(logs)
        self._before = None

    def read_state(self) -> dict[str, float]:
        return {"stage": self._stage}

    def write_state(self, state: dict[str, float]) -> None:
        stage = int(state["stage"])
        # Now, so that the optimizer's slots fit what is loaded next.
        if stage in self.stages:
            self._enter(stage)
        elif self._before is not None:  # of a fit that was interrupted in a later stage
            self._before.restore(self.model)
            self._stage = stage
