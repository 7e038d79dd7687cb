"""The signature `raw`: pictures as they come, served by a process that knows neither Keras nor tfkit."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tests.export.test_artifact import module_of
from tests.export.test_signature import pair_net

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype("uint8")

SERVER = """
import json, sys
sys.modules.update(dict.fromkeys(("keras", "tf_keras", "tfkit")))  # None makes an import fail
import numpy as np
import tensorflow as tf

loaded = tf.saved_model.load(sys.argv[1])
pixels = np.load(sys.argv[2])
given = {"raw": tf.constant(pixels), "serving_default": tf.constant(pixels.astype("float32") / 127.5 - 1)}
answers = {}
for name, x in given.items():
    signature = loaded.signatures[name]
    (argument,) = signature.structured_input_signature[1]
    answers[name] = signature(**{argument: x})["output_0"].numpy().tolist()
print(json.dumps(answers))
"""


def scale(pixels):
    return pixels / 127.5 - 1


def normalization():
    layer = layers.Normalization(mean=[10.0, 100.0, 200.0], variance=[1.0, 400.0, 2500.0])
    layer.build((None, 8, 8, 3))
    return layer


def resizing():
    return keras.Sequential([keras.Input((None, None, 3)), layers.Resizing(8, 8), layers.Rescaling(1 / 255)])


def table():
    """A model of integers: pixel to number by a table."""
    inputs = keras.Input((8, 8, 3), dtype="uint8")
    numbers = np.linspace(-1, 1, 256).astype("float32")
    return keras.Model(inputs, keras.ops.take(numbers, keras.ops.cast(inputs, "int32")))


PREPROCESSING = {
    "function": (lambda: scale, scale),
    "rescaling": (lambda: layers.Rescaling(1 / 127.5, -1), scale),
    "normalization": (normalization, lambda x: (x - [10.0, 100.0, 200.0]) / [1.0, 20.0, 50.0]),
    "keras.applications": (lambda: keras.applications.mobilenet_v2.preprocess_input, scale),
    "integers": (table, scale),
    "inside": (lambda: "inside", lambda x: x),
}


@pytest.mark.parametrize("case", PREPROCESSING)
def test_raw_takes_uint8_and_computes_model_after_preprocessing(tmp_path, case):
    build, by_hand = PREPROCESSING[case]
    model = models.conv_net()
    artifact = tfkit.export_saved_model(model, tmp_path / "m", preprocessing=build())
    signature = tf.saved_model.load(str(artifact.path)).signatures["raw"]
    (spec,) = signature.structured_input_signature[1].values()
    assert (spec.dtype, spec.shape.as_list()) == (tf.uint8, [None, 8, 8, 3])
    expected = model(by_hand(PIXELS.astype("float64")).astype("float32"))
    np.testing.assert_allclose(signature(raw=PIXELS)["output_0"], expected, rtol=1e-4, atol=1e-5)


def test_serving_default_is_what_it_is_without_preprocessing(tmp_path):
    model = models.conv_net()
    alone = tfkit.export_saved_model(model, tmp_path / "alone")
    both = tfkit.export_saved_model(model, tmp_path / "both", preprocessing=scale)
    x = np.random.default_rng(1).random((3, 8, 8, 3), dtype="float32")
    np.testing.assert_array_equal(alone.predict(x), both.predict(x))
    assert "raw" not in tf.saved_model.load(str(alone.path)).signatures


def test_a_process_with_tensorflow_alone_serves_both_signatures(tmp_path):
    model = models.conv_net()
    artifact = tfkit.export_saved_model(model, tmp_path / "m", preprocessing=layers.Rescaling(1 / 127.5, -1))
    np.save(tmp_path / "pixels.npy", PIXELS)
    done = subprocess.run(
        [sys.executable, "-c", SERVER, str(artifact.path), str(tmp_path / "pixels.npy")],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = model(scale(PIXELS.astype("float32")))
    for name, answer in json.loads(done.stdout.splitlines()[-1]).items():
        np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_pictures_of_another_size_are_resized_on_the_server(tmp_path):
    model = models.conv_net()
    artifact = tfkit.export_saved_model(model, tmp_path / "m", preprocessing=resizing())
    signature = tf.saved_model.load(str(artifact.path)).signatures["raw"]
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 12, 3)).astype("uint8")
    expected = model(tf.image.resize(pixels.astype("float32"), (8, 8)) / 255)
    np.testing.assert_allclose(signature(raw=pixels)["output_0"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_application_has_its_preprocessing_inside(tmp_path):
    model = tfkit.models.load_base_model("MobileNetV2", input_shape=(64, 64, 3), alpha=0.35, pooling="avg")
    artifact = tfkit.export_saved_model(model, tmp_path / "m", preprocessing="inside")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")
    raw = tf.saved_model.load(str(artifact.path)).signatures["raw"](raw=pixels)["output_0"]
    for expected in (artifact.predict(pixels), np.asarray(model(pixels.astype("float32")))):
        np.testing.assert_allclose(raw, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_model_is_not_changed(tmp_path):
    model = models.conv_net()
    weights, names = model.get_weights(), [each.name for each in model.layers]
    tfkit.export_saved_model(model, tmp_path / "m", preprocessing=scale)
    expect_equal(model.get_weights(), weights)
    assert [each.name for each in model.layers] == names


def test_a_raw_signature_that_computes_something_else_leaves_nothing(tmp_path, monkeypatch):
    parities = iter([tfkit.Parity(0, 0, 0, 1e-5, 4), tfkit.Parity(1, 0.5, 1, 1e-5, 4)])
    monkeypatch.setattr(module_of("saved_model"), "compare", lambda *arguments: next(parities))
    with pytest.raises(tfkit.ParityError, match=r"signature raw must agree.*Received: relative error 0.5"):
        tfkit.export_saved_model(models.conv_net(), tmp_path / "m", preprocessing=scale)
    assert list(tmp_path.iterdir()) == []


def test_the_comparison_notices_a_layer_that_computes_otherwise_in_a_graph(tmp_path):
    """Keras's Resizing rounds uint8 when it runs eagerly, and does not in a graph."""
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    rounding = keras.Model(inputs, layers.Resizing(8, 8)(inputs))
    with pytest.raises(tfkit.ParityError, match=r"a Resizing of uint8 does not round there"):
        tfkit.export_saved_model(models.conv_net(), tmp_path / "m", preprocessing=rounding)


