"""What all commands share: how they fail, and how they print."""

import difflib
import functools
import json
import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from tfkit.errors import ArgumentError, ArgumentTypeError, OutputPathError, TfkitError

if TYPE_CHECKING:
    import pandas as pd

    from tfkit.export.deployment import Target

FAILED, WRONG_CALL = 1, 2
# a folder that stands in the way, too, is a matter of the call
_CALLERS = (ArgumentError, ArgumentTypeError, OutputPathError)


class Command(click.Command):
    """A command whose errors are one paragraph and an exit code; ``--debug`` shows the traceback.

    What the caller can mend by another call ends with 2, all else with 1. Errors in the options'
    form are click's own, and end with 2 as well.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        option = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
        self.params.append(option)

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up notes help nobody here
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):
            raise
        except TfkitError as error:
            if debug:
                raise
            said, code = str(error), WRONG_CALL if isinstance(error, _CALLERS) else FAILED
        except Exception as error:
            if debug:
                raise
            said = f"{type(error).__name__}: {error} (not foreseen; --debug shows where it arose)"
            code = FAILED
        click.echo(f"error: {' '.join(as_options(said).split())}", err=True)
        ctx.exit(code)


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


class BatchSize(click.ParamType):  # type: ignore[type-arg]  # which click 8.2 does not take
    """Samples a call, or ``open``, which becomes 0."""

    name = "count|open"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "open":
            return 0
        if isinstance(value, str) and not (value.isdecimal() and int(value) > 0):
            self.fail(f"{value!r} is neither a number from 1 nor 'open'.", param, ctx)
        return int(value)


def as_options(text: str) -> str:
    """Returns a message of the library with the advice to pass an argument as the command's option."""
    for option in click.get_current_context().command.params:
        name = re.escape(option.name)
        text = re.sub(rf"\bPass {name}=True\b", f"Pass {option.opts[0]}", text)
        text = re.sub(
            rf"\bPass {name}=\(([^()]*)\)",
            functools.partial(_as_option, option.opts[0]),
            text,
        )
    return text


def _as_option(word: str, found: re.Match[str]) -> str:
    return f"Pass {word} {found[1].replace(' ', '')}"


def echo_json(value: Any) -> None:
    """Prints a value as one line of JSON; what is no number becomes null."""
    click.echo(json.dumps(_plain(value), allow_nan=False))


def records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    """Returns a table's rows as JSON holds them, with null where a value is missing."""
    return json.loads(table.to_json(orient="records", double_precision=15))


def echo_table(table: "pd.DataFrame") -> None:
    """Prints a table whole, text to the left and numbers to the right; missing values are blank."""
    columns = []
    for name in table.columns:
        cells = ["" if value is None or value != value else str(value) for value in table[name]]
        text = not all(_is_number(each) for each in cells)
        width = max(map(len, [name, *cells]))
        columns.append([each.ljust(width) if text else each.rjust(width) for each in [name, *cells]])
    for row in zip(*columns, strict=True):
        click.echo("  ".join(row).rstrip())


def echo_paragraph(text: str, *, indent: str = "") -> None:
    """Prints text in lines that fit the terminal."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    click.echo(
        textwrap.fill(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    )


def megabytes(count: float) -> str:
    """Returns bytes as megabytes, in three digits."""
    return f"{count / 1e6:.3g}" if count < 1e9 else f"{count / 1e6:.0f}"


def _is_number(cell: str) -> bool:
    return not cell or cell.replace(",", "").replace("%", "").replace(".", "").replace("e-", "").isdecimal()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None  # NaN is below nothing
    return str(value)
