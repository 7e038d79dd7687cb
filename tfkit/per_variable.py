"""An optimizer whose learning rate and weight decay differ by variable.

Keras has one rate and one decay for a whole optimizer, forgets what was excluded from
the decay when it saves, and bakes the decay into the train step. `tailor` turns a Keras
optimizer, in place, into one of the same kind that mends all three.
"""

import collections
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.tracking import DotNotTrackScope

from tfkit.errors import ArgumentError


class Rule(NamedTuple):
    """What holds for one variable.

    Attributes:
        factor: What the learning rate is multiplied by, the decay's share included.
        decays: Whether weight decay applies.
    """

    factor: float = 1.0
    decays: bool = True


# Muon leaves some weights to Adam, with a decay of their own.
DECAYS = ("weight_decay", "adam_weight_decay")


class Rules(KerasSaveable):
    """The rules of one optimizer, and its weight decay as a variable.

    The decay rides in weights files under the optimizer; Keras alone passes it by.

    Attributes:
        stale: Whether a train step may have been traced that follows other rules.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer):
        self.stale = True
        self._key = optimizer._var_key
        self.decays: dict[str, keras.Variable] = {}
        for name in DECAYS:
            if getattr(optimizer, name, None) is not None:
                self.set_decay(name, getattr(optimizer, name))
        self._held: dict[Any, tuple[keras.Variable, Rule]] = {}  # by the optimizer's key of a variable
        self._waiting: dict[str, list[tuple[str, Rule]]] = {}  # path, rule; from a file, by end of the path

    def set_decay(self, name: str, rate: float | None) -> None:
        """Sets a decay, from the next update on where there was one already."""
        if name in self.decays:
            self.decays[name].assign(rate or 0.0)
        elif rate is not None:
            self.stale = True
            self.decays[name] = keras.Variable(
                rate, dtype="float32", trainable=False, aggregation="only_first_replica", name=name
            )

    def read_decays(self) -> dict[str, float]:
        return {name: float(keras.ops.convert_to_numpy(decay)) for name, decay in self.decays.items()}

    def __getitem__(self, variable: Any) -> Rule:
        """Returns the rule of a variable, given as Keras's or as TensorFlow's."""
        key = self._key(variable)
        return self._held[key][1] if key in self._held else Rule()

    def put(self, variable: keras.Variable, rule: Rule) -> None:
        self.stale |= self[variable] != rule
        self._held[self._key(variable)] = (variable, rule)

    def settle(self, variables: list[keras.Variable], default: Callable[[keras.Variable], Rule]) -> None:
        """Gives every weight that a model could train a rule: its own, a file's or the default one."""
        self.adopt(variables)
        for variable in variables:
            if self._key(variable) not in self._held:
                self.put(variable, default(variable))
        order = {self._key(variable): None for variable in variables}
        self._held = {key: self._held[key] for key in order | self._held}

    def adopt(self, variables: list[keras.Variable]) -> None:
        """Gives variables that are new here the rules that a file holds for them.

        A path may have lost or gained the root model's name on the way through the file,
        and layers in different nested models may share one: those come in their order.
        """
        for variable in variables:
            waiting = self._waiting.get(_end(variable.path), [])
            fitting = [each for each in waiting if _is_same_place(each[0], variable.path)]
            if self._key(variable) not in self._held and fitting:
                self._held[self._key(variable)] = (variable, fitting[0][1])
                waiting.remove(fitting[0])

    def write(self, trained: list[keras.Variable]) -> list[list[Any]]:
        """Returns the rules for a config: path, factor, decays.

        Those of trained variables come first, in the order in which an optimizer that is
        made from the config will be told of them.
        """
        known = [variable for variable, _ in self._held.values()]
        first = {self._key(variable) for variable in (trained or known) if variable.trainable}
        order = [self._key(variable) for variable in [*trained, *known]]
        keys = [key for key in dict.fromkeys(order) if key in self._held]
        keys.sort(key=lambda key: key not in first)
        held = [(self._held[key][0].path, self._held[key][1]) for key in keys]
        waiting = [each for rules in self._waiting.values() for each in rules]
        return [[path, *rule] for path, rule in [*held, *waiting]]

    def read(self, rows: list[list[Any]]) -> None:
        for path, factor, decays in rows:
            self._waiting.setdefault(_end(path), []).append((path, Rule(factor, decays)))
        self.stale = False  # nothing has been traced yet

    def save_own_variables(self, store: Any) -> None:
        for name, rate in self.read_decays().items():
            store[name] = np.float64(rate)

    def load_own_variables(self, store: Any) -> None:
        for name in store.keys():  # noqa: SIM118
            self.set_decay(name, float(store[name][()]))

    def _obj_type(self) -> str:
        return "Operation"


