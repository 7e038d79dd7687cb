"""The command line as a shell sees it: files in, tables and exit codes out."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tfkit.cli import main

ROOT = pathlib.Path(__file__).parents[1]
JOB = """
import keras
import numpy as np
import tfkit

ONES = np.ones((4, 1), "float32")
space = tfkit.SearchSpace(learning_rate=[0.1, 0.2, 0.3])


def build():
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile("sgd", "mse")
    return model


def data():
    return {"x": ONES, "y": ONES, "validation_data": (ONES, ONES)}
"""
OPTIONS = ["--max-trials", "3", "--epochs", "2", "--tuner", "grid"]


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "some_job.py"
    path.write_text(JOB)
    return str(path)


def call(*words):
    return CliRunner().invoke(main, ["tune", *map(str, words)])


def start(*words):
    command = [sys.executable, "-c", "from tfkit.cli import main; main()", "tune", *map(str, words)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def scores(text):
    return [row["score"] for row in json.loads(text.strip().splitlines()[-1])]


EXPECTED = [pytest.approx((1 - 2 * rate) ** 4, rel=1e-3) for rate in (0.1, 0.2, 0.3)]


def test_tune_prints_a_table_and_the_best(job, tmp_path):
    done = call(job, "-d", tmp_path / "s", *OPTIONS)
    assert done.exit_code == 0, done.output
    assert "completed" in done.output
    assert "The best is trial 2, val_loss 0.0256." in done.output


def test_tune_draws_and_prints_json(job, tmp_path):
    done = call(job, "-d", tmp_path / "s", *OPTIONS, "--json", "--plot", tmp_path / "p.png")
    assert scores(done.output) == EXPECTED
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_tune_with_workers_on_this_machine(job, tmp_path):
    done = call(job, "-d", tmp_path / "s", *OPTIONS, "--json", "--workers", "2")
    assert scores(done.output) == EXPECTED


@pytest.mark.slow
def test_a_chief_and_two_workers_by_hand(job, tmp_path):
    words = [job, "-d", tmp_path / "s", *OPTIONS]
    chief = start(*words, "--chief", "127.0.0.1:0", "--json")
    crew = []
    try:
        line = next(line for line in chief.stderr if "listens on" in line)
        address = re.search(r"127\.0\.0\.1:\d+", line).group()
        crew = [start(*words, "--worker", address) for _ in range(2)]
        output, errors = chief.communicate(timeout=120)
        assert chief.returncode == 0, errors
        assert scores(output) == EXPECTED
        for each in crew:
            _, errors = each.communicate(timeout=60)
            assert each.returncode == 0, errors
    finally:
        for each in [chief, *crew]:
            if each.poll() is None:
                each.kill()
                each.communicate()


def test_a_search_that_fails_exits_with_one(tmp_path):
    path = tmp_path / "bad_job.py"
    path.write_text(JOB.replace('model.compile("sgd", "mse")', 'raise RuntimeError("boom")'))
    done = call(path, "-d", tmp_path / "s", *OPTIONS)
    assert done.exit_code == 1
    assert "boom" in done.stderr


def test_a_job_without_data_exits_with_two(tmp_path):
    path = tmp_path / "half_job.py"
    path.write_text("def build():\n    pass\n\n\ndef dta():\n    pass\n")
    done = call(path, "-d", tmp_path / "s", *OPTIONS)
    assert done.exit_code == 2
    rule = r"must define `build` and `data`\. Received: .*lacks data; its functions are build, dta"
    assert re.search(rule, done.stderr)
    assert "Traceback" not in done.output


def test_a_job_that_is_no_python_file_exits_with_two(tmp_path):
    (tmp_path / "job.txt").touch()
    done = call(tmp_path / "job.txt", "-d", tmp_path / "s", *OPTIONS)
    assert done.exit_code == 2
    assert "error: JOB must be a Python file." in done.stderr


def test_a_job_that_cannot_be_imported_exits_with_one(tmp_path):
    (tmp_path / "broken_job.py").write_text("1 / 0")
    done = call(tmp_path / "broken_job.py", "-d", tmp_path / "s", *OPTIONS)
    assert done.exit_code == 1
    assert "which raised ZeroDivisionError: division by zero. Mend it; --debug" in done.stderr


def test_a_wrong_argument_exits_with_two(job, tmp_path):
    done = call(job, "-d", tmp_path / "s", "--max-trials", "0", "--epochs", "1")
    assert done.exit_code == 2
    assert done.stderr.endswith("error: `--max-trials` must be at least 1. Received: --max-trials 0.\n")


def test_debug_shows_the_error_itself(job, tmp_path):
    done = call(job, "-d", tmp_path / "s", "--max-trials", "0", "--epochs", "1", "--debug")
    assert type(done.exception).__name__ == "ArgumentError"


def test_a_job_that_is_no_python_file_is_refused(tmp_path):
    path = tmp_path / "job.txt"
    path.write_text(JOB)
    done = call(path, "-d", tmp_path / "s", *OPTIONS)
    assert done.exit_code == 2
    assert f"JOB must be a Python file. Received: {str(path)!r}." in done.stderr


def test_help_tells_what_a_job_is():
    done = call("--help")
    assert done.exit_code == 0
    assert "JOB is a Python file" in done.output
    for option in ("--chief", "--worker", "--workers", "--json", "--max-trials"):
        assert option in done.output
