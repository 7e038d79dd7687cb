"""An optimizer whose learning rate and weight decay differ by variable.

Keras has one rate and one decay for a whole optimizer, forgets what was excluded from
the decay when it saves, and bakes the decay into the train step. `tailor` turns a Keras
optimizer, in place, into one of the same kind that mends all three.
"""

import collections
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

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


class Rules(KerasSaveable):
    """The rules of one optimizer, and its weight decay as a variable.

    The decay rides in weights files under the optimizer; Keras alone passes it by.
    """

    def __init__(self, weight_decay: float | None):
        self.decay: keras.Variable | None = None
        if weight_decay is not None:
            self.set_decay(weight_decay)
        self._by_key: dict[Any, tuple[str, Rule]] = {}  # the optimizer's key of a variable -> path, rule
        self._loaded: dict[str, list[tuple[str, Rule]]] = {}  # rules from a file, by end of the path

    def set_decay(self, rate: float) -> bool:
        """Sets the weight decay, and tells whether the train step must be traced anew."""
        if self.decay is None:
            self.decay = keras.Variable(
                rate, dtype="float32", trainable=False, aggregation="only_first_replica", name="weight_decay"
            )
            return True
        self.decay.assign(rate)
        return False

    def read_decay(self) -> float | None:
        return None if self.decay is None else float(keras.ops.convert_to_numpy(self.decay))

    def __getitem__(self, key: Any) -> Rule:
        return self._by_key[key][1] if key in self._by_key else Rule()

    def put(self, key: Any, path: str, rule: Rule) -> None:
        self._by_key[key] = (path, rule)

    def adopt(self, keys: list[Any], variables: list[keras.Variable]) -> None:
        """Gives variables that are new here the rules that a file holds for them.

        A path may have lost or gained the root model's name on the way through the file,
        and layers in different nested models may share one: those come in their order.
        """
        for key, variable in zip(keys, variables, strict=True):
            waiting = self._loaded.get(_end(variable.path), ())
            fitting = [each for each in waiting if _is_same_place(each[0], variable.path)]
            if key not in self._by_key and fitting:
                self.put(key, variable.path, fitting[0][1])
                if len(fitting) > 1:
                    waiting.remove(fitting[0])

    def write(self, trained: list[Any]) -> list[list[Any]]:
        """Returns the rules for a config: path, factor, decays; of trained variables first."""
        first = [key for key in trained if key in self._by_key]
        known = [self._by_key[key] for key in dict.fromkeys([*first, *self._by_key])]
        seen = {path for path, _ in known}
        waiting = [each for rules in self._loaded.values() for each in rules if each[0] not in seen]
        return [[path, *rule] for path, rule in [*known, *waiting]]

    def read(self, rows: list[list[Any]]) -> None:
        for path, factor, decays in rows:
            self._loaded.setdefault(_end(path), []).append((path, Rule(factor, decays)))

    def save_own_variables(self, store: Any) -> None:
        if self.decay is not None:
            store["weight_decay"] = np.float64(self.read_decay())

    def load_own_variables(self, store: Any) -> None:
        if "weight_decay" in store.keys():  # noqa: SIM118
            self.set_decay(float(store["weight_decay"][()]))

    def _obj_type(self) -> str:
        return "Operation"


def _end(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def _is_same_place(first: str, second: str) -> bool:
    short, long = sorted((f"/{first}", f"/{second}"), key=len)
    return long.endswith(short)


class PerVariable:
    """What `tailor` adds to an optimizer's class.

    Attributes:
        rules: The `Rules`.
    """

    rules: Rules
    _scale = 1.0

    @property
    def weight_decay(self) -> Any:
        """The decay: None, or a variable that may be assigned at any time."""
        if self.rules.decay is None or self._scale == 1.0:
            return self.rules.decay
        return self.rules.decay * self._scale

    @weight_decay.setter
    def weight_decay(self, rate: float) -> None:
        self.rules.set_decay(rate)

    def build(self, variables: list[keras.Variable]) -> None:
        super().build(variables)
        self.rules.adopt([self._var_key(variable) for variable in variables], variables)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        factor = self.rules[self._var_key(variable)].factor
        super().update_step(gradient, variable, learning_rate if factor == 1.0 else learning_rate * factor)

    def _use_weight_decay(self, variable: Any) -> bool:
        return super()._use_weight_decay(variable) and self.rules[self._var_key(variable)].decays

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
            groups[self.rules[self._var_key(variable)].factor].append(variable)
        yield from groups.items()

    def get_config(self) -> dict[str, Any]:
        trained = [self._var_key(variable) for variable in self._trainable_variables]
        return super().get_config() | {
            "weight_decay": self.rules.read_decay(),
            "rules": self.rules.write(trained),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "PerVariable":
        config = dict(config)
        rows = config.pop("rules")
        optimizer = tailor(cls.kind.from_config(config))
        optimizer.rules.read(rows)
        return optimizer


@functools.cache
def tailored_class(kind: type[keras.optimizers.Optimizer]) -> type:
    """Returns the class with rules for a class of optimizers, registered for loading."""
    made = type(f"PerVariable{kind.__name__}", (PerVariable, kind), {"kind": kind, "__module__": __name__})
    return keras.saving.register_keras_serializable("tfkit")(made)


def tailor(optimizer: keras.optimizers.Optimizer) -> PerVariable:
    """Makes an optimizer follow rules, in place, and returns the one that does.

    Of a LossScaleOptimizer that is the inner one. The state stays, and so does what the
    optimizer does until a rule is put.

    Raises:
        ArgumentError: If it consists of several optimizers.
    """
    if hasattr(optimizer, "optimizers"):
        raise ArgumentError(
            "One optimizer must train the model; rules by variable make several unnecessary. "
            f"Received: optimizer={type(optimizer).__name__} of {len(optimizer.optimizers)} optimizers."
        )
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not isinstance(optimizer, PerVariable):
        with optimizer._distribution_strategy.scope():
            rules = Rules(optimizer.weight_decay)
        optimizer.__class__ = tailored_class(type(optimizer))
        with DotNotTrackScope():
            optimizer.rules = rules
    return optimizer


for _kind in (
    keras.optimizers.SGD,
    keras.optimizers.RMSprop,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.Adadelta,
    keras.optimizers.Adagrad,
    keras.optimizers.Adamax,
    keras.optimizers.Adafactor,
    keras.optimizers.Nadam,
    keras.optimizers.Ftrl,
    keras.optimizers.Lion,
    keras.optimizers.Lamb,
    keras.optimizers.Muon,
):
    tailored_class(_kind)  # so that a file which holds one can be loaded
