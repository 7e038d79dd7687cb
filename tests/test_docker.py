"""The Dockerfile and README's two lines say the same; `.ci/run` replays it (see tests/dockerfile.py)."""

import fnmatch
import json
import re
import shlex

import pytest

from tests.dockerfile import LEFT_OUT, ROOT, instructions, plan, tracked

TEXT = (ROOT / "Dockerfile").read_text()


def readme_steps():
    """README's command as its three parts: environment, install, main job."""
    line = re.search(r"<!-- run -->\n```bash\n(.*)\n```", (ROOT / "README.md").read_text())[1]
    return line.split(" && ")


def test_it_installs_as_readme_does():
    last = [what for verb, what in plan(TEXT) if verb == "run"][-1]
    assert last.replace(" --no-cache-dir", "").split(" && ") == readme_steps()[:2]


def test_its_command_is_readmes_main_job():
    assert plan(TEXT)[-1] == ("command", shlex.split(readme_steps()[2]))


def test_the_replay_enters_copies_installs_and_runs_in_this_order():
    assert [verb for verb, _ in plan(TEXT)] == ["enter", "copy", "run", "command"]


def test_nothing_is_left_out_that_the_dockerfile_does_not_have():
    lines = [" ".join(each) for each in instructions(TEXT)]
    assert all(any(line.startswith(each) for line in lines) for each in LEFT_OUT)


def test_it_does_not_run_as_root():
    names = [name for name, _ in instructions(TEXT)]
    (user,) = [what for name, what in instructions(TEXT) if name == "USER"]
    assert user not in ("root", "0")
    assert names.index("USER") < max(place for place, name in enumerate(names) if name == "RUN")


def test_comments_and_broken_lines_are_read():
    assert instructions("# first\nRUN a && \\\n    b\n\nCMD []\n") == [("RUN", "a &&      b"), ("CMD", "[]")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ADD . .", "must be one of FROM, RUN, WORKDIR, COPY, USER, CMD: ADD"),
        ("RUN", "must be one of .*: RUN"),
        ("FROM debian", "LEFT_OUT must tell why it is not replayed: FROM debian"),
        ("COPY a b", "only the whole context can be copied: COPY a b"),
    ],
)
def test_what_cannot_be_replayed_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        plan(text)


def test_a_command_for_a_shell_is_refused():
    with pytest.raises(json.JSONDecodeError):
        plan("CMD python -m experiments.quickstart")


def test_what_git_ignores_stays_out_of_the_image_too():
    def patterns(name):
        lines = (ROOT / name).read_text().split()
        return {line.strip("/").removeprefix("**/") for line in lines}

    assert patterns(".dockerignore") == patterns(".gitignore") | {".git"}


def test_no_tracked_file_is_kept_from_the_image():
    lines = (ROOT / ".dockerignore").read_text().split()
    anywhere = {line.removeprefix("**/") for line in lines if line.startswith("**/")}
    at_the_top = set(lines) - anywhere
    for name in tracked():
        parts = name.split("/")
        assert parts[0] not in at_the_top
        assert not [part for part in parts if any(fnmatch.fnmatch(part, each) for each in anywhere)]
