"""Explicit padding in place of SAME: where, and that the file computes the same."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import tfkit
from tests.export import sparse_files
from tfkit.export.operations import read_program
from tfkit.export.padding import explicit_padding

SAME, VALID = 0, 1


def network(size, kernel=3, strides=2, kind=layers.Conv2D):
    """Two convolutions with strides, padded by SAME."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((*size, 3))
    options = {"strides": strides, "padding": "same", "activation": "relu"}
    x = layers.Conv2D(4, kernel, **options)(inputs)
    x = kind(kernel, **options)(x) if kind is layers.DepthwiseConv2D else kind(4, kernel, **options)(x)
    return keras.Model(inputs, [x, layers.Dense(2)(layers.GlobalAveragePooling2D()(x))])


def outputs(content, x):
    run = Interpreter(model_content=content, num_threads=1).get_signature_runner()
    (name,) = run.get_input_details()
    answer = run(**{name: x})
    return [answer[key] for key in sorted(answer)]


def padded(model, folder, *optimizations):
    """A file and what becomes of it, and their paddings."""
    before = sparse_files.write(model, folder / "m.tflite", optimizations).read_bytes()
    after = explicit_padding(before)
    return before, after, read_program(after).operations


@pytest.mark.parametrize("kind", [layers.Conv2D, layers.DepthwiseConv2D])
@pytest.mark.parametrize(
    ("size", "kernel", "pads"),
    [
        ((31, 31), 3, 2),  # 31 -> 16 -> 8: the second picture is even
        ((29, 33), 3, 2),
        ((29, 29), 5, 2),
        ((32, 32), 3, 0),
        ((31, 32), 3, 0),  # alike above and below, but not left and right
        ((31, 31), 2, 0),
        ((31, 31), 1, 0),
    ],
)
def test_it_computes_the_same(tmp_path, size, kernel, kind, pads):
    model = network(size, kernel, kind=kind)
    before, after, operations = padded(model, tmp_path)
    x = np.random.default_rng(0).random((1, *size, 3), dtype="float32")
    for wanted, got in zip(model(x), outputs(after, x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    if not pads:
        assert after is before
    else:
        assert "PAD" in [each.kind for each in operations]


def test_an_odd_picture_is_padded_by_half_a_kernel(tmp_path):
    _, _, operations = padded(network((29, 33), 5), tmp_path)
    first, second, *_ = operations
    assert (first.kind, second.kind) == ("PAD", "CONV_2D")
    np.testing.assert_array_equal(first.inputs[1].values, [[0, 0], [2, 2], [2, 2], [0, 0]])
    assert first.outputs[0].shape == (1, 33, 37, 3)
    assert second.options.padding == VALID


def test_keras_own_padding_that_the_converter_took_in_comes_back(tmp_path):
    inputs = keras.Input((31, 31, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 3, 2)(layers.ZeroPadding2D(1)(inputs)))
    before, _, operations = padded(model, tmp_path)
    assert [(each.kind, each.options.padding) for each in read_program(before).operations] == [
        ("CONV_2D", SAME)
    ]
    assert [each.kind for each in operations] == ["PAD", "CONV_2D"]


def test_two_convolutions_of_one_picture_are_padded_each(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((15, 15, 3))
    both = [layers.Conv2D(4, k, 2, padding="same")(inputs) for k in (3, 5)]
    model = keras.Model(inputs, both)
    _, after, operations = padded(model, tmp_path)
    assert sorted(each.kind for each in operations) == ["CONV_2D", "CONV_2D", "PAD", "PAD"]
    x = np.random.default_rng(0).random((1, 15, 15, 3), dtype="float32")
    for wanted, got in zip(model(x), outputs(after, x), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimizations", [["EXPERIMENTAL_SPARSITY"], []])
def test_sparse_weights_stay_as_they_are(tmp_path, optimizations):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((31, 31, 3))
    convolution = layers.Conv2D(32, 1)
    x = convolution(layers.Conv2D(32, 3, 2, padding="same")(inputs))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    model = tfkit.prune_now(model, 0.9, layers=convolution.name)
    before, after, _ = padded(model, tmp_path, *optimizations)
    assert after != before
    assert read_program(after).sparse == read_program(before).sparse == bool(optimizations)
    path = tmp_path / "padded.tflite"
    path.write_bytes(after)
    x = np.random.default_rng(0).random((2, 31, 31, 3), dtype="float32")
    assert tfkit.check_parity(model, path, x).passed


def test_a_file_without_such_convolutions_comes_back_as_it_is(tmp_path):
    before = sparse_files.write(sparse_files.cluster(pooled=True), tmp_path / "m.tflite", []).read_bytes()
    assert explicit_padding(before) is before


def test_padding_twice_changes_nothing_more(tmp_path):
    _, after, _ = padded(network((31, 31)), tmp_path)
    assert explicit_padding(after) is after


@pytest.mark.parametrize("content", [b"", bytes(100), b"some text and no file of ours"])
def test_a_torn_file_is_refused(content):
    with pytest.raises(tfkit.ExportError, match=r"whole \.tflite file.*Received: \d+ bytes"):
        explicit_padding(content)


def test_several_graphs_are_refused(tmp_path):
    endless = sparse_files.endless(tmp_path / "loop.tflite").read_bytes()
    with pytest.raises(tfkit.ExportError, match="must have one graph"):
        explicit_padding(endless)
