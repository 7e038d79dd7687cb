"""`set_weight_decay` on every kind of optimizer, for which weights, and from which update on.

Most tests apply gradients by hand, the same to two optimizers. Where a traced train step matters,
the loss has gradient zero, so that a weight after n updates is its first value times Π (1 - η λ).
"""

import functools
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, optimizers

import tfkit
from tests import models
from tests.arrays import expect_equal

RATE = 0.25
X = np.ones((4, 6), "float32")
KINDS = {
    "momentum": lambda **options: optimizers.SGD(0.05, momentum=0.9, **options),
    "nesterov": lambda **options: optimizers.SGD(0.05, momentum=0.9, nesterov=True, **options),
    "global_clipnorm": lambda **options: optimizers.Adam(0.05, global_clipnorm=0.1, **options),
    "average": lambda **options: optimizers.SGD(0.05, use_ema=True, ema_overwrite_frequency=2, **options),
    "accumulation": lambda **options: optimizers.Adam(0.05, gradient_accumulation_steps=2, **options),
    "schedule": lambda **options: optimizers.SGD(
        optimizers.schedules.ExponentialDecay(0.1, 1, 0.5), **options
    ),
    **{
        kind.__name__: functools.partial(kind, 0.05)
        for kind in (
            optimizers.Adam,
            optimizers.AdamW,
            optimizers.Adadelta,
            optimizers.Adagrad,
            optimizers.Adamax,
            optimizers.Adafactor,
            optimizers.Ftrl,
            optimizers.Lamb,
            optimizers.Lion,
            optimizers.Muon,
            optimizers.Nadam,
            optimizers.RMSprop,
            optimizers.ScheduleFreeAdamW,
        )
    },
}


def net(optimizer=None, **options):
    model = models.dense_net()
    model.compile(optimizer or optimizers.SGD(RATE), "mse", **options)
    return model


def step(model, seed=0):
    """An update by gradients that depend on the seed alone."""
    draw = np.random.default_rng(seed).normal
    gradients = [keras.ops.cast(draw(size=v.shape), v.dtype) for v in model.trainable_variables]
    model.optimizer.apply(gradients, model.trainable_variables)


def rest(model):
    """An update whose gradient is zero."""
    zeros = [keras.ops.zeros_like(v) for v in model.trainable_variables]
    model.optimizer.apply(zeros, model.trainable_variables)


def numbers(model):
    return [np.array(v.numpy()) for v in [*model.variables, *model.optimizer.variables]]


def shrinking(model):
    """The weights that an update without gradient makes smaller."""
    for weight in model.trainable_variables:
        weight.assign(keras.ops.ones_like(weight))
    rest(model)
    return {"/".join(v.path.split("/")[-2:]) for v in model.trainable_variables if np.all(v.numpy() < 1.0)}


# --- against Keras ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_goes_as_a_decay_that_keras_was_given_at_first(kind):
    mine, theirs = net(KINDS[kind]()), net(KINDS[kind](weight_decay=0.3))
    theirs.optimizer.exclude_from_weight_decay(var_names=["bias"])
    tfkit.set_weight_decay(mine, 0.3)
    for seed in range(4):
        step(mine, seed)
        step(theirs, seed)
    expect_equal(numbers(mine), numbers(theirs))
    assert all(np.isfinite(each).all() for each in numbers(mine))


@pytest.mark.parametrize("kind", ["momentum", "Adam", "AdamW", "Nadam", "Lion", "accumulation", "average"])
def test_keeps_each_of_the_optimizers_variables_amid_training(kind):
    model = net(KINDS[kind]())
    for seed in range(3):
        step(model, seed)
    before, places = numbers(model), [id(v) for v in model.optimizer.variables]
    tfkit.set_weight_decay(model, 0.3)
    assert [id(v) for v in model.optimizer.variables] == places
    expect_equal(numbers(model), before)


