"""Calls of the command line, for its tests."""

import json
import os
import pathlib
import subprocess
import sys

from click.testing import CliRunner

from tfkit.cli import main

ROOT = pathlib.Path(__file__).parents[1]


def call(*words):
    """Runs a command in this process."""
    return CliRunner().invoke(main, [*map(str, words)])


def leaves(group=main, before=()):
    """Yields the words of each command, those inside groups too."""
    for name, each in group.commands.items():
        if hasattr(each, "commands"):
            yield from leaves(each, (*before, name))
        else:
            yield (*before, name)


def shell(*words, **environment):
    """Runs a command as a shell does, in a process of its own."""
    command = [sys.executable, "-c", "from tfkit.cli import main; main()", *map(str, words)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def refusal(done, code):
    """Returns the one paragraph of an error, having checked its form."""
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("error: ")]
    assert done.stderr.rstrip().endswith(line)
    return line


def as_json(done):
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)
