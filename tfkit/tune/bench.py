"""The model of a search: built once for all trials that differ only in values of variables."""

import collections
import contextlib
import gc
import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import keras_tuner
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.utils.tracking import DotNotTrackScope
from tensorflow.python.eager import context

from tfkit import graph
from tfkit.errors import ArgumentError, ArgumentTypeError
from tfkit.frozen.features import Storage
from tfkit.frozen.once import FrozenOnce
from tfkit.frozen.split import NotSplittable
from tfkit.traced import draws_random_numbers, list_operations, local_values, traced_graphs
from tfkit.training import TrainingState
from tfkit.tune.space import LOGARITHMIC, SearchSpace


class WrongCallError(ArgumentError):
    """A mistake in the call of `search` itself, which no other trial would mend."""


class NoModelError(WrongCallError, ArgumentTypeError):
    """A `build` that returns something else than a model."""


class Bench(keras_tuner.HyperModel):
    """Gives each trial its model, as `build` would return it, with the trial's rate and decay.

    A model is kept for the next trial and put back to its first state, traced step and
    computed features included, as long as nothing that `build` reads has another value.

    Args:
        build: What makes a model.
        takes_hp: Whether it takes hyperparameters.
        space: What varies.
        fit: The arguments of `fit` that all trials share.
        seed: Seeds every trial alike; None leaves randomness alone.
        reuse: Whether to keep models at all.
        storage: Where features of frozen layers are kept; None to run them in every epoch.
        objective: A metric that the first model must report; None where callbacks may report more.
        strategy: A tf.distribute strategy to build under.
    """

    def __init__(
        self,
        build: Callable[..., keras.Model],
        takes_hp: bool,
        space: SearchSpace,
        fit: dict[str, Any],
        *,
        seed: int | None,
        reuse: bool,
        storage: Storage | None,
        objective: str | None = None,
        strategy: Any = None,
    ):
        super().__init__()
        self._make, self._takes_hp, self._space = build, takes_hp, space
        self._arguments = fit
        self._seed, self._reuse, self._storage, self._strategy = seed, reuse, storage, strategy
        self._last: list[weakref.ref[keras.Variable]] = []
        self._names, self._objective = _Names(), objective
        self._clear()

    def _clear(self) -> None:
        self._model: keras.Model | None = None
        self._read: dict[str, Any] = {}  # what `build` read of the hyperparameters
        self._state: TrainingState | None = None  # its first one; None if it cannot be put back
        self._frozen: FrozenOnce | None = None

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """Returns a model in its first state, with the rate and the decay of a trial."""
        if self._state is None or not self._serves(hp):
            self._clear()
            gc.collect()  # of the model before
            self._model, self._read = self._make_model(hp)
            self._require_fresh(self._model)
            self._random = RandomState(self._seed)
            if self._objective is not None and self._strategy is None and self._model.built:
                require_reported(self._objective, first_metrics(self._model, self._arguments))
            self._objective = None  # looked for once
            self._prepare(self._model)
        else:
            self._state.restore(keep_trace=True)
        self._random.restore(self._model)
        optimizer = inner_optimizer(self._model)
        for name in LOGARITHMIC:
            if name in self._space.entries:
                _assign(optimizer, name, hp.get(name))
        return self._model

    def fit(self, model: keras.Model, arguments: dict[str, Any]) -> keras.callbacks.History:
        """Trains the model that `build` returned."""
        moving = [id(variable) for variable in model.trainable_variables]
        try:
            if self._frozen is not None:
                return self._frozen.fit(_DEFAULTS | self._arguments | arguments)
            return model.fit(**self._arguments, **arguments)
        finally:
            if not self._reuse or moving != [id(variable) for variable in model.trainable_variables]:
                self._clear()  # a callback moved the boundary: what was traced is another model's

    def _serves(self, hp: keras_tuner.HyperParameters) -> bool:
        return all(name in hp.values and hp.values[name] == value for name, value in self._read.items())

    def _make_model(self, hp: keras_tuner.HyperParameters) -> tuple[keras.Model, dict[str, Any]]:
        if self._seed is not None:
            keras.utils.set_random_seed(self._seed)
        scope = contextlib.nullcontext() if self._strategy is None else self._strategy.scope()
        with scope, self._names.as_at_first():
            if not self._takes_hp:
                return require_searchable(self._make()), {}
            watched = hp.values = _Reads(hp.values)
            try:
                model = require_searchable(self._make(hp))
            finally:
                names = set(watched.names)
                hp.values = dict(watched)
        return model, {name: hp.values[name] for name in names if name in hp.values}

    def _prepare(self, model: keras.Model) -> None:
        """Remembers the first state, and computes what is frozen."""
        if not (model.built and self._reuse):  # Keras builds it in `fit`
            return
        if not model.optimizer.built:
            with inner_optimizer(model)._distribution_strategy.scope():
                model.optimizer.build(model.trainable_variables)
        if "weight_decay" in self._space.entries:
            _make_live(inner_optimizer(model))
        self._state = TrainingState(model)
        if self._storage is None or all(variable.trainable for _, variable in graph.learnable(model)):
            return
        with contextlib.suppress(NotSplittable):
            arguments = _DEFAULTS | self._arguments
            frozen = FrozenOnce(model, arguments["x"], arguments["y"], arguments)
            frozen.compute(self._storage)
            self._frozen = frozen

    def _require_fresh(self, model: keras.Model) -> None:
        """Checks that no weight that trains was there in the trial before."""
        before = {id(variable) for reference in self._last if (variable := reference()) is not None}
        shared = [variable.path for variable in model.trainable_variables if id(variable) in before]
        if shared:
            raise WrongCallError(
                "`build` must make new weights each time, or trials would train each other's. "
                f"Received: model={model.name!r}, twice with the same {', '.join(shared[:3])}. "
                "Create, load or clone what trains inside `build`."
            )
        self._last = [weakref.ref(variable) for variable in model.trainable_variables]


