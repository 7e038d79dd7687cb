"""Kinds of arguments and options: how they are read, and how a shell completes them."""

import difflib
import math
import os
import pathlib
import re
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from tfkit.export.deployment import Target


class File(click.Path):
    """A path; a shell completes it with folders and with files of some suffixes."""

    def __init__(self, *suffixes: str, **options: Any):
        super().__init__(path_type=pathlib.Path, **options)
        self.suffixes = suffixes

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        folder, begin = os.path.split(incomplete)
        try:
            found = sorted(os.scandir(os.path.expanduser(folder) or "."), key=lambda each: each.name)
        except OSError:
            found = []
        found = [each for each in found if each.name.startswith(begin) and (begin or each.name[0] != ".")]
        files = [each.name for each in found if each.name.endswith(self.suffixes)]
        if not files:  # the shell's own completion walks through folders best
            return super().shell_complete(ctx, param, incomplete)
        names = [f"{each.name}/" if each.is_dir() else each.name for each in found]
        names = [each for each in names if each in files or each.endswith("/")]
        return [CompletionItem(os.path.join(folder, each)) for each in names]


class Targets(click.ParamType):  # type: ignore[type-arg]  # which click 8.2 does not take
    """Names of targets, joined by commas."""

    name = "names"
    # as in tfkit.export.deployment, which would load TensorFlow
    known: tuple["Target", ...] = ("desktop", "gpu", "mobile", "web")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        names = tuple(dict.fromkeys(each.strip() for each in value.split(",") if each.strip()))
        for name in names:
            if name not in self.known:
                near = difflib.get_close_matches(name.lower(), self.known, n=1, cutoff=0.4)
                hint = f" Did you mean {near[0]}?" if near else ""
                self.fail(f"{name!r} is no target.{hint} There are: {', '.join(self.known)}.", param, ctx)
        if not names:
            self.fail(f"at least one of {', '.join(self.known)}.", param, ctx)
        return names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        before, comma, begin = incomplete.rpartition(",")
        rest = [each for each in self.known if each not in before.split(",") and each.startswith(begin)]
        return [CompletionItem(f"{before}{comma}{each}") for each in rest]


class Shape(click.ParamType):  # type: ignore[type-arg]  # which click 8.2 does not take
    """Sizes joined by commas; ``none`` for one that stays open."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        sizes: list[int | None] = []
        for size in value.lower().replace("x", ",").split(","):
            if size.strip() == "none":
                sizes.append(None)
            elif size.strip().isdecimal() and int(size) > 0:
                sizes.append(int(size))
            else:
                self.fail(f"{value!r} is no shape; write it as 224,224,3.", param, ctx)
        return tuple(sizes)


class Pair(click.ParamType):  # type: ignore[type-arg]  # which click 8.2 does not take
    """Two numbers, as ``2,4`` or ``2:4``."""

    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"\s*(\d+)\s*[,:x]\s*(\d+)\s*", value)
        if found is None or "0" in found.groups():
            self.fail(f"{value!r} is no pair of numbers from 1; write it as 2,4.", param, ctx)
        return int(found[1]), int(found[2])


class Fraction(click.ParamType):  # type: ignore[type-arg]  # which click 8.2 does not take
    """A number between 0 and 1.

    Args:
        zero: Whether 0 is one, too.
        counts: Whether a count above 1 may stand in its place.
    """

    def __init__(self, *, zero: bool = False, counts: bool = False):
        self.name = "fraction|count" if counts else "fraction"
        self.zero, self.counts = zero, counts

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is no number; write 0.5 for a half.", param, ctx)
        if 0 < number < 1 or (self.zero and number == 0) or (self.counts and 1 < number < math.inf):
            return number
        meant = number / 100 if 1 < number < 100 else 0.5
        more = " and no count" if self.counts else ""
        self.fail(f"{value} is no fraction below 1{more}; write {meant:g} for {100 * meant:g}%.", param, ctx)


class BatchSize(click.ParamType):  # type: ignore[type-arg]  # which click 8.2 does not take
    """Samples a call, or ``open``, which becomes 0."""

    name = "count|open"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "open":
            return 0
        if isinstance(value, str) and not (value.isdecimal() and int(value) > 0):
            self.fail(f"{value!r} is neither a number from 1 nor 'open'.", param, ctx)
        return int(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(each) for each in ("1", "open") if each.startswith(incomplete)]
