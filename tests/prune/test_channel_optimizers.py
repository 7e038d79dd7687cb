"""What a smaller model takes along: optimizer, rules, frozen state, compile settings, and where it can go."""

import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import tfkit
from tests import models
from tests.arrays import expect_equal

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 6)).astype("float32")
Y = RNG.normal(size=(16, 2)).astype("float32")
SMALL = {"ratio": 0.5, "multiple_of": 1}


def trained(optimizer, build=lambda: models.dense_net((8,)), epochs=3, **options):
    """A model after some updates."""
    model = build()
    model.compile(optimizer, "mse", **({"jit_compile": False} | options))
    model.fit(X, Y, 8, epochs, verbose=0, shuffle=False)
    return model


def smaller_of(model):
    """The smaller model with its optimizer, and the units of d1 that stayed."""
    plan = tfkit.plan_channel_pruning(model, **SMALL)
    return plan.apply(model, keep_optimizer=True), list(plan.groups[0].kept)


def sliced(values, path, kept):
    """What stays of d1's and the head's weights, or of state in their shape."""
    if "d1" in path and values.ndim:
        return values[..., kept]
    return values[kept] if "head" in path and values.ndim == 2 else values


def state(optimizer):
    """All state: name -> value; names without those of the optimizer and the model."""
    inner = getattr(optimizer, "inner_optimizer", None)
    held = [*optimizer.variables, *(inner.variables if inner else ())]
    names = [re.sub(r".*(?=d1_|head_)|.*/|_\d+$", "", each.path) for each in held]
    return dict(zip(names, map(np.asarray, held), strict=True))


