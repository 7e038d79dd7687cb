"""The page on the command line: its examples run as they stand, and it leaves no command out."""

import functools
import pathlib
import re
import shlex

import pytest

from tests.cli_calls import ROOT, call, leaves
from tests.test_docs import run_blocks
from tfkit.cli import main

PAGE = ROOT / "docs" / "command-line.md"
EXAMPLES = [shlex.split(each) for each in re.findall(r"^\$ tfkit (.*)$", PAGE.read_text(), re.MULTILINE)]


def test_the_page_has_an_example_of_every_command():
    for words in leaves():
        assert any(tuple(example[: len(words)]) == words for example in EXAMPLES), words


def test_every_option_on_the_page_exists():
    commands = [functools.reduce(lambda group, name: group.commands[name], words, main) for words in leaves()]
    known = {option for each in commands for one in each.params for option in one.opts + one.secondary_opts}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text())) <= known | {"--help"}


@pytest.mark.slow
def test_the_examples_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(PAGE)
    for words in EXAMPLES:
        if words[0] in ("inspect", "prune", "export", "bench"):  # tune needs a job; doctor judges the machine
            done = call(*words)
            assert done.exit_code == 0, done.output
    assert pathlib.Path("out/report.html").is_file()
    assert pathlib.Path("trade-offs.png").is_file()
