"""Data that a command reads: arrays in files and pictures in folders."""

import keras
import numpy as np
import pytest

import tfkit
from tests.export.test_signature import net, pair_net
from tfkit.cli.data import MOST_SAMPLES, read_arrays, read_data, read_targets

RNG = np.random.default_rng(0)


def pictured(channels=3, sizes=(6, 5)):
    inputs = keras.Input((*sizes, channels))
    return keras.Model(inputs, keras.layers.ReLU()(inputs))


def save(path, value=0, size=(6, 5), mode="RGB"):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], value).save(path)


# Arrays.


def test_an_array_is_read(tmp_path):
    x = RNG.random((3, 6))
    np.save(tmp_path / "x.npy", x)
    (got,), said = read_data(tmp_path / "x.npy", net(), None)
    np.testing.assert_array_equal(got, x)
    assert said == f"Read 3 samples of 6 from {tmp_path / 'x.npy'}."


def test_no_more_samples_are_read_than_are_used(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((500, 2)))
    assert len(read_arrays(tmp_path / "x.npy")[0]) == MOST_SAMPLES


def test_more_samples_are_read_on_request(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((500, 6)))
    (got,), _ = read_data(tmp_path / "x.npy", net(), None, most=300, fits=True)
    assert len(got) == 300


def test_targets_are_told_from_inputs(tmp_path):
    x, y = RNG.random((5, 6)), np.arange(5)
    np.savez(tmp_path / "train.npz", x=x, y=y)
    (got,), _ = read_data(tmp_path / "train.npz", net(), None, fits=True)
    np.testing.assert_array_equal(got, x)
    np.testing.assert_array_equal(read_targets(tmp_path / "train.npz", most=3), [0, 1, 2])


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_targets_that_are_missing_are_told(tmp_path, name):
    (np.save if name == "x.npy" else np.savez)(tmp_path / name, np.zeros((5, 6)))
    with pytest.raises(tfkit.ArgumentError, match=rf"array `y`.*Received: --data .*{name}.*np\.savez"):
        read_targets(tmp_path / name, most=3)


@pytest.mark.parametrize("arrays", [[np.zeros((5, 7))], [np.zeros((5, 6))] * 2], ids=["shape", "count"])
def test_samples_that_do_not_fit_are_refused_where_that_is_asked(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", *arrays)
    with pytest.raises(tfkit.ArgumentError, match=r"which are \[\(6,\)\]\. Received: --data .*x\.npz"):
        read_data(tmp_path / "x.npz", net(), None, fits=True)


def test_an_archive_gives_an_array_to_each_input_by_its_name(tmp_path):
    names = [each.name for each in pair_net().inputs]
    first, second = np.zeros((4, 2)), np.ones((4, 3))
    np.savez(tmp_path / "x.npz", **{names[1]: second, names[0]: first, "labels": np.zeros(4)})
    arrays, _ = read_data(tmp_path / "x.npz", pair_net(), None)
    assert [each.shape for each in arrays] == [(4, 2), (4, 3)]


def test_an_archive_with_other_names_is_read_in_its_order(tmp_path):
    np.savez(tmp_path / "x.npz", b=np.zeros((4, 2)), a=np.ones((4, 3)))
    assert [each.shape for each in read_arrays(tmp_path / "x.npz", ["p", "q"])] == [(4, 2), (4, 3)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((0, 3)), "at least one sample.*float64 \\(0, 3\\)"),
        (np.array(5.0), "must be a .npy or .npz file of numbers"),
        (np.array(["a", "b"]), "must hold numbers"),
        (np.array([{}, {}]), "must be a .npy or .npz file of numbers"),
    ],
    ids=["empty", "scalar", "text", "objects"],
)
def test_arrays_that_are_no_samples_are_refused(tmp_path, content, message):
    np.save(tmp_path / "x.npy", content)
    with pytest.raises(tfkit.ArgumentError, match=message):
        read_arrays(tmp_path / "x.npy")


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.csv"])
def test_a_file_without_arrays_is_refused(tmp_path, name):
    (tmp_path / name).write_text("1,2,3")
    with pytest.raises(tfkit.ArgumentError, match=rf"(?s)must be a \.npy or \.npz.*Received: .*{name}"):
        read_arrays(tmp_path / name)


