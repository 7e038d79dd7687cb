"""Checks that the wheel holds the package whole, and that the sdist makes the same wheel.

python .ci/check_release.py SDIST_AND_ITS_WHEEL WHEEL_FROM_THE_TREE      two folders
"""

import pathlib
import subprocess
import sys
import zipfile

NEEDED = {
    "tfkit/__init__.pyi",
    "tfkit/export/page.html",
    "tfkit/py.typed",
    "tfkit/report/templates/report.html.j2",
}


def contents(folder: str) -> dict[str, bytes]:
    """Returns the files of the one wheel in a folder, by name."""
    (wheel,) = pathlib.Path(folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def main(from_sdist: str, from_tree: str) -> None:
    """Ends with a message and exit code 1 where something differs."""
    wheel, other = contents(from_sdist), contents(from_tree)
    if differing := sorted(name for name in wheel | other if wheel.get(name) != other.get(name)):
        sys.exit(f"The sdist must make the wheel that the tree makes. These differ: {differing}")
    tracked = subprocess.run(["git", "ls-files", "tfkit"], capture_output=True, text=True, check=True)
    package = {name for name in wheel if ".dist-info/" not in name}
    if differing := sorted(package ^ set(tracked.stdout.split())):
        sys.exit(f"The wheel must hold what git tracks of the package, no more. These differ: {differing}")
    if missing := sorted(NEEDED - package):
        sys.exit(f"The wheel must hold {missing}.")
    licences = [text for name, text in wheel.items() if name.endswith(".dist-info/licenses/LICENSE")]
    if licences != [pathlib.Path("LICENSE").read_bytes()]:
        sys.exit("The wheel must hold the licence.")


if __name__ == "__main__":
    main(*sys.argv[1:])