# --- the optimizer's state -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.SGD(0.01, momentum=0.9),
        optimizers.SGD(0.01, momentum=0.9, nesterov=True, use_ema=True),
        optimizers.Adam(0.01, amsgrad=True),
        optimizers.AdamW(0.01, weight_decay=0.1),
        optimizers.RMSprop(0.01, momentum=0.5, centered=True),
        optimizers.Nadam(0.01),
        optimizers.Adamax(0.01),
        optimizers.Adagrad(0.01),
        optimizers.Adadelta(0.1),
        optimizers.Ftrl(0.01),
        optimizers.Lion(0.01),
        optimizers.Lamb(0.01),
        optimizers.Adam(0.01, gradient_accumulation_steps=4),
        optimizers.LossScaleOptimizer(optimizers.Adam(0.01)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_state_of_the_weights_that_stay_is_kept(optimizer):
    model = trained(type(optimizer).from_config(optimizer.get_config()))
    smaller, kept = smaller_of(model)
    before, after = state(model.optimizer), state(smaller.optimizer)
    assert before.keys() == after.keys()
    assert sum(values.ndim > 0 for values in before.values()) >= 4
    for path, values in before.items():
        np.testing.assert_array_equal(after[path], sliced(values, path, kept), err_msg=path)
    assert int(smaller.optimizer.iterations) == int(model.optimizer.iterations) > 0
    smaller.fit(X, Y, 8, verbose=0)
    assert all(np.isfinite(weight).all() for weight in smaller.get_weights())


def test_the_next_update_follows_from_the_momentum_of_before():
    """v ← 0.9 v − 0.1 g, w ← w + v with the v that was learned."""
    model = trained(optimizers.SGD(0.1, momentum=0.9))
    smaller, kept = smaller_of(model)
    velocity = np.asarray(model.optimizer.momentums[0])[:, kept]
    kernel, wide = np.asarray(smaller.layers[0].kernel), np.asarray(smaller(X)) - Y
    reading = np.asarray(smaller.layers[1].kernel)
    active = X @ kernel + np.asarray(smaller.layers[0].bias) > 0
    slope = X.T @ (active * (2 * wide / wide.size @ reading.T))
    smaller.fit(X, Y, 16, verbose=0)
    expected = kernel + 0.9 * velocity - 0.1 * slope
    np.testing.assert_allclose(smaller.layers[0].kernel, expected, rtol=1e-4, atol=1e-6)


def test_without_keep_optimizer_the_model_is_not_compiled():
    model = trained("adam")
    assert not tfkit.prune_channels(model, **SMALL).compiled


def test_a_model_that_was_compiled_and_never_trained_is_compiled_alike():
    model = models.dense_net((8,))
    model.compile(optimizers.Adam(0.25), "mae", jit_compile=False)
    smaller = smaller_of(model)[0]
    assert float(smaller.optimizer.learning_rate) == 0.25
    assert smaller.loss == "mae"
    smaller.fit(X, Y, verbose=0)


def test_the_rate_is_the_one_of_now():
    model = trained(optimizers.Adam(0.5))
    model.optimizer.learning_rate = 0.125
    assert float(smaller_of(model)[0].optimizer.learning_rate) == 0.125


def test_a_schedule_goes_on_where_it_was():
    curve = optimizers.schedules.PolynomialDecay(1.0, 6, 0.0)
    model = trained(optimizers.SGD(curve), epochs=1)
    assert float(smaller_of(model)[0].optimizer.learning_rate) == pytest.approx(4 / 6)


def test_the_old_model_goes_on_as_before():
    model, twin = trained("adam"), trained("adam")
    smaller_of(model)[0].fit(X, Y, verbose=0)
    for each in (model, twin):
        each.fit(X, Y, 8, verbose=0, shuffle=False)
    expect_equal(model.get_weights(), twin.get_weights())


def test_compile_settings_are_kept():
    model = trained("sgd", metrics=["mae", keras.metrics.MeanSquaredError(name="own")], run_eagerly=True)
    smaller = smaller_of(model)[0]
    found = smaller.evaluate(X, Y, verbose=0, return_dict=True)
    assert found.keys() == {"loss", "mae", "own"}
    assert found["own"] == pytest.approx(float(np.square(np.asarray(smaller(X)) - Y).mean()), rel=1e-5)
    assert smaller.run_eagerly


def test_metrics_are_not_shared_with_the_old_model():
    model = trained("sgd", metrics=[keras.metrics.MeanSquaredError(name="own")])
    smaller = smaller_of(model)[0]
    assert not {id(each) for each in model.metrics} & {id(each) for each in smaller.metrics}


# --- rules of tfkit --------------------------------------------------------------------------------


def test_weight_decay_goes_on():
    """Where the loss has no slope, a kernel shrinks by rate times decay, and a bias stays."""
    model = models.dense_net((8,))
    model.compile(optimizers.SGD(0.1), "mse", jit_compile=False)
    tfkit.set_weight_decay(model, 0.5)
    model.fit(X, Y, 8, 2, verbose=0)
    smaller = smaller_of(model)[0]
    before = smaller.get_weights()
    smaller.fit(X, np.asarray(smaller(X)), 16, verbose=0)
    for old, new in zip(before, smaller.get_weights(), strict=True):
        np.testing.assert_allclose(new, old * (1 - 0.1 * 0.5 * (old.ndim == 2)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["names", "variables"])
def test_what_decay_spares_is_spared_on(how):
    model = models.dense_net((8,))
    optimizer = optimizers.SGD(0.1, weight_decay=0.5)
    kernel = model.get_layer("d1").kernel
    options = {"var_names": ["bias"]} if how == "names" else {"var_list": [kernel]}
    optimizer.exclude_from_weight_decay(**options)
    model.compile(optimizer, "mse", jit_compile=False)
    model.fit(X, Y, 8, 2, verbose=0)
    smaller = smaller_of(model)[0]
    before = smaller.get_weights()
    smaller.fit(X, np.asarray(smaller(X)), 16, verbose=0)
    spared = [False, True, False, True] if how == "names" else [True, False, False, False]
    for old, new, kept in zip(before, smaller.get_weights(), spared, strict=True):
        np.testing.assert_allclose(new, old * (1 - 0.1 * 0.5 * (not kept)), rtol=1e-4, atol=1e-6)


def test_multipliers_go_on():
    """d1 learns at a tenth of the rate, the head at the whole; against the gradient."""
    model = models.dense_net((8,))
    model.compile(optimizers.SGD(0.5), "mse", jit_compile=False)
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.1})
    model.fit(X, Y, 8, 2, verbose=0)
    smaller = smaller_of(model)[0]
    before = smaller.get_weights()
    with tf.GradientTape() as tape:
        value = tf.reduce_mean(tf.square(smaller(X) - Y))
    slopes = tape.gradient(value, [each.value for each in smaller.weights])
    smaller.fit(X, Y, 16, verbose=0)
    for old, new, slope, factor in zip(before, smaller.get_weights(), slopes, [0.1, 0.1, 1, 1], strict=True):
        np.testing.assert_allclose(old - new, 0.5 * factor * np.asarray(slope), rtol=1e-3, atol=1e-6)


# --- what is refused -------------------------------------------------------------------------------


