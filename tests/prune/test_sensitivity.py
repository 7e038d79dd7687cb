"""layer_sensitivity: what it measures, by hand, and that nothing of it stays."""

import io
import math

import keras
import numpy as np
import pytest
from PIL import Image

import tfkit
from tests import models
from tests.arrays import expect_equal
from tests.prune.test_magnitude import always, compiled, fit, kept

X = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")


def total(model):
    """The sum of all kernels' magnitudes: pruning a layer takes its smallest away from it."""
    return float(sum(np.abs(np.asarray(layer.kernel)).sum() for layer in model.layers))


def smallest(kernel, sparsity):
    magnitudes = np.sort(np.abs(np.asarray(kernel)), axis=None)
    return magnitudes[: kernel.shape[0] * kernel.shape[1] - kept(magnitudes.size, sparsity)].sum()


def test_every_layer_is_pruned_alone_at_every_sparsity():
    model = models.dense_net()
    table = tfkit.layer_sensitivity(model, total, sparsities=[0.25, 0.75])
    assert list(table.columns) == ["path", "parameters", "sparsity", "score", "change"]
    assert table[["path", "parameters", "sparsity"]].values.tolist() == [
        [name, size, sparsity]
        for name, size in [("d1", 48), ("d2", 32), ("head", 8)]
        for sparsity in (0.25, 0.75)
    ]
    assert table.attrs["baseline"] == pytest.approx(total(model))
    lost = [-smallest(model.get_layer(row.path).kernel, row.sparsity) for row in table.itertuples()]
    assert table.change.tolist() == pytest.approx(lost, abs=1e-5)
    assert (table.score - table.change).tolist() == pytest.approx([total(model)] * 6)


def test_a_sparsity_of_0_changes_nothing():
    table = tfkit.layer_sensitivity(models.dense_net(), total, sparsities=[0.0])
    assert table.change.tolist() == [0.0, 0.0, 0.0]


def test_the_weights_are_put_back_bit_for_bit():
    model = models.dense_net()
    before = model.get_weights()
    tfkit.layer_sensitivity(model, total, sparsities=[0.5, 0.9])
    expect_equal(model.get_weights(), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_weights_are_put_back_when_evaluation_fails(error):
    model, calls = models.dense_net(), []
    before = model.get_weights()

    def fail(model):
        calls.append(True)
        if len(calls) == 4:
            raise error
        return 0.0

    with pytest.raises(error):
        tfkit.layer_sensitivity(model, fail, sparsities=[0.5, 0.9])
    expect_equal(model.get_weights(), before)


def test_half_precision_comes_back_as_it_was():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, dtype="bfloat16")])
    before = [keras.ops.copy(weight) for weight in model.weights]
    tfkit.layer_sensitivity(model, lambda model: 1.0, sparsities=[0.5])
    assert all(bool(keras.ops.all(a == b)) for a, b in zip(model.weights, before, strict=True))
    assert model.weights[0].dtype == "bfloat16"


def test_a_model_that_is_being_pruned_keeps_its_masks():
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(), always(0.75)))
    fit(model)
    masks = [np.asarray(layer.kernel.constraint.mask) for layer in model.layers]
    tfkit.layer_sensitivity(model, total, sparsities=[0.9])
    expect_equal([np.asarray(layer.kernel.constraint.mask) for layer in model.layers], masks)


def test_only_the_named_layers_are_tried():
    table = tfkit.layer_sensitivity(models.dense_net(), total, sparsities=[0.5], layers=["d*", "!d1"])
    assert table.path.tolist() == ["d2"]


def test_a_composite_is_one_layer_and_what_has_no_kernel_is_passed_by():
    table = tfkit.layer_sensitivity(models.sequence_net(), lambda model: 1.0, sparsities=[0.5])
    assert table.path.tolist() == ["lstm", "both", "mha", "each", "head"]
    assert table.parameters.tolist()[0] == 84  # 48 of the kernel, 36 of the recurrent one


@pytest.mark.parametrize("build", [models.nested_net, models.subclassed_net])
def test_inside_nested_and_subclassed_models(build):
    table = tfkit.layer_sensitivity(build(), lambda model: 1.0, sparsities=[0.5])
    assert all("/" in path or path == "head" for path in table.path)
    assert len(table) == len(tfkit.sparsity_table(build()).query("reason.str.startswith('prunable')"))


def test_real_evaluation():
    model = compiled(models.dense_net())
    y = np.asarray(model(X))

    def loss(model):
        return model.evaluate(X, y, verbose=0)

    table = tfkit.layer_sensitivity(model, loss, sparsities=[0.5, 0.9])
    assert table.attrs["baseline"] == pytest.approx(0, abs=1e-9)
    assert (table[table.sparsity == 0.9].score.values > table[table.sparsity == 0.5].score.values).all()