@pytest.mark.parametrize("kind", ["momentum", "Adam", "Nadam", "Lion"])
def test_set_amid_training_goes_as_if_keras_had_done_so(kind):
    # Keras reads `weight_decay` anew in each update that is not traced.
    mine, theirs = net(KINDS[kind]()), net(KINDS[kind]())
    theirs.optimizer.exclude_from_weight_decay(var_names=["bias"])
    for seed in range(2):
        step(mine, seed)
        step(theirs, seed)
    tfkit.set_weight_decay(mine, 0.3)
    theirs.optimizer.weight_decay = 0.3
    for seed in range(2, 4):
        step(mine, seed)
        step(theirs, seed)
    expect_equal(numbers(mine), numbers(theirs))


def test_goes_as_keras_does_under_a_loss_scale():
    def scaled(**options):
        return net(optimizers.LossScaleOptimizer(optimizers.SGD(0.05, momentum=0.9, **options), 8.0))

    mine, theirs = scaled(), scaled(weight_decay=0.3)
    theirs.optimizer.inner_optimizer.exclude_from_weight_decay(var_names=["bias"])
    tfkit.set_weight_decay(mine, 0.3)
    for model in (mine, theirs):
        model.fit(X, X[:, :2], epochs=3, verbose=0, shuffle=False)
    expect_equal(numbers(mine), numbers(theirs))


def test_reaches_the_weights_that_muon_leaves_to_adam():
    model = net(optimizers.Muon(RATE, adam_weight_decay=0.0, exclude_layers=["head"]))
    tfkit.set_weight_decay(model, 0.5)
    assert shrinking(model) == {"d1/kernel", "d2/kernel", "head/kernel"}


@given(rate=st.floats(0.0, 2.0), decay=st.floats(0.0, 2.0), updates=st.integers(1, 3))
@settings(deadline=None, max_examples=8)
@pytest.mark.parametrize("kind", [optimizers.SGD, optimizers.Adam, optimizers.Lion])
def test_without_a_gradient_a_weight_shrinks_by_rate_times_decay(kind, rate, decay, updates):
    model = keras.Sequential([keras.Input((1,)), layers.Dense(1, kernel_initializer="ones")])
    model.compile(kind(rate), "mse")
    tfkit.set_weight_decay(model, decay)
    for _ in range(updates):
        rest(model)
    expected = (1 - rate * decay) ** updates
    np.testing.assert_allclose(model.layers[0].kernel[0, 0], expected, rtol=1e-4, atol=1e-6)


def test_a_decay_of_zero_turns_it_off():
    assert shrinking(tfkit.set_weight_decay(net(optimizers.AdamW(RATE, weight_decay=0.5)), 0.0)) == set()


# --- which weights -----------------------------------------------------------------------------------------


def test_weights_of_one_dimension_are_left_out():
    assert shrinking(tfkit.set_weight_decay(net(), 0.1)) == {"d1/kernel", "d2/kernel", "head/kernel"}


def test_normalisation_is_left_out():
    model = models.conv_net()
    model.compile(optimizers.SGD(RATE), "mse")
    assert shrinking(tfkit.set_weight_decay(model, 0.1)) == {"conv1/kernel", "conv2/kernel", "head/kernel"}


@pytest.mark.parametrize("layer", ["both", "mha"], ids=["GRU", "attention"])
def test_biases_of_two_dimensions_are_biases_too(layer):
    model = models.sequence_net()
    model.compile(optimizers.SGD(RATE), "mse")
    table = tfkit.training_table(tfkit.set_weight_decay(model, 0.1))
    mine = table[table.path.str.startswith(layer)]
    assert {*mine.variable} > {"bias"}
    assert (mine[mine.variable == "bias"].weight_decay == 0).all()
    np.testing.assert_allclose(mine[mine.variable != "bias"].weight_decay, 0.1, rtol=1e-6)


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("head", {"d1/kernel", "d2/kernel"}),
        ("d*", {"head/kernel"}),
        (lambda layer: layer.name == "d2", {"d1/kernel", "head/kernel"}),
        ("*", set()),
        ([], {"d1/kernel", "d2/kernel", "head/kernel"}),
    ],
)
def test_layers_may_be_left_out(exclude, left):
    assert shrinking(tfkit.set_weight_decay(net(), 0.1, exclude=exclude)) == left


