"""The padding that puts a convolution's windows where they were, upright and turned."""

import keras
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tfkit.export.windows import Span


@st.composite
def convolutions(draw):
    """A size, a kernel, strides, a dilation, and an explicit padding or one of Keras's own."""
    number = st.integers
    size = tuple(draw(number(5, 14)) for _ in "hw")
    kernel = tuple(draw(number(1, 5)) for _ in "hw")
    stride = draw(number(1, 4))
    dilation = draw(number(1, 3)) if stride == 1 else 1
    explicit = tuple((draw(number(0, 4)), draw(number(0, 4))) for _ in "hw")
    pads = draw(st.sampled_from(["same", "valid", explicit]))
    margin = explicit if pads == explicit else ((0, 0), (0, 0))
    covered = [(k - 1) * dilation + 1 for k in kernel]
    if pads != "same" and any(n + sum(m) < c for n, m, c in zip(size, margin, covered)):
        kernel = (1, 1)
    return size, kernel, stride, dilation, pads


def convolve(x, kernel, stride, dilation, padding):
    return np.asarray(keras.ops.conv(x, kernel, stride, padding, dilation_rate=dilation))


def where(n, k, s, d, pads):
    """Where the windows of one dimension lie by TensorFlow's documentation: (before, windows)."""
    reach = (k - 1) * d + 1
    if pads == "same":
        out = -(-n // s)
        return max((out - 1) * s + reach - n, 0) // 2, out
    return pads[0], (n + sum(pads) - reach) // s + 1


@given(convolutions(), st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_spans_padding_gives_the_same_convolution(convolution, turned):
    size, kernel, stride, dilation, pads = convolution
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1, *size, 2)).astype("float32")
    weights = generator.normal(size=(*kernel, 2, 3)).astype("float32")
    if isinstance(pads, str):
        wanted = convolve(x, weights, stride, dilation, pads)
    else:
        wanted = convolve(np.pad(x, ((0, 0), *pads, (0, 0))), weights, stride, dilation, "valid")
    sides = [(0, 0)] * 2 if pads == "valid" else ["same"] * 2 if pads == "same" else pads
    lie = [where(n, k, stride, dilation, side) for n, k, side in zip(size, kernel, sides)]
    before, out = zip(*lie)
    assert out == wanted.shape[1:3]
    reach = tuple((k - 1) * dilation + 1 for k in kernel)
    after = tuple((o - 1) * stride + r - n - b for o, r, n, b in zip(out, reach, size, before))
    if turned:
        before, after, x, weights = after, before, x[:, ::-1, ::-1], weights[::-1, ::-1]
    span = Span(size, reach, (stride, stride), out, before, after)
    padding, padded = span.padded(keras.ops.convert_to_tensor(x.copy()))
    got = convolve(padded, weights, stride, dilation, padding)
    np.testing.assert_allclose(got[:, ::-1, ::-1] if turned else got, wanted, atol=1e-4)


def span(size, kernel, strides, out, before, after):
    return Span(*((each, each) for each in (size, kernel, strides, out, before, after)))


def test_keras_own_padding_is_taken_where_it_does():
    x = keras.Input((24, 24, 3))
    assert span(24, 3, 1, 24, 1, 1).padded(x) == ("same", x)
    assert span(24, 3, 1, 22, 0, 0).padded(x) == ("valid", x)
    assert span(24, 3, 4, 6, 0, -1).padded(x) == ("valid", x)  # the last pixel is left over


def test_strides_are_padded_alike_on_all_sides_once_turned():
    """TensorFlow pads 24 pixels by (0, 1); turned that is (1, 0), which (1, 1) computes."""
    assert not span(24, 3, 2, 12, 0, 1).even
    turned = span(24, 3, 2, 12, 1, 0)
    assert turned.even
    assert turned.is_stem
    padding, x = turned.padded(keras.Input((24, 24, 3)))
    assert (padding, x.shape) == ("valid", (None, 26, 26, 3))


def test_an_odd_picture_is_padded_alike_already():
    assert span(23, 3, 2, 12, 1, 1).even


def test_other_kernels_are_no_stem():
    assert not span(24, 5, 2, 12, 2, 1).is_stem
    assert not span(24, 3, 1, 24, 1, 1).is_stem


def test_new_layers_have_the_names_given():
    names = iter(["crop", "pad"])
    padding, x = span(24, 3, 2, 12, 2, -1).padded(keras.Input((24, 24, 3)), lambda: next(names))
    assert (padding, x.shape) == ("valid", (None, 25, 25, 3))
    assert next(names, None) is None
