"""Where the error arises: the numbers by hand, the layer that is to blame, and what is refused."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tests.export.test_signature import pair_net

RNG = np.random.default_rng(0)


def export(model, folder, x, precision="int8", **options):
    return tfkit.export_tflite(
        model, folder / f"{precision}.tflite", precision=precision, representative_data=x, **options
    )


def table_of(model, artifact, x):
    return tfkit.quantization_error(model, artifact, x).set_index("path")


def chain(seed=0):
    """Convolutions a to d with ReLU, none of which the converter fuses with another."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((8, 8, 4), name="image")
    for name in "abcd":
        x = layers.Conv2D(8, 3, padding="same", activation="relu", name=name)(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D(name="pool")(x)))


X = RNG.random((24, 8, 8, 4), dtype="float32")


def test_the_last_row_is_the_error_of_the_output(tmp_path):
    model = chain()
    artifact = export(model, tmp_path, X)
    row = tfkit.quantization_error(model, artifact, X).iloc[-1]
    wanted = np.asarray(model(X), "float64")
    by_hand = np.sqrt(np.mean((artifact.predict(X) - wanted) ** 2) / np.mean(wanted**2))
    # LiteRT's plain kernels may round another way than those that `predict` uses
    assert row.relative_rms == pytest.approx(by_hand, rel=0.25)
    assert row.snr_db == pytest.approx(-20 * np.log10(row.relative_rms))


def test_rows_are_in_the_order_in_which_layers_run(tmp_path):
    model = chain()
    table = tfkit.quantization_error(model, export(model, tmp_path, X), X)
    assert table.path.tolist() == ["image", "a", "b", "c", "d", "pool", "head"]
    assert table["class"].tolist() == ["InputLayer", *["Conv2D"] * 4, "GlobalAveragePooling2D", "Dense"]
    assert (table.reason == "").all()
    assert np.isfinite(table[["relative_rms", "snr_db", "added"]]).all(axis=None)


def test_a_float32_file_has_no_error(tmp_path):
    model = chain()
    table = tfkit.quantization_error(model, export(model, tmp_path, X, "float32"), X)
    assert (table.relative_rms < 1e-6).all()


@pytest.mark.parametrize("precision", ["float16", "int8", "int8_weights"])
def test_all_precisions_are_read(tmp_path, precision):
    model = chain()
    table = tfkit.quantization_error(model, export(model, tmp_path, X, precision), X)
    assert (table.reason == "").all()
    assert table.relative_rms.iloc[1:].max() < 0.05


@pytest.mark.parametrize("worst", list("abcd"))
def test_a_layer_whose_range_one_channel_blows_up_spoils_what_comes_behind(tmp_path, worst):
    model = chain()
    layer = model.get_layer(worst)
    kernel, bias = (np.array(each) for each in layer.get_weights())
    bias[0] += 300.0  # the layer's one scale must now reach to 300, while the rest stays below 1
    behind = {"a": "b", "b": "c", "c": "d", "d": "head"}[worst]
    following = model.get_layer(behind)
    after, *rest = (np.array(each) for each in following.get_weights())
    after[..., 0, :] = 0  # and no one listens to that channel
    layer.set_weights([kernel, bias])
    following.set_weights([after, *rest])
    artifact = export(model, tmp_path, X, "float32")
    artifact = int8_whatever_its_parity(model, artifact.path, X)
    table = table_of(model, artifact, X)
    # relative to the blown-up signal its error is small, so it shows in what the next layer gets
    assert table.relative_rms[behind] > 0.5
    assert table.added[behind] < 0.1
    assert (table.relative_rms[:worst] < 0.05).all()


def int8_whatever_its_parity(model, path, x):
    """A full-int8 file as `export_tflite` makes it, without the comparison that would refuse it."""
    from tfkit.export.signature import input_specs
    from tfkit.export.tflite import convert_model

    path.write_bytes(convert_model(model, input_specs(model, batch_size=1), "int8", [x]))
    return path


@pytest.mark.parametrize("worst", ["d1", "d2", "d3", "head"])
def test_a_layer_with_a_huge_weight_adds_the_most(tmp_path, worst):
    keras.utils.set_random_seed(0)
    names = ["d1", "d2", "d3", "head"]
    model = keras.Sequential([keras.Input((32,)), *(layers.Dense(32, "tanh", name=name) for name in names)])
    layer = model.get_layer(worst)
    kernel, bias = (np.array(each) for each in layer.get_weights())
    previous = names.index(worst) - 1
    x = RNG.uniform(-1, 1, (64, 32)).astype("float32")
    x[:, 0] = 0  # the outlier's input is silent, so it does nothing but coarsen its channel
    if previous >= 0:
        before = model.get_layer(names[previous])
        kept, shift = (np.array(each) for each in before.get_weights())
        kept[:, 0] = 0
        before.set_weights([kept, shift])
    kernel[0, :] = 200.0
    layer.set_weights([kernel, bias])
    table = table_of(model, int8_whatever_its_parity(model, tmp_path / "m.tflite", x), x)
    assert table.added.idxmax() == worst
    assert table.added[worst] > 5 * table.added.drop(worst).max()


def test_added_leaves_out_what_came_in(tmp_path):
    model = chain()
    artifact = export(model, tmp_path, X)
    table = table_of(model, artifact, X)
    assert (table.added <= table.relative_rms + 0.01).all()
    assert table.added["head"] < 0.8 * table.relative_rms["head"]
    assert table.added["image"] == table.relative_rms["image"]


# --- which tensor is which layer's output ---------------------------------------------------------


