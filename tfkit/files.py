"""Files and folders that get their names only when they are whole."""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

from tfkit.errors import ArgumentTypeError, OutputPathError


def writable(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns `path`, having made its folder and made sure that something can be written there.

    Args:
        path: The path.
        name: The argument's name, for messages.

    Raises:
        ArgumentTypeError: If it is no path.
        OutputPathError: If its folder cannot be made or written to.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):
        raise ArgumentTypeError(f"`{name}` must be the path to write to. Received: {name}={path!r}.")
    path = pathlib.Path(path).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputPathError(
            "The output must lie in a folder that can be written to. "
            f"Received: {name}={str(path)!r} ({error}). "
            "Choose another place or change its permissions."
        ) from error
    return path


@contextlib.contextmanager
def staged(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary name beside `path`; moves it there only if all went well.

    Whatever interrupts the block, nothing half-written stands under `path`, and what
    stood there before still does. What a process left behind that was killed on the way is
    removed at the next run.
    """
    remove_leftovers(path)
    prefix = f"{_stem(path)}{os.getpid()}-"
    folder = pathlib.Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=path.parent))
    try:
        temporary, before = folder / path.name, folder / "before"
        yield temporary
        if path.is_dir():  # a directory cannot be replaced in one move
            path.rename(before)
        try:
            os.replace(temporary, path)
        except OSError:
            if before.exists():
                before.rename(path)
            raise
    except OSError as error:
        # an export inside this one has said so of its own, temporary path
        cause = error.__cause__ if isinstance(error, OutputPathError) else error
        code = getattr(cause, "errno", None)
        if code not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputPathError(
            "The disk must have room for what is written. "
            f"Received: path={str(path)!r} ({os.strerror(code)}). "
            "Nothing was written. Make room or choose another place."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stem(path: pathlib.Path) -> str:
    """Returns what temporary names for `path` begin with, and no other path's do."""
    name = os.fsencode(path.name)
    return f".{path.name if len(name) <= 100 else hashlib.sha256(name).hexdigest()}."


def remove_leftovers(path: pathlib.Path) -> None:
    """Removes what exports to `path` left behind whose process is gone; puts back what they moved away."""
    pattern = re.compile(re.escape(_stem(path)) + r"(\d+)-[^.]*\.partial")
    for folder in path.parent.iterdir():
        found = pattern.fullmatch(folder.name)
        if found is None or _runs(int(found[1])):
            continue
        before = folder / "before"
        if before.exists() and not path.exists():  # it was killed between two moves
            before.rename(path)
        shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
