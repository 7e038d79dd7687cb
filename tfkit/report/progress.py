"""How far long work is: on stderr, as lines that change on a terminal and plain ones elsewhere."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def bar(*columns: "str | ProgressColumn", verbose: int = 1) -> "Progress":
    """Returns rich's progress bar on stderr, so that stdout holds results only.

    Args:
        *columns: Rich's columns; none for its own choice.
        verbose: 0 shows nothing.

    Examples:
        >>> with bar(verbose=0) as shown:
        ...     [2 * each for each in shown.track([1, 2], description="doubling")]
        [2, 4]
    """
    from rich import console, progress

    return progress.Progress(*columns, console=console.Console(stderr=True), disable=not verbose)


@contextlib.contextmanager
def working(text: str, *, verbose: int = 1) -> Iterator[Callable[[str], None]]:
    """Shows what is being done, and yields a function that says what comes next.

    On a terminal it is one line with the time since the start, which goes in the end. Elsewhere,
    as in a log, each step is a line of its own.

    Args:
        text: The first step.
        verbose: 0 shows nothing.

    Examples:
        >>> with working("reading", verbose=0) as step:
        ...     step("counting")
    """
    if not verbose:
        yield lambda text: None
        return
    from rich import console, markup, progress

    screen = console.Console(stderr=True)
    if not screen.is_terminal:

        def say(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        say(text)
        yield say
        return
    columns = (progress.SpinnerColumn(), "{task.description}", progress.TimeElapsedColumn())
    with progress.Progress(*columns, console=screen, transient=True) as line:
        task = line.add_task(markup.escape(text), total=None)
        yield lambda text: line.update(task, description=markup.escape(text))
