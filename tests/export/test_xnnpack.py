"""The rules for sparse kernels: the share of zeros, clusters, and the reasons given."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests.export import sparse_files, sparse_graphs
from tests.export.sparse_graphs import CASES, block, exactly, pooled, stem
from tfkit.export.operations import read_program
from tfkit.export.padding import explicit_padding
from tfkit.export.xnnpack import Verdict, analyse


@pytest.fixture
def analysed(tmp_path):
    def analysed(model, *optimizations):
        path = sparse_files.write(model, tmp_path / "m.tflite", optimizations)
        return analyse(read_program(explicit_padding(path.read_bytes())))

    return analysed


def on_picture(function, zeros=0.9):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    return sparse_graphs.thinned(keras.Model(inputs, function(inputs)), zeros)


def of(analysis, kind):
    """Verdict and reason of the first operation of a kind."""
    places = zip(analysis.places, analysis.verdicts, analysis.reasons, strict=True)
    return next((verdict, reason) for place, verdict, reason in places if place.operation.kind == kind)


def share(zeros):
    return f"{100 * zeros / 72:.1f}% of the cluster's weights are zero; it takes more than 66.7%"


@pytest.mark.parametrize(
    ("zeros", "verdict", "reason"),
    [(0, "dense", share(0)), (48, "dense", share(48)), (49, "sparse", ""), (72, "sparse", "")],
)
def test_more_than_two_thirds_must_be_zero(analysed, zeros, verdict, reason):
    analysis = analysed(exactly(zeros))
    assert analysis.verdict == verdict
    assert of(analysis, "MEAN") == (verdict, reason)


def test_minus_zero_is_zero(analysed):
    model = exactly(49)
    kernel = np.asarray(model.layers[-2].kernel)
    model.layers[-2].kernel.assign(np.where(kernel == 0, -0.0, kernel))
    assert analysed(model).verdict == "sparse"


def test_zeros_count_over_the_whole_cluster(analysed):
    """1 - 0.5 of 4096 weights and 1 - 0.9 of 4096: 70% are zero."""

    def net(x):
        return pooled(layers.Conv2D(64, 1, name="b")(layers.Conv2D(64, 1, name="a")(stem(x, 64))))

    model = on_picture(net)
    kernel = np.random.default_rng(0).permutation(4096).reshape(1, 1, 64, 64) + 1.0
    model.get_layer("a").kernel.assign(np.where(kernel > 2048, kernel, 0))
    for kept, verdict in ((410, "sparse"), (1024, "dense")):
        model.get_layer("b").kernel.assign(np.where(kernel > 4096 - kept, kernel, 0))
        assert analysed(model).verdict == verdict


def test_clusters_are_judged_one_by_one(analysed):
    """Two networks side by side in one file, of which one has too few zeros."""
    first, second = keras.Input((32, 32, 3)), keras.Input((32, 32, 3))
    one = pooled(layers.Conv2D(16, 1, name="thin")(stem(first)))
    other = pooled(layers.Conv2D(16, 1, name="full")(stem(second)))
    model = sparse_graphs.thinned(keras.Model([first, second], [one, other]), 0.9)
    model.get_layer("full").kernel.assign(np.ones((1, 1, 32, 16)))
    analysis = analysed(model)
    found = [
        (verdict, reason)
        for place, verdict, reason in zip(analysis.places, analysis.verdicts, analysis.reasons)
        if place.operation.kind == "MEAN"
    ]
    assert sorted(verdict for verdict, _ in found) == ["dense", "sparse"]
    assert {reason for _, reason in found if reason} == {
        "0.0% of the cluster's weights are zero; it takes more than 66.7%"
    }
    assert analysis.verdict == "sparse"


def test_every_operation_of_a_sparse_network_is_sparse_but_the_head(analysed):
    analysis = analysed(on_picture(lambda x: layers.Dense(3)(pooled(block(stem(x))))))
    kinds = [place.operation.kind for place in analysis.places]
    assert kinds == ["CONV_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert analysis.verdicts == (*[Verdict.SPARSE] * 5, Verdict.DENSE)
    assert analysis.reasons[:5] == ("",) * 5


@pytest.mark.parametrize("name", ["max_pooling", "feature_map_out", "pool_then_1x1"])
def test_one_wrong_operation_makes_the_whole_wrong(analysed, name):
    analysis = analysed(CASES[name].build())
    assert "wrong" in analysis.verdicts
    assert analysis.verdict == "wrong"


STUCK = "the cluster ends here without an exit: what follows reads channels as pixels"
REASONS = {
    "same_stem": ("CONV_2D", "a stem padded by 'same', not by 1 on each side"),
    "large_stem": (
        "CONV_2D",
        "a 5x5 convolution with strides 2, 2 of 3 channels; of 3x3 only strides of 2 of 3 channels will do",
    ),
    "concatenated": ("CONCATENATION", "CONCATENATION has no form that computes channel by channel"),
    "max_pooling": ("MAX_POOL_2D", "MAX_POOL_2D has no form that computes channel by channel"),
    "prelu": ("PRELU", "PRELU has no form that computes channel by channel"),
    "depthwise_strided_same": (
        "DEPTHWISE_CONV_2D",
        "a depthwise convolution with strides and padding='same'",
    ),
    "pool_keeps_dimensions": ("MEAN", "MEAN keeps its dimensions where the cluster ends"),
}


@pytest.mark.parametrize("name", REASONS)
def test_a_reason_names_what_stops_it(analysed, name):
    kind, reason = REASONS[name]
    analysis = analysed(CASES[name].build())
    given = {text for place, text in zip(analysis.places, analysis.reasons) if place.operation.kind == kind}
    assert reason in given


OPERATIONS = {
    "a dilated depthwise convolution": lambda x: layers.DepthwiseConv2D(3, dilation_rate=2)(x),
    "a dilated convolution": lambda x: layers.Conv2D(8, 3, dilation_rate=2)(x),
    "a 7x7 depthwise convolution; only 3x3 and 5x5 will do": lambda x: layers.DepthwiseConv2D(
        7, padding="same"
    )(x),
    "a depthwise convolution with a multiplier of 2": lambda x: layers.DepthwiseConv2D(
        3, depth_multiplier=2, padding="same"
    )(x),
    "a depthwise convolution with strides 3, 3": lambda x: layers.DepthwiseConv2D(3, 3)(x),
    "a depthwise convolution padded by 0 above, 0 below, 0 left, 0 right, not by 1 on each side": (
        lambda x: layers.DepthwiseConv2D(3)(x)
    ),
    "a depthwise convolution padded by 1 above, 2 below, 0 left, 1 right, not by 1 on each side": (
        lambda x: layers.DepthwiseConv2D(3)(layers.ZeroPadding2D(((1, 2), (0, 1)))(x))
    ),
    "a 1x1 convolution with strides or padding": lambda x: layers.Conv2D(8, 1, 2)(x),
    "a convolution in groups": lambda x: layers.Conv2D(8, 1, groups=2)(x),
    "RESIZE_BILINEAR of a single row or column": lambda x: layers.UpSampling2D(
        (3, 3), interpolation="bilinear"
    )(layers.AveragePooling2D((16, 1))(x)),
    "MUL of other than pictures": lambda x: x * np.arange(32, dtype="float32"),
}


@pytest.mark.parametrize("reason", OPERATIONS)
def test_a_reason_tells_what_an_operation_lacks(analysed, reason):
    assert reason in analysed(on_picture(lambda x: pooled(OPERATIONS[reason](stem(x))))).reasons


def test_whoever_stands_beside_what_stops_it_is_told(analysed):
    analysis = analysed(CASES["concatenated"].build())
    assert "its neighbours cannot compute channel by channel" in analysis.reasons


def test_no_1x1_convolution_no_sparse_kernels(analysed):
    analysis = analysed(on_picture(lambda x: pooled(layers.DepthwiseConv2D(3, padding="same")(stem(x)))))
    assert analysis.verdict == "dense"
    assert "no 1x1 convolution in its cluster" in analysis.reasons


def test_int8_is_never_sparse(tmp_path):
    model = on_picture(lambda x: pooled(block(stem(x))))
    x = np.random.default_rng(0).random((4, 32, 32, 3))
    artifact = tfkit.export_tflite(model, tmp_path / "m.tflite", precision="int8", representative_data=x)
    analysis = analyse(read_program(artifact.path.read_bytes()))
    assert analysis.verdict == "dense"
    assert "CONV_2D computes in INT8, not in floats" in analysis.reasons


@pytest.mark.parametrize(("zeros", "verdict"), [(48, "dense"), (49, "sparse")])
def test_zeros_of_float16_weights_count(tmp_path, zeros, verdict):
    artifact = tfkit.export_tflite(exactly(zeros), tmp_path / "m.tflite", precision="float16", sparse=False)
    assert analyse(read_program(artifact.path.read_bytes())).verdict == verdict


@pytest.mark.parametrize("name", ["plain", "residual", "squeeze_excite", "max_pooling", "same_stem"])
def test_a_file_that_is_encoded_already_has_no_zeros_to_count(analysed, name):
    """Nothing is guessed of weights whose values are packed: the dense file is what is asked about."""
    model = CASES[name].build()
    dense, encoded = analysed(model), analysed(model, "EXPERIMENTAL_SPARSITY")
    assert any(place.weights for place in dense.places)
    assert len(encoded.places) >= len(dense.places)
    assert not any(place.weights for place in encoded.places)
