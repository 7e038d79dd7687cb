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
    with pytest.raises(
        tfkit.PruningError, match=r"which of its units stay, at least one\. Received: a plan with"
    ):
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