_DEFAULTS: dict[str, Any] = {
    "callbacks": [],
    "class_weight": None,
    "sample_weight": None,
    "initial_epoch": 0,
    "steps_per_epoch": None,
    "validation_steps": None,
    "validation_batch_size": None,
    "validation_freq": 1,
}


class _Reads(dict[str, Any]):
    """Hyperparameters that remember which of them were asked for."""

    def __init__(self, values: dict[str, Any]):
        super().__init__(values)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def _all(self) -> "_Reads":
        self.names.update(super().keys())
        return self

    def __iter__(self) -> Iterator[str]:  # which `dict(values)` and `**values` use, once it is here
        return super(_Reads, self._all()).__iter__()

    def keys(self) -> Any:
        return super(_Reads, self._all()).keys()

    def values(self) -> Any:
        return super(_Reads, self._all()).values()

    def items(self) -> Any:
        return super(_Reads, self._all()).items()

    def copy(self) -> dict[str, Any]:
        return dict(self.items())


class _Names:
    """The numbers that Keras puts behind names, so that a metric is called the same in every trial."""

    KEY = "object_name_uids"

    def __init__(self) -> None:
        self._first = dict(global_state.get_global_attribute(self.KEY) or {})

    @contextlib.contextmanager
    def as_at_first(self) -> Iterator[None]:
        """Counts names as before the first model; afterwards no number has been given twice."""
        before = dict(global_state.get_global_attribute(self.KEY) or {})
        global_state.set_global_attribute(self.KEY, collections.defaultdict(int, self._first))
        try:
            yield
        finally:
            counts = global_state.get_global_attribute(self.KEY)
            for name, count in before.items():
                counts[name] = max(counts[name], count)


class RandomState:
    """Where Python's, NumPy's and TensorFlow's random numbers stand.

    Args:
        seed: What they were seeded with; None leaves them alone for ever.
    """

    def __init__(self, seed: int | None):
        self._seed = seed
        if seed is not None:
            self._python, self._numpy = random.getstate(), np.random.get_state()
            self._tensorflow = context.context()._rng.getstate()

    def restore(self, model: keras.Model) -> None:
        """Puts them back there, for a model that is to be trained."""
        if self._seed is None:
            return
        if any(draws_random_numbers(each) for step in traced_graphs(model) for each in list_operations(step)):
            keras.utils.set_random_seed(self._seed)  # its kernels forget where they stood, and are made anew
        global_state.set_global_attribute("global_seed_generator", None)
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        context.context()._rng.setstate(self._tensorflow)


