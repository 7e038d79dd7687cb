"""`models.transfer_weights`: weights carried over by name."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tfkit.errors import ArgumentError, ArgumentTypeError, UnbuiltModelError

transfer = tfkit.models.transfer_weights


def different(builder, **arguments):
    """Two models of one architecture with different weights."""
    return builder(seed=1, **arguments), builder(seed=2, **arguments)


@pytest.mark.parametrize(
    "builder",
    [
        models.dense_net,
        models.conv_net,
        models.nested_net,
        models.deep_net,
        models.shared_net,
        models.subclassed_net,
        models.sequence_net,
        models.gated_net,
    ],
)
def test_a_model_of_the_same_architecture_takes_over_every_weight(builder):
    source, target = different(builder)
    for number, variable in enumerate(source.weights):
        variable.assign(np.full(variable.shape, number + 2.0))
    transfer(source, target)
    for old, new in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_layers_of_the_same_path_never_take_over_each_others_weights():
    source, target = different(models.twins_net)
    before = target.get_weights()
    transfer(source, target)
    for own, given, kept in zip(target.get_weights(), source.get_weights(), before, strict=True):
        assert np.array_equal(own, given) or np.array_equal(own, kept)


def test_a_weight_of_the_root_model_itself_is_copied():
    source, target = different(models.root_weight_net)
    source.scale.assign([3.0, 4.0])
    record = transfer(source, target)
    assert [entry.path for entry in record.copied] == ["root_weight", "head"]
    np.testing.assert_array_equal(target.scale, [3.0, 4.0])


@pytest.mark.parametrize("builder", [models.dense_net, models.nested_net, models.sequence_net])
def test_the_source_keeps_its_weights(builder):
    source, target = different(builder)
    before = source.get_weights()
    transfer(source, target)
    for old, new in zip(before, source.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_every_layer_of_the_target_with_weights_is_recorded_once():
    source, target = models.dense_net((8, 4)), models.dense_net((8, 5))
    record = transfer(source, target)
    assert sorted(entry.path for entry in record.copied + record.skipped) == ["d1", "d2", "head"]


def test_a_copy_by_path_says_so():
    record = transfer(*different(models.dense_net))
    assert [(entry.path, entry.reason) for entry in record.copied] == [
        (path, "same path and same shapes") for path in ("d1", "d2", "head")
    ]


def test_nothing_is_skipped_or_unused_between_equal_models():
    record = transfer(*different(models.nested_net))
    assert (record.skipped, record.unused) == ((), ())


def test_a_layer_of_another_shape_is_skipped_with_both_shapes():
    record = transfer(models.dense_net((8, 4), outputs=2), models.dense_net((8, 4), outputs=3))
    assert [(entry.path, entry.reason) for entry in record.skipped] == [
        ("head", "shapes differ: kernel (4, 2) in the source, (4, 3) here")
    ]


def test_a_skipped_layer_keeps_all_its_weights():
    source, target = models.dense_net((8, 4), seed=1), models.dense_net((8, 5), seed=2)
    source.get_layer("head").bias.assign([7.0, 7.0])  # the bias alone would fit
    before = target.get_layer("head").get_weights()
    transfer(source, target)
    for old, new in zip(before, target.get_layer("head").get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_layer_that_the_source_lacks_is_skipped():
    record = transfer(models.dense_net((8,)), models.dense_net((8, 8)))
    assert [(entry.path, entry.reason) for entry in record.skipped] == [
        ("d2", "no layer of that name in the source")
    ]


def test_a_layer_that_the_target_lacks_is_listed_as_unused():
    assert transfer(models.dense_net((8, 8)), models.dense_net((8,))).unused == ("d2",)


def test_a_layer_without_bias_is_skipped_with_the_numbers_of_weights():
    target = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, name="d1"), layers.Dense(4, use_bias=False, name="d2")]
    )
    record = transfer(models.dense_net((8, 4)), target)
    assert [(entry.path, entry.reason) for entry in record.skipped] == [
        ("d2", "the source layer has 2 weights, this one 1")
    ]


def test_a_bare_backbone_fills_the_same_backbone_inside_a_larger_model():
    source, target = models.backbone(seed=1), models.nested_net(seed=2)
    transfer(source, target)
    inside = target.get_layer("wrapper").get_layer("backbone")
    for old, new in zip(source.get_weights(), inside.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_a_copy_by_name_names_the_path_that_it_came_from():
    record = transfer(models.nested_net(seed=1), models.backbone(seed=2))
    assert [(entry.path, entry.reason) for entry in record.copied] == [
        (name, f"same name as wrapper/backbone/{name} and same shapes") for name in ("conv1", "bn1", "conv2")
    ]


def test_a_name_that_stands_twice_in_the_source_is_skipped_with_its_paths():
    target = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4, name="a"), layers.Dense(4, name="stem")], name="target"
    )
    record = transfer(models.deep_net(), target)
    assert [(entry.path, entry.reason) for entry in record.skipped] == [
        ("a", "the name is not unique in the source: middle/a, middle/inner/a")
    ]


def test_the_path_decides_where_a_name_stands_twice():
    source, target = different(models.deep_net)
    transfer(source, target)
    for find in (lambda m: m.get_layer("middle"), lambda m: m.get_layer("middle").get_layer("inner")):
        np.testing.assert_array_equal(find(target).get_layer("a").kernel, find(source).get_layer("a").kernel)


def test_a_subclassed_model_takes_over_the_weights_inside_its_blocks():
    record = transfer(*different(models.subclassed_net))
    assert [entry.path for entry in record.copied] == [
        "block1/conv",
        "block1/norm",
        "block2/conv",
        "block2/norm",
        "head",
    ]


def test_frozen_layers_take_over_weights_too():
    source, target = different(models.conv_net)
    target.trainable = False
    transfer(source, target)
    np.testing.assert_array_equal(target.get_weights()[0], source.get_weights()[0])


def test_weights_are_cast_to_the_targets_dtype():
    source = models.dense_net((8,), seed=1)
    target = keras.Sequential([keras.Input((6,)), layers.Dense(8, name="d1", dtype="float16")])
    transfer(source, target)
    expected = source.get_layer("d1").get_weights()[0].astype("float16")
    np.testing.assert_array_equal(target.get_layer("d1").get_weights()[0], expected)


def test_the_same_layer_afterwards_computes_the_same():
    source, target = different(models.conv_net)
    transfer(source, target)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(target(x), source(x))


def test_models_with_nothing_in_common_are_refused():
    source = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="left")], name="source")
    target = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="right")], name="target")
    message = (
        r"At least one layer must have the same name and shapes in both models\. "
        r"Received: source='source' with left; target='target', "
        r"where right: no layer of that name in the source"
    )
    with pytest.raises(ArgumentError, match=message):
        transfer(source, target)


@pytest.mark.parametrize("position", [0, 1])
def test_something_that_is_no_model_is_refused_on_either_side(position):
    pair = [models.dense_net(), models.dense_net()]
    pair[position] = "net"
    with pytest.raises(ArgumentTypeError, match=r"must be a Keras 3 model.*Received: model='net'"):
        transfer(*pair)


@pytest.mark.parametrize("position", [0, 1])
def test_an_unbuilt_model_is_refused_on_either_side(position):
    pair = [models.dense_net(), models.dense_net()]
    pair[position] = keras.Sequential([layers.Dense(1)], name="raw")
    with pytest.raises(UnbuiltModelError, match=r"must be built.*Received: model='raw'.*keras\.Input"):
        transfer(*pair)


# --- match="name" ------------------------------------------------------------------------------


def test_by_name_equal_shapes_are_copied_as_by_default():
    source, target = different(models.nested_net)
    record = transfer(source, target, match="name")
    assert record == transfer(*different(models.nested_net))
    for old, new in zip(source.get_weights(), target.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_by_name_a_layer_that_the_source_lacks_is_still_skipped():
    record = transfer(models.dense_net((8,)), models.dense_net((8, 8)), match="name")
    assert [entry.path for entry in record.skipped] == ["d2"]


def test_by_name_all_layers_of_other_shapes_are_listed():
    message = (
        r"With match='name', layers of the same name must have the same shapes\. "
        r"Received: source='sequential.*', target='sequential.*', "
        r"where d2: shapes differ: kernel \(8, 4\) in the source, \(8, 5\) here; "
        r"head: shapes differ: kernel \(4, 2\) in the source, \(5, 2\) here\. "
        r"Nothing was copied\. Rename them in one model, or pass match='name_and_shape'"
    )
    with pytest.raises(ArgumentError, match=message):
        transfer(models.dense_net((8, 4)), models.dense_net((8, 5)), match="name")


def test_by_name_nothing_is_copied_when_a_later_layer_differs():
    source, target = models.dense_net((8, 4), outputs=2, seed=1), models.dense_net((8, 4), outputs=3, seed=2)
    before = target.get_weights()
    with pytest.raises(ArgumentError, match="head: shapes differ"):
        transfer(source, target, match="name")
    for old, new in zip(before, target.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_by_name_another_number_of_weights_is_refused():
    target = keras.Sequential([keras.Input((6,)), layers.Dense(8, use_bias=False, name="d1")])
    with pytest.raises(ArgumentError, match=r"where d1: the source layer has 2 weights, this one 1\."):
        transfer(models.dense_net((8,)), target, match="name")


@pytest.mark.parametrize("match", ["shape", None, True])
def test_another_way_to_match_is_refused(match):
    message = rf"`match` must be 'name_and_shape' or 'name'\. Received: match={match!r}\."
    with pytest.raises(ArgumentError, match=message):
        transfer(models.dense_net(), models.dense_net(), match=match)


def test_a_normalisation_computes_with_what_was_copied():
    x = np.random.default_rng(0).normal(5, 3, (100, 4)).astype("float32")
    adapted = keras.layers.Normalization(name="n")
    adapted.adapt(x)
    source = keras.Sequential([keras.Input((4,)), adapted])
    target = keras.Sequential([keras.Input((4,)), keras.layers.Normalization(name="n")])
    tfkit.models.transfer_weights(source, target)
    np.testing.assert_array_equal(target.predict(x, verbose=0), source.predict(x, verbose=0))


def test_weights_of_another_kind_are_skipped():
    def net(**options):
        stack = [keras.layers.BatchNormalization(name="bn", **options), keras.layers.Dense(2, name="d")]
        return keras.Sequential([keras.Input((4,)), *stack])

    record = tfkit.models.transfer_weights(net(scale=False), net(center=False))
    assert [entry.path for entry in record.copied] == ["d"]
    assert record.skipped[0].reason == "the weights differ: beta in the source, gamma here"