# --- groups of channels ------------------------------------------------------------------------------


def channels(model, evaluate=total, **options):
    options = {"sparsities": [0.25, 0.5]} | options
    return tfkit.layer_sensitivity(model, evaluate, kind="channels", **options)


def test_what_makes_and_what_reads_the_channels_of_least_norm_becomes_zero():
    """The score is the sum of all kernels: a column of one and a row of the next go from it."""
    model = models.dense_net()
    table = channels(model)
    assert table.path.tolist() == ["d1", "d1", "d2", "d2"]
    kernels = [np.asarray(layer.kernel) for layer in model.layers]
    expected = []
    for made, read in ((kernels[0], kernels[1]), (kernels[1], kernels[2])):
        order = np.argsort(np.linalg.norm(made, axis=0))
        for sparsity in (0.25, 0.5):
            gone = order[: round(sparsity * len(order))]
            expected.append(-np.abs(made[:, gone]).sum() - np.abs(read[gone]).sum())
    assert table.change.tolist() == pytest.approx(expected, rel=1e-4)
    assert table.attrs["baseline"] == pytest.approx(total(model))


def test_parameters_are_what_a_group_lies_in():
    """d1: 6·8 + 8 + 8·4; d2: 8·4 + 4 + 4·2."""
    assert channels(models.dense_net(), sparsities=[0.5]).parameters.tolist() == [88, 44]


def test_the_model_computes_what_the_plan_that_removes_them_does():
    model = models.conv_net()
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")
    found = []
    channels(model, lambda model: found.append(np.asarray(model(x))) or 0.0, sparsities=[0.5], layers="conv1")
    plan = tfkit.plan_channel_pruning(model, ratio=0.5, layers="conv1", multiple_of=1)
    np.testing.assert_allclose(found[1], plan.apply(model)(x), rtol=1e-4, atol=1e-5)


def test_at_least_one_channel_stays():
    model = models.dense_net()
    seen = []
    channels(model, lambda model: seen.append(np.asarray(model.layers[1].kernel)) or 0.0,
             sparsities=[0.99], layers="d2")  # fmt: skip
    assert (np.abs(seen[1]).sum(0) > 0).sum() == 1


def test_a_sparsity_of_0_takes_no_channel():
    assert channels(models.conv_net(), lambda model: 1.0, sparsities=[0.0]).change.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_channels_are_put_back_when_evaluation_fails(error):
    model, calls = models.conv_net(), []
    before = model.get_weights()

    def fail(model):
        calls.append(True)
        if len(calls) == 3:
            raise error
        return 0.0

    with pytest.raises(error):
        channels(model, fail)
    expect_equal(model.get_weights(), before)


def test_channels_are_put_back_bit_for_bit():
    model = models.conv_net()
    before = model.get_weights()
    channels(model, lambda model: 1.0, criterion="l1")
    expect_equal(model.get_weights(), before)


def test_the_criterion_says_which_channels():
    """Two of four go: by the norm the first two, by the scale the last two."""
    model = models.conv_net()
    model.get_layer("conv1").kernel.assign(np.ones((3, 3, 3, 4)) * [1.0, 2.0, 3.0, 4.0])
    model.get_layer("bn1").gamma.assign([4.0, 3.0, 2.0, 1.0])
    for criterion, left in (("l2", [0, 0, 1, 1]), ("bn_scale", [1, 1, 0, 0])):
        seen = []
        channels(model, lambda model: seen.append(np.asarray(model.layers[0].kernel)) or 0.0,  # noqa: B023
                 sparsities=[0.5], layers="conv1", criterion=criterion)  # fmt: skip
        assert (np.abs(seen[1]).sum((0, 1, 2)) > 0).tolist() == [bool(each) for each in left]


def test_only_the_groups_of_named_layers_are_tried():
    assert channels(models.dense_net(), sparsities=[0.5], layers=["d*", "!d1"]).path.tolist() == ["d2"]


