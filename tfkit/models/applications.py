"""The models of keras.applications, with their own preprocessing inside the graph."""

import dataclasses
import difflib
import http.client
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfkit.errors import ArgumentError, ArgumentTypeError, DownloadError
from tfkit.models.encoder_decoder import is_count

_TOP_ONLY = ("classes", "classifier_activation", "dropout", "dropout_rate")


@dataclasses.dataclass(frozen=True)
class Application:
    """One model of keras.applications.

    Attributes:
        name: Its name there.
        constructor: The function that builds it.
    """

    name: str
    constructor: Callable[..., keras.Model]

    def build(
        self, input_shape: Sequence[int | None] | None, options: dict[str, Any], *, imagenet: bool
    ) -> keras.Model:
        """Returns the model for raw RGB images; see `load_base_model`."""
        if keras.config.image_data_format() != "channels_last":
            raise ArgumentError(
                "keras.applications must be built with channels last. "
                f"Received: source={self.name!r} under image_data_format='channels_first'. "
                "Call keras.config.set_image_data_format('channels_last')."
            )
        options = {"include_top": False, **options}
        self._check_options(options)
        shape = self._check_shape(input_shape, options["include_top"])
        name = options.pop("name", None)  # Keras's constructors read the architecture from it
        scaling = channel_scaling(self)

        image = keras.Input(shape or (None, None, 3), name="image")
        model = self._construct(shape, options, imagenet=imagenet, input_tensor=scaling.apply(image))
        # The constructors list their inputs, and then warn at every call on a single tensor.
        model = keras.Model(image, model.output, name=model.name if name is None else name)
        if None in model.input_shape[1:]:
            self._check_open_sizes(model, input_shape)
        return model

    def correct_variance(self, model: keras.Model) -> None:
        """Repairs the input statistics of EfficientNet's ImageNet files, in place.

        They hold standard deviations in place of variances. Keras makes up for it with a
        further layer, but only under ``weights="imagenet"``. Other weights stay as they are.
        """
        deviations = getattr(sys.modules[self.constructor.__module__], "IMAGENET_STDDEV_RGB", None)
        if deviations is None:
            return
        for layer in model.layers:
            if isinstance(layer, keras.layers.Normalization) and layer.weights:
                mean, variance, *rest = layer.get_weights()
                if np.allclose(variance, deviations, rtol=1e-5):
                    layer.set_weights([mean, np.square(variance), *rest])
                    layer.finalize_state()

    def _check_options(self, options: dict[str, Any]) -> None:
        accepted = set(inspect.signature(self.constructor).parameters)
        accepted -= {"weights", "input_shape", "input_tensor"}
        if unknown := [f"{key}={value!r}" for key, value in options.items() if key not in accepted]:
            raise ArgumentError(
                f"Options must be arguments of keras.applications.{self.name}. "
                f"Received: {', '.join(unknown)}. Accepted: {', '.join(sorted(accepted))}."
            )
        if not options.get("include_preprocessing", True):
            raise ArgumentError(
                "The preprocessing must stay inside the model, so that it takes raw images. "
                f"Received: include_preprocessing={options['include_preprocessing']!r}. "
                f"Leave it out, or call keras.applications.{self.name} itself."
            )
        name = options.get("name")
        if name is not None and (not isinstance(name, str) or not name or "/" in name):
            raise ArgumentError(f"`name` must be a model name without '/'. Received: name={name!r}.")
        pooling, top = options.get("pooling"), options["include_top"]
        if pooling not in (None, "avg", "max") or (pooling is not None and top):
            raise ArgumentError(
                "`pooling` must be None, 'avg' or 'max', and None with include_top=True. "
                f"Received: pooling={pooling!r}, include_top={top!r}."
            )
        if not top and (idle := [f"{key}={options[key]!r}" for key in _TOP_ONLY if key in options]):
            raise ArgumentError(
                "Options of the classifier must come with include_top=True. "
                f"Received: {', '.join(idle)}. Use tfkit.models.attach_head for a head of your own."
            )

    def _check_shape(self, input_shape: Any, top: bool) -> tuple[int | None, ...] | None:
        if input_shape is None:
            shape = None
        elif isinstance(input_shape, Sequence) and not isinstance(input_shape, str):
            shape = tuple(input_shape)
        else:
            raise ArgumentTypeError(
                "`input_shape` must be a sequence (height, width, 3), or None. "
                f"Received: input_shape={input_shape!r}."
            )
        if shape is not None and (
            len(shape) != 3 or shape[2] != 3 or not all(is_count(size) or size is None for size in shape)
        ):
            raise ArgumentError(
                "`input_shape` must be (height, width, 3), sizes at least 1 or None, for RGB images. "
                f"Received: input_shape={shape!r}."
            )
        if top and (shape is None or None in shape):
            raise ArgumentError(
                "With include_top=True the sizes must be fixed. "
                f"Received: source={self.name!r}, input_shape={shape!r}. Pass (height, width, 3), and "
                "with weights='imagenet' the size that Keras documents, most often (224, 224, 3)."
            )
        return None if shape is None else tuple(size if size is None else int(size) for size in shape)

    def _construct(
        self, shape: Any, options: dict[str, Any], *, imagenet: bool, input_tensor: Any
    ) -> keras.Model:
        weights = "imagenet" if imagenet else None
        try:
            return self.constructor(weights=weights, input_shape=shape, input_tensor=input_tensor, **options)
        except Exception as error:
            if imagenet and _is_download_failure(error):
                raise DownloadError(
                    "The ImageNet weights must be in Keras's cache or be downloadable, whole. "
                    f"Received: source={self.name!r}, weights='imagenet' "
                    f"({type(error).__name__}: {str(error)[:500]}). "
                    "Pass weights= the path of a local weights file, or None for random weights."
                ) from error
            if isinstance(error, ValueError | TypeError):
                raise ArgumentError(
                    "The shape and the options must suit the application. "
                    f"Received: source={self.name!r}, input_shape={shape!r}, weights={weights!r}, "
                    f"options={options!r} ({type(error).__name__}: {str(error)[:500]})."
                ) from error
            raise

    def _check_open_sizes(self, model: keras.Model, input_shape: Any) -> None:
        example = tuple(size or 224 for size in model.input_shape[1:])
        try:
            model.compute_output_shape((1, *example))
        except ValueError as error:  # NASNet wires itself by the sizes it is built with
            raise ArgumentError(
                f"{self.name} must be built for fixed sizes. "
                f"Received: source={self.name!r}, input_shape={input_shape!r}. "
                f"Pass, for example, input_shape={example!r}."
            ) from error


