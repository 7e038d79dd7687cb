"""The photographs that experiments learn from: real pictures that need no download."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

import tfkit


@dataclasses.dataclass(frozen=True)
class Pictures:
    """One kind of pictures, cut into parts that share no pixel but with `calibration`.

    Attributes:
        train: Clean patches ``(n, patch, patch, 3)``.
        validation: Clean patches to choose by.
        test: Clean tiles ``(n, tile, tile, 3)`` to judge by.
        calibration: Clean tiles from where `train` comes from.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    calibration: np.ndarray


def load() -> list[np.ndarray]:
    """Returns scikit-learn's temple and flower, ``(427, 640, 3)``, values in [0, 1]."""
    from sklearn.datasets import load_sample_images

    return [picture / np.float32(255) for picture in load_sample_images().images]


def read_folder(folder: str | os.PathLike) -> list[np.ndarray]:
    """Returns the PNG and JPEG files of a folder, in order of name, values in [0, 1]."""
    paths = sorted(
        path for path in pathlib.Path(folder).glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg")
    )
    if not paths:
        raise tfkit.ArgumentError(
            f"A folder of pictures must hold PNG or JPEG files. Received: folder={str(folder)!r}."
        )
    return [np.asarray(keras.utils.load_img(path), "float32") / 255 for path in paths]


def cut(pictures: Sequence[np.ndarray], *, patch: int, tile: int, stride: int) -> Pictures:
    """Cuts each picture into upright bands: train, choose, judge, and train again.

    The left 40% trains, the next eighth chooses, the following 30% is judged, and what
    is left at the right trains too; a band is never narrower than one cut of it. Patches
    overlap where `stride` is below their side.
    """
    parts = {"train": [], "validation": [], "test": [], "calibration": []}
    for picture in pictures:
        width = picture.shape[1]
        left = int(0.4 * width)
        middle = left + max(width // 8, patch)
        right = middle + max(int(0.3 * width), tile)
        for band in (picture[:, :left], picture[:, right:]):
            parts["train"] += tiles(band, patch, stride)
            parts["calibration"] += tiles(band, tile, tile // 4)
        parts["validation"] += tiles(picture[:, left:middle], patch, stride)
        parts["test"] += tiles(picture[:, middle:right], tile, tile)
    if missing := [name for name, cuts in parts.items() if not cuts]:
        raise tfkit.ArgumentError(
            f"Pictures must be large enough: {tile} pixels of height, and of width in 40% and from there on. "
            f"Received: pictures of shape {[picture.shape for picture in pictures][:5]}, "
            f"which give nothing for {', '.join(missing)}."
        )
    return Pictures(**{name: np.stack(cuts) for name, cuts in parts.items()})


def tiles(picture: np.ndarray, side: int, stride: int) -> list[np.ndarray]:
    """Returns the square cuts of a picture, row by row."""
    rows, columns = (range(0, size - side + 1, stride) for size in picture.shape[:2])
    return [picture[row : row + side, column : column + side] for row in rows for column in columns]


def add_noise(clean: np.ndarray, deviation: float, seed: int) -> np.ndarray:
    """Adds seeded Gaussian noise and clips to [0, 1], as a sensor does."""
    noise = np.random.default_rng(seed).normal(0, deviation, clean.shape)
    return np.clip(clean + noise, 0, 1).astype("float32")


def noisy_patches(clean: np.ndarray, deviation: float, *, batch_size: int, seed: int) -> tf.data.Dataset:
    """Returns shuffled batches of (noisy, clean) patches, mirrored at random, seeded."""

    def corrupt(number: tf.Tensor, patch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        key = tf.stack([tf.constant(seed, tf.int64), number])
        patch = tf.image.stateless_random_flip_left_right(patch, key)
        patch = tf.image.stateless_random_flip_up_down(patch, key + 1)
        noise = tf.random.stateless_normal(tf.shape(patch), key, 0, deviation)
        return tf.clip_by_value(patch + noise, 0, 1), patch

    patches = tf.data.Dataset.from_tensor_slices(clean).shuffle(len(clean), seed=seed)
    return patches.enumerate().map(corrupt).batch(batch_size).prefetch(2)
