"""What all commands share: how they fail, and how they print."""

import functools
import json
import os
import pathlib
import re
import shutil
import textwrap
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

import tfkit
from tfkit.errors import ArgumentError, ArgumentTypeError, OutputPathError, TfkitError
from tfkit.report.progress import working

if TYPE_CHECKING:
    import keras
    import pandas as pd

FAILED, WRONG_CALL = 1, 2
# a folder that stands in the way, too, is a matter of the call
_CALLERS = (ArgumentError, ArgumentTypeError, OutputPathError)
# what only Python says so
PHRASES = {
    "Pass safe_mode=False if": "Load it in Python by load_base_model with safe_mode=False if",
    "for this model with tfkit.plan_channel_pruning": "for this model by --save-plan",
    "Compile the smaller model anew": "Pass --no-keep-optimizer and compile the smaller model anew",
    "Write (2, 4) for 2:4": "Write 2,4",
}
_VALUE = r"""(\([^()]*\)|\[[^\[\]]*\]|'[^']*'|"[^"]*"|[^\s,;)]*[^\s,;).])"""
_PLAIN = r"'[\w./-]+'"


class Command(click.Command):
    """A command whose errors are one paragraph and an exit code; ``--debug`` shows the traceback.

    What the caller can mend by another call ends with 2, all else with 1. Errors in the options'
    form are click's own, and end with 2 as well. Warnings are a paragraph each.

    Args:
        words: For names in the library's messages, the command's own argument or option that is meant.
    """

    def __init__(self, *args: Any, words: dict[str, str] | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.words = words or {}
        option = click.Option(["--debug"], is_flag=True, help="Show the traceback of an error.")
        self.params.append(option)

    def invoke(self, ctx: click.Context) -> Any:
        debug = ctx.params.pop("debug")
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up notes help nobody here
        try:
            with warnings.catch_warnings():
                if not debug:
                    warnings.showwarning = self._warn  # type: ignore[assignment]  # it takes more than it needs
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
        click.echo(f"error: {' '.join(as_options(said, self).split())}", err=True)
        ctx.exit(code)

    def _warn(self, message: Warning | str, *_: Any) -> None:
        click.echo(f"warning: {' '.join(as_options(str(message), self).split())}", err=True)


def as_options(text: str, command: click.Command | None = None) -> str:
    """Returns a message of the library in the command's words: ``name=value`` as ``--name value``.

    Names of arguments become those of the command's arguments and options, where it has them; calls, which
    are Python, stay.

    Args:
        text: The message.
        command: The command; that which runs unless given.
    """
    command = command or click.get_current_context().command
    known = {each.name: each for each in command.params}
    known |= {name: known[other] for name, other in getattr(command, "words", {}).items()}
    for phrase, other in PHRASES.items():
        text = text.replace(phrase, other)
    parts = re.split(r"(\b\w+(?:\.\w+)+\([^()]*\))", text)
    return "".join(part if number % 2 else _in_options(part, known) for number, part in enumerate(parts))


def _in_options(text: str, known: dict[str, click.Parameter]) -> str:
    for name, parameter in known.items():
        text = re.sub(rf"\b{name}={_VALUE}", functools.partial(_option, parameter), text)
        text = re.sub(rf"\b{name}=(?=\s)", _name(parameter), text)
        text = text.replace(f"`{name}`", f"`{_name(parameter)}`")
        if "_" in name:  # else it may be a word
            text = re.sub(rf"(?<![\w./'-]){name}(?![\w/'-]|\.\w)", _name(parameter), text)
    return text


def _name(parameter: click.Parameter) -> str:
    if isinstance(parameter, click.Argument):
        return parameter.name.upper()
    return max(parameter.opts, key=len)


def _option(parameter: click.Parameter, found: re.Match[str]) -> str:
    """Returns how an argument's value is written on the command line."""
    value, name, other = found[1], _name(parameter), parameter.secondary_opts
    if value == "None" or (value == "False" and not other):
        return f"no {name}"
    if value in ("True", "False"):
        return name if value == "True" else other[0]
    if value[0] == "[" and getattr(parameter, "multiple", False):
        return " ".join(f"{name} {each}" for each in re.findall(r"'[^']*'", value))
    if value[0] == "(":
        value = re.sub(r"[()\s']", "", value).rstrip(",")
    return f"{name} {value[1:-1] if re.fullmatch(_PLAIN, value) else value}"


def load_model(path: pathlib.Path, *, verbose: int) -> "keras.Model":
    """Loads the model of a `.keras` file, and says so, for TensorFlow takes seconds to start.

    Raises:
        ArgumentError: If it is no such file, or damaged.
        UnsafeModelError: If it could run code.
    """
    if path.suffix != ".keras":
        raise ArgumentError(
            f"The model must be a .keras file. Received: {str(path)!r}. "
            "Save it from Keras 3 by model.save('name.keras')."
        )
    with working(f"reading {path}", verbose=verbose):
        return tfkit.models.load_base_model(path)


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