def fails(pixels):
    raise ValueError("broken inside")


REFUSED = {
    "no function": (models.conv_net, 7, tfkit.ArgumentTypeError,
        r"`preprocessing` must be .*Received: preprocessing=7"),
    "another word": (models.conv_net, "outside", tfkit.ArgumentTypeError,
        r"or 'inside'.*Received: preprocessing='outside'"),
    "two inputs": (pair_net, scale, tfkit.ArgumentError,
        r"model with one input.*Received: model=.* with 2 inputs.*Put the preprocessing inside"),
    "a preprocessing of two inputs": (models.conv_net, pair_net, tfkit.ArgumentError,
        r"must have one input.*Received: preprocessing=.* with 2 inputs"),
    "another shape": (models.conv_net, lambda x: x[:, :4], tfkit.ArgumentError,
        r"must give what the model takes.*Received: .*\(None, 4, 8, 3\).*\(None, 8, 8, 3\)"),
    "a function that fails": (models.conv_net, fails, tfkit.ArgumentError,
        r"must work on a batch.*Received: preprocessing=.*uint8: [^\n\x1b]*broken inside[^\n\x1b]*Build it"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_is_refused_before_anything_is_written(tmp_path, case):
    build, preprocessing, error, message = REFUSED[case]
    preprocessing = preprocessing() if preprocessing is pair_net else preprocessing
    with pytest.raises(error, match=f"(?s){message}"):
        tfkit.export_saved_model(build(), tmp_path / "new" / "m", preprocessing=preprocessing)
    assert list(tmp_path.iterdir()) == []
