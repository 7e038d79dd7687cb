"""A convolutional encoder–decoder whose layers are numbered, for images in and out."""

import numbers
from collections.abc import Iterable, Sequence

import keras
from keras import layers

from tfkit.errors import ArgumentError, ArgumentTypeError


def build_encoder_decoder(
    input_shape: Sequence[int | None],
    *,
    filters: Sequence[int],
    output_channels: int,
    residual: bool = False,
    name: str = "encoder_decoder",
) -> keras.Model:
    """Builds a convolutional encoder–decoder with skip connections.

    N = ``len(filters)`` layers each way, all 3×3: `encoder_conv1` works at full
    resolution and every further encoder layer halves it; each decoder layer but the
    last doubles it and joins the encoder's features of that size; `decoder_convN` is
    the linear output layer.

    Args:
        input_shape: ``(height, width, channels)``; height and width may be None, for
            images of any size that is a multiple of ``2 ** (N - 1)``.
        filters: Channels of `encoder_conv1…N`, at least one; the decoder mirrors them.
        output_channels: Channels of the output, at least 1.
        residual: Whether the input is added to the output, so that the network learns
            the difference; needs as many output channels as input channels.
        name: The model's name.

    Returns:
        A functional model, not compiled, from ``(batch, height, width, channels)`` to
        ``(batch, height, width, output_channels)``.

    Raises:
        ArgumentError: If `filters` is empty, a count is below 1, a size is no multiple
            of the strides, or `residual` does not fit the channels.

    Examples:
        >>> import tfkit
        >>> model = tfkit.models.build_encoder_decoder((None, None, 3), filters=(8, 16), output_channels=3)
        >>> [layer.name for layer in model.layers if layer.weights]
        ['encoder_conv1', 'encoder_conv2', 'decoder_conv1', 'decoder_conv2']
        >>> model.compute_output_shape((1, 64, 48, 3))
        (1, 64, 48, 3)

    Source: Ronneberger et al., U-Net (2015); the residual form, Zhang et al., DnCNN
    (2017), section 3.
    """
    filters, shape = _check_encoder_decoder(input_shape, filters, output_channels, residual)
    conv = {"kernel_size": 3, "padding": "same", "kernel_initializer": "he_normal"}

    inputs = keras.Input(shape, name="image")
    x, skips = inputs, []
    for number, width in enumerate(filters, start=1):
        stride = 1 if number == 1 else 2
        x = layers.Conv2D(width, strides=stride, activation="relu", name=f"encoder_conv{number}", **conv)(x)
        skips.append(x)
    for number, skip in enumerate(reversed(skips[:-1]), start=1):
        x = layers.UpSampling2D(name=f"decoder_upsample{number}")(x)
        x = layers.Concatenate(name=f"decoder_join{number}")([x, skip])
        x = layers.Conv2D(skip.shape[-1], activation="relu", name=f"decoder_conv{number}", **conv)(x)
    if residual:  # begin as the identity: a pretrained denoiser that does no harm
        conv["kernel_initializer"] = "zeros"
    outputs = layers.Conv2D(output_channels, name=f"decoder_conv{len(filters)}", **conv)(x)
    if residual:
        outputs = layers.Add(name="residual")([inputs, outputs])
    return keras.Model(inputs, outputs, name=name)


def _check_encoder_decoder(
    input_shape: Sequence[int | None], filters: Sequence[int], output_channels: int, residual: bool
) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    if not isinstance(filters, Iterable) or not isinstance(input_shape, Iterable):
        raise ArgumentTypeError(
            "`filters` and `input_shape` must be sequences of whole numbers. "
            f"Received: filters={filters!r}, input_shape={input_shape!r}."
        )
    filters, shape = tuple(filters), tuple(input_shape)
    if not filters or not all(is_count(width) for width in filters):
        raise ArgumentError(
            f"`filters` must hold at least one channel count, each at least 1. Received: filters={filters!r}."
        )
    if not is_count(output_channels):
        raise ArgumentError(
            f"`output_channels` must be at least 1. Received: output_channels={output_channels!r}."
        )
    if len(shape) != 3 or not all(is_count(size) or size is None for size in shape) or shape[2] is None:
        raise ArgumentError(
            "`input_shape` must be (height, width, channels), each at least 1; height and width may be None. "
            f"Received: input_shape={shape!r}."
        )
    multiple = 2 ** (len(filters) - 1)
    if any(size is not None and size % multiple for size in shape[:2]):
        raise ArgumentError(
            f"Height and width must be multiples of {multiple}, the product of the "
            f"{len(filters) - 1} strides of 2. Received: input_shape={shape!r}. "
            "Pad or crop the images, or pass fewer filters."
        )
    if residual and shape[2] != output_channels:
        raise ArgumentError(
            "A residual model must have as many output channels as input channels. "
            f"Received: input_shape={shape!r}, output_channels={output_channels!r}."
        )
    return tuple(map(int, filters)), tuple(size if size is None else int(size) for size in shape)


def is_count(value: object) -> bool:
    """Returns whether `value` is a whole number of at least 1."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= 1