def _is_download_failure(error: Exception) -> bool:
    return (
        type(error) is Exception  # what keras.utils.get_file raises when a URL fails
        or isinstance(error, OSError | http.client.HTTPException)
        or str(error).startswith("Incomplete or corrupted file")
    )


def find_application(source: str) -> Application:
    """Returns the application of that name, whatever its case, ``_`` and ``-``.

    Raises:
        ArgumentError: If there is none; names the nearest three.
    """
    constructors = {
        name.lower(): Application(name, each)
        for name, each in vars(keras.applications).items()
        if inspect.isfunction(each)
    }
    wanted = re.sub("[_-]", "", source).lower()
    if wanted not in constructors:
        nearest = difflib.get_close_matches(wanted, constructors, n=3, cutoff=0.0)
        raise ArgumentError(
            "`source` must be the name of a keras.applications model or the path of a .keras file. "
            f"Received: source={source!r}. "
            f"Nearest names: {', '.join(constructors[each].name for each in nearest)}."
        )
    return constructors[wanted]


@dataclasses.dataclass(frozen=True)
class ChannelScaling:
    """``output[c] = scale[c] · rgb[c] + offset[c]``, or of ``bgr`` where `reverse` is True.

    Attributes:
        scale: Three factors.
        offset: Three numbers.
        reverse: Whether the channels are reversed first.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]
    reverse: bool

    def apply(self, image: keras.KerasTensor) -> keras.KerasTensor:
        """Returns `image` with the scaling behind it, in layers and operations that Keras can save."""
        if self.reverse:
            image = image[..., ::-1]  # int8 TFLite files of keras.ops.flip compute something else
        if set(self.scale) == {1.0} and set(self.offset) == {0.0}:
            return image
        scale, offset = (each[0] if len(set(each)) == 1 else list(each) for each in (self.scale, self.offset))
        # Half precision would lose the last bits of a pixel.
        return keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocess")(image)


def channel_scaling(application: Application) -> ChannelScaling:
    """Derives from an application's `preprocess_input` what it does to a pixel.

    The function is taken as ``A · rgb + b``: `b` is what becomes of black, the columns of
    `A` are what becomes of pure red, green and blue. Random images then check that this is
    all it does.

    Raises:
        ArgumentError: If it is something else.
    """
    function = sys.modules[application.constructor.__module__].preprocess_input

    def preprocess(images: np.ndarray) -> np.ndarray:
        return np.asarray(function(images.copy()), "float64")  # it writes into its argument

    colours = np.concatenate([np.zeros((1, 3)), 255 * np.eye(3)]).reshape(4, 1, 1, 3)
    black, *pure = preprocess(colours).reshape(4, 3)
    matrix = np.stack([(each - black) / 255 for each in pure], axis=1)
    images = np.random.default_rng(0).uniform(0, 255, (4, 5, 6, 3))
    affine = np.allclose(preprocess(images), images @ matrix.T + black, rtol=1e-6, atol=1e-6)
    for reverse in (False, True):
        straight = matrix[:, ::-1] if reverse else matrix
        scale = np.diag(straight)
        if affine and np.allclose(straight, np.diag(scale), rtol=0, atol=1e-9):
            by, plus = (tuple(map(float, each.astype("float32"))) for each in (scale, black))
            return ChannelScaling(by, plus, reverse)
    raise ArgumentError(
        "An application's preprocessing must scale and shift each channel, in RGB or BGR order. "
        f"Received: source={application.name!r}, whose preprocess_input does something else. "
        f"Build keras.applications.{application.name} yourself and preprocess the images before."
    )
