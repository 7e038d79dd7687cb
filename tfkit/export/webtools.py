"""What a run in the browser needs from outside Python: Chromium and LiteRT.js."""

import dataclasses
import os
import pathlib
import shutil

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@dataclasses.dataclass(frozen=True)
class Browser:
    """What it takes to run a model as a web page does.

    Attributes:
        program: Chromium or Chrome.
        package: The folder of the npm package ``@litertjs/core``.
    """

    program: pathlib.Path
    package: pathlib.Path

    def folders(self) -> dict[str, pathlib.Path]:
        """Returns what a page must be served, by the addresses that our page uses."""
        return {"core": self.package, "wasm-utils": _helper(self.package) or self.package}


def find_browser() -> Browser | None:
    """Finds Chromium on the PATH and LiteRT.js beside the project.

    The package is the folder that the environment variable ``TFKIT_LITERTJS`` names, else
    ``node_modules/@litertjs/core`` in the current folder or the nearest one above.

    Returns:
        None if either is missing; `missing_for_browser` tells which.

    Examples:
        >>> (find_browser() is None) == bool(missing_for_browser())
        True
    """
    program, package = _program(), _package()
    return Browser(program, package) if program and package else None


def missing_for_browser() -> str:
    """Says what a run in the browser lacks, and how to get it; empty if it lacks nothing.

    Examples:
        >>> isinstance(missing_for_browser(), str)
        True
    """
    said = []
    if not _program():
        said.append(
            f"No browser is on the PATH ({', '.join(_PROGRAMS)}). Debian has one: apt-get install chromium."
        )
    if not _package():
        named = os.environ.get("TFKIT_LITERTJS")
        where = f"at TFKIT_LITERTJS={named}" if named else "in node_modules here or above"
        said.append(
            f"No @litertjs/core with its @litertjs/wasm-utils is {where}. Run npm install @litertjs/core."
        )
    return " ".join(said)


def _program() -> pathlib.Path | None:
    found = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    return pathlib.Path(found) if found else None


def _package() -> pathlib.Path | None:
    named = os.environ.get("TFKIT_LITERTJS")
    here = pathlib.Path.cwd()
    beside = [folder / "node_modules" / "@litertjs" / "core" for folder in (here, *here.parents)]
    candidates = [pathlib.Path(named)] if named else beside
    return next((each for each in candidates if _helper(each) and (each / "dist/index.js").is_file()), None)


def _helper(package: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of `@litertjs/wasm-utils`; npm puts it beside the package or inside."""
    places = package.parent / "wasm-utils", package / "node_modules" / "@litertjs" / "wasm-utils"
    return next((each for each in places if (each / "dist/index.js").is_file()), None)
