"""What the pruning functions are told: read, checked, and laid over a model's kernels."""

import math
import numbers
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.sparsity.keras import ConstantSparsity, PolynomialDecay

from tfkit.errors import ArgumentError, ArgumentTypeError, OutputPathError, PruningError
from tfkit.prune.kernels import Weight, weights_of
from tfkit.prune.mask import POOLING_TYPES, SCOPES, PoolingType, Scope, Structure
from tfkit.prune.pruning import Schedule, begin_step, end_step
from tfkit.select import Pattern, select_layers

Patterns = Pattern | Iterable[Pattern]
FINAL_SPARSITY = {ConstantSparsity: "target_sparsity", PolynomialDecay: "final_sparsity"}


def read_structure(
    scope: Scope, block_size: object, block_pooling_type: PoolingType, sparsity_m_by_n: object
) -> Structure:
    """Returns the arguments of that name as a Structure.

    Raises:
        ArgumentTypeError: If a pair is no pair of integers.
        ArgumentError: If a value is outside its range, or two exclude each other.
    """
    if scope not in SCOPES:
        raise ArgumentError(f"`scope` must be one of {', '.join(SCOPES)}. Received: scope={scope!r}.")
    if block_pooling_type not in POOLING_TYPES:
        raise ArgumentError(
            "`block_pooling_type` must be 'AVG' or 'MAX'. "
            f"Received: block_pooling_type={block_pooling_type!r}."
        )
    block = _pair("block_size", block_size)
    if min(block) < 1:
        raise ArgumentError(
            "`block_size` must be rows and columns of a kernel's matrix, at least 1 each. "
            f"Received: block_size={block_size!r}."
        )
    m_by_n = None
    if sparsity_m_by_n is not None:
        m_by_n = _pair("sparsity_m_by_n", sparsity_m_by_n)
        if not 0 < m_by_n[0] < m_by_n[1]:
            raise ArgumentError(
                "`sparsity_m_by_n` must be (m, n) with 0 < m < n: m zeros in every n consecutive inputs. "
                f"Received: sparsity_m_by_n={sparsity_m_by_n!r}. Write (2, 4) for 2:4."
            )
        if scope != "layer" or block != (1, 1):
            raise ArgumentError(
                "`sparsity_m_by_n` alone decides which weights stay, without scope and block_size. "
                f"Received: sparsity_m_by_n={sparsity_m_by_n!r}, scope={scope!r}, block_size={block_size!r}. "
                "Leave the other two out."
            )
    return Structure(scope, block, block_pooling_type, m_by_n)


def _pair(name: str, value: Any) -> tuple[int, int]:
    try:
        pair: tuple[Any, ...] = tuple(value)
    except TypeError:
        pair = ()
    if len(pair) != 2 or not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in pair):
        raise ArgumentTypeError(f"`{name}` must be a pair of integers. Received: {name}={value!r}.")
    return int(pair[0]), int(pair[1])


def require_fit(weights: Sequence[Weight], structure: Structure) -> None:
    """Checks that tiles and groups fit the kernels.

    Raises:
        PruningError: Naming the kernels that they do not fit.
    """
    misfits: list[tuple[Weight, str]] = []
    if structure.m_by_n is not None:
        rule = f"sparsity_m_by_n={structure.m_by_n!r}"
        text = "`sparsity_m_by_n` needs a kernel with at least n inputs to an output."
        for weight in weights:
            inputs = weight.layout.sizes(weight.variable.shape)[1]
            if inputs < structure.m_by_n[1]:
                misfits.append((weight, f"{inputs} input{'s' * (inputs != 1)}"))
    else:
        rule = f"block_size={structure.block_size!r}"
        text = "`block_size` must divide each kernel's matrix: what one output sums, by outputs."
        for weight in weights:
            rows, columns = weight.layout.matrix_shape(weight.variable.shape)
            if rows % structure.block_size[0] or columns % structure.block_size[1]:
                misfits.append((weight, f"{rows} x {columns}"))
    if misfits:
        paths = list(dict.fromkeys(weight.path for weight, _ in misfits))
        exclusions = ", ".join(repr(f"!{path}") for path in paths[:5])
        raise PruningError(
            f"{text} Received: {rule}, which does not fit "
            f"{', '.join(f'{weight.name} ({size})' for weight, size in misfits[:5])}"
            f"{' and more' if len(misfits) > 5 else ''}. "
            f"Leave such layers out: layers=['*', {exclusions}{', …' if len(paths) > 5 else ''}]."
        )


