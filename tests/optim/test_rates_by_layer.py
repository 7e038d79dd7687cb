"""Multipliers with every kind of optimizer, and the table of what training does to each weight.

Factors are powers of two, so that rate · factor is exact and two optimizers may be compared bit for
bit: one whose layer has a factor, and one that was made with the scaled rate.
"""

import functools
import math

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, optimizers, regularizers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tests.optim.test_decay_rules import KINDS, numbers, rest, step

RATE = 0.05
COLUMNS = ["path", "variable", "shape", "trainable", "learning_rate_multiplier", "weight_decay", "l1", "l2"]


def net(optimizer=None, **options):
    model = models.dense_net()
    model.compile(optimizer or optimizers.SGD(RATE), "mse", **options)
    return model


def values(model, layer):
    return [np.array(each) for each in model.get_layer(layer).get_weights()]


def factors(model):
    table = tfkit.training_table(model)
    return {row.path: row.learning_rate_multiplier for row in table.itertuples() if row.variable == "kernel"}


# --- what a layer does -------------------------------------------------------------------------------------

EXACT = {name: make for name, make in KINDS.items() if isinstance(make, functools.partial)}
SCALED = {
    **EXACT,
    "SGD": functools.partial(optimizers.SGD, RATE, momentum=0.9),
    "accumulation": functools.partial(optimizers.Adam, RATE, gradient_accumulation_steps=2),
    "clipped": functools.partial(optimizers.Adam, RATE, clipnorm=0.1),
    "average": functools.partial(optimizers.SGD, RATE, use_ema=True, ema_overwrite_frequency=2),
}


def at(make, factor):
    """The same optimizer at a scaled rate."""
    return make.func(RATE * factor, *make.args[1:], **make.keywords)


@pytest.mark.parametrize("kind", SCALED)
def test_a_layer_goes_as_under_an_optimizer_of_its_rate(kind):
    mine, slow = net(SCALED[kind]()), net(at(SCALED[kind], 0.25))
    tfkit.set_learning_rate_multipliers(mine, {"d1": 0.25})
    for seed in range(3):
        for model in (mine, slow):
            step(model, seed)
    expect_equal(values(mine, "d1"), values(slow, "d1"))
    assert not np.array_equal(values(mine, "d2")[0], values(slow, "d2")[0])


def test_the_other_layers_go_as_before():
    mine, plain = net(optimizers.Adam(RATE)), net(optimizers.Adam(RATE))
    tfkit.set_learning_rate_multipliers(mine, {"d1": 4.0})
    for seed in range(3):
        for model in (mine, plain):
            step(model, seed)
    expect_equal(values(mine, "d2"), values(plain, "d2"))
    expect_equal(values(mine, "head"), values(plain, "head"))


@pytest.mark.parametrize("kind", ["SGD", "Adam", "Lion", "AdamW", "accumulation"])
def test_its_decay_is_that_of_its_rate_too(kind):
    mine, slow = net(SCALED[kind]()), net(at(SCALED[kind], 0.25))
    for model in (mine, slow):
        tfkit.set_weight_decay(model, 0.5)
    tfkit.set_learning_rate_multipliers(mine, {"d1": 0.25})
    for seed in range(4):
        for model in (mine, slow):
            step(model, seed)
    expect_equal(values(mine, "d1"), values(slow, "d1"))


def test_so_it_is_for_weights_that_muon_leaves_to_adam():
    model = net(optimizers.Muon(RATE, adam_weight_decay=0.5, exclude_layers=["head"]))
    tfkit.set_learning_rate_multipliers(model, {"head": 0.25})
    before = values(model, "head")[0]
    rest(model)
    np.testing.assert_allclose(values(model, "head")[0], before * (1 - 0.25 * RATE * 0.5), rtol=1e-6)


@given(
    chosen=st.dictionaries(st.sampled_from(["d1", "d2", "head"]), st.floats(0.01, 100.0), min_size=1),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=15)
