"""Figures that a report gives: image quality, sizes, counts."""

import gzip
import math
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from tfkit.errors import ArgumentError

if TYPE_CHECKING:
    import keras


def psnr(reference: np.ndarray, image: np.ndarray, *, peak: float = 1.0) -> float:
    """Returns the peak signal-to-noise ratio, ``10 log10(peak² / mean((a - b)²))``, in dB.

    Args:
        reference: The clean image or images.
        image: What to judge, of the same shape.
        peak: The largest value a pixel can have.

    Returns:
        Decibels; infinity for identical images.

    Raises:
        ArgumentError: If the shapes differ.

    Examples:
        >>> round(psnr(np.zeros((2, 2)), np.full((2, 2), 0.1)), 6)
        20.0
    """
    error = float(np.mean(_difference(reference, image) ** 2))
    return math.inf if error == 0 else 10 * math.log10(peak**2 / error)


def mae(reference: np.ndarray, image: np.ndarray) -> float:
    """Returns the mean absolute error, ``mean(|a - b|)``.

    Args:
        reference: The clean image or images.
        image: What to judge, of the same shape.

    Returns:
        The error in the pixels' unit.

    Raises:
        ArgumentError: If the shapes differ.

    Examples:
        >>> mae(np.zeros(2), np.array([1.0, -3.0]))
        2.0
    """
    return float(np.mean(np.abs(_difference(reference, image))))


def _difference(reference: np.ndarray, image: np.ndarray) -> np.ndarray:
    if np.shape(reference) != np.shape(image):
        raise ArgumentError(
            "Both images must have the same shape. "
            f"Received: reference of shape {np.shape(reference)}, image of shape {np.shape(image)}."
        )
    return np.asarray(reference, dtype="float64") - np.asarray(image, dtype="float64")


def count_weights(model: "keras.Model") -> tuple[int, int]:
    """Returns how many weights a model has, and how many are not zero.

    Examples:
        >>> import keras
        >>> count_weights(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]))
        (8, 6)
    """
    arrays = [np.asarray(weight) for weight in model.weights]
    return sum(each.size for each in arrays), sum(int(np.count_nonzero(each)) for each in arrays)


def disk_bytes(path: pathlib.Path) -> int:
    """Returns the bytes of a file, or of all files in a directory."""
    return sum(each.stat().st_size for each in _files(path))


def gzip_bytes(path: pathlib.Path) -> int:
    """Returns the bytes after gzip at its best level, file by file: what a download costs."""
    return sum(len(gzip.compress(each.read_bytes(), mtime=0)) for each in _files(path))


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    path = pathlib.Path(path)
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
