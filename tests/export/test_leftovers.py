"""What killed exports leave behind, and what `staged` does with it."""

import os
import subprocess

import pytest

import tfkit
from tests import models
from tests.export.target_nets import export, never_net
from tfkit.files import staged


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A folder that an export has written, to be copied."""
    return export(models.dense_net(), tmp_path_factory.mktemp("earlier"), "mobile").directory


def leftover(folder, name, process):
    made = folder / f".{name}.{process}-abc_123.partial"
    (made / "before").mkdir(parents=True)
    (made / "before" / "old").touch()
    return made


@pytest.fixture(scope="module")
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def stage(path):
    with staged(path) as temporary:
        temporary.write_text("new")


def test_leftovers_of_a_process_that_is_gone_are_removed(tmp_path, gone):
    (tmp_path / "out").write_text("before")
    leftover(tmp_path, "out", gone)
    stage(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_runs_still_is_left_alone(tmp_path):
    made = leftover(tmp_path, "out", os.getppid())
    stage(tmp_path / "out")
    assert (made / "before" / "old").exists()


@pytest.mark.parametrize("name", ["other", "out.more", "out.1-x"])
def test_leftovers_of_other_names_are_left_alone(tmp_path, gone, name):
    made = leftover(tmp_path, name, gone)
    stage(tmp_path / "out")
    assert (made / "before" / "old").exists()


def test_what_was_moved_away_in_a_kill_comes_back_and_is_not_replaced_unasked(tmp_path, gone, earlier):
    """The process was killed between two moves: the earlier export stands in the temporary only."""
    made = tmp_path / f".out.{gone}-abc.partial"
    made.mkdir()
    subprocess.run(["cp", "-r", earlier, made / "before"], check=True)
    with pytest.raises(tfkit.OutputPathError, match=r"replaced only if that is asked for"):
        tfkit.export(never_net(), tmp_path / "out", verbose=0)
    assert tfkit.ExportReport.load(tmp_path / "out").path("mobile").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["n" * 240, "ü" * 100, "\N{CAT}" * 60], ids=["long", "umlauts", "cats"])
def test_long_names_are_staged_and_cleaned(tmp_path, gone, name):
    with staged(tmp_path / name) as temporary:
        temporary.write_text("new")
        killed = temporary.parent.name.replace(f".{os.getpid()}-", f".{gone}-")
    (tmp_path / killed).mkdir()
    other = name[:-1] + "x"
    stage(tmp_path / other)
    assert {path.name for path in tmp_path.iterdir()} == {name, other, killed}
    stage(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {name, other}
