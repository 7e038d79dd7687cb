"""Zeros of pruned models in every precision, kernel by kernel."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tests.export.test_quantization import X, image_net, sparse_bytes

PRECISIONS = ["float32", "float16", "int8", "int8_weights"]


def export(model, folder, precision, x=X):
    return tfkit.export_tflite(
        model, folder / f"{precision}.tflite", precision=precision, representative_data=x
    )


def norm_net(seed=0):
    """BatchNormalization behind each convolution, to be folded into it."""
    keras.utils.set_random_seed(seed)
    inputs = x = keras.Input((8, 8, 16))
    for name in "ab":
        x = layers.Conv2D(32, 3, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(gamma_initializer=keras.initializers.RandomUniform(0.5, 2, seed))(x)
        x = layers.ReLU()(x)
    return keras.Model(inputs, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("build", [image_net, norm_net])
def test_a_magnitude_pruned_and_stripped_model_stays_pruned(tmp_path, build, precision):
    model = build()
    schedule = tfkit.ConstantSparsity(0.75, begin_step=0, end_step=-1, frequency=1)
    model = tfkit.prune_low_magnitude(model, schedule)
    model.compile("sgd", "mse")
    model.fit(X, np.zeros((len(X), model.output_shape[-1])), epochs=2, verbose=0)
    model = tfkit.strip_pruning(model)
    table = tfkit.zeros_kept(model, export(model, tmp_path, precision))
    assert (table.sparsity_keras > 0.7).all()
    assert (table.zeros_lost == 0).all()
    assert (table.sparsity_artifact >= table.sparsity_keras).all()
    assert (table.sparsity_artifact < 0.85).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_channel_pruned_model_has_the_kernels_of_its_smaller_shape(tmp_path, precision):
    smaller = tfkit.prune_channels(norm_net(), ratio=0.5)
    assert smaller.count_params() < norm_net().count_params()
    table = tfkit.zeros_kept(smaller, export(smaller, tmp_path, precision))
    assert (table.reason == "").all()
    assert (table.zeros_lost == 0).all()
    assert (table.sparsity_artifact < 0.05).all()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_channel_mask_stays_zero(tmp_path, precision):
    masked = tfkit.plan_channel_pruning(norm_net(), ratio=0.5).mask(norm_net())
    table = tfkit.zeros_kept(masked, export(masked, tmp_path, precision))
    found = table[table.reason == ""]
    assert (found.zeros_lost == 0).all()
    assert found.sparsity_keras.max() > 0.2


def test_the_shares_are_those_of_numpy(tmp_path):
    model = tfkit.prune_now(image_net(), 0.5)
    table = tfkit.zeros_kept(model, export(model, tmp_path, "float32")).set_index("path")
    assert list(table.columns) == ["variable", "sparsity_keras", "sparsity_artifact", "zeros_lost", "reason"]
    for name in ("conv", "depthwise", "up", "small", "head"):
        kernel = np.asarray(model.get_layer(name).weights[0])
        assert table.sparsity_artifact[name] == table.sparsity_keras[name] == np.mean(kernel == 0)


def test_a_sparse_encoded_file_is_unpacked(tmp_path):
    model = tfkit.prune_now(image_net(), 0.9)
    path = tmp_path / "m.tflite"
    path.write_bytes(tfkit.quantize_weights(sparse_bytes(model)))
    table = tfkit.zeros_kept(model, path)
    np.testing.assert_allclose(table.sparsity_artifact, table.sparsity_keras, atol=0.02)
    assert (table.zeros_lost == 0).all()


def test_zeros_that_the_file_lacks_are_counted(tmp_path):
    model = image_net()
    artifact = export(model, tmp_path, "int8_weights")
    head = model.get_layer("head")
    kernel, bias = (np.array(each) for each in head.get_weights())
    threshold = np.quantile(np.abs(kernel), 0.05)
    head.set_weights([np.where(np.abs(kernel) < threshold, 0, kernel), bias])
    table = tfkit.zeros_kept(model, artifact).set_index("path")
    assert table.sparsity_keras["head"] == pytest.approx(0.05, abs=0.002)
    assert table.zeros_lost["head"] > 0.5


def test_a_kernel_that_the_file_does_not_hold_has_a_reason_and_no_numbers(tmp_path):
    model = image_net()
    artifact = export(model, tmp_path, "float32")
    table = tfkit.zeros_kept(image_net(seed=1), artifact)
    assert len(table) == 5
    assert table.reason.str.startswith("no tensor of the file holds this kernel").all()
    assert table[["sparsity_artifact", "zeros_lost"]].isna().all(axis=None)


def test_embeddings_and_attention_are_found(tmp_path):
    keras.utils.set_random_seed(0)
    tokens = keras.Input((5,), dtype="int32")
    x = layers.Embedding(40, 32, name="table")(tokens)
    x = layers.MultiHeadAttention(2, 16, name="attention")(x, x)
    model = keras.Model(tokens, layers.Dense(3, name="head")(x))
    x = np.random.default_rng(0).integers(0, 40, (8, 5))
    table = tfkit.zeros_kept(model, export(model, tmp_path, "int8_weights", x))
    assert len(table) == 6
    assert (table.reason == "").all()


def test_a_saved_model_is_refused(tmp_path):
    artifact = tfkit.export_saved_model(models.dense_net(), tmp_path / "m")
    with pytest.raises(tfkit.ArgumentError, match=r"must be a \.tflite file.*Received: artifact="):
        tfkit.zeros_kept(models.dense_net(), artifact)


def test_something_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"must be a Keras 3 model.*Received: model=7"):
        tfkit.zeros_kept(7, tmp_path)


def test_a_file_of_tensorflow_is_read_like_one_of_ours(tmp_path):
    model, path = models.dense_net(), tmp_path / "m.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    assert tfkit.zeros_kept(model, path).zeros_lost.tolist() == [0, 0, 0]
