"""Bounds of groups, plans that were edited, and layers that keep a state of their own."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models


def test_groups_keep_the_fewest_that_must_stay():
    model = models.dense_net((32, 32))
    for fewest, wanted in ((24, [24, 24]), ({"d2": 30}, [4, 30])):
        options = {"min_channels": fewest, "multiple_of": 1, "scope": "uniform"}
        with pytest.raises(tfkit.PruningError, match="must be possible"):
            tfkit.plan_channel_pruning(model, parameters=1e-3, **options)
        least = tfkit.plan_channel_pruning(model, ratio=1 - (sum(wanted) + 0.1) / 64, **options)
        assert list(least.table.channels_after)[:2] == wanted


def test_fewest_of_a_group_that_is_none_are_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"of groups\. Received: min_channels with 'd9'.*d1, d2"):
        tfkit.plan_channel_pruning(models.dense_net((32, 32)), ratio=0.5, min_channels={"d9": 8})
    with pytest.raises(tfkit.ArgumentError, match=r"at least 1\. Received: min_channels=0"):
        tfkit.plan_channel_pruning(models.dense_net((32, 32)), ratio=0.5, min_channels=0)


@pytest.mark.parametrize("kept", [(), (99,)])
def test_a_plan_that_was_edited_beyond_its_groups_is_refused(kept):
    model = models.dense_net((32, 32))
    plan = tfkit.plan_channel_pruning(model, ratio=0.5)
    first = dataclasses.replace(plan.groups[0], kept=kept)
    edited = dataclasses.replace(plan, groups=(first, *plan.groups[1:]))
    with pytest.raises(tfkit.PruningError, match=r"in order, each once\. Received: a plan with kept="):
        edited.apply(model)


def test_open_sizes_leave_the_work_out():
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(32, 3)(inputs)
    model = keras.Model(inputs, layers.Conv2D(4, 3)(x))
    plan = tfkit.plan_channel_pruning(model, parameters=0.5)
    assert [*plan.before] == [*plan.after] == ["parameters"]
    assert tfkit.ChannelPlan.from_json(plan.to_json()) == plan
    assert "parameters 2.05k to" in str(plan)


def test_an_adapted_normalization_stays_adapted():
    x = np.random.default_rng(0).normal(5.0, 3.0, (64, 6)).astype("float32")
    norm = layers.Normalization(name="norm")
    norm.adapt(x)
    stack = [norm, layers.Dense(32, name="a"), layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((6,)), *stack])
    plan = tfkit.plan_channel_pruning(model, ratio=0.5)
    wanted = (x - x.mean(0)) / x.std(0)
    for new in (plan.apply(model), plan.mask(model)):
        np.testing.assert_allclose(new.get_layer("norm")(x), wanted, atol=1e-4)
    np.testing.assert_allclose(plan.apply(model)(x), plan.mask(model)(x), atol=1e-5)


@pytest.mark.parametrize("kind", [layers.TextVectorization, layers.StringLookup])
def test_an_adapted_vocabulary_stays(kind):
    options = {"output_sequence_length": 4} if kind is layers.TextVectorization else {}
    words = kind(**options)
    words.adapt(np.array([["apple"], ["pear"], ["plum"]]))
    inputs = keras.Input((1,), dtype="string")
    x = layers.Embedding(8, 32)(words(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    plan = tfkit.plan_channel_pruning(model, ratio=0.5)
    texts = np.array([["apple"], ["plum"], ["other"]])
    smaller, masked = plan.apply(model), plan.mask(model)
    assert smaller.layers[1].get_vocabulary() == words.get_vocabulary()
    np.testing.assert_allclose(smaller(texts), masked(texts), atol=1e-6)


def test_layers_whose_work_is_not_known_are_named_by_a_warning():
    inputs = keras.Input((6, 4))
    x = layers.Bidirectional(layers.LSTM(8, return_sequences=True), name="both")(inputs)
    model = keras.Model(inputs, layers.Dense(2)(layers.Conv1D(32, 3)(x)))
    with pytest.warns(UserWarning, match=r"not known and counts as none: both\."):
        tfkit.plan_channel_pruning(model, flops=0.5)


def test_a_model_where_nothing_can_go_tells_what_stops_it():
    inputs = keras.Input((6, 4))
    x = layers.TimeDistributed(layers.Dense(8), name="each")(inputs)
    model = keras.Model(inputs, x)
    with pytest.raises(tfkit.PruningError, match=r"where none is \(each \(TimeDistributed\) does something"):
        tfkit.plan_channel_pruning(model, ratio=0.5)


def test_a_loss_may_be_named():
    model = models.dense_net((32,))
    x, y = np.random.default_rng(0).normal(size=(8, 6)), np.zeros((8, 2))
    named = tfkit.plan_channel_pruning(model, ratio=0.5, criterion="taylor", data=(x, y), loss="mse")
    given = tfkit.plan_channel_pruning(
        model, ratio=0.5, criterion="taylor", data=(x, y), loss=keras.losses.MeanSquaredError()
    )
    assert named == given


def test_a_plan_shows_itself_in_a_line(tmp_path):
    plan = tfkit.plan_channel_pruning(models.dense_net((32,)), ratio=0.5)
    assert repr(plan).startswith("<ChannelPlan of ")
    assert len(repr(plan)) < 200
    with pytest.raises(tfkit.OutputPathError, match=r"folder of `path` must exist"):
        plan.plot(tmp_path / "none" / "plan.png")
