"""Callbacks that go on where a checkpoint stands.

Keras saves a model and its optimizer, but no callback. Here a callback's numbers ride in
the model's own weights files: `BackupAndRestore` and `ModelCheckpoint` carry them without
knowing, and Keras alone passes them by when it loads such a file.
"""

import collections
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras.src.saving.keras_saveable import KerasSaveable

from tfkit import training


class ResumableCallback(keras.callbacks.Callback):
    """A callback whose state is saved and restored with the model's weights.

    A subclass says in `read_state` what to save, as numbers by name, and takes it back in
    `write_state`. It resets itself in `on_train_begin` unless `restored` is true: a
    checkpoint may have been loaded before that, or may be loaded after.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.begin_run()

    @property
    def companions(self) -> "list[ResumableCallback]":
        """The callbacks of this kind in the fit under way, this one included."""
        return _Passengers.of(self.model).callbacks

    def begin_run(self) -> None:
        """Forgets the run before; called before a fit and after it."""
        self.restored = False
        self._begun = False

    def read_state(self) -> dict[str, float]:
        """Returns what the callback must know to go on."""
        raise NotImplementedError

    def write_state(self, state: dict[str, float]) -> None:
        """Takes back what `read_state` returned."""
        raise NotImplementedError

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.begin_run()
        _Passengers.of(model).board(self)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        _Passengers.of(self.model).board(self)  # for a CallbackList that serves a second fit
        training.require_current_training(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._begun = True  # weights loaded from here on are not a resumption

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        _Passengers.of(self.model).leave(self)
        self.begin_run()

    def restore(self, state: dict[str, float]) -> None:
        """Takes back a state that came with weights, unless the fit has begun already."""
        if not self._begun:
            self.restored = True
            self.write_state(state)


class _Passengers(KerasSaveable):
    """The callbacks of the fit under way, as a part of the model that Keras saves.

    Its name on the model sorts before "optimizer", the order in which Keras restores:
    what trains must be settled before the optimizer's slots are loaded.
    """

    NAME = "callback_states"

    def __init__(self) -> None:
        self._fit: Any = lambda: None
        self.callbacks: list[ResumableCallback] = []

    @classmethod
    def of(cls, model: keras.Model) -> "_Passengers":
        if not hasattr(model, cls.NAME):
            setattr(model, cls.NAME, cls())
        passengers = getattr(model, cls.NAME)
        fit = getattr(model, "history", None)  # a new object for every fit
        if fit is not None and passengers._fit() is not fit:
            passengers._fit = weakref.ref(fit)
            passengers.callbacks = []  # left over from a fit that was interrupted
        return passengers

    def board(self, callback: ResumableCallback) -> None:
        if not any(each is callback for each in self.callbacks):
            self.callbacks.append(callback)

    def leave(self, callback: ResumableCallback) -> None:
        self.callbacks = [each for each in self.callbacks if each is not callback]

    def _named(self) -> Iterator[tuple[str, ResumableCallback]]:
        """Yields each callback under its kind and its number among those of the kind."""
        seen: collections.Counter[str] = collections.Counter()
        for callback in self.callbacks:
            kind = type(callback).__name__
            yield f"{kind}_{seen[kind]}", callback
            seen[kind] += 1

    def save_own_variables(self, store: Any) -> None:
        for owner, callback in self._named():
            for name, value in callback.read_state().items():
                store[f"{owner}.{name}"] = np.float64(value)

    def load_own_variables(self, store: Any) -> None:
        states: dict[str, dict[str, float]] = collections.defaultdict(dict)
        for key in store.keys():  # noqa: SIM118
            owner, _, name = key.partition(".")
            states[owner][name] = float(store[key][()])
        for owner, callback in self._named():
            if owner in states:
                callback.restore(states[owner])

    def _obj_type(self) -> str:
        return "Operation"