def test_what_is_fused_is_listed_without_numbers_and_with_a_reason(tmp_path):
    model, x = models.conv_net(), RNG.random((8, 8, 8, 3))
    table = table_of(model, export(model, tmp_path, x), x)
    assert table.loc[["conv1", "bn1"], "reason"].tolist() == ["fused into a later operator"] * 2
    assert table.loc[["conv1", "bn1"], ["relative_rms", "snr_db", "added"]].isna().all(axis=None)
    assert table.relative_rms["relu1"] < 0.02


def test_a_folded_batch_normalization_is_not_taken_for_its_convolution(tmp_path):
    """The converter names the tensor after the convolution alone."""
    model, x = models.nested_net(), RNG.random((8, 8, 8, 3))
    norm = model.get_layer("wrapper").get_layer("backbone").get_layer("bn1")
    norm.gamma.assign([3.0, -1.0, 0.5, 2.0])
    table = table_of(model, export(model, tmp_path, x), x)
    assert "conv1" in table.tensor["wrapper/backbone/bn1"]
    assert table.relative_rms["wrapper/backbone/bn1"] < 0.02
    assert np.isnan(table.relative_rms["wrapper/backbone/conv1"])


def test_layers_named_like_each_other_with_a_number_are_told_apart(tmp_path):
    keras.utils.set_random_seed(0)
    names = ["conv", "conv_1", "conv_1_1", "conv_2", "conv1", "conv11"]
    stack = [layers.Conv2D(4, 3, padding="same", activation="relu", name=name) for name in names]
    model, x = keras.Sequential([keras.Input((6, 6, 4)), *stack]), RNG.random((8, 6, 6, 4))
    table = table_of(model, export(model, tmp_path, x), x)
    assert (table.reason == "").all()
    assert (table.relative_rms < 0.05).all()


def test_a_layer_called_twice_has_two_rows(tmp_path):
    keras.utils.set_random_seed(0)
    shared, inputs = layers.Dense(6, "tanh", name="shared"), keras.Input((6,))
    model, x = keras.Model(inputs, layers.Dense(2)(shared(shared(inputs)))), RNG.random((8, 6))
    table = tfkit.quantization_error(model, export(model, tmp_path, x), x)
    rows = table[table.path == "shared"]
    assert len(rows) == 2
    assert (rows.relative_rms < 0.05).all()


def test_a_layer_that_puts_out_zeros_is_listed_with_that_reason(tmp_path):
    model = chain()
    model.get_layer("b").set_weights([np.zeros((3, 3, 8, 8)), np.zeros(8)])
    table = table_of(model, export(model, tmp_path, X, "float32"), X)
    assert table.reason["b"] == "Keras puts out nothing but zeros"
    assert np.isnan(table.added["b"])


@pytest.mark.parametrize("pack", [list, dict])
def test_several_inputs_and_outputs_are_read(tmp_path, pack):
    model = pair_net(pack)
    a, b = RNG.random((8, 3), dtype="float32"), RNG.random((8, 2), dtype="float32")
    arrays = [a, b] if pack is dict else [b, a]
    table = tfkit.quantization_error(model, export(model, tmp_path, arrays, "float16"), arrays)
    assert (table.reason == "").all()
    assert (table.relative_rms < 0.01).all()
    assert (table["class"] == "InputLayer").sum() == 2


def test_samples_that_fill_no_batch_count_once(tmp_path):
    model = chain()
    one = export(model, tmp_path, X[:5])
    three = tfkit.export_tflite(
        model, tmp_path / "3.tflite", precision="int8", representative_data=X[:5], batch_size=5
    )
    numbers = [tfkit.quantization_error(model, each, X[:3]).relative_rms for each in (one, three)]
    np.testing.assert_allclose(*numbers, rtol=0.05)


def test_the_model_is_not_changed(tmp_path):
    model = models.conv_net()
    before, x = model.get_weights(), RNG.random((4, 8, 8, 3))
    tfkit.quantization_error(model, export(model, tmp_path, x), x)
    expect_equal(model.get_weights(), before)


# --- what is refused ------------------------------------------------------------------------------


def test_a_saved_model_is_refused(tmp_path):
    artifact = tfkit.export_saved_model(chain(), tmp_path / "m")
    with pytest.raises(tfkit.ArgumentError, match=r"must be a \.tflite.*Received: artifact=.*SavedModel"):
        tfkit.quantization_error(chain(), artifact, X)


def test_a_subclassed_model_is_refused(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"functional or Sequential.*Received: model='subclassed'"):
        tfkit.quantization_error(models.subclassed_net(), tmp_path, X)


def test_samples_of_another_size_are_refused(tmp_path):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 1)(inputs))
    artifact = tfkit.export_tflite(model, tmp_path / "m.tflite", input_shape=(8, 8, 3))
    with pytest.raises(tfkit.ArgumentError, match=r"`x` must hold.*Received: x with.*\(6, 8, 3\).*takes"):
        tfkit.quantization_error(model, artifact, np.ones((2, 6, 8, 3)))


def test_a_broken_file_is_refused(tmp_path):
    model, path = chain(), tmp_path / "m.tflite"
    content = export(model, tmp_path, X, "float32").path.read_bytes()
    from ai_edge_litert.tools import flatbuffer_utils

    broken = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    broken.signatureDefs = []
    flatbuffer_utils.write_model(broken, str(path))
    with pytest.raises(tfkit.ExportError, match=r"one signature.*Received: a file of.*Export it again"):
        tfkit.quantization_error(model, path, X)
