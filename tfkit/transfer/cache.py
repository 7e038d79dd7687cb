"""Training with the frozen part computed once instead of once an epoch."""

import contextlib
import numbers
import os
import warnings
from collections.abc import Iterable
from typing import Any

import keras

from tfkit import graph
from tfkit.errors import ArgumentError
from tfkit.frozen.features import Storage
from tfkit.frozen.once import FrozenOnce
from tfkit.frozen.split import NotSplittable
from tfkit.training import refresh_training


def fit_cached(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    batch_size: int | None = None,
    epochs: int = 1,
    verbose: str | int = "auto",
    callbacks: Iterable[keras.callbacks.Callback] | keras.callbacks.Callback | None = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    shuffle: bool = True,
    class_weight: dict[int, float] | None = None,
    sample_weight: Any = None,
    initial_epoch: int = 0,
    steps_per_epoch: int | None = None,
    validation_steps: int | None = None,
    validation_batch_size: int | None = None,
    validation_freq: int = 1,
    memory_budget_gb: float = 4.0,
    cache_directory: str | os.PathLike[str] | None = None,
    strict: bool = False,
) -> keras.callbacks.History:
    """Trains as `model.fit` does, with the frozen part of the graph run once.

    The graph is cut wherever its frozen part ends: layers that neither train nor draw
    random numbers, and stand behind no layer that does, run once for every sample, and
    the others train on what they gave. The weights, the optimizer's state and the History
    are those of `fit` up to rounding; callbacks see the whole model. Where layers are random (dropout,
    augmentation) or mix the samples of a batch, they and what stands behind them run at every
    step, as in `fit`.

    What cannot be cut is named in a warning and trained by `fit` itself, or refused with
    ``strict=True``: a subclassed model or one with a train step of its own, a frozen layer
    behind one that trains, data that cannot be gone through twice or that differs every
    time (augmentation in the input pipeline), and `GradualUnfreezing`, which moves the
    boundary. A data set that only shuffles is shuffled anew in every epoch.

    Args:
        model: A built and compiled model, configured with `configure_base_model`.
        x: Arrays or tensors in any structure, a tf.data.Dataset or a keras PyDataset.
        y: Targets, where `x` holds none.
        batch_size: As in `model.fit`.
        epochs: As in `model.fit`.
        verbose: As in `model.fit`.
        callbacks: As in `model.fit`; they see the whole model.
        validation_split: As in `model.fit`.
        validation_data: As in `model.fit`.
        shuffle: As in `model.fit`.
        class_weight: As in `model.fit`.
        sample_weight: As in `model.fit`.
        initial_epoch: As in `model.fit`.
        steps_per_epoch: As in `model.fit`.
        validation_steps: As in `model.fit`.
        validation_batch_size: As in `model.fit`.
        validation_freq: As in `model.fit`.
        memory_budget_gb: Features beyond this many gigabytes go to disk.
        cache_directory: Where to put them; None for the system's temporary folder. They are
            deleted at the end.
        strict: Whether to refuse what cannot be computed once, instead of warning.

    Returns:
        Keras's History, which is `model.history` too.

    Raises:
        ArgumentError: If the model is not compiled, an argument lies outside its range, or
            with `strict` if a frozen layer with weights has to run in every epoch.

    Examples:
        >>> import numpy as np, tfkit
        >>> model = tfkit.models.build_encoder_decoder((8, 8, 3), filters=(4, 8), output_channels=3)
        >>> _ = tfkit.configure_base_model(model, "decoder_conv2")
        >>> model.compile("adam", "mse")
        >>> x = np.zeros((32, 8, 8, 3))
        >>> history = tfkit.fit_cached(model, x, x, epochs=3, verbose=0, strict=True)
        >>> len(history.history["loss"])
        3

    Source: bottleneck features, as in F. Chollet, "Building powerful image classification
    models using very little data" (Keras blog, 2016), for any boundary.
    """
    plain = {
        "batch_size": batch_size,
        "epochs": epochs,
        "verbose": verbose,
        "callbacks": callbacks,
        "validation_split": validation_split,
        "validation_data": validation_data,
        "shuffle": shuffle,
        "class_weight": class_weight,
        "sample_weight": sample_weight,
        "initial_epoch": initial_epoch,
        "steps_per_epoch": steps_per_epoch,
        "validation_steps": validation_steps,
        "validation_batch_size": validation_batch_size,
        "validation_freq": validation_freq,
    }
    _check(
        graph.require_compiled(model),
        batch_size,
        validation_batch_size,
        validation_split or 0.0,
        memory_budget_gb,
        cache_directory,
    )
    refresh_training(model)  # the flags of now decide
    plain["callbacks"] = [] if callbacks is None else keras.tree.flatten(callbacks)
    with contextlib.ExitStack() as disk:
        try:
            training = FrozenOnce(model, x, y, plain)
            if uncached := training.uncached:
                some = "; ".join(f"{path} {reason}" for path, reason in list(uncached.items())[:5])
                more = " …" * (len(uncached) > 5)
                _refuse_or_warn(f"frozen layers have to run in every epoch: {some}{more}", strict)
            _restore(model, plain["callbacks"])
            progress = _Progress(verbose)
            training.compute(Storage(memory_budget_gb * 2**30, cache_directory, disk), progress)
            progress.end()
        except NotSplittable as problem:
            _refuse_or_warn(f"{problem}", strict)
            return model.fit(x, y, **plain)
        return training.fit(plain)


