"""The page on the command line: its examples run as they stand, and it leaves no command out."""

import functools
import pathlib
import re
import shlex

import pytest

from tests.cli_calls import ROOT, call, leaves
from tfkit.cli import main

PAGE = ROOT / "docs" / "command-line.md"
TEXT = PAGE.read_text()
EXAMPLES = [shlex.split(each) for each in re.findall(r"^\$ tfkit (.*)$", TEXT, re.MULTILINE)]


def test_the_page_has_an_example_of_every_command():
    for words in leaves():
        assert any(tuple(example[: len(words)]) == words for example in EXAMPLES), words


def test_every_option_on_the_page_exists():
    commands = [functools.reduce(lambda group, name: group.commands[name], words, main) for words in leaves()]
    known = {option for each in commands for one in each.params for option in one.opts + one.secondary_opts}
    assert set(re.findall(r"--[a-z][a-z-]+", TEXT)) <= known | {"--help"}


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block, example in re.findall(
        r"^(?:```python\n(.*?)^```|\$ tfkit ([^\n]*))$", TEXT, re.MULTILINE | re.DOTALL
    ):
        words = shlex.split(example)
        if block:
            exec(compile(block, str(PAGE), "exec"), namespace)
        elif words[0] not in ("tune", "doctor"):  # which need a job, and judge the machine
            done = call(*words)
            assert done.exit_code == 0, done.output
    assert pathlib.Path("out/report.html").is_file()
    assert pathlib.Path("trade-offs.png").is_file()