def test_arrays_with_different_counts_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((4, 2)), b=np.zeros((5, 2)))
    with pytest.raises(tfkit.ArgumentError, match="as many for each input"):
        read_arrays(tmp_path / "x.npz")


# Pictures.


def test_pictures_are_read_at_the_models_size_with_values_up_to_255(tmp_path):
    save(tmp_path / "a.png", (255, 0, 10), size=(20, 30))
    (got,), said = read_data(tmp_path, pictured(), None)
    assert got.shape == (1, 6, 5, 3)
    assert got.dtype == np.float32
    assert got[0, 0, 0].tolist() == [255, 0, 10]
    assert said == f"Read 1 picture from {tmp_path}, resized to 6x5, values from 0 to 255."


@pytest.mark.parametrize(("channels", "value"), [(1, [76]), (3, [255, 0, 0]), (4, [255, 0, 0, 255])])
def test_pictures_have_the_models_channels(tmp_path, channels, value):
    save(tmp_path / "a.png", (255, 0, 0))
    (got,), _ = read_data(tmp_path, pictured(channels), None)
    assert got[0, 0, 0].tolist() == value


def test_pictures_agree_with_keras_own_reader(tmp_path):
    from PIL import Image

    Image.fromarray(RNG.integers(0, 256, (12, 10, 3), "uint8")).save(tmp_path / "a.png")
    theirs = keras.utils.image_dataset_from_directory(
        tmp_path, labels=None, image_size=(12, 10), verbose=False
    )
    (got,), _ = read_data(tmp_path, pictured(sizes=(12, 10)), None)
    np.testing.assert_array_equal(got, next(theirs.as_numpy_iterator()))


def test_of_many_pictures_every_class_has_its_share(tmp_path):
    for name, value in (("cats", 0), ("dogs", 200)):
        for number in range(MOST_SAMPLES):
            save(tmp_path / name / f"{number}.bmp", (value, value, value))
    (got,), said = read_data(tmp_path, pictured(), None)
    assert len(got) == MOST_SAMPLES
    assert got.mean() == pytest.approx(100)
    assert f"Read 128 of 256 pictures in 2 folders from {tmp_path}" in said


def test_open_sizes_are_those_of_the_option(tmp_path):
    save(tmp_path / "a.png")
    (got,), _ = read_data(tmp_path, pictured(sizes=(None, None)), (4, 4, 3))
    assert got.shape == (1, 4, 4, 3)


def test_open_sizes_without_the_option_are_refused(tmp_path):
    save(tmp_path / "a.png")
    with pytest.raises(tfkit.ArgumentError, match=r"sizes are known.*Pass --input-shape 224,224,3"):
        read_data(tmp_path, pictured(sizes=(None, None)), None)


@pytest.mark.parametrize("model", [net, pair_net, lambda: pictured(2)], ids=["flat", "pair", "two channels"])
def test_pictures_for_a_model_that_takes_none_are_refused(tmp_path, model):
    save(tmp_path / "a.png")
    with pytest.raises(tfkit.ArgumentError, match="one input \\(height, width, channels\\)"):
        read_data(tmp_path, model(), None)


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("none here")
    with pytest.raises(tfkit.ArgumentError, match=r"must hold pictures.*none of \.bmp, \.gif"):
        read_data(tmp_path, pictured(), None)


@pytest.mark.parametrize("cut", [0, 40, 200])
def test_an_unreadable_picture_is_named(tmp_path, cut):
    from PIL import Image

    save(tmp_path / "good.png")
    Image.fromarray(RNG.integers(0, 256, (30, 30, 3), "uint8")).save(tmp_path / "torn.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:cut])
    with pytest.raises(tfkit.ArgumentError, match=r"must be readable.*torn\.png"):
        read_data(tmp_path, pictured(), None)