def test_state_that_does_not_lie_beside_the_weights_is_refused():
    model = trained(optimizers.Adafactor(0.01))
    message = r"where it has the shape.*Received: Adafactor with _\w+ of .*/kernel, which.*Compile the"
    with pytest.raises(tfkit.PruningError, match=message):
        smaller_of(model)


def test_a_model_that_is_not_compiled_has_no_optimizer_to_keep():
    with pytest.raises(tfkit.ArgumentError, match=r"must be compiled.*Received: model='sequential"):
        smaller_of(models.dense_net((8,)))


def test_a_compile_of_its_own_is_refused():
    class Own(keras.Model):
        def compile(self, optimizer):
            self.optimizer, self.compiled = keras.optimizers.get(optimizer), True

    inputs = keras.Input((6,))
    model = Own(inputs, layers.Dense(2)(layers.Dense(8, name="d1")(inputs)), name="own")
    model.compile("sgd")
    message = r"compiled by Keras's own.*Received: model='own' of type Own, which overrides it.*Wrap"
    with pytest.raises(tfkit.ArgumentError, match=message):
        smaller_of(model)


# --- what else a model takes along -----------------------------------------------------------------


def test_frozen_layers_stay_frozen():
    model = models.conv_net()
    model.get_layer("conv1").trainable = False
    smaller = tfkit.prune_channels(model, **SMALL)
    assert [layer.trainable for layer in smaller.layers] == [layer.trainable for layer in model.layers]


def test_single_weights_stay_frozen():
    model = models.conv_net()
    model.get_layer("bn1").gamma.trainable = False
    smaller = tfkit.prune_channels(model, **SMALL)
    assert [v.trainable for v in smaller.weights] == [v.trainable for v in model.weights]
    assert not smaller.get_layer("bn1").gamma.trainable


def test_a_frozen_layer_has_no_state_and_stays_as_it_is():
    def build():
        model = models.dense_net((8,))
        model.get_layer("d1").trainable = False
        return model

    model = trained("adam", build)
    smaller, kept = smaller_of(model)
    before = np.asarray(smaller.get_layer("d1").kernel)
    np.testing.assert_array_equal(before, np.asarray(model.get_layer("d1").kernel)[:, kept])
    smaller.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(smaller.get_layer("d1").kernel, before)


def test_a_penalty_stays():
    inputs = keras.Input((6,))
    x = layers.Dense(8, kernel_regularizer=keras.regularizers.L2(0.5), name="d1")(inputs)
    smaller = tfkit.prune_channels(keras.Model(inputs, layers.Dense(2)(x)), **SMALL)
    kernel = np.asarray(smaller.get_layer("d1").kernel)
    assert float(smaller.losses[0]) == pytest.approx(0.5 * float(np.square(kernel).sum()), rel=1e-5)


# --- where a smaller model can go ------------------------------------------------------------------


def test_a_saved_model_needs_no_tfkit(tmp_path):
    model = models.conv_net()
    smaller = tfkit.prune_channels(model, **SMALL)
    x = RNG.normal(size=(3, 8, 8, 3)).astype("float32")
    smaller.save(tmp_path / "smaller.keras")
    np.savez(tmp_path / "expected.npz", x=x, y=np.asarray(smaller(x)))
    code = (
        "import sys, keras, numpy as np\n"
        "model, data = keras.models.load_model('smaller.keras'), np.load('expected.npz')\n"
        "np.testing.assert_allclose(model(data['x']), data['y'], rtol=1e-5, atol=1e-6)\n"
        "assert 'tfkit' not in sys.modules\n"
        "print(model.count_params())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(smaller.count_params()), done.stderr


def test_a_smaller_model_can_be_pruned_trained_and_exported(tmp_path):
    """Half the channels, then half the weights, then a file that computes the same."""
    smaller = smaller_of(trained("adam", lambda: models.dense_net((32,))))[0]
    tfkit.prune_low_magnitude(smaller, tfkit.ConstantSparsity(0.5, begin_step=0, frequency=1))
    smaller.compile("adam", "mse", jit_compile=False)
    smaller.fit(X, Y, 8, 2, verbose=0)
    smaller = tfkit.strip_pruning(smaller)
    assert np.count_nonzero(smaller.get_layer("d1").kernel) == 6 * 16 // 2
    artifact = tfkit.export_tflite(smaller, tmp_path / "small.tflite")
    assert pathlib.Path(artifact.path).is_file()
    assert tfkit.check_parity(smaller, artifact, X).passed