def test_a_table_of_channels_can_be_drawn(tmp_path):
    channels(models.dense_net(), plot=tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").size[0] > 300


def test_channels_of_a_subclassed_model_are_refused():
    with pytest.raises(tfkit.PruningError, match=r"functional or Sequential.*Received: model='subclassed'"):
        channels(models.subclassed_net(), lambda model: 1.0)


def test_layers_that_reach_no_group_are_refused():
    message = r"free to lose some\. Received: layers='head' in the model 'seq.*plan_channel_pruning gives"
    with pytest.raises(tfkit.PruningError, match=message):
        channels(models.dense_net(), layers="head")


@pytest.mark.parametrize("criterion", ["taylor", "random", 3])
def test_a_criterion_that_is_not_of_weights_is_refused(criterion):
    with pytest.raises(tfkit.ArgumentError, match=r"`criterion` must be one of l1, l2, fpgm, bn_scale\. Rec"):
        channels(models.dense_net(), criterion=criterion)


# --- the picture -----------------------------------------------------------------------------------


def test_the_picture_is_written(tmp_path):
    table = tfkit.layer_sensitivity(models.dense_net(), total, sparsities=[0.5, 0.9], plot=tmp_path / "s.png")
    assert Image.open(tmp_path / "s.png").size[0] > 300
    again = tfkit.plot_sensitivity(table, tmp_path / "again.png")
    assert again.read_bytes() == (tmp_path / "s.png").read_bytes()


def test_a_table_from_a_file_can_be_drawn(tmp_path):
    import pandas as pd

    table = tfkit.layer_sensitivity(models.dense_net(), total, sparsities=[0.5])
    table.to_csv(tmp_path / "s.csv", index=False)
    read = pd.read_csv(io.StringIO((tmp_path / "s.csv").read_text()))
    assert tfkit.plot_sensitivity(read, str(tmp_path / "s.png")).is_file()


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_scores_without_a_difference_or_number_can_be_drawn(value, tmp_path):
    tfkit.layer_sensitivity(
        models.dense_net(), lambda model: value, sparsities=[0.5], plot=tmp_path / "s.png"
    )
    assert (tmp_path / "s.png").is_file()


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsities": [0.5, 1.0]}, tfkit.ArgumentError, r"\[0, 1\).*Received: sparsities\[1\]=1\.0"),
        ({"sparsities": ["0.5"]}, tfkit.ArgumentTypeError, r"must be a number.*sparsities\[0\]='0\.5'"),
        ({"sparsities": []}, tfkit.ArgumentError, r"must hold at least one.*Received: sparsities=\[\]"),
        ({"kind": "filters"}, tfkit.ArgumentError, r"one of magnitude, channels.*Received: kind='filters'"),
        ({"evaluate": 0.9}, tfkit.ArgumentTypeError, r"must be a function.*Received: evaluate=0\.9"),
        ({"layers": "d9"}, tfkit.LayerNotFoundError, r"Received: pattern='d9'.*d1"),
        ({"plot": "no/such/folder/s.png"}, tfkit.OutputPathError, r"folder of `plot`.*plot='no/such"),
        ({"plot": "."}, tfkit.OutputPathError, r"`plot` must name a file.*Received: plot='\.'"),
        ({"plot": 3}, tfkit.ArgumentTypeError, r"`plot` must be the path.*Received: plot=3"),
        ({"sparsities": 0.5}, tfkit.ArgumentTypeError, r"must be a list of numbers.*sparsities=0\.5"),
        ({"sparsities": [0.5, 0.5]}, tfkit.ArgumentError, r"each once.*Received: sparsities=\[0\.5, 0\.5\]"),
        ({"model": 7}, tfkit.ArgumentTypeError, r"must be a Keras 3 model.*Received: model=7"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_evaluated(options, error, message):
    calls = []
    arguments = {"model": models.dense_net(), "evaluate": calls.append, "sparsities": [0.5]} | options
    with pytest.raises(error, match=message):
        tfkit.layer_sensitivity(**arguments)
    assert calls == []


def test_a_model_without_kernels_is_refused():
    message = r"a kernel that can be pruned.*Received: layers='bn1'.*sparsity_table"
    with pytest.raises(tfkit.PruningError, match=message):
        tfkit.layer_sensitivity(models.conv_net(), total, sparsities=[0.5], layers="bn1")


@pytest.mark.parametrize("score", [None, [0.1, 0.2], "good", True], ids=str)
def test_a_score_that_is_no_number_is_refused(score):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"must return a number.*Received: .*model\.evaluate"):
        tfkit.layer_sensitivity(models.dense_net(), lambda model: score, sparsities=[0.5])


def test_a_picture_without_a_folder_is_refused(tmp_path):
    table = tfkit.layer_sensitivity(models.dense_net(), total, sparsities=[0.5])
    with pytest.raises(tfkit.OutputPathError, match=r"folder of `path`.*Received: path=.*Make it first"):
        tfkit.plot_sensitivity(table, tmp_path / "none" / "s.png")


@pytest.mark.parametrize("table", [None, 3, {}], ids=str)
def test_something_that_is_no_table_is_refused(table, tmp_path):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"what layer_sensitivity returned.*Received: table="):
        tfkit.plot_sensitivity(table, tmp_path / "s.png")