def test_a_layer_that_is_left_out_keeps_its_bias_too():
    model = tfkit.set_weight_decay(net(), 0.1, exclude="d1", one_dimensional=True)
    assert shrinking(model) == {"d2/kernel", "d2/bias", "head/kernel", "head/bias"}


def test_a_path_tells_layers_of_one_name_apart():
    model = models.deep_net()
    model.compile(optimizers.SGD(RATE), "mse")
    tfkit.set_weight_decay(model, 0.1, exclude="middle/inner/a")
    table = tfkit.training_table(model).query("variable == 'kernel'")
    assert table[table.weight_decay == 0].path.tolist() == ["middle/inner/a"]


def test_another_call_replaces_what_was_left_out():
    model = tfkit.set_weight_decay(net(), 0.1, exclude="head")
    assert shrinking(tfkit.set_weight_decay(model, 0.1, exclude="d1")) == {"d2/kernel", "head/kernel"}


def test_a_frozen_layer_decays_once_it_trains():
    model = tfkit.configure_base_model(net(), "head")
    tfkit.set_weight_decay(model, 0.1)
    assert shrinking(model) == {"head/kernel"}
    tfkit.configure_base_model(model, ["d1", "head"])
    assert shrinking(model) == {"d1/kernel", "head/kernel"}


def test_the_same_call_again_changes_nothing():
    once, twice = net(KINDS["Adam"]()), net(KINDS["Adam"]())
    tfkit.set_weight_decay(once, 0.1, exclude="d1")
    for _ in range(2):
        tfkit.set_weight_decay(twice, 0.1, exclude="d1")
    for model in (once, twice):
        step(model)
    expect_equal(numbers(twice), numbers(once))
    assert type(twice.optimizer) is type(once.optimizer)


def test_the_same_model_is_returned():
    model = net()
    assert tfkit.set_weight_decay(model, 0.1) is model


# --- while it trains ----------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("tfkit.tests")
def no_gradient(_, output):
    return 0.0 * keras.ops.mean(output)


def resting(**options):
    """One weight, 1 at first, whose loss has no gradient."""
    dense = layers.Dense(1, use_bias=False, kernel_initializer="ones", name="dense")
    model = keras.Sequential([keras.Input((6,)), dense])
    model.compile(optimizers.SGD(RATE, **options), no_gradient)
    return model


def fit(model, *callbacks):
    """Four updates; returns the weight."""
    model.fit(X, X[:, :1], batch_size=1, verbose=0, callbacks=list(callbacks))
    return float(model.get_weights()[0][0, 0])


def after(decay):
    return pytest.approx((1 - RATE * decay) ** 4, rel=1e-5)


def traces(model):
    inside = [cell.cell_contents for cell in model.train_function.__closure__]
    return sum(each.experimental_get_tracing_count() for each in inside if hasattr(each, "python_function"))


def by_attribute(model, decay):
    model.optimizer.weight_decay = decay


each_assignment = pytest.mark.parametrize(
    "assign", [by_attribute, tfkit.set_weight_decay], ids=["attribute", "call"]
)


@each_assignment
def test_a_change_holds_from_the_next_update_of_the_same_fit(assign):
    model, decays, weights = tfkit.set_weight_decay(resting(), 0.0), [0.0, 0.5, 2.0, 1.0], []
    change = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: assign(model, decays[batch]),
        on_train_batch_end=lambda batch, logs: weights.append(model.get_weights()[0][0, 0]),
    )
    fit(model, change)
    np.testing.assert_allclose(weights, np.cumprod(1 - RATE * np.array(decays)), rtol=1e-6)


@each_assignment
def test_a_change_costs_no_trace(assign):
    model = tfkit.set_weight_decay(resting(), 0.1)
    fit(model)
    function = model.train_function
    assert traces(model) == 1
    assign(model, 0.7)
    fit(model)
    assert model.train_function is function
    assert traces(model) == 1


