"""Keras layers behind the names that the converter gives to operations."""

import re

import keras

from tfkit import graph
from tfkit.export.operations import Operation

# how the converter tells where an operation comes from that it cannot convert
_UNCONVERTED = re.compile(r'fused\["\w+:", "([^"@]+)@[^\n]*?\'tf\.(\w+)\' op is neither')


class LayerNames:
    """Finds layers by the converter's names, as ``"net_1/block_1/conv_1/convolution"``.

    Args:
        model: The model that was converted.
    """

    def __init__(self, model: keras.Model):
        flow = graph.read_flow(model)
        paths = {call.path for call in flow.calls} if flow is not None else set()
        # the longest first, for a name of a nested layer fits those of its parents as well
        self._paths = sorted(paths, key=lambda path: (-path.count("/"), path))

    def of(self, operation: Operation) -> str:
        """Returns the path of an operation's layer, empty if no name tells.

        The last operation bears the output's name; then its weights' names tell.
        """
        names = [operation.name, *(x.name for x in operation.inputs if x.constant)]
        return next(filter(None, map(self.path, names)), "")

    def path(self, name: str) -> str:
        """Returns the path of the layer, empty if the name does not tell."""
        for each in reversed(name.split(";")):  # of fused operations the last
            parts = each.split("/")
            # each part has a number behind it that makes it unique
            for given in ([re.sub(r"_\d+$", "", part) for part in parts], parts):
                for path in self._paths:
                    if _within(path.split("/"), given):
                        return path
        return ""

    def unconverted(self, text: str) -> str:
        """Says which operations a message of the converter complains of, and where they are.

        Returns:
            As ``"Svd at 'block/decompose', Erfinv"``; empty if the message names none.
        """
        found: dict[str, None] = {}
        for name, kind in _UNCONVERTED.findall(text):
            path = self.path(name)
            found[f"{kind} at {path!r}" if path else kind] = None
        return ", ".join(found)


def _within(path: list[str], parts: list[str]) -> bool:
    """Tells whether a path's parts come in a name in their order."""
    rest = iter(parts)
    return all(each in rest for each in path)
