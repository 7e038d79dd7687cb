"""A compiled model's training state: put back bit for bit, and brought up to date."""

import keras
import numpy as np
import pytest
from keras import layers, optimizers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tfkit import training
from tfkit.training import TrainingState, rebind_optimizer

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(12, 6)).astype("float32"), RANDOM.normal(size=(12, 2)).astype("float32")


def noisy_net():
    """Statistics, and seeds that training draws from."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(8, name="d1"),
            layers.BatchNormalization(name="bn"),
            layers.Dropout(0.5, seed=1, name="drop"),
            layers.Dense(2, name="head"),
        ]
    )


OPTIMIZERS = {
    "adam": lambda: optimizers.Adam(0.01, amsgrad=True),
    "average": lambda: optimizers.SGD(0.01, momentum=0.9, use_ema=True, ema_momentum=0.5),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2),
    "loss scale": lambda: optimizers.LossScaleOptimizer(
        optimizers.SGD(0.01, momentum=0.9), initial_scale=8.0, dynamic_growth_steps=2
    ),
    "several": lambda: optimizers.MultiOptimizer(
        optimizers.OptimizerMap(optimizers.Adam(0.01), {".*head.*": optimizers.SGD(0.01, momentum=0.9)})
    ),
}


def make(name="adam", *, prune=False, run_eagerly=True):
    model = noisy_net()
    if prune:
        tfkit.prune_low_magnitude(model, tfkit.PolynomialDecay(0.1, 0.9, 0, 20, frequency=1))
    model.compile(OPTIMIZERS[name](), "mse", metrics=["mae"], run_eagerly=run_eagerly)
    return model


def fit(model, epochs=1, **options):
    return model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, **options)


def parts(optimizer):
    inner = [optimizer.inner_optimizer] if hasattr(optimizer, "inner_optimizer") else []
    return [optimizer, *inner, *getattr(optimizer, "optimizers", [])]


def numbers(model):
    """Every number that training moves, as it is now."""
    held = [*model.variables, *model.metrics_variables]
    for part in parts(model.optimizer):
        held += part.variables
    return [np.array(variable.numpy()) for variable in held]


@pytest.fixture(scope="module")
def stories():
    """A state taken in the middle of training, once for all the tests that ask one thing of it."""
    told = {}

    def tell(name):
        if name not in told:
            model, twin = make(name), make(name)
            fit(model)
            fit(twin)
            before = numbers(model)
            state = TrainingState(model)
            fit(model, epochs=2, initial_epoch=1)
            changed = numbers(model)
            state.restore()
            told[name] = (model, twin, before, changed)
        return told[name]

    return tell


each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@each_optimizer
def test_every_number_is_put_back(stories, name):
    model, _, before, changed = stories(name)
    assert any(not np.array_equal(old, new) for old, new in zip(before, changed, strict=True))
    expect_equal(numbers(model), before)


@each_optimizer
def test_the_next_fit_goes_as_if_nothing_had_been(stories, name):
    model, twin, *_ = stories(name)
    mine, theirs = fit(model), fit(twin)
    assert mine.history == theirs.history
    expect_equal(numbers(model), numbers(twin))


def test_the_traced_step_and_the_history_are_put_back():
    model = make("average", run_eagerly=False)
    fit(model)
    function, history = model.train_function, model.history
    state = TrainingState(model)
    model.make_train_function(force=True)
    fit(model)
    state.restore()
    assert model.train_function is function
    assert model.history is history


@pytest.mark.parametrize("attribute", ["steps_per_execution", "stop_training", "_initial_epoch"])
def test_what_a_fit_may_leave_set_is_put_back(attribute):
    model = make()
    before = getattr(model, attribute, None)
    state = TrainingState(model)
    setattr(model, attribute, 7)
    state.restore()
    assert getattr(model, attribute, None) == before


def test_a_model_that_was_never_fitted_has_no_history_again():
    model = make()
    state = TrainingState(model)
    fit(model)
    state.restore()
    assert not hasattr(model, "history")
    assert model.train_function is None


@each_optimizer
def test_an_optimizer_that_was_unbuilt_is_unbuilt_again(name):
    model = make(name)
    state = TrainingState(model)
    model.optimizer.build(model.trainable_variables)
    state.restore()
    assert not any(part.built for part in parts(model.optimizer))
    assert not any("_momentum" in variable.path for variable in model.optimizer.variables)


@each_optimizer
def test_a_fit_after_an_unbuilt_state_goes_as_a_first_one(name):
    model, twin = make(name), make(name)
    state = TrainingState(model)
    fit(model)
    state.restore()
    mine, theirs = fit(model), fit(twin)
    assert mine.history == theirs.history
    expect_equal(numbers(model), numbers(twin))


def test_an_unbuilt_state_may_be_followed_by_a_fit_of_fewer_layers():
    model = make()
    state = TrainingState(model)
    fit(model)
    state.restore()
    tfkit.configure_base_model(model, "head")
    before = np.array(model.get_layer("d1").kernel)
    fit(model)
    np.testing.assert_array_equal(model.get_layer("d1").kernel, before)


def test_masks_and_clocks_of_pruning_are_put_back():
    model, twin = make(prune=True), make(prune=True)
    fit(model)
    fit(twin)
    zeros = np.count_nonzero(model.get_layer("d1").kernel)
    state = TrainingState(model)
    fit(model, epochs=3)
    assert np.count_nonzero(model.get_layer("d1").kernel) < zeros
    state.restore()
    fit(model)
    fit(twin)
    expect_equal(numbers(model), numbers(twin))


def test_not_a_number_is_put_back_too():
    model = make()
    fit(model)
    state = TrainingState(model)
    expected = numbers(model)
    for variable in [*model.variables, *model.optimizer.variables]:
        if "float" in variable.dtype:
            variable.assign(keras.ops.full(variable.shape, np.nan))
    state.restore()
    expect_equal(numbers(model), expected)


def test_a_state_can_be_put_back_twice():
    model = make()
    fit(model)
    state, expected = TrainingState(model), numbers(model)
    for _ in range(2):
        fit(model)
        state.restore()
        expect_equal(numbers(model), expected)


def test_rules_by_variable_stay():
    model = make()
    tfkit.set_learning_rate_multipliers(tfkit.set_weight_decay(model, 0.1), {"d1": 0.5})
    table = tfkit.training_table(model)
    state = TrainingState(model)
    fit(model)
    state.restore()
    assert tfkit.training_table(model).equals(table)


# --- bringing up to date ---------------------------------------------------------------------------------


def test_refreshing_does_nothing_to_a_model_that_is_not_compiled():
    model = models.dense_net()
    assert training.refresh_training(model) is None
    assert not model.compiled


def test_refreshing_a_model_without_an_optimizer_only_traces_anew():
    model = models.dense_net()
    model.compile(None, "mse")
    model.make_train_function()
    before = model.train_function
    training.refresh_training(model)
    assert model.train_function is not before


def test_refreshing_before_the_first_fit_builds_nothing():
    model = make("average")
    training.refresh_training(model)
    assert not model.optimizer.built
    assert model.train_function is None


def test_refreshing_makes_a_change_by_hand_current():
    model = make("average", run_eagerly=False)
    fit(model)
    model.get_layer("d1").trainable = False
    training.refresh_training(model)
    before = np.array(model.get_layer("d1").kernel)
    fit(model, callbacks=[tfkit.LearningRateCurve(lambda step: 0.01)])
    np.testing.assert_array_equal(model.get_layer("d1").kernel, before)


def test_refreshing_changes_no_number():
    model = make("average")
    fit(model)
    before = numbers(model)
    training.refresh_training(model)
    expect_equal(numbers(model), before)


def test_an_optimizer_may_lose_all_its_variables_and_get_them_back():
    model = make()
    fit(model)
    iterations = int(model.optimizer.iterations)
    rebind_optimizer(model.optimizer, [])
    rebind_optimizer(model.optimizer, model.trainable_variables)
    assert int(model.optimizer.iterations) == iterations
    slots = [variable for variable in model.optimizer.variables if "momentum" in variable.path]
    assert len(slots) == len(model.trainable_variables)
    assert not any(np.any(slot) for slot in slots)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_slots_follow_their_variable_whatever_the_number_of_variables(count):
    # One list of the optimizer's may be as long as another by chance.
    weights = [keras.Variable(np.full((2, 2), float(i + 1)), name=f"w{i}") for i in range(count)]
    optimizer = optimizers.Adam(0.1, amsgrad=True)
    optimizer.apply([keras.ops.convert_to_tensor(weight.numpy()) for weight in weights], weights)
    last = optimizer._momentums[-1].numpy()
    rebind_optimizer(optimizer, weights[::-1])
    np.testing.assert_array_equal(optimizer._momentums[0], last)
