"""docs/from-tfmot.md: the script as TFMOT runs it, and with the import that the page changes."""

import pathlib
import re
import shutil

import keras
import pytest
import tf_keras

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "from-tfmot.md").read_text()


def block(language):
    return re.search(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[1]


def changed(script):
    """The script with the page's diff applied, each of whose lines must be there."""
    lines = block("diff").splitlines()
    removed, added = ([line[1:] for line in lines if line[0] == sign] for sign in "-+")
    old = "".join(f"{line}\n" for line in removed)
    assert old in script
    return script.replace(old, "".join(f"{line}\n" for line in added))


@pytest.mark.slow
def test_the_script_keeps_the_same_weights_after_the_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, theirs, ours = block("python"), {}, {}
    exec(compile(script, "TFMOT", "exec"), theirs)
    shutil.rmtree("logs")
    exec(compile(changed(script), "tfkit", "exec"), ours)
    assert isinstance(theirs["model"], tf_keras.Model)
    assert isinstance(ours["model"], keras.Model)
    assert ours["counts"] == theirs["counts"] == [205, 13]
    assert list(pathlib.Path("logs", "metrics").iterdir())
