"""Distillation between steps: whose loss it is, by which shares, and what counts in it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests.prune.test_gradual import FEATURES, RNG, Calls, X, Y, mse, net, run


def taught():
    """A model that has learned Y; not eager, for it trains longer."""
    model = net(optimizer=keras.optimizers.Adam(0.02), run_eagerly=False, jit_compile=False)
    model.fit(OFTEN, many(Y), 32, verbose=0)
    return model


def many(y):
    """150 times the same batch, which costs less than 150 epochs."""
    return np.tile(y, (150, 1))


OFTEN = many(X)


def test_the_teacher_is_what_is_learned_when_the_targets_are_noise():
    """With all weight on distillation, targets that say nothing do no harm."""
    model, noise = taught(), RNG.permutation(Y)
    options = {"distillation": FEATURES(loss="mse"), "distillation_weight": 1.0, "batch_size": 32}
    done = run(model, OFTEN, many(noise), ratio=0.8, steps=1, **options)
    assert mse(done.model(X), model(X)) < 0.02 < 0.2 < mse(done.model(X), noise)


def test_without_distillation_the_targets_are_learned():
    model = taught()
    done = run(model, OFTEN, many(-Y), steps=1, batch_size=32)
    assert mse(done.model(X), -Y) < 0.1 < 0.5 < mse(done.model(X), model(X))


def test_half_and_half_ends_between():
    """½(s + 1)² + ½(s − 1)² is least at 0, for a teacher of 1 and targets of −1."""
    model = net((16,), keras.optimizers.SGD(0.1), run_eagerly=False, jit_compile=False)
    model.get_layer("head").kernel.assign(np.zeros((16, 2)))
    model.get_layer("head").bias.assign([1.0, 1.0])
    done = run(model, OFTEN, many(-np.ones_like(Y)), distillation=FEATURES(loss="mse"), steps=1)
    assert mse(done.model(X), 0 * Y) < 0.01


def distilled(model, y=Y, x=X, loss="mse", **options):
    """One step of one update, half of it distillation."""
    return run(model, x, y, distillation=FEATURES(loss=loss), steps=1, batch_size=32, **options)


def first_update(model, done, loss):
    """The weights that one update with a rate of 0.1 leaves, from a gradient by hand."""
    smaller = done.plans[0].apply(model)
    with tf.GradientTape() as tape:
        value = loss(smaller)
    slopes = tape.gradient(value, [each.value for each in smaller.weights])
    return [np.asarray(w) - 0.1 * np.asarray(g) for w, g in zip(smaller.weights, slopes, strict=True)]


def square(a, b):
    return tf.reduce_mean(tf.square(a - b), -1)


def same(done, expected):
    for a, b in zip(done.model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_a_penalty_is_part_of_the_models_own_loss_under_distillation():
    model = net(optimizer=keras.optimizers.SGD(0.1))
    tfkit.add_weight_penalty(model, l2=0.2)
    calls = Calls()
    done = distilled(model, callbacks=[calls])

    def loss(smaller):
        penalty = sum(0.2 * tf.reduce_sum(tf.square(layer.kernel.value)) for layer in smaller.layers)
        teacher = tf.reduce_mean(square(smaller(X), model(X)))
        return 0.5 * (tf.reduce_mean(square(smaller(X), Y)) + penalty) + 0.5 * teacher

    same(done, first_update(model, done, loss))
    smaller = done.plans[0].apply(model)
    assert calls.logs["total_loss"] == pytest.approx(float(loss(smaller)), rel=1e-4)
    assert calls.logs["distillation_loss"] == pytest.approx(mse(smaller(X), model(X)), rel=1e-4)


def test_sample_weights_count_under_distillation():
    model, weights = net(optimizer=keras.optimizers.SGD(0.1)), np.linspace(0, 2, 32).astype("float32")
    done = distilled(model, None, tf.data.Dataset.from_tensor_slices((X, Y, weights)).batch(32))

    def loss(smaller):
        own = tf.reduce_mean(weights * square(smaller(X), Y))
        return 0.5 * own + 0.5 * tf.reduce_mean(square(smaller(X), model(X)))

    same(done, first_update(model, done, loss))


def test_loss_weights_of_several_outputs_count_under_distillation():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(16, name="d1")(inputs)
    outputs = {"a": layers.Dense(1, name="a")(x), "b": layers.Dense(1, name="b")(x)}
    model = keras.Model(inputs, outputs)
    options = {"loss_weights": {"a": 3.0, "b": 0.5}, "metrics": {"a": ["mae"]}}
    model.compile(keras.optimizers.SGD(0.1), {"a": "mse", "b": "mse"}, **options)
    done = distilled(model, {"a": Y[:, :1], "b": Y[:, 1:]}, loss={"a": "mse", "b": "mse"})

    def loss(smaller):
        answer = smaller(X)
        a, b = square(answer["a"], Y[:, :1]), square(answer["b"], Y[:, 1:])
        taught = sum(square(answer[name], whole) for name, whole in model(X).items())
        return 0.5 * tf.reduce_mean(3 * a + 0.5 * b) + 0.5 * tf.reduce_mean(taught)

    same(done, first_update(model, done, loss))
    assert {"a_mae", "pruned_a_mae"} <= {*done.table.columns}


def test_several_losses_of_distillation_add_up():
    model = net(optimizer=keras.optimizers.SGD(0.1))
    divergence = keras.losses.KLDivergence()  # Keras 3.15 takes its default, a word, without a softmax
    losses = [FEATURES(loss="mse"), keras.distillation.LogitsDistillation(2.0, divergence)]
    done = run(model, distillation=losses, steps=1, batch_size=32)

    def loss(smaller):
        taught, learned = (tf.nn.softmax(each(X) / 2) for each in (model, smaller))
        logits = 4 * tf.reduce_mean(tf.reduce_sum(taught * tf.math.log(taught / learned), -1))
        features = tf.reduce_mean(square(smaller(X), model(X)))
        return 0.5 * tf.reduce_mean(square(smaller(X), Y)) + 0.5 * (features + logits)

    same(done, first_update(model, done, loss))


@pytest.mark.parametrize("loss", ["kl_divergence", ["mse", "kl_divergence"]])
def test_a_divergence_of_bare_logits_is_refused(loss):
    given = keras.distillation.LogitsDistillation(loss=loss)
    logits = np.array([[1.0, -2.0]])
    if loss == "kl_divergence":
        assert abs(float(given.compute_loss(logits, logits + 5))) > 0.1  # of probabilities it would be 0
    with pytest.raises(tfkit.ArgumentError, match=r"probabilities.*loss by that name\. Write Logits.*KLDiv"):
        run(net(), distillation=given)


def test_a_loss_that_does_not_fit_the_outputs_is_refused_before_anything_is_trained():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(32, "relu")(inputs)
    model = keras.Model(inputs, [keras.layers.Dense(2)(hidden), keras.layers.Dense(3)(hidden)])
    model.compile("sgd", "mse")
    before = model.get_weights()
    x = np.ones((8, 6))
    with pytest.raises(tfkit.ArgumentError, match=r"fit the model's outputs\. Received: Logits.*structure"):
        tfkit.prune_channels_gradually(
            model,
            x,
            [x[:, :2], x[:, :3]],
            parameters=0.5,
            distillation=keras.distillation.LogitsDistillation(loss=keras.losses.KLDivergence()),
        )
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
