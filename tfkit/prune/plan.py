"""A plan of which channels stay: to look at, to keep as JSON, to carry out."""

import dataclasses
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from tfkit.errors import ArgumentError, OutputPathError, PruningError
from tfkit.prune.arguments import require_png
from tfkit.prune.groups import Wiring
from tfkit.prune.shrink import carry_optimizer, require_dense, shrink, silence

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError)  # what a torn or other record raises


@dataclasses.dataclass(frozen=True)
class PlannedGroup:
    """What a plan does to one group.

    Attributes:
        name: Path of the first layer that makes its channels.
        layers: Paths of all layers with weights in which they lie.
        channels_before: Channels that the first layer makes of this group.
        channels_after: How many of them stay.
        score: Share of the group's score that the channels that stay hold, in [0, 1]; None
            where the group has no score.
        kept: The units that stay, counted from 0; None where the graph lets none go.
        reason: Why the group was left whole; None where it was not.
    """

    name: str
    layers: tuple[str, ...]
    channels_before: int
    channels_after: int
    score: float | None
    kept: tuple[int, ...] | None
    reason: str | None


@dataclasses.dataclass(frozen=True, repr=False)
class ChannelPlan:
    """Which channels of a model stay.

    Made by `plan_channel_pruning`. It holds no weights, so it can be saved and carried out on
    another copy of the architecture.

    Attributes:
        model: Name of the model that it was made for.
        target: What was asked for, such as ``flops=0.5``.
        criterion: How channels were scored.
        scope: How groups were compared.
        groups: A record a group.
        before: `flops` (two for a multiply-add, one sample; where sizes are known),
            `parameters` and, where it was measured, `latency_ms` of the model.
        after: The same of the smaller model.
        architecture: A line for each layer and how it is wired, by which a model is known.

    Examples:
        >>> import pathlib, tempfile, keras, numpy as np, tfkit
        >>> model = keras.Sequential([
        ...     keras.Input((4,)), keras.layers.Dense(32, activation="relu"), keras.layers.Dense(2)])
        >>> plan = tfkit.plan_channel_pruning(model, parameters=0.5)
        >>> path = plan.save(pathlib.Path(tempfile.mkdtemp(), "plan.json"))
        >>> again = tfkit.ChannelPlan.load(path)
        >>> smaller, masked = again.apply(model), again.mask(model)
        >>> x = np.ones((1, 4))
        >>> bool(np.allclose(smaller(x), masked(x), atol=1e-6)), smaller.layers[0].units
        (True, 16)
    """

    model: str
    target: str
    criterion: str
    scope: str
    groups: tuple[PlannedGroup, ...]
    before: dict[str, float]
    after: dict[str, float]
    architecture: tuple[str, ...]

    @property
    def table(self) -> "pd.DataFrame":
        """A row a group.

        `group`, `layers` (those that lose channels together), `channels_before`,
        `channels_after`, `score` (share of the group's score that stays) and `reason`, why
        the group was left whole.
        """
        import pandas as pd

        rows = [
            (g.name, ", ".join(g.layers), g.channels_before, g.channels_after, g.score, g.reason or "")
            for g in self.groups
        ]
        names = ["group", "layers", "channels_before", "channels_after", "score", "reason"]
        return pd.DataFrame(rows, columns=names)

    def apply(self, model: keras.Model, *, keep_optimizer: bool = False) -> keras.Model:
        """Returns a new, smaller model without the channels that go.

        Names, frozen state and the weights that stay are the model's; it is plain Keras.

        Args:
            model: The model of the plan or another of the same architecture. Not changed.
            keep_optimizer: Whether to compile the new model as the old one is, with what its
                optimizer has learned of the weights that stay. Otherwise it is not compiled.

        Raises:
            PruningError: If the model has other layers or is wired otherwise, a layer cannot be
                made again, or the optimizer's state does not lie beside the weights.
            ArgumentError: If `keep_optimizer` is asked of a model that is not compiled.
        """
        wiring, kept = self._on(model)
        if keep_optimizer:
            return carry_optimizer(wiring, kept)
        return shrink(wiring, kept)[0]

    def mask(self, model: keras.Model) -> keras.Model:
        """Returns a new model of the same shape that computes what the smaller one does.

        The channels that go are zero where they are made and where they are read. A
        normalisation over channels becomes one that counts only those that stay.

        Args:
            model: The model of the plan or another of the same architecture. Not changed.

        Raises:
            PruningError: As for `apply`.
        """
        wiring, kept = self._on(model)
        return silence(wiring, kept)

    def _on(self, model: keras.Model) -> tuple[Wiring, dict[int, tuple[int, ...]]]:
        wiring = Wiring(model)
        require_dense(model)
        lines = architecture(wiring)
        for number, (wanted, got) in enumerate(zip(self.architecture, lines)):
            if wanted != got:
                raise PruningError(
                    "A plan fits the model it was made for, and others of the same layers and wiring. "
                    f"Received: model={model.name!r}, where layer {number} is {got!r} and the plan has "
                    f"{wanted!r}. Make a plan for this model with tfkit.plan_channel_pruning."
                )
        if len(lines) != len(self.architecture):
            raise PruningError(
                "A plan fits the model it was made for, and others of the same layers and wiring. "
                f"Received: model={model.name!r} with {len(lines)} layers; the plan's has "
                f"{len(self.architecture)}. Make a plan for this model with tfkit.plan_channel_pruning."
            )
        kept = [group.kept for group in self.groups if group.kept is not None]  # in the wiring's order
        counts = wiring.units().tolist()
        wrong = [
            f"kept={each} for {group.name}, which has {count}"
            for each, count, group in zip(kept, counts, wiring.groups)
            if not each or list(each) != [unit for unit in range(count) if unit in {*each}]
        ]
        if len(kept) != len(counts) or wrong:
            raise PruningError(
                "A plan must say for each group which of its units stay: at least one, in order, each once. "
                f"Received: a plan with {wrong[0] if wrong else f'{len(kept)} groups, not {len(counts)}'}. "
                "Make it again with tfkit.plan_channel_pruning."
            )
        return wiring, dict(enumerate(kept))

    def save(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Writes the plan as JSON and returns the path.

        Raises:
            OutputPathError: If the folder does not exist.
        """
        path = pathlib.Path(path)
        if not path.absolute().parent.is_dir() or path.is_dir():
            raise OutputPathError(
                "A plan is written to a file in a folder that exists. "
                f"Received: path={str(path)!r}. Write 'plan.json'."
            )
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(self.to_json())
        temporary.replace(path)
        return path

    def to_json(self) -> str:
        """Returns the plan as JSON."""
        return json.dumps({"tfkit_channel_plan": FORMAT} | dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ChannelPlan":
        """Reads a plan that `save` wrote.

        Raises:
            ArgumentError: If there is no such file, or it is none.
        """
        try:
            return cls._read(pathlib.Path(path).read_text())
        except (OSError, *_UNREADABLE) as error:
            raise ArgumentError(
                "A channel plan is a file that ChannelPlan.save wrote. "
                f"Received: path={str(path)!r} ({type(error).__name__}: {error}). Save the plan again."
            ) from error

    @classmethod
    def from_json(cls, text: str) -> "ChannelPlan":
        """Reads a plan that `to_json` returned.

        Raises:
            ArgumentError: If it is none.
        """
        try:
            return cls._read(text)
        except _UNREADABLE as error:
            raise ArgumentError(
                "A channel plan is the text that ChannelPlan.to_json returned, whole. "
                f"Received: {text!r:.80} ({type(error).__name__}: {error}). Make the plan again."
            ) from error

    @classmethod
    def _read(cls, text: str) -> "ChannelPlan":
        record = json.loads(text)
        if record.pop("tfkit_channel_plan") != FORMAT:
            raise ValueError("it has another format")
        fields: list[dict[str, Any]] = [
            {k: tuple(v) if isinstance(v, list) else v for k, v in group.items()}
            for group in record.pop("groups")
        ]
        groups = [PlannedGroup(**each) for each in fields]
        return cls(**record | {"groups": tuple(groups), "architecture": tuple(record["architecture"])})

    def plot(self, path: str | os.PathLike[str]) -> pathlib.Path:
        """Draws the channels of each group before and after, and returns the path of the PNG.

        Raises:
            OutputPathError: If the folder does not exist.
        """
        from matplotlib.figure import Figure

        require_png("path", path)

        shown = [group for group in self.groups if group.kept is not None]
        figure = Figure(figsize=(9, 1.6 + 0.22 * len(shown)), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(shown))
        axes.barh(places, [g.channels_before for g in shown], color="#d5dbe3", label="before")
        axes.barh(places, [g.channels_after for g in shown], color="#2a6fbb", height=0.55, label="after")
        axes.set_yticks(places, [group.name for group in shown], fontsize=7)
        axes.invert_yaxis()
        axes.set(xlabel="channels", title=str(self).replace(": ", "\n", 1), ylim=(len(shown) - 0.4, -0.6))
        axes.figure.legend(loc="outside lower right", ncols=2)
        figure.savefig(path, format="png", dpi=130)
        return pathlib.Path(path)

    def __repr__(self) -> str:
        """Returns the plan in a line; `table` shows all of it."""
        return f"<ChannelPlan of {self}>"

    def __str__(self) -> str:
        """Returns the plan in a line."""
        parts = [
            f"{name} {_short(self.before[name])} to {_short(self.after[name])} "
            f"({self.after[name] / self.before[name]:.0%})"
            for name in self.before
        ]
        return f"{self.model} for {self.target} by {self.criterion}, {self.scope}: {', '.join(parts)}"


def _short(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


SETTINGS = (
    "axis", "axes", "keepdims", "target_shape", "newshape", "dims", "groups", "activation", "data_format",
)  # fmt: skip


def architecture(wiring: Wiring) -> tuple[str, ...]:
    """Returns a line for each call: its class, what shapes its channels, and where its inputs are from.

    A layer that is called again is told from another one like it.
    """
    flow = wiring.flow
    first: dict[int, int] = {}
    names = {key: f"input {number}" for number, key in enumerate(flow.inputs)}
    lines = []
    for number, call in enumerate(flow.calls):
        operation = call.operation
        weights = [tuple(each.shape) for each in getattr(operation, "weights", [])]
        settings = {name: getattr(operation, name) for name in SETTINGS if hasattr(operation, name)}
        settings = {name: getattr(value, "__name__", value) for name, value in settings.items()}
        sources = ", ".join(names[key] for key in call.inputs)
        described = ", ".join(f"{name}={value}" for name, value in settings.items())
        again = first.setdefault(id(operation), number)
        shared = f", the layer of {again}" if again < number else ""
        lines.append(f"{type(operation).__name__}({described}) {weights} from {sources}{shared}")
        several = len(call.outputs) > 1
        names |= {key: f"{number}.{i}" if several else f"{number}" for i, key in enumerate(call.outputs)}
    outputs = ", ".join(names[key] for key in flow.outputs)
    return (*lines, f"outputs from {outputs}")