def test_sgd_moves_each_weight_by_rate_factor_and_gradient(chosen, seed):
    model = net()
    tfkit.set_learning_rate_multipliers(model, chosen)
    before = numbers(model)
    step(model, seed)
    draw = np.random.default_rng(seed).normal
    for old, variable in zip(before, model.trainable_variables, strict=False):
        factor = chosen.get(variable.path.split("/")[-2], 1.0)
        expected = old - RATE * factor * draw(size=variable.shape)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_holds_under_a_loss_scale():
    def scaled(rate):
        return net(optimizers.LossScaleOptimizer(optimizers.SGD(rate), initial_scale=8.0), run_eagerly=True)

    mine, slow = scaled(RATE), scaled(RATE / 4)
    tfkit.set_learning_rate_multipliers(mine, {"*": 0.25})
    x = np.ones((4, 6), "float32")
    for model in (mine, slow):
        model.fit(x, x[:, :2], verbose=0)
    expect_equal(mine.get_weights(), slow.get_weights())


def test_holds_under_a_schedule_of_keras():
    schedule = functools.partial(optimizers.schedules.ExponentialDecay, decay_steps=1, decay_rate=0.5)
    mine, slow = net(optimizers.SGD(schedule(RATE))), net(optimizers.SGD(schedule(RATE / 4)))
    tfkit.set_learning_rate_multipliers(mine, {"*": 0.25})
    for seed in range(3):
        for model in (mine, slow):
            step(model, seed)
    expect_equal(mine.get_weights(), slow.get_weights())


def test_holds_with_gradients_that_are_given_sparsely():
    def embedding(rate):
        keras.utils.set_random_seed(0)
        stack = [keras.Input((3,), dtype="int32"), layers.Embedding(9, 4, name="e"), layers.Flatten()]
        model = keras.Sequential([*stack, layers.Dense(1, name="head")])
        model.compile(optimizers.Adam(rate), "mse", run_eagerly=True)
        return model

    mine, slow = embedding(RATE), embedding(RATE / 4)
    tfkit.set_learning_rate_multipliers(mine, {"e": 0.25})
    for model in (mine, slow):
        model.fit(np.array([[1, 2, 3]]), np.ones((1, 1)), verbose=0)
    expect_equal(values(mine, "e"), values(slow, "e"))


def test_the_ratio_holds_through_a_plateau_over_a_curve():
    model = net(optimizers.SGD(RATE), run_eagerly=True)
    model.compile(optimizers.SGD(RATE), lambda _, output: 0.0 * keras.ops.mean(output), run_eagerly=True)
    tfkit.set_weight_decay(model, 0.5)
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.25})
    before = {name: values(model, name)[0] for name in ("d1", "d2")}
    callbacks = [
        tfkit.LearningRateCurve(lambda step: 1.0 / (1 + step)),
        tfkit.ReduceLROnPlateau("loss", factor=0.5, patience=1),
    ]
    x = np.ones((2, 6), "float32")
    model.fit(x, x[:, :2], batch_size=1, epochs=3, verbose=0, callbacks=callbacks)
    rates = np.array([1, 1 / 2, 1 / 3, 1 / 4, 0.5 / 5, 0.5 / 6])  # no improvement after the first epoch
    for name, factor in (("d1", 0.25), ("d2", 1.0)):
        shrunk = before[name] * np.prod(1 - rates * factor * 0.5)
        np.testing.assert_allclose(values(model, name)[0], shrunk, rtol=1e-5)


# --- which factor holds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"*": 0.1, "d2": 0.5}, {"d1": 0.1, "d2": 0.5, "head": 0.1}),
        ({"d2": 0.5, "*": 0.1}, {"d1": 0.1, "d2": 0.1, "head": 0.1}),
        ({"d1..d2": 0.5, "d2..head": 2}, {"d1": 0.5, "d2": 2.0, "head": 2.0}),
        ({("d1", "head"): 0.5}, {"d1": 0.5, "d2": 1.0, "head": 0.5}),
        ({"!head": 0.5}, {"d1": 0.5, "d2": 0.5, "head": 1.0}),
        ({}, {"d1": 1.0, "d2": 1.0, "head": 1.0}),
    ],
    ids=str,
)
def test_the_last_pattern_that_matches_holds(given, expected):
    assert factors(tfkit.set_learning_rate_multipliers(net(), given)) == expected


