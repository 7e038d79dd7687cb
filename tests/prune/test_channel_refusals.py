"""What channel pruning refuses before anything is computed, and what the message says."""

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers

import tfkit
from tests import models
from tfkit.prune.target import read_target

PLAN = tfkit.plan_channel_pruning

# --- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "error", "message"),
    [
        ({}, tfkit.ArgumentError, r"Exactly one target.*flops, parameters, ratio.*Received: none\."),
        ({"flops": 0.5, "ratio": 0.2}, tfkit.ArgumentError, r"Exactly one.*Received: flops=0\.5, ratio=0\.2"),
        ({"flops": "half"}, tfkit.ArgumentTypeError, r"`flops` must be a number.*Received: flops='half'"),
        ({"ratio": True}, tfkit.ArgumentTypeError, r"`ratio` must be a number.*Received: ratio=True"),
        ({"ratio": 0}, tfkit.ArgumentError, r"fraction of the channels that goes.*\(0, 1\).*ratio=0\. Write"),
        ({"ratio": 1.0}, tfkit.ArgumentError, r"`ratio` is the fraction.*Received: ratio=1\.0.*Write 0\.5"),
        ({"ratio": -0.5}, tfkit.ArgumentError, r"must lie in \(0, 1\).*Received: ratio=-0\.5"),
        ({"ratio": float("nan")}, tfkit.ArgumentError, r"must lie in \(0, 1\).*Received: ratio=nan"),
        ({"latency": 2}, tfkit.ArgumentError, r"today's latency.*\(0, 1\).*Received: latency=2"),
        ({"flops": 0.0}, tfkit.ArgumentError, r"multiplications and additions a sample, or a frac.*=0\.0"),
        ({"flops": 1}, tfkit.ArgumentError, r"`flops` must be a number of.*Received: flops=1\."),
        ({"parameters": -3}, tfkit.ArgumentError, r"number of weights, or a fraction.*parameters=-3"),
        ({"parameters": float("inf")}, tfkit.ArgumentError, r"number of weights.*Received: parameters=inf"),
        ({"flops": float("nan")}, tfkit.ArgumentError, r"number of mult.*Received: flops=nan"),
        ({"latency_ms": 0}, tfkit.ArgumentError, r"number of milliseconds\. Received: latency_ms=0"),
    ],
    ids=str,
)  # fmt: skip
def test_targets(targets, error, message):
    with pytest.raises(error, match=message):
        PLAN(models.dense_net(), **targets)


@pytest.mark.parametrize(
    ("name", "amount", "whole", "left"),
    [
        ("flops", 0.25, 800, 200),
        ("flops", 300, 800, 150),  # of multiply-adds, two operations each
        ("parameters", 0.25, 800, 200),
        ("parameters", 300, 800, 300),
        ("ratio", 0.25, 800, 600),
        ("latency_ms", 0.5, 800, 0.5),
        ("latency_ms", 1, 800, 1),
        ("latency", 0.25, 800, 200),
    ],
)
def test_what_a_target_leaves(name, amount, whole, left):
    assert read_target(**{name: amount}).of(whole) == left


# --- other arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"criterion": "l3"}, tfkit.ArgumentError, r"`criterion` must be one of l1, l2.*criterion='l3'"),
        ({"scope": "local"}, tfkit.ArgumentError, r"`scope` must be one of global, uni.*scope='local'"),
        ({"multiple_of": 0}, tfkit.ArgumentError, r"`multiple_of`.*Received: multiple_of=0"),
        ({"multiple_of": 1.5}, tfkit.ArgumentError, r"`multiple_of`.*Received: multiple_of=1\.5"),
        ({"batch_size": 0}, tfkit.ArgumentError, r"`batch_size`.*Received: batch_size=0"),
        ({"max_ratio": 1.0}, tfkit.ArgumentError, r"largest fraction of a group.*\(0, 1\).*max_ratio=1\.0"),
        ({"max_ratio": 0}, tfkit.ArgumentError, r"largest fraction.*Received: max_ratio=0"),
        ({"max_ratio": "all"}, tfkit.ArgumentError, r"largest fraction.*Received: max_ratio='all'"),
        ({"max_ratio": True}, tfkit.ArgumentError, r"largest fraction.*Received: max_ratio=True"),
        ({"scope": "sensitivity"}, tfkit.ArgumentError, r"scope='sensitivity', sensitivity=None.*Measure it"),
        ({"sensitivity": pd.DataFrame()}, tfkit.ArgumentError, r"scope='global', sensitivity=a table.*Meas"),
        ({"layers": "d9"}, tfkit.LayerNotFoundError, r"Received: pattern='d9'.*d1"),
        (
            {"input_shape": (7,)},
            tfkit.ArgumentError,
            r"agrees with it.*input_shape=\(7,\), model inp",
        ),
    ],
    ids=lambda each: str(each)[:40],
)
def test_arguments(options, error, message):
    with pytest.raises(error, match=message):
        PLAN(models.dense_net(), ratio=0.5, **options)