def choose_weights(
    model: keras.Model,
    layers: Patterns | Mapping[Pattern, Any] | None,
    default: Any,
    read: Callable[[str, Any], Any],
) -> list[tuple[Weight, Any]]:
    """Returns the weights to prune, each with what it is pruned by.

    Args:
        model: A built model.
        layers: Patterns of what to prune; or a mapping from patterns to what it is pruned
            by, None for not at all, where the last match holds and the rest follows `default`.
        default: What a weight is pruned by where no pattern of a mapping matches.
        read: Checks and reads a mapping's value, given its name for errors.

    Raises:
        LayerNotFoundError: If a pattern matches nothing.
        PruningError: If nothing is prunable, or nothing where a pattern of a mapping matches.
    """
    weights = [weight for weight in weights_of(model) if weight.obstacle is None]
    rules = {id(weight.variable): default for weight in weights}
    if isinstance(layers, Mapping):
        for pattern, value in layers.items():
            matched = rules.keys() & {id(variable) for variable in select_layers(model, pattern).variables}
            if not matched and value is not None:
                raise PruningError(
                    "A pattern of `layers` must reach at least one weight that can be pruned. "
                    f"Received: {pattern!r} in the model {model.name!r}, which reaches none. "
                    "tfkit.sparsity_table(model) gives the reason for each weight."
                )
            rule = None if value is None else read(f"layers[{pattern!r}]", value)
            rules |= dict.fromkeys(matched, rule)
    elif layers is not None:
        inside = {id(variable) for variable in select_layers(model, layers).variables}
        rules = {key: rule for key, rule in rules.items() if key in inside}
    chosen = [(weight, rules.get(id(weight.variable))) for weight in weights]
    chosen = [(weight, rule) for weight, rule in chosen if rule is not None]
    if not chosen:
        raise PruningError(
            "The model must have something to prune: a kernel of two dimensions or more. "
            f"Received: model={model.name!r}, layers={layers!r}, where no weight qualifies. "
            "tfkit.sparsity_table(model) gives the reason for each weight."
        )
    return chosen


def by_rule(chosen: Sequence[tuple[Weight, Any]]) -> list[tuple[Any, list[Weight]]]:
    """Returns each rule once, with its weights."""
    groups: dict[Any, tuple[Any, list[Weight]]] = {}
    for weight, rule in chosen:
        key = rule if isinstance(rule, numbers.Real) else id(rule)
        groups.setdefault(key, (rule, []))[1].append(weight)
    return list(groups.values())


def sparsity_reader(structure: Structure) -> Callable[[str, Any], float]:
    """Returns what reads the sparsity of one layer, which m zeros in n leave no room for."""

    def read(name: str, value: Any) -> float:
        if structure.m_by_n is not None:
            raise ArgumentError(
                "`sparsity_m_by_n` is the sparsity of every layer that is pruned. "
                f"Received: {name}={value!r}, sparsity_m_by_n={structure.m_by_n!r}. "
                "Give `layers` patterns, or None for a layer that stays whole."
            )
        return require_sparsity(name, value)

    return read


def schedule_reader(default: Any, structure: Structure) -> Callable[[str, Any], Schedule]:
    """Returns what reads a schedule of one layer; a number is where `default` shall end there."""
    read_sparsity = sparsity_reader(structure)
    ends: dict[numbers.Real, Schedule] = {}  # layers of one number share a schedule

    def read(name: str, value: Any) -> Schedule:
        if not isinstance(value, numbers.Real) or isinstance(value, bool):
            return require_schedule(name, value)
        read_sparsity(name, value)
        if type(default) not in FINAL_SPARSITY:
            raise ArgumentError(
                "A number in `layers` needs a pruning_schedule that tells its final sparsity: "
                f"ConstantSparsity or PolynomialDecay. Received: {name}={value!r} beside "
                f"pruning_schedule={default!r}. Give the layer a schedule of its own."
            )
        if value not in ends:
            config = default.get_config()["config"] | {FINAL_SPARSITY[type(default)]: float(value)}
            if "initial_sparsity" in config:
                config["initial_sparsity"] = min(config["initial_sparsity"], float(value))
            ends[value] = type(default)(**config)
        return ends[value]

    return read


