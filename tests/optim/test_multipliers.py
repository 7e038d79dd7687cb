"""Multipliers are compared with closed forms and with models that train alone at the scaled rate."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import optimizers

import tfkit
from tests import models

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")


def compiled(optimizer):
    model = models.dense_net()
    model.compile(optimizer, "mse")
    return model


def fit(model, epochs=1, **options):
    return model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **options)


def kernel(model, name):
    return np.array(model.get_layer(name).kernel)


def test_sgd_moves_each_layer_by_its_own_rate():
    model = compiled(optimizers.SGD(0.1))
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(X) - Y) ** 2)
    variables = model.trainable_variables
    gradients = [np.array(each) for each in tape.gradient(loss, [v.value for v in variables])]
    before = [np.array(v.value) for v in variables]
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.1, "head": 2.0})
    model.fit(X, Y, batch_size=16, verbose=0)
    for place, (variable, factor) in enumerate(zip(variables, [0.1, 0.1, 1, 1, 2, 2], strict=True)):
        expected = before[place] - 0.1 * factor * gradients[place]
        np.testing.assert_allclose(variable.value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [optimizers.Adam, optimizers.Nadam, optimizers.RMSprop, optimizers.Lion])
def test_a_layer_moves_as_under_an_optimizer_of_that_rate(kind):
    mine, alone = compiled(kind(0.01)), compiled(kind(0.005))
    tfkit.set_learning_rate_multipliers(mine, {"d1": 0.5})
    for model in (mine, alone):
        model.train_on_batch(X, Y)  # after one step the gradients differ
    np.testing.assert_allclose(kernel(mine, "d1"), kernel(alone, "d1"), atol=1e-7)
    assert not np.allclose(kernel(mine, "d2"), kernel(alone, "d2"), atol=1e-5)


@pytest.mark.parametrize(
    "callback",
    [
        lambda: tfkit.LearningRateCurve(tfkit.curves.linear(0.1, 0.01, 4)),
        lambda: tfkit.ReduceLROnPlateau("loss", patience=0, min_delta=9, factor=0.5),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
    ],
    ids=["curve", "plateau", "keras"],
)
def test_the_ratio_holds_under_every_schedule(callback):
    # without gradient only the decay moves weights: by the product of (1 - rate · factor · decay)
    def flat(truth, prediction):
        return 0 * keras.ops.sum(prediction)

    model = models.dense_net()
    model.compile(optimizers.SGD(0.1), flat)
    tfkit.set_weight_decay(model, 0.5)
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.25})
    before = {name: kernel(model, name) for name in ("d1", "d2")}
    rates = []
    spy = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(float(model.optimizer.learning_rate))
    )
    fit(model, epochs=3, callbacks=[callback(), spy])
    assert len(set(rates)) > 1
    for name, factor in (("d1", 0.25), ("d2", 1.0)):
        shrunk = np.prod([1 - rate * factor * 0.5 for rate in rates])
        np.testing.assert_allclose(kernel(model, name), before[name] * shrunk, rtol=1e-5)


def test_the_last_pattern_that_matches_holds():
    model = compiled(optimizers.Adam(0.01))
    tfkit.set_learning_rate_multipliers(model, {"*": 0.1, "d2": 0.5})
    table = tfkit.training_table(model).drop_duplicates("path")
    assert table.learning_rate_multiplier.tolist() == [0.1, 0.5, 0.1]


def test_a_second_call_replaces_the_first():
    model = compiled(optimizers.Adam(0.01))
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.1})
    tfkit.set_learning_rate_multipliers(model, {"d2": 0.5})
    table = tfkit.training_table(model).drop_duplicates("path")
    assert table.learning_rate_multiplier.tolist() == [1.0, 0.5, 1.0]


def test_an_empty_mapping_removes_all():
    model, plain = compiled(optimizers.Adam(0.01)), compiled(optimizers.Adam(0.01))
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.1})
    tfkit.set_learning_rate_multipliers(model, {})
    fit(model)
    fit(plain)
    for one, other in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_trained_model_takes_multipliers_at_the_next_fit():
    mine, parts = compiled(optimizers.SGD(0.1)), compiled(optimizers.SGD(0.1))
    fit(mine)
    fit(parts)
    tfkit.set_learning_rate_multipliers(mine, {"*": 0.5})
    parts.optimizer.learning_rate = 0.05
    fit(mine)
    fit(parts)
    for one, other in zip(mine.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_multipliers_survive_freezing_and_unfreezing():
    model = compiled(optimizers.Adam(0.01))
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.25})
    fit(model)
    tfkit.configure_base_model(model, "head")
    fit(model)
    tfkit.configure_base_model(model, "*")
    table = tfkit.training_table(model).drop_duplicates("path")
    assert table.learning_rate_multiplier.tolist() == [0.25, 1.0, 1.0]


def test_a_layer_that_is_unfrozen_after_loading_has_its_multiplier(tmp_path):
    model = compiled(optimizers.Adam(0.01))
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.25, "head": 0.5})
    tfkit.configure_base_model(model, "head")
    fit(model)
    model.save(tmp_path / "m.keras")
    loaded = tfkit.models.load_base_model(tmp_path / "m.keras")
    tfkit.configure_base_model(loaded, "*")
    table = tfkit.training_table(loaded).drop_duplicates("path")
    assert table.learning_rate_multiplier.tolist() == [0.25, 1.0, 0.5]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (["d1"], tfkit.ArgumentTypeError, r"must map patterns to factors.*Received: multipliers=\['d1'\]"),
        ({"d1": 0}, tfkit.ArgumentError, r"`multipliers\['d1'\]` must be above 0. Received:.*=0"),
        ({"d1": "a"}, tfkit.ArgumentError, r"`multipliers\['d1'\]` must be a finite number"),
        ({"dd": 0.1}, tfkit.LayerNotFoundError, "Received: pattern='dd'. Nearest names: d"),
        (
            {"d1": 0.1},
            tfkit.ArgumentError,
            "Received: 'd1', which matches frozen layers only. Let them train",
        ),
    ],
)
def test_bad_multipliers_change_nothing(given, error, message):
    model = compiled(optimizers.Adam(0.01))
    tfkit.configure_base_model(model, "head")
    with pytest.raises(error, match=message):
        tfkit.set_learning_rate_multipliers(model, given)
    assert type(model.optimizer) is optimizers.Adam


def test_an_uncompiled_model_is_refused():
    with pytest.raises(tfkit.ArgumentError, match="must be compiled with an optimizer"):
        tfkit.set_learning_rate_multipliers(models.dense_net(), {"d1": 0.1})


def test_the_table_of_an_uncompiled_model_has_no_decay():
    table = tfkit.training_table(models.dense_net())
    assert table.weight_decay.tolist() == [0.0] * 6
    assert table.learning_rate_multiplier.tolist() == [1.0] * 6
