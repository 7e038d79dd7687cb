"""Nearest upsampling becomes one operation, with the values that Keras's repeating gives."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfkit
from tfkit.export.operations import read_program
from tfkit.export.upsampling import as_resizing

RNG = np.random.default_rng(0)


def upsampling_net(shape, **options):
    inputs = keras.Input(shape)
    inner = keras.Sequential([keras.Input((*shape[:2], 4)), layers.UpSampling2D(**options)], name="inner")
    x = inner(layers.Conv2D(4, 3, padding="same")(inputs))
    return keras.Model(inputs, layers.Conv2D(3, 3, padding="same", name="last")(x), name="upsampling")


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    factors=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
@settings(deadline=None, max_examples=30)
def test_resizing_repeats_rows_and_columns(size, factors):
    x = RNG.random((2, *size, 3), dtype="float32")
    layer = layers.UpSampling2D(factors)
    model = keras.Sequential([keras.Input((None, None, 3)), layer])
    with as_resizing(model):
        got = model(x)
    np.testing.assert_array_equal(got, x.repeat(factors[0], axis=1).repeat(factors[1], axis=2))
    assert "call" not in vars(layer)


def test_a_failure_in_between_leaves_the_layers_as_they_were():
    model = upsampling_net((4, 4, 3))
    (layer,) = model.get_layer("inner").layers
    with contextlib.suppress(ZeroDivisionError), as_resizing(model):
        assert "call" in vars(layer)
        raise ZeroDivisionError
    assert "call" not in vars(layer)


def test_the_file_has_one_operation_for_it_and_gpus_take_it(tmp_path):
    model = upsampling_net((8, 8, 3), size=(2, 3))
    artifact = tfkit.export_tflite(model, tmp_path / "model.tflite")
    kinds = [each.kind for each in read_program(artifact.path.read_bytes()).operations]
    assert kinds == ["CONV_2D", "RESIZE_NEAREST_NEIGHBOR", "CONV_2D"]
    assert tfkit.explain_deployment(model, "gpu").attrs["verdict"] == "gpu"
    x = RNG.random((2, 8, 8, 3), dtype="float32")
    np.testing.assert_allclose(artifact.predict(x), model.predict(x, verbose=0), atol=1e-5)


def test_its_error_by_layer_is_known(tmp_path):
    model, x = upsampling_net((8, 8, 3), name="up"), RNG.random((16, 8, 8, 3), dtype="float32")
    artifact = tfkit.export_tflite(model, tmp_path / "model.tflite", precision="int8", representative_data=x)
    row = tfkit.quantization_error(model, artifact, x).set_index("path").loc["inner/up"]
    assert row.reason == ""
    assert row.added < 1e-6  # repeating adds no error
    assert 0 < row.relative_rms < 0.05


def test_an_encoder_decoder_keeps_open_sizes(tmp_path):
    model = tfkit.models.build_encoder_decoder((None, None, 3), filters=(4, 8), output_channels=3)
    path = tfkit.export_tflite(model, tmp_path / "model.tflite", input_shape=(None, None, 3)).path
    for side in (8, 12):
        x = RNG.random((1, side, 2 * side, 3), dtype="float32")
        runtime = tf.lite.Interpreter(str(path))
        (taken,), (given_,) = runtime.get_input_details(), runtime.get_output_details()
        runtime.resize_tensor_input(taken["index"], x.shape)
        runtime.allocate_tensors()
        runtime.set_tensor(taken["index"], x)
        runtime.invoke()
        np.testing.assert_allclose(runtime.get_tensor(given_["index"]), model(x), atol=1e-5)


@pytest.mark.parametrize("options", [{"interpolation": "bilinear"}, {"data_format": "channels_first"}])
def test_other_upsampling_is_left_alone(options):
    model = keras.Sequential([keras.Input((4, 4, 4)), layers.UpSampling2D(**options)])
    with as_resizing(model):
        assert "call" not in vars(model.layers[0])
