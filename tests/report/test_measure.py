"""Figures against closed forms, NumPy and the gzip module."""

import gzip
import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from keras import layers

import tfkit
from tests import models
from tfkit.report.measure import count_weights, disk_bytes, gzip_bytes, mae, psnr

IMAGES = hnp.arrays(np.float64, hnp.array_shapes(max_dims=3), elements=st.floats(-1e3, 1e3))


@pytest.mark.parametrize(
    ("difference", "peak", "decibels"),
    [(0.1, 1.0, 20.0), (1.0, 1.0, 0.0), (0.001, 1.0, 60.0), (25.5, 255.0, 20.0), (10.0, 1.0, -20.0)],
)
def test_psnr_of_a_constant_difference(difference, peak, decibels):
    assert psnr(np.zeros((4, 4, 3)), np.full((4, 4, 3), difference), peak=peak) == pytest.approx(decibels)


def test_psnr_of_identical_images_is_infinite():
    assert psnr(np.ones((2, 2)), np.ones((2, 2))) == math.inf


def test_psnr_of_bytes_does_not_wrap_around():
    assert psnr(np.uint8([0]), np.uint8([255]), peak=255) == pytest.approx(0.0)


@given(IMAGES, st.floats(0.01, 100))
def test_psnr_follows_its_formula(image, shift):
    other = image + shift * np.linspace(1, 2, image.size).reshape(image.shape)
    expected = 20 * np.log10(1.0) - 10 * np.log10(np.mean((image - other) ** 2))
    assert psnr(image, other) == pytest.approx(expected)


@given(IMAGES)
def test_mae_is_the_mean_magnitude(image):
    assert mae(np.zeros_like(image), image) == pytest.approx(np.abs(image).sum() / image.size)


def test_mae_of_bytes_does_not_wrap_around():
    assert mae(np.uint8([0, 255]), np.uint8([255, 0])) == 255.0


@pytest.mark.parametrize("measure", [psnr, mae])
@pytest.mark.parametrize("shape", [(2, 3), (1,), ()], ids=str)
def test_images_of_different_shape_are_refused_even_if_they_broadcast(measure, shape):
    with pytest.raises(
        tfkit.ArgumentError, match=r"same shape.*Received: reference of shape \(3,\), image of shape"
    ):
        measure(np.zeros(3), np.zeros(shape))


def test_count_weights_counts_all_and_those_that_are_not_zero():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    model.layers[0].kernel.assign(np.eye(4, 3))
    assert count_weights(model) == (4 * 3 + 3, 3)


@pytest.mark.parametrize(
    "build", [models.conv_net, models.nested_net, models.subclassed_net, models.shared_net]
)
def test_count_weights_counts_what_keras_counts(build):
    model = build()
    assert count_weights(model)[0] == model.count_params()


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.bin").write_bytes(b"a" * 1000)
    (tmp_path / "inner" / "b.bin").write_bytes(bytes(range(256)))
    return tmp_path


def test_disk_bytes_of_a_file(tree):
    assert disk_bytes(tree / "a.bin") == 1000


def test_disk_bytes_of_a_directory_are_those_of_all_its_files(tree):
    assert disk_bytes(tree) == 1256


def test_gzip_bytes_of_a_file_are_those_of_the_gzip_module(tree):
    assert gzip_bytes(tree / "a.bin") == len(gzip.compress(b"a" * 1000, compresslevel=9))


def test_gzip_bytes_of_a_directory_are_those_of_its_files_one_by_one(tree):
    one, other = gzip.compress(b"a" * 1000, 9), gzip.compress(bytes(range(256)), 9)
    assert gzip_bytes(tree) == len(one) + len(other)


@pytest.mark.parametrize("measure", [disk_bytes, gzip_bytes])
def test_sizes_take_a_path_given_as_a_string(tree, measure):
    assert measure(str(tree)) == measure(tree)


@pytest.mark.parametrize("measure", [disk_bytes, gzip_bytes])
def test_an_empty_directory_has_no_bytes(tmp_path, measure):
    assert measure(tmp_path) == 0