def test_layers_themselves_are_patterns():
    model = net()
    tfkit.set_learning_rate_multipliers(model, {model.get_layer("d2"): 0.5})
    assert factors(model) == {"d1": 1.0, "d2": 0.5, "head": 1.0}


def test_a_path_tells_layers_of_one_name_apart():
    model = models.deep_net()
    model.compile("sgd", "mse")
    tfkit.set_learning_rate_multipliers(model, {"middle/inner/a": 0.5})
    assert {path for path, factor in factors(model).items() if factor == 0.5} == {"middle/inner/a"}


def test_a_decay_set_before_or_after_stays():
    before = tfkit.set_learning_rate_multipliers(tfkit.set_weight_decay(net(), 0.5, exclude="d1"), {"d2": 2})
    after = tfkit.set_weight_decay(tfkit.set_learning_rate_multipliers(net(), {"d2": 2}), 0.5, exclude="d1")
    assert tfkit.training_table(before).equals(tfkit.training_table(after))
    assert tfkit.training_table(after).weight_decay.tolist() == [0, 0, 0.5, 0, 0.5, 0]


def test_a_pattern_may_match_frozen_layers_beside_others():
    model = tfkit.configure_base_model(net(), "head")
    tfkit.set_learning_rate_multipliers(model, {"*": 0.5})
    tfkit.configure_base_model(model, "*")
    assert set(factors(model).values()) == {0.5}


def test_keeps_the_optimizers_state():
    model = net(optimizers.Adam(RATE))
    step(model)
    before = numbers(model)
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.5})
    expect_equal(numbers(model), before)


def test_the_same_factors_again_cost_no_trace():
    model = tfkit.set_learning_rate_multipliers(net(), {"d1": 0.5})
    model.make_train_function()
    function = model.train_function
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.5})
    assert model.train_function is function


def test_the_same_model_is_returned():
    model = net()
    assert tfkit.set_learning_rate_multipliers(model, {"d1": 0.5}) is model


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0, -1, math.nan, math.inf, "0.1", None, True])
def test_a_factor_that_is_no_number_above_zero(factor):
    rule = r"`multipliers\['d1'\]` must be .*Received: multipliers\['d1'\]="
    model = net()
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.set_learning_rate_multipliers(model, {"d1": factor})
    assert type(model.optimizer) is optimizers.SGD


def test_a_pattern_of_frozen_layers_alone():
    rule = (
        r"A multiplier must reach at least one weight that trains\. "
        r"Received: 'd\*', which matches frozen layers only\. "
        r"Let them train first with tfkit\.configure_base_model, or leave the pattern out\."
    )
    model = tfkit.configure_base_model(net(), "head")
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.set_learning_rate_multipliers(model, {"head": 0.5, "d*": 0.1})


def test_several_optimizers():
    two = optimizers.OptimizerMap(optimizers.Adam(0.1), {".*head.*": optimizers.SGD(0.1)})
    rule = r"One optimizer must train the model; .*Received: optimizer=MultiOptimizer of 2 optimizers\."
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.set_learning_rate_multipliers(net(optimizers.MultiOptimizer(two)), {"d1": 0.5})


# --- the table -----------------------------------------------------------------------------------------


def test_the_table_lists_every_weight_that_could_learn():
    model = models.conv_net()
    table = tfkit.training_table(model)
    assert table.columns.tolist() == COLUMNS
    expected = [
        ("conv1", "kernel", (3, 3, 3, 4)),
        ("conv1", "bias", (4,)),
        ("bn1", "gamma", (4,)),
        ("bn1", "beta", (4,)),
        ("conv2", "kernel", (3, 3, 4, 6)),
        ("conv2", "bias", (6,)),
        ("head", "kernel", (6, 2)),
        ("head", "bias", (2,)),
    ]
    assert list(zip(table.path, table.variable, table["shape"], strict=True)) == expected


