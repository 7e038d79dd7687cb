"""The room as something to call: it carries the name of its main function.

`tfkit.export(model, …)` is that function, `tfkit.export.browser` a module. The public name comes
from here, so that type checkers, to whom a module is never callable, know both.
"""

import sys
import types
from typing import TYPE_CHECKING, cast

from tfkit.export.targets import export as run


class Room(types.ModuleType):
    """A module that may be called."""

    if TYPE_CHECKING:
        __call__ = staticmethod(run)
    else:

        def __call__(self, *args, **kwargs):
            return run(*args, **kwargs)


Room.__call__.__doc__ = run.__doc__

export = cast(Room, sys.modules["tfkit.export"])  # which takes this class at its end