def require_schedule(name: str, schedule: Any) -> Schedule:
    """Returns a schedule if it is one, works in a compiled step, and begins and ends in [0, 1).

    Raises:
        ArgumentTypeError: If it cannot be called, returns no pair of a truth value and a
            number, or does not compute with tensors.
        ArgumentError: If it returns a sparsity outside [0, 1).
    """
    if not callable(schedule) or isinstance(schedule, type):
        raise ArgumentTypeError(
            f"`{name}` must be a schedule, step -> (should_prune, sparsity). "
            f"Received: {name}={schedule!r}. "
            "Use tfkit.ConstantSparsity(0.8, begin_step=0) or tfkit.PolynomialDecay(...)."
        )
    for step in sorted({1, begin_step(schedule), end_step(schedule)}):
        answer = _ask(name, schedule, keras.ops.convert_to_tensor(step, dtype="int64"))
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ArgumentTypeError(
                f"`{name}` must return a pair (should_prune, sparsity). "
                f"Received: {name}={schedule!r}, which returned {answer!r} at step {step}. "
                "A schedule of learning rates or of another library is none of sparsity."
            )
        should_prune, sparsity = (np.asarray(each) for each in answer)
        if should_prune.dtype != bool or should_prune.ndim:
            raise ArgumentTypeError(
                f"`{name}` must tell by a truth value whether to prune. "
                f"Received: should_prune={answer[0]!r} at step {step}. Compare: step % 10 == 0."
            )
        number = sparsity.item() if sparsity.dtype.kind in "fiu" and not sparsity.ndim else answer[1]
        require_sparsity(f"{name}({step})", number)
    _ask(name, schedule, tf.TensorSpec((), "int64"))
    return schedule


def _ask(name: str, schedule: Schedule, step: Any) -> Any:
    """Returns what a schedule answers; for a TensorSpec, how it is traced."""
    try:
        if isinstance(step, tf.TensorSpec):
            return tf.function(schedule, autograph=False).get_concrete_function(step)
        return schedule(step)
    except Exception as error:
        raise ArgumentTypeError(
            f"`{name}` must be computed with operations on the step, a scalar int64 tensor, for it is asked "
            "inside the compiled train step. "
            f"Received: {name}={schedule!r}, which raised {type(error).__name__}: {str(error)[:200]}. "
            "Write keras.ops.where(step > 3, 0.5, 0.0) instead of if, and no float(step)."
        ) from error


def require_sparsity(name: str, sparsity: float | None) -> Any:
    """Returns a sparsity if it is a number in [0, 1).

    Raises:
        ArgumentTypeError: If it is no number.
        ArgumentError: If it is outside.
    """
    if isinstance(sparsity, bool) or not isinstance(sparsity, numbers.Real):
        raise ArgumentTypeError(f"`{name}` must be a number in [0, 1). Received: {name}={sparsity!r}.")
    if not 0 <= sparsity < 1 or math.isnan(sparsity):
        raise ArgumentError(
            "A sparsity is the fraction of zeros and must lie in [0, 1). "
            f"Received: {name}={sparsity!r}. Write 0.8 for 80%."
        )
    return sparsity


def require_count(name: str, value: Any) -> int:
    """Returns a number if it is an integer of at least 1.

    Raises:
        ArgumentError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise ArgumentError(f"`{name}` must be an integer of at least 1. Received: {name}={value!r}.")
    return int(value)


def require_png(name: str, path: str | os.PathLike[str]) -> None:
    """Checks that a picture can be written at a path.

    Raises:
        ArgumentTypeError: If it is no path.
        OutputPathError: If it names no file, or its folder does not exist.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"`{name}` must be the path of a PNG. Received: {name}={path!r}.")
    if not str(path) or pathlib.Path(path).is_dir():
        raise OutputPathError(
            f"`{name}` must name a file. Received: {name}={os.fspath(path)!r}. Write 'sensitivity.png'."
        )
    if not pathlib.Path(path).absolute().parent.is_dir():
        raise OutputPathError(
            f"The folder of `{name}` must exist. Received: {name}={os.fspath(path)!r}. Make it first."
        )
