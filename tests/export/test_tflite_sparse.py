"""Sparse encoding, open sizes and unproven files in `export_tflite`."""

import importlib

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests.export.sparse_files import cluster
from tests.export.target_nets import eligible_net, never_net
from tfkit.export.operations import read_program

RNG = np.random.default_rng(0)
X = RNG.random((4, 32, 32, 3), dtype="float32")


def encoded(artifact):
    return read_program(artifact.path.read_bytes()).sparse


@pytest.fixture
def no_qemu(monkeypatch):
    for name in ("tflite", "apart"):
        module = importlib.import_module(f"tfkit.export.{name}")
        monkeypatch.setattr(module, "emulator", lambda: None)
        monkeypatch.setattr(module, "has_avx", lambda: True)


def test_auto_encodes_what_the_sparse_kernels_take(tmp_path):
    artifact = tfkit.export_tflite(eligible_net(), tmp_path / "m.tflite", representative_data=X)
    assert artifact.sparse
    assert encoded(artifact)
    assert artifact.proofs == ("LiteRT on this processor", "LiteRT without AVX")
    dense = tfkit.export_tflite(eligible_net(), tmp_path / "d.tflite", sparse=False)
    assert artifact.size_bytes < dense.size_bytes


@pytest.mark.parametrize("build", [never_net, lambda: cluster(True), lambda: eligible_net(same=True)])
def test_auto_leaves_dense_what_the_sparse_kernels_do_not_take(tmp_path, build):
    artifact = tfkit.export_tflite(build(), tmp_path / "m.tflite", representative_data=X)
    assert not artifact.sparse
    assert not encoded(artifact)
    assert artifact.parity.passed


def test_auto_leaves_int8_dense(tmp_path):
    artifact = tfkit.export_tflite(
        eligible_net(), tmp_path / "m.tflite", precision="int8", representative_data=X
    )
    assert not artifact.sparse
    assert not encoded(artifact)


def test_false_never_encodes(tmp_path):
    assert not encoded(tfkit.export_tflite(eligible_net(), tmp_path / "m.tflite", sparse=False))


def test_true_refuses_what_stays_dense_and_says_where(tmp_path):
    with pytest.raises(
        tfkit.ExportError, match=r"must take the model. Received: model='never', which stays dense at .*3x3"
    ):
        tfkit.export_tflite(never_net(), tmp_path / "m.tflite", sparse=True)
    assert list(tmp_path.iterdir()) == []


def test_true_refuses_int8(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"in floats. Received: sparse=True, precision='int8'"):
        tfkit.export_tflite(
            eligible_net(), tmp_path / "m.tflite", sparse=True, precision="int8", representative_data=X
        )


def test_true_refuses_open_sizes(tmp_path):
    with pytest.raises(tfkit.ExportError, match=r"sizes must be fixed.*Received: sparse=True.*None"):
        tfkit.export_tflite(eligible_net(), tmp_path / "m.tflite", sparse=True, batch_size=None)


def test_an_unknown_choice_is_refused(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"'auto', True or False. Received: sparse='yes'"):
        tfkit.export_tflite(eligible_net(), tmp_path / "m.tflite", sparse="yes")


def test_without_qemu_auto_stays_dense(tmp_path, no_qemu):
    assert not encoded(tfkit.export_tflite(eligible_net(), tmp_path / "m.tflite"))


def test_without_qemu_true_is_refused(tmp_path, no_qemu):
    with pytest.raises(tfkit.ExportError, match=r"without AVX before.*qemu-user.*accept_unproven=True"):
        tfkit.export_tflite(eligible_net(), tmp_path / "m.tflite", sparse=True)


def test_without_qemu_an_unproven_file_says_so(tmp_path, no_qemu):
    artifact = tfkit.export_tflite(eligible_net(), tmp_path / "m.tflite", accept_unproven=True)
    assert encoded(artifact)
    assert artifact.proofs == ("LiteRT on this processor",)


# Open sizes.


def signature(artifact):
    run = importlib.import_module("tfkit.export.runners").load(artifact.path, "tflite")
    return run.sizes()


def test_an_open_batch_stays_open_in_the_file(tmp_path):
    artifact = tfkit.export_tflite(never_net(), tmp_path / "m.tflite", batch_size=None)
    assert signature(artifact) == [(None, 32, 32, 3)]
    np.testing.assert_allclose(artifact.predict(X), never_net()(X), atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_height_and_width_stay_open_in_the_file(tmp_path, precision):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 3, padding="same")(inputs))
    x = RNG.random((2, 12, 8, 3), dtype="float32")
    artifact = tfkit.export_tflite(
        model,
        tmp_path / "m.tflite",
        precision=precision,
        representative_data=x,
        input_shape=(None, None, 3),
    )
    assert signature(artifact) == [(1, None, None, 3)]
    assert artifact.parity.samples == 2


def test_open_sizes_are_refused_unless_asked_for(tmp_path):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 3)(inputs), name="open")
    with pytest.raises(tfkit.ArgumentError, match=r"fixed sizes unless.*'open' with.*None where a size"):
        tfkit.export_tflite(model, tmp_path / "m.tflite")