def require_searchable(model: object) -> keras.Model:
    """Returns what `build` made if a search can set its rate."""
    if not isinstance(model, keras.Model):
        raise NoModelError(
            "`build` must return a compiled Keras 3 model. "
            f"Received: {model!r} of type {type(model).__module__}.{type(model).__name__}."
        )
    if model.compiled and model.optimizer is None:
        raise WrongCallError(
            "`build` must compile the model with an optimizer, for the search sets its learning rate. "
            f"Received: model={model.name!r}, compiled without one. Pass optimizer='adam' to compile."
        )
    if not model.compiled:
        raise WrongCallError(
            "`build` must return a compiled model, so that the search knows its loss. "
            f"Received: model={model.name!r}, not compiled. Call model.compile(optimizer, loss) in `build`."
        )
    optimizer = inner_optimizer(model)
    if hasattr(optimizer, "optimizers"):
        raise WrongCallError(
            "One optimizer must train the model, for the search sets its learning rate. "
            f"Received: optimizer={type(optimizer).__name__} of {len(optimizer.optimizers)} optimizers. "
            "Use one optimizer, with tfkit.set_learning_rate_multipliers where layers differ."
        )
    if not isinstance(optimizer._learning_rate, keras.Variable):
        raise WrongCallError(
            "The optimizer must be made with a number as its learning rate, for the search sets it. "
            f"Received: learning_rate={optimizer._learning_rate!r} in model {model.name!r}. "
            "Pass a float to the optimizer and the curve as a callback."
        )
    return model


def first_metrics(model: keras.Model, arguments: dict[str, Any]) -> set[str] | None:
    """Returns the names that a fit will report, from one sample; None where only a fit can tell."""
    own = ("train_step", "test_step", "compute_metrics", "get_metrics_result")
    if any(getattr(type(model), name) is not getattr(keras.Model, name) for name in own):
        return None
    x, y = arguments["x"], arguments["y"]
    try:
        if isinstance(x, tf.data.Dataset | keras.utils.PyDataset):
            batch = next(iter(x)) if isinstance(x, tf.data.Dataset) else x[0]
        else:
            batch = keras.tree.map_structure(
                lambda array: keras.ops.convert_to_tensor(np.asarray(array)[:1]), (x, y), none_is_leaf=False
            )
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        outputs = model(x, training=False)
        model.compute_loss(x, y, outputs, weight, training=False)
        names = set(model.compute_metrics(x, y, outputs, weight))
    except (ValueError, TypeError, KeyError, AttributeError, tf.errors.OpError):
        # Data that do not fit the model: the first trial's own error says it better.
        return None
    finally:
        model.reset_metrics()
    validates = arguments["validation_data"] is not None or arguments["validation_split"]
    return names | ({f"val_{name}" for name in names} if validates else set())


def require_reported(objective: str, names: Iterable[str] | None) -> None:
    """Checks that the objective is among the metrics, where they are known."""
    if names is not None and objective not in names:
        raise WrongCallError(
            "`objective` must be a metric that training reports. "
            f"Received: objective={objective!r}; the history has {', '.join(sorted(names))}."
        )


def inner_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """Returns the optimizer that moves the weights."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def _assign(optimizer: keras.optimizers.Optimizer, name: str, value: float) -> None:
    if name == "weight_decay" and isinstance(optimizer.weight_decay, keras.Variable):
        optimizer.weight_decay.assign(value)
    else:
        setattr(optimizer, name, value)


def _make_live(optimizer: keras.optimizers.Optimizer) -> None:
    """Puts the decay into a variable, so that a traced step follows it."""
    decay = optimizer.weight_decay
    if not isinstance(decay, keras.Variable):
        with optimizer._distribution_strategy.scope():
            live = keras.Variable(
                decay or 0.0,
                dtype="float32",
                trainable=False,
                aggregation="only_first_replica",
                name="weight_decay",
            )
        with DotNotTrackScope():
            optimizer.weight_decay = live


@contextlib.contextmanager
def plain_decay(model: keras.Model) -> Iterator[None]:
    """Lets a model be saved as Keras would save it, with its decay as a number."""
    optimizer = inner_optimizer(model)
    live = vars(optimizer).get("weight_decay")
    if not isinstance(live, keras.Variable):
        yield
        return
    optimizer.weight_decay = float(local_values(live)[0])
    try:
        yield
    finally:
        with DotNotTrackScope():
            optimizer.weight_decay = live


def moving_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the weights, statistics and seeds that a fit can change; the optimizer's are not among them."""
    trained = {id(variable) for variable in model.trainable_variables}
    moving: dict[int, keras.Variable] = {}
    for layer in graph.sublayers(model):
        for variable in graph.own_state(layer):
            settled = not layer.trainable and "float" in variable.dtype
            if id(variable) in trained or not (variable.trainable or settled):
                moving[id(variable)] = variable
    return list(moving.values())
