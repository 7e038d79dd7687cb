"""What a target will do with a model: verdicts, paths and remedies, and whether they come true."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers, ops

import tfkit
from tests import models
from tests.export.sparse_files import cluster
from tests.export.target_nets import eligible_net, never_net
from tfkit.export.browser import run_in_browser
from tfkit.export.names import LayerNames

COLUMNS = ["layer", "operation", "runs", "reason", "remedy"]


def point(x):
    return layers.Conv2D(4, 1)(x)


def picture_net(build):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 4))
    return keras.Model(inputs, build(inputs))


# Verdicts, columns, remedies.


@pytest.mark.parametrize("target", ["mobile", "web"])
def test_what_the_sparse_kernels_take_is_sparse_throughout(target):
    table = tfkit.explain_deployment(eligible_net(), target)
    assert list(table.columns) == COLUMNS
    assert table.attrs["verdict"] == "sparse"
    kinds = dict(zip(table.layer, table.runs, strict=True))
    assert {kinds[name] for name in ("wide", "depthwise", "last")} == {"sparse"}
    assert (table.remedy == "").all()


def test_on_the_desktop_nothing_is_sparse():
    table = tfkit.explain_deployment(eligible_net(), "desktop")
    assert table.attrs["verdict"] == "dense"
    assert set(table.runs) == {"dense"}
    assert set(table.reason) == {"XNNPACK has no sparse kernels for x86 with AVX"}


def test_the_remedy_of_padding_comes_true():
    model = eligible_net(same=True)
    table = tfkit.explain_deployment(model, "mobile")
    assert table.attrs["verdict"] == "dense"
    assert "tfkit.make_sparse_ready(model)" in set(table.remedy)
    ready = tfkit.explain_deployment(tfkit.make_sparse_ready(model), "mobile")
    assert ready.attrs["verdict"] == "sparse"


def test_the_remedy_of_few_zeros_comes_true():
    model = eligible_net()
    for name in ("wide", "last"):
        kernel = model.get_layer(name).kernel
        kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    table = tfkit.explain_deployment(model, "mobile")
    assert table.attrs["verdict"] == "dense"
    assert any(each.startswith("prune the 1x1 convolutions") for each in table.remedy)
    pruned = tfkit.prune_now(model, 0.9, layers=["wide", "last"])
    assert tfkit.explain_deployment(pruned, "mobile").attrs["verdict"] == "sparse"


def test_what_no_rewrite_helps_is_told_by_its_layer():
    table = tfkit.explain_deployment(never_net(), "web").set_index("layer")
    assert table.attrs["verdict"] == "dense"
    assert "3x3 convolution" in table.reason["second"]
    assert table.remedy["second"] == ""


def test_a_max_pooling_inside_is_no_sparse_model():
    """Encoded, XNNPACK turned the cluster over and computed something else."""
    table = tfkit.explain_deployment(cluster(True), "mobile")
    assert table.attrs["verdict"] != "sparse"


# Paths.


@pytest.mark.parametrize(
    ("build", "paths"),
    [
        (
            models.nested_net,
            ["wrapper/backbone/conv1", "wrapper/backbone/conv2", "wrapper/project", "pool", "head"],
        ),
        (models.deep_net, ["stem", "middle/a", "middle/inner/a", "middle/inner/b", "middle/c", "head"]),
        (models.shared_net, ["first/shared", "first/first_own", "second/shared", "second/second_own"]),
    ],
    ids=["nested", "same name at two depths", "shared by two models"],
)
def test_operations_are_told_by_the_paths_of_their_layers(build, paths):
    assert tfkit.explain_deployment(build(), "gpu").layer.tolist() == paths


def test_numbers_behind_names_are_no_other_layers():
    inputs = keras.Input((8, 8, 3))
    x = inputs
    for name in ("conv", "conv_1", "conv_1_1", "conv_2"):
        x = layers.Conv2D(4, 1, name=name)(x)
    table = tfkit.explain_deployment(keras.Model(inputs, x), "gpu")
    assert table.layer.tolist() == ["conv", "conv_1", "conv_1_1", "conv_2"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("deep_1/middle_1/inner_1/a_1/MatMul1", "middle/inner/a"),
        ("deep_1/middle_1/a_1/MatMul1", "middle/a"),
        ("deep_1/stem_1/MatMul;deep_1/head_1/Relu", "head"),
        ("StatefulPartitionedCall:0", ""),
    ],
)
def test_a_name_gives_the_longest_path_that_fits(name, path):
    assert LayerNames(models.deep_net()).path(name) == path


def test_several_targets_stand_below_one_another():
    model = models.conv_net()
    whole = tfkit.explain_deployment(model, ("gpu", "mobile"))
    assert list(whole.columns) == ["target", *COLUMNS]
    for target, table in whole.groupby("target"):
        alone = tfkit.explain_deployment(model, target)
        pd.testing.assert_frame_equal(table[COLUMNS].reset_index(drop=True), alone, check_dtype=False)
        assert whole.attrs["verdict"][target] == alone.attrs["verdict"]


# What is refused.


def test_an_unknown_target_is_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"one of desktop, gpu, mobile, web. Received: 'tv'"):
        tfkit.explain_deployment(models.dense_net(), "tv")


def test_open_sizes_are_refused_and_closed_on_request():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 3)(inputs), name="open")
    with pytest.raises(
        tfkit.ArgumentError, match=r"must be known.*model='open' with inputs \[\(1, None.*input_s"
    ):
        tfkit.explain_deployment(model, "mobile")
    assert len(tfkit.explain_deployment(model, "mobile", input_shape=(8, 8, 3))) == 1


@pytest.mark.parametrize(
    ("build", "error"),
    [(lambda: 3, tfkit.ArgumentTypeError), (models.subclassed_net, tfkit.UnbuiltModelError)],
)
def test_what_cannot_be_converted_is_refused(build, error):
    with pytest.raises(error):
        tfkit.explain_deployment(build(), "gpu")


# GPUs, against LiteRT.js on WebGPU.

GPU = {
    "TILE": lambda x: point(ops.tile(point(x), (1, 2, 1, 1))),
    "TILE in 5-D": lambda x: point(ops.repeat(point(x), 2, axis=1)),
    "RESHAPE in 5-D": lambda x: point(layers.GroupNormalization(2)(point(x))),
    "REVERSE_V2": lambda x: point(ops.flip(point(x), 1)),
    "MIRROR_PAD": lambda x: point(ops.pad(point(x), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")),
    "GELU": lambda x: point(ops.gelu(point(x))),
    "POW": lambda x: point(ops.power(ops.relu(point(x)) + 0.1, 1.7)),
    "REDUCE_MAX": lambda x: ops.max(point(x), axis=(1, 2)),
    "TRANSPOSE_CONV": lambda x: point(layers.Conv2DTranspose(4, 3, strides=2, padding="same")(x)),
    "BATCH_MATMUL": lambda x: ops.matmul(point(x), ops.transpose(x, (0, 1, 3, 2))),
    "CAST": lambda x: ops.cast(ops.cast(point(x) * 10, "int32"), "float32"),
    "GATHER": lambda x: point(ops.take(point(x), np.array([3, 1, 0]), axis=1)),
    "LOG_SOFTMAX": lambda x: ops.log_softmax(point(x)),
}


@pytest.mark.parametrize("name", GPU)
def test_the_verdict_on_gpus_is_what_the_runtime_does(name, tmp_path):
    model = picture_net(GPU[name])
    table = tfkit.explain_deployment(model, "gpu")
    assert name.split()[0] in set(table.operation)
    path = tfkit.export_tflite(model, tmp_path / "model.tflite", sparse=False).path
    x = np.random.default_rng(0).random((1, 8, 8, 4), dtype="float32")
    run = run_in_browser(path, [x], accelerator="webgpu")
    assert table.attrs["verdict"] == ("gpu" if run.accelerated else "cpu")
    np.testing.assert_allclose(run.outputs[0], model(x), atol=1e-4)