def _check(
    model: keras.Model,
    batch_size: int | None,
    validation_batch_size: int | None,
    validation_split: float,
    memory_budget_gb: float,
    directory: Any,
) -> None:
    for name, size in (("batch_size", batch_size), ("validation_batch_size", validation_batch_size)):
        whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
        if size is not None and not (whole and size >= 1):
            raise ArgumentError(f"`{name}` must be a whole number of at least 1. Received: {name}={size!r}.")
    if not isinstance(validation_split, numbers.Real) or not 0 <= validation_split < 1:
        raise ArgumentError(
            "`validation_split` must be at least 0 and below 1. "
            f"Received: validation_split={validation_split!r}."
        )
    if not isinstance(memory_budget_gb, numbers.Real) or not memory_budget_gb >= 0:
        raise ArgumentError(
            f"`memory_budget_gb` must be at least 0. Received: memory_budget_gb={memory_budget_gb!r}."
        )
    if directory is not None and not os.path.isdir(directory):
        raise ArgumentError(
            f"`cache_directory` must be a folder that exists. Received: cache_directory={str(directory)!r}."
        )
    if not model.trainable_variables:
        raise ArgumentError(
            "At least one layer must train. "
            f"Received: model={model.name!r}, which is wholly frozen. "
            "Choose layers with tfkit.configure_base_model."
        )


def _restore(model: keras.Model, callbacks: list[keras.callbacks.Callback]) -> None:
    """Takes the frozen weights of an interrupted run back before features are computed from them."""
    for each in callbacks:
        if isinstance(each, keras.callbacks.BackupAndRestore):
            each.set_model(model)
            each.on_train_begin()


def _refuse_or_warn(problem: str, strict: bool) -> None:
    if strict:
        raise ArgumentError(
            "With `strict`, the whole frozen part must be computed once. "
            f"Received: a case where it cannot be, for {problem}. "
            "Pass strict=False, put augmentation behind the frozen part, or use arrays."
        )
    warnings.warn(f"fit_cached goes on as far as it can: {problem}.", stacklevel=3)


def _loudness(verbose: str | int) -> int:
    return 1 if verbose == "auto" else int(verbose)


class _Progress:
    """Keras's progress bar over the batches whose features are computed."""

    def __init__(self, verbose: str | int):
        self._bar = (
            keras.utils.Progbar(None, verbose=_loudness(verbose), unit_name="batch") if verbose else None
        )
        self._done = 0
        if self._bar:
            print("Computing features of the frozen layers")

    def __call__(self) -> None:
        self._done += 1
        if self._bar:
            self._bar.update(self._done)

    def end(self) -> None:
        if self._bar:
            self._bar.update(self._done, finalize=True)
