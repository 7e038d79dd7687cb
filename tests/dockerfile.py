"""The Dockerfile without an engine: what it says, and a replay of it in a clean root.

    python -m tests.dockerfile --quick      builds as the Dockerfile does and runs its command with --quick

The replay copies what git tracks into an empty folder, and runs the RUN lines and the command there
as they stand, in an environment of PATH, HOME and what tells pip and git their way through the
network. What it leaves out, and why, `LEFT_OUT` tells. The interpreter is the machine's `python3`.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
KNOWN = ("FROM", "RUN", "WORKDIR", "COPY", "USER", "CMD")
# instructions that are not replayed, by how they begin
LEFT_OUT = {
    "FROM python:3.11-slim": "there is no engine to fetch an image; the machine's own Python runs",
    "RUN useradd ": "makes a user on this machine, as root",
    "RUN chown ": "there is no other user to whom the folder could be given",
    "USER ": "there is no other user; whoever starts the replay runs it",
}
NETWORK = re.compile(r"PIP_\w+|(https?|no|all)_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE", re.IGNORECASE)


def instructions(text):
    """Returns a Dockerfile as pairs of an instruction and what follows; an unknown one is refused."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    found = [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]
    for line in found:
        if len(line) != 2 or line[0] not in KNOWN:
            raise ValueError(f"an instruction must be one of {', '.join(KNOWN)}: {' '.join(line)}")
    return found


def plan(text):
    """Returns what a replay does, as pairs of a verb and its argument, in order."""
    steps = []
    for name, rest in instructions(text):
        if any(f"{name} {rest}".startswith(each) for each in LEFT_OUT):
            continue
        if name in ("FROM", "USER"):
            raise ValueError(f"LEFT_OUT must tell why it is not replayed: {name} {rest}")
        if name == "WORKDIR":
            steps.append(("enter", rest))
        elif name == "COPY":
            if [each for each in rest.split() if not each.startswith("--")] != [".", "."]:
                raise ValueError(f"only the whole context can be copied: COPY {rest}")
            steps.append(("copy", rest))
        elif name == "RUN":
            steps.append(("run", rest))
        else:
            steps.append(("command", json.loads(rest)))
    return steps


def tracked():
    """Returns the files that git tracks, which are those of a fresh clone."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.split("\0") if name]


def replay(text, arguments):
    """Builds and runs in a clean root, which is deleted afterwards."""
    kept = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
    with tempfile.TemporaryDirectory(prefix="dockerfile-") as made:
        root = pathlib.Path(made)
        environment = {"PATH": os.environ["PATH"], "HOME": made, **kept}
        place = root

        def run(command):
            print("+", command if isinstance(command, str) else " ".join(command), flush=True)
            subprocess.run(command, shell=isinstance(command, str), cwd=place, env=environment, check=True)

        for verb, what in plan(text):
            if verb == "enter":
                place = root / what.lstrip("/")
                place.mkdir(parents=True, exist_ok=True)
            elif verb == "copy":
                for name in tracked():
                    (place / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(ROOT / name, place / name)
            elif verb == "run":
                run(what)
            else:
                run([*what, *arguments])
        report = place / "results" / "quickstart" / "report.html"
        if not report.is_file():
            raise FileNotFoundError(f"the command must leave its report: {report}")


if __name__ == "__main__":
    for line, why in LEFT_OUT.items():
        print(f"- {line.strip()}: {why}")
    replay((ROOT / "Dockerfile").read_text(), sys.argv[1:])