@pytest.mark.parametrize("shape", [(8, 8, 4), (8, 8), (8, 8, 3, 1)], ids=str)
def test_an_input_shape_that_contradicts_the_model(shape):
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(8, 3), layers.Conv2D(2, 3)])
    with pytest.raises(tfkit.ArgumentError, match=r"agrees with it\. Received: input_shape=\(8, 8.*inputs"):
        PLAN(model, flops=0.5, input_shape=shape)


def test_a_table_of_other_groups():
    table = pd.DataFrame([("d9", 0.5, -0.1)], columns=["path", "sparsity", "change"])
    with pytest.raises(tfkit.ArgumentError, match=r"every group.*Received: a table without d1, d2\. Measure"):
        PLAN(models.dense_net(), ratio=0.5, scope="sensitivity", sensitivity=table)


# --- models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [7, None, "model.keras"], ids=str)
def test_something_that_is_no_model(model):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"must be a Keras 3 model.*Received: model="):
        PLAN(model, ratio=0.5)


def test_a_subclassed_model():
    message = r"functional or Sequential.*Received: model='subclassed' of type SubclassedNet.*Build it with"
    with pytest.raises(tfkit.PruningError, match=message):
        PLAN(models.subclassed_net(), ratio=0.5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_no_number(value):
    model = models.dense_net()
    model.get_layer("d2").bias.assign([value] * 4)
    with pytest.raises(tfkit.NonFiniteWeightsError, match=r"finite number.*Received: .*d2/bias"):
        PLAN(model, ratio=0.5)


def test_a_model_that_is_being_pruned_by_magnitude_until_that_ends():
    model = models.dense_net()
    tfkit.prune_low_magnitude(model, tfkit.ConstantSparsity(0.5, begin_step=0))
    message = r"not held at zero by masks.*Received: model='seq.*at work on d1/kernel.*tfkit\.strip_pruning"
    with pytest.raises(tfkit.PruningError, match=message):
        PLAN(model, ratio=0.5)
    assert PLAN(tfkit.strip_pruning(model), ratio=0.5, multiple_of=1).apply(model).layers[0].units < 8


def test_a_model_whose_channels_must_all_stay():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "softmax", name="d"), layers.Dense(2)])
    message = r"must be free to lose some.*where none is \(d: d has the activation softmax.*Change `layers`"
    with pytest.raises(tfkit.PruningError, match=message):
        PLAN(model, ratio=0.5)


def test_a_group_of_one_channel_can_lose_none():
    plan = PLAN(models.dense_net((1, 8)), ratio=0.5)
    assert plan.table.set_index("group").reason["d1"] == (
        "no channel can go: they go together, or as many must stay"
    )


def test_only_groups_of_one_channel():
    with pytest.raises(tfkit.PruningError, match=r"lose some.*none is \(d1: no channel can go: they"):
        PLAN(models.dense_net((1,)), ratio=0.5)


def test_layers_that_reach_no_group():
    with pytest.raises(tfkit.PruningError, match=r"lose some.*d1 is not among `layers`; d2: d2 is not among"):
        PLAN(models.dense_net(), ratio=0.5, layers="head")


def test_a_layer_that_cannot_be_made_again():
    class Odd(layers.Layer):
        def __init__(self, gain):
            super().__init__(name="odd")
            self.gain = gain

        def call(self, x):
            return x * self.gain

    inputs = keras.Input((6,))
    x = layers.Dense(8, name="d1")(inputs)
    x = layers.Dense(4, name="d2")(Odd(2.0)(layers.Dense(8)(x)))
    model = keras.Model(inputs, x, name="strange")
    plan = PLAN(model, ratio=0.5)
    message = r"(?s)made again from its configuration.*'strange' with odd \(Odd\), which fails.*Give the"
    for carry_out in (plan.apply, plan.mask):
        with pytest.raises(tfkit.PruningError, match=message):
            carry_out(model)
