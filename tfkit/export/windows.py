"""Where the windows of a convolution lie, and the padding that puts them there."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class Span:
    """Where the windows of a convolution lie, in height and width.

    Attributes:
        size: Pixels that come in.
        kernel: Pixels of a window, dilation included.
        strides: Steps from window to window.
        out: Windows.
        before: Pixels that the first window reaches beyond the edge; negative where it begins inside.
        after: Pixels that the last window reaches beyond the other edge.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    out: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def is_stem(self) -> bool:
        """Whether it is a 3x3 convolution with strides of 2."""
        return self.kernel == (3, 3) and self.strides == (2, 2)

    @property
    def even(self) -> bool:
        """Whether half a kernel of padding on all sides gives just these windows."""
        half = tuple(k // 2 for k in self.kernel)
        return self.before == half and self._fits(half)

    def _fits(self, pads: tuple[int, ...]) -> bool:
        sizes = zip(self.size, pads, self.kernel, self.strides, self.out, strict=True)
        return all((n + 2 * p - k) // s + 1 == out for n, p, k, s, out in sizes)

    def padded(self, x: Any, name: Callable[[], str | None] = lambda: None) -> tuple[str, Any]:
        """Returns the padding for Keras, and what is to be convolved.

        Args:
            x: The picture, which is padded or cropped as far as Keras's own paddings do not do.
            name: Gives a name for each layer that this takes.
        """
        whole = self.strides == (1, 1) and self.out == self.size
        if whole and self.before == tuple((k - 1) // 2 for k in self.kernel):
            return "same", x
        if self.before == (0, 0) and self._fits((0, 0)):
            return "valid", x
        if self.even:
            return "valid", keras.layers.ZeroPadding2D(tuple(self.before), name=name(), dtype=x.dtype)(x)
        pairs = tuple(zip(self.before, self.after, strict=True))
        if min(self.before + self.after) < 0:
            crops = tuple((max(-b, 0), max(-a, 0)) for b, a in pairs)
            x = keras.layers.Cropping2D(crops, name=name(), dtype=x.dtype)(x)
        if max(self.before + self.after) > 0:
            pads = tuple((max(b, 0), max(a, 0)) for b, a in pairs)
            x = keras.layers.ZeroPadding2D(pads, name=name(), dtype=x.dtype)(x)
        return "valid", x