def test_the_table_says_which_rule_holds_for_which_weight():
    model = net(optimizers.AdamW(RATE, weight_decay=0.25))
    tfkit.set_weight_decay(model, 0.5, exclude="head")
    tfkit.set_learning_rate_multipliers(model, {"d*": 0.5, "d2": 2.0})
    tfkit.add_weight_penalty(model, l1=0.125, l2=0.75, layers="d1")
    tfkit.configure_base_model(model, ["d2", "head"])
    expected = [
        ("d1", "kernel", (6, 8), False, 0.5, 0.5, 0.125, 0.75),
        ("d1", "bias", (8,), False, 0.5, 0.0, 0.0, 0.0),
        ("d2", "kernel", (8, 4), True, 2.0, 0.5, 0.0, 0.0),
        ("d2", "bias", (4,), True, 2.0, 0.0, 0.0, 0.0),
        ("head", "kernel", (4, 2), True, 1.0, 0.0, 0.0, 0.0),
        ("head", "bias", (2,), True, 1.0, 0.0, 0.0, 0.0),
    ]
    assert [tuple(row) for row in tfkit.training_table(model).itertuples(index=False)] == expected


def test_the_table_reads_what_keras_was_told():
    model = net(optimizers.SGD(RATE, weight_decay=0.5))
    model.optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert tfkit.training_table(model).weight_decay.tolist() == [0.5, 0, 0.5, 0, 0.5, 0]


def test_the_table_changes_nothing():
    model = net(optimizers.SGD(RATE, weight_decay=0.5))
    tfkit.training_table(model)
    assert type(model.optimizer) is optimizers.SGD


@pytest.mark.parametrize("scaled", [False, True])
def test_the_table_looks_inside_a_loss_scale(scaled):
    inner = optimizers.SGD(RATE, weight_decay=0.5)
    model = net(optimizers.LossScaleOptimizer(inner) if scaled else inner)
    assert tfkit.training_table(model).weight_decay.tolist() == [0.5] * 6


def test_the_table_looks_inside_several_optimizers():
    parts = optimizers.SGD(RATE, weight_decay=0.5), optimizers.SGD(RATE, weight_decay=0.25)
    several = optimizers.MultiOptimizer(optimizers.OptimizerMap(parts[0], {".*head.*": parts[1]}))
    assert tfkit.training_table(net(several)).weight_decay.tolist() == [0.5] * 4 + [0.25] * 2


def test_the_table_lists_a_shared_weight_once():
    table = tfkit.training_table(models.shared_net())
    assert table.path.str.endswith("shared").sum() == 2  # kernel and bias


@pytest.mark.parametrize("build", [models.root_weight_net, models.gated_net, models.tied_net])
def test_the_table_lists_each_trainable_weight_of_unusual_models(build):
    model = build()
    shapes = sorted(tuple(v.shape) for v in model.trainable_variables)
    assert sorted(tfkit.training_table(model)["shape"]) == shapes


def test_the_table_shows_no_factor_for_a_penalty_of_another_kind():
    model = models.dense_net()
    model.get_layer("d1").kernel.regularizer = regularizers.OrthogonalRegularizer()
    assert tfkit.training_table(model)[["l1", "l2"]].to_numpy().tolist() == [[0.0, 0.0]] * 6


def test_the_table_of_a_model_without_weights_is_empty():
    table = tfkit.training_table(keras.Sequential([keras.Input((3,)), layers.ReLU()]))
    assert isinstance(table, pd.DataFrame)
    assert table.columns.tolist() == COLUMNS
    assert len(table) == 0


def test_no_table_of_something_that_is_no_model():
    with pytest.raises(tfkit.ArgumentTypeError, match=r"`model` must be a Keras 3 model .*Received: model=3"):
        tfkit.training_table(3)


def test_no_table_of_an_unbuilt_model():
    with pytest.raises(tfkit.UnbuiltModelError, match=r"`model` must be built.*Received: model='raw'"):
        tfkit.training_table(keras.Sequential([layers.Dense(1)], name="raw"))
