import numpy as np
import pytest

import tfkit
from experiments import photographs


def numbered(height=128, width=320):
    """A picture whose pixels all differ, so that a cut tells where it comes from."""
    return np.arange(height * width * 3, dtype="float32").reshape(height, width, 3)


def pixels(cuts):
    return set(cuts.ravel().tolist())


def test_load_gives_two_colour_photographs_between_0_and_1():
    pictures = photographs.load()
    assert [picture.shape for picture in pictures] == [(427, 640, 3)] * 2
    assert all(picture.min() >= 0 and picture.max() <= 1 for picture in pictures)


def test_parts_share_no_pixel():
    parts = photographs.cut([numbered()], patch=16, tile=64, stride=4)
    train, validation, test = (pixels(each) for each in (parts.train, parts.validation, parts.test))
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert not pixels(parts.calibration) & (validation | test)


def test_cuts_have_the_sides_asked_for():
    parts = photographs.cut([numbered()], patch=16, tile=64, stride=4)
    assert parts.train.shape[1:] == parts.validation.shape[1:] == (16, 16, 3)
    assert parts.test.shape[1:] == parts.calibration.shape[1:] == (64, 64, 3)


def test_pictures_that_are_too_small_are_refused():
    with pytest.raises(
        tfkit.ArgumentError, match=r"large enough.*Received: pictures of shape \[\(128, 320, 3\)\]"
    ):
        photographs.cut([numbered()], patch=16, tile=192, stride=4)


def test_read_folder_reads_png_and_jpeg_in_order_of_name(tmp_path):
    import keras

    keras.utils.save_img(tmp_path / "b.png", np.full((4, 6, 3), 255.0), scale=False)
    keras.utils.save_img(tmp_path / "a.png", np.zeros((4, 6, 3)), scale=False)
    (tmp_path / "notes.txt").write_text("no picture")
    assert [picture.max() for picture in photographs.read_folder(tmp_path)] == [0, 1]


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"PNG or JPEG files\. Received: folder="):
        photographs.read_folder(tmp_path)


def test_noise_has_the_deviation_asked_for_and_is_seeded():
    grey = np.full((100, 100, 3), 0.5, dtype="float32")
    noisy = photographs.add_noise(grey, 0.1, seed=1)
    assert noisy.std() == pytest.approx(0.1, rel=0.02)
    np.testing.assert_array_equal(noisy, photographs.add_noise(grey, 0.1, seed=1))
    assert (noisy != photographs.add_noise(grey, 0.1, seed=2)).any()


def test_noisy_patches_keep_the_clean_pixels_and_differ_by_the_noise():
    clean = np.random.default_rng(0).uniform(0.4, 0.6, (10, 8, 8, 3)).astype("float32")
    batches = list(photographs.noisy_patches(clean, 0.05, batch_size=4, seed=0).as_numpy_iterator())
    assert [len(noisy) for noisy, _ in batches] == [4, 4, 2]
    noisy = np.concatenate([batch[0] for batch in batches])
    target = np.concatenate([batch[1] for batch in batches])
    assert sorted(target.ravel()) == sorted(clean.ravel())  # mirrored and shuffled, nothing else
    assert (noisy - target).std() == pytest.approx(0.05, rel=0.1)