def _end(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def _is_same_place(first: str, second: str) -> bool:
    short, long = sorted((f"/{first}", f"/{second}"), key=len)
    return long.endswith(short)


def _decay(name: str) -> property:
    """Returns a decay of Keras's as one that lives in the rules and may be assigned at any time."""

    def read(self: "PerVariable") -> Any:
        decay = self.rules.decays.get(name)
        return decay if decay is None or self._scale == 1.0 else decay * self._scale

    def write(self: "PerVariable", rate: float | None) -> None:
        self.rules.set_decay(name, rate)

    return property(read, write, doc="The decay: None, or a variable; None turns it off.")


if TYPE_CHECKING:  # it stands before the class of an optimizer, whose methods it extends
    from keras.optimizers import Optimizer as _Optimizer
else:
    _Optimizer = object


class PerVariable(_Optimizer):
    """What `tailor` adds to an optimizer's class.

    Attributes:
        rules: The `Rules`.
    """

    kind: type[keras.optimizers.Optimizer]
    rules: Rules
    _scale = 1.0
    weight_decay = _decay("weight_decay")

    def build(self, variables: list[keras.Variable]) -> None:
        super().build(variables)
        self.rules.adopt(variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = self.rules[variable].factor
        super().update_step(gradient, variable, learning_rate if factor == 1.0 else learning_rate * factor)

    def settle(self, variables: list[keras.Variable]) -> None:
        """Gives every weight that a model could train a rule; what Keras excludes does not decay."""
        self.rules.settle(variables, lambda each: Rule(decays=self.allows_decay(each)))

    def allows_decay(self, variable: Any) -> bool:
        """Tells whether Keras's own exclusions leave the decay to a variable."""
        return super()._use_weight_decay(variable)

    def _use_weight_decay(self, variable: Any) -> bool:
        return self.allows_decay(variable) and self.rules[variable].decays

    def _apply_weight_decay(self, variables: list[keras.Variable]) -> None:
        for factor, group in self._by_factor(variables):
            self._scale = factor
            try:
                super()._apply_weight_decay(group)
            finally:
                self._scale = 1.0

    def _by_factor(self, variables: list[keras.Variable]) -> Iterator[tuple[float, list[keras.Variable]]]:
        groups = collections.defaultdict(list)
        for variable in variables:
            groups[self.rules[variable].factor].append(variable)
        yield from groups.items()

    def get_config(self) -> dict[str, Any]:
        rows = self.rules.write(self._trainable_variables)
        return {**super().get_config(), **self.rules.read_decays(), "rules": rows}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "PerVariable":
        config = dict(config)
        rows = config.pop("rules")
        optimizer = tailor(cls.kind.from_config(config))
        optimizer.rules.read(rows)
        return optimizer


@functools.cache
def tailored_class(kind: type[keras.optimizers.Optimizer]) -> type:
    """Returns the class with rules for a class of optimizers, registered for loading."""
    arguments = inspect.signature(kind).parameters
    decays = {name: _decay(name) for name in DECAYS if name in arguments}
    attributes = {"kind": kind, "__module__": __name__, **decays}
    made = type(f"PerVariable{kind.__name__}", (PerVariable, kind), attributes)
    return keras.saving.register_keras_serializable("tfkit")(made)


@keras.saving.register_keras_serializable("tfkit")
class TailoredLossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras's, but `weight_decay` is that of the optimizer inside, as `learning_rate` is."""

    @property
    def weight_decay(self) -> Any:
        return self.inner_optimizer.weight_decay

    @weight_decay.setter
    def weight_decay(self, rate: float | None) -> None:
        if hasattr(self, "inner_optimizer"):  # Keras sets None before there is one
            self.inner_optimizer.weight_decay = rate


def tailor(optimizer: keras.optimizers.Optimizer) -> PerVariable:
    """Makes an optimizer follow rules, in place, and returns the one that does.

    Of a LossScaleOptimizer that is the inner one. The state stays, and so does what the
    optimizer does until a rule is put.

    Raises:
        ArgumentError: If it consists of several optimizers.
    """
    outer, optimizer = optimizer, getattr(optimizer, "inner_optimizer", optimizer)
    if hasattr(optimizer, "optimizers"):
        raise ArgumentError(
            "One optimizer must train the model; rules by variable make several unnecessary. "
            f"Received: optimizer={type(optimizer).__name__} of {len(optimizer.optimizers)} optimizers."
        )
    if not isinstance(optimizer, PerVariable):
        with optimizer._distribution_strategy.scope():
            rules = Rules(optimizer)
        optimizer.__class__ = tailored_class(optimizer.__class__)
        with DotNotTrackScope():
            optimizer.rules = rules
    if type(outer) is keras.optimizers.LossScaleOptimizer:
        outer.__class__ = TailoredLossScaleOptimizer
    return optimizer


def part_for(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> keras.optimizers.Optimizer:
    """Returns the one among an optimizer and those inside it that moves a weight."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return optimizer._optimizer_map(variable) if hasattr(optimizer, "optimizers") else optimizer


def read_rule(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> tuple[float, float]:
    """Returns a weight's multiplier and decay under an optimizer of any kind."""
    part = part_for(optimizer, variable)
    with_adam = hasattr(part, "_should_use_adamw") and part._should_use_adamw(variable)
    decay = getattr(part, "adam_weight_decay" if with_adam else "weight_decay")
    if decay is None or not part._use_weight_decay(variable):
        decay = 0.0
    rule = part.rules[variable] if isinstance(part, PerVariable) else Rule()
    return rule.factor, float(decay)


for _kind in vars(keras.optimizers).values():  # so that a file which holds one can be loaded
    wrapping = (
        keras.optimizers.Optimizer,
        keras.optimizers.LossScaleOptimizer,
        keras.optimizers.MultiOptimizer,
    )
    if isinstance(_kind, type) and issubclass(_kind, keras.optimizers.Optimizer) and _kind not in wrapping:
        tailored_class(_kind)
