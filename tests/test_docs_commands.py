"""The commands on the pages: experiments know their options, and the script for a cluster runs."""

import argparse
import contextlib
import importlib
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys

import pytest

from tfkit import SearchResult

ROOT = pathlib.Path(__file__).parents[1]
PAGES = "".join(page.read_text() for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))])
EXPERIMENTS = sorted({each.strip() for each in re.findall(r"python -m experiments\.([^\n`#]+)", PAGES)})


class UnderstoodError(Exception):
    """The command was taken; what it would do takes minutes, and its own tests do it in small."""


@pytest.mark.parametrize("command", EXPERIMENTS)
def test_an_experiment_takes_its_command(command, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, words):
        parse(parser, words)
        raise UnderstoodError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    name, *words = shlex.split(command)
    with pytest.raises(UnderstoodError):
        importlib.import_module(f"experiments.{name}").main(words)


def test_every_experiment_is_on_a_page():
    made = {path.stem for path in ROOT.glob("experiments/*.py") if "\ndef main(" in path.read_text()}
    assert {command.split()[0] for command in EXPERIMENTS} == made - {"instructions"}  # a tool of theirs


@pytest.mark.slow
def test_the_script_for_slurm_runs(tmp_path):
    """One task of each kind, on this machine: `srun` and `hostname` are stood in for."""
    page = (ROOT / "docs" / "guide-machines.md").read_text()
    (tmp_path / "job.py").write_text(
        re.search(r"^```python\n(# job\.py.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    )
    script = re.search(r"^```bash\n(#!/bin/bash.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for words, instead in [
        (":9000", f":{port}"),
        ("--max-trials 200 --epochs 20", "--max-trials 2 --epochs 1"),
    ]:
        assert script.count(words) == 1
        script = script.replace(words, instead)
    tools = {"srun": 'while [ "$1" != tfkit ]; do shift; done; exec "$@"', "hostname": "echo 127.0.0.1"}
    for name, body in tools.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    places = [str(tmp_path), str(pathlib.Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(places), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(["bash", "-c", script], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        assert process.wait(120) == 0
    finally:
        with contextlib.suppress(ProcessLookupError):  # all that it started has ended
            os.killpg(process.pid, signal.SIGKILL)
    assert SearchResult.load(tmp_path / "search").table.status.tolist() == ["completed"] * 2