def test_reaches_a_train_step_that_was_traced_without_a_decay():
    model = resting()
    fit(model)
    assert fit(tfkit.set_weight_decay(model, 0.4)) == after(0.4)


def test_reaches_a_train_step_that_was_traced_with_other_exclusions():
    model = tfkit.set_weight_decay(resting(), 0.4, exclude="*")
    assert fit(model) == 1.0
    assert fit(tfkit.set_weight_decay(model, 0.4)) == after(0.4)


def test_reaches_a_train_step_that_was_traced_with_a_decay_of_keras():
    model = resting(weight_decay=0.0)  # what is left out stays as it was: nothing
    fit(model)
    assert fit(tfkit.set_weight_decay(model, 0.4)) == after(0.4)


def test_an_assignment_reaches_a_train_step_once_multipliers_were_set():
    model = resting(weight_decay=0.0)
    fit(model)
    tfkit.set_learning_rate_multipliers(model, {"dense": 1.0})
    model.optimizer.weight_decay = 0.4
    assert fit(model) == after(0.4)


def test_an_assignment_reaches_through_a_loss_scale():
    model = net(optimizers.LossScaleOptimizer(optimizers.SGD(RATE)))
    tfkit.set_weight_decay(model, 0.1)
    model.optimizer.weight_decay = 0.7
    assert tfkit.training_table(model).weight_decay.max() == pytest.approx(0.7)


def test_none_turns_it_off():
    model = tfkit.set_weight_decay(resting(), 0.5)
    model.optimizer.weight_decay = None
    assert fit(model) == 1.0


def test_the_decay_follows_the_rate_of_a_curve():
    rates = [0.1, 0.4, 0.2, 0.8]
    curve = tfkit.LearningRateCurve(lambda place: rates[int(place)])
    expected = np.prod(1 - 0.5 * np.array(rates))
    assert fit(tfkit.set_weight_decay(resting(), 0.5), curve) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 1e-8, 0.3])
def test_the_optimizer_tells_its_decay(decay):
    assert float(tfkit.set_weight_decay(net(), decay).optimizer.weight_decay) == pytest.approx(decay)


# --- refusals -----------------------------------------------------------------------------------------------


def test_a_refused_decay_is_not_called_a_learning_rate():
    with pytest.raises(tfkit.ArgumentError, match=r"Received: rate=-1\.") as refusal:
        tfkit.set_weight_decay(net(), -1)
    assert "learning rate" not in str(refusal.value)


@pytest.mark.parametrize("rate", [math.nan, math.inf, "0.1", None, True])
def test_a_decay_that_is_no_finite_number(rate):
    with pytest.raises(tfkit.ArgumentError, match=r"`rate` must be a finite number\. Received: rate="):
        tfkit.set_weight_decay(net(), rate)


def test_something_that_is_no_model():
    with pytest.raises(tfkit.ArgumentTypeError, match=r"`model` must be a Keras 3 model .*Received: model=3"):
        tfkit.set_weight_decay(3, 0.1)


def test_several_optimizers_under_a_loss_scale():
    two = optimizers.OptimizerMap(optimizers.Adam(0.1), {".*head.*": optimizers.SGD(0.1)})
    model = net(optimizers.LossScaleOptimizer(optimizers.MultiOptimizer(two)))
    rule = (
        r"One optimizer must train the model; rules by variable make several unnecessary\. "
        r"Received: optimizer=MultiOptimizer of 2 optimizers\."
    )
    with pytest.raises(tfkit.ArgumentError, match=rule):
        tfkit.set_weight_decay(model, 0.1)


def test_a_misspelt_exclusion():
    rule = r"must match at least one layer\. Received: pattern='haed'\. Nearest names: head"
    model = net()
    with pytest.raises(tfkit.LayerNotFoundError, match=rule):
        tfkit.set_weight_decay(model, 0.1, exclude=["d1", "haed"])
    assert type(model.optimizer) is optimizers.SGD
