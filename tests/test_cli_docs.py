"""The page on the command line: its examples run as they stand, and it leaves no command out."""

import pathlib
import re
import shlex

import pytest

from tests.cli_calls import ROOT, call
from tests.test_docs import run_blocks
from tfkit.cli import main

PAGE = ROOT / "docs" / "command-line.md"
EXAMPLES = [shlex.split(each) for each in re.findall(r"^\$ tfkit (.*)$", PAGE.read_text(), re.MULTILINE)]


def test_the_page_has_an_example_of_every_command():
    assert {words[0] for words in EXAMPLES} == set(main.commands)


def test_every_option_on_the_page_exists():
    known = {option for each in main.commands.values() for one in each.params for option in one.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE.read_text())) <= known | {"--help"}


@pytest.mark.slow
def test_the_examples_run_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(PAGE)
    for words in EXAMPLES:
        if words[0] in ("inspect", "export", "bench"):  # tune needs a job; doctor judges the machine
            done = call(*words)
            assert done.exit_code == 0, done.output
    assert pathlib.Path("out/report.html").is_file()
    assert pathlib.Path("trade-offs.png").is_file()
