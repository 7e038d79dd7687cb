"""Decay is compared with Keras's own under its own exclusions, penalties with Keras's regularizers."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, optimizers, regularizers

import tfkit
from tests import models

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype("float32")
Y = RNG.normal(size=(40, 2)).astype("float32")

OPTIMIZERS = {
    "sgd": lambda **k: optimizers.SGD(0.01, momentum=0.9, **k),
    "adam": lambda **k: optimizers.Adam(0.01, **k),
    "adamw": lambda **k: optimizers.AdamW(0.01, **({"weight_decay": 0.004} | k)),
    "nadam": lambda **k: optimizers.Nadam(0.01, **k),
    "rmsprop": lambda **k: optimizers.RMSprop(0.01, **k),
    "lion": lambda **k: optimizers.Lion(0.01, **k),
    "ema": lambda **k: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5, **k),
    "accumulation": lambda **k: optimizers.Adam(0.01, gradient_accumulation_steps=2, **k),
    "clipped": lambda **k: optimizers.Adam(0.01, clipnorm=0.1, **k),
}


def compiled(optimizer, build=models.dense_net):
    model = build()
    model.compile(optimizer, "mse")
    return model


def fit(model, epochs=2, **options):
    return model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **options)


def values(model):
    return [np.array(variable.value) for variable in (*model.variables, *model.optimizer.variables)]


def assert_same(first, second):
    for one, other in zip(values(first), values(second), strict=True):
        np.testing.assert_array_equal(one, other)


def keras_with_exclusions(name, rate):
    optimizer = OPTIMIZERS[name](weight_decay=rate)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return compiled(optimizer)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_is_keras_own_without_the_biases(name):
    mine = compiled(OPTIMIZERS[name]())
    tfkit.set_weight_decay(mine, 0.3)
    theirs = keras_with_exclusions(name, 0.3)
    fit(mine)
    fit(theirs)
    assert_same(mine, theirs)


@given(rate=st.floats(0, 2), learning_rate=st.floats(1e-4, 0.3))
@settings(deadline=None, max_examples=10)
def test_a_weight_without_gradient_shrinks_by_its_rate(rate, learning_rate):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, name="d")])
    model.compile(optimizers.SGD(learning_rate), lambda y, p: 0 * keras.ops.sum(p))
    before = np.array(model.layers[0].kernel)
    tfkit.set_weight_decay(model, rate)
    model.train_on_batch(np.ones((1, 2)), np.ones((1, 3)))
    np.testing.assert_allclose(model.layers[0].kernel, before * (1 - learning_rate * rate), rtol=1e-5)


def test_decay_may_include_the_biases():
    mine, theirs = compiled(optimizers.Adam(0.01)), compiled(optimizers.Adam(0.01, weight_decay=0.3))
    tfkit.set_weight_decay(mine, 0.3, one_dimensional=True)
    fit(mine)
    fit(theirs)
    assert_same(mine, theirs)


def test_excluded_layers_do_not_decay():
    mine = compiled(optimizers.SGD(0.01))
    tfkit.set_weight_decay(mine, 0.3, exclude=["d1", "head"])
    optimizer = optimizers.SGD(0.01, weight_decay=0.3)
    theirs = models.dense_net()
    spared = [v for v in theirs.variables if "d2/kernel" not in v.path]
    optimizer.exclude_from_weight_decay(var_list=spared)
    theirs.compile(optimizer, "mse")
    fit(mine)
    fit(theirs)
    assert_same(mine, theirs)


def test_a_trained_model_keeps_its_optimizers_state():
    model = compiled(optimizers.Adam(0.01))
    fit(model)
    before = values(model)
    tfkit.set_weight_decay(model, 0.1)
    for one, other in zip(before, values(model), strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(model.optimizer, optimizers.Adam)


class Change(keras.callbacks.Callback):
    """Changes the decay before one epoch and notes the train step before and after."""

    def __init__(self, change):
        super().__init__()
        self.change = change
        self.steps = []

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self.steps.append(self.model.train_function)
            self.change(self.model)
            self.steps.append(self.model.train_function)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: tfkit.set_weight_decay(model, 0.9),
        lambda model: setattr(model.optimizer, "weight_decay", 0.9),
    ],
    ids=["function", "attribute"],
)
def test_decay_changes_within_a_fit_without_a_new_trace(change):
    model, parts = compiled(optimizers.SGD(0.01)), compiled(optimizers.SGD(0.01))
    tfkit.set_weight_decay(model, 0.1)
    watch = Change(change)
    fit(model, callbacks=[watch])
    for rate in (0.1, 0.9):
        tfkit.set_weight_decay(parts, rate)
        fit(parts, epochs=1)
    assert_same(model, parts)
    assert watch.steps[0] is watch.steps[1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_model_goes_on_with_its_decay(name, tmp_path):
    model = compiled(OPTIMIZERS[name]())
    tfkit.set_weight_decay(model, 0.3, exclude="d2")
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.5})
    fit(model)
    model.save(tmp_path / "m.keras")
    loaded = tfkit.models.load_base_model(tmp_path / "m.keras")
    columns = ["path", "variable", "learning_rate_multiplier", "weight_decay"]
    table, again = tfkit.training_table(model)[columns], tfkit.training_table(loaded)[columns]
    assert table.values.tolist() == again.values.tolist()
    fit(model)
    fit(loaded)
    assert_same(model, loaded)


def test_layers_of_one_name_in_two_nested_models_keep_their_own_rules(tmp_path):
    def build():
        inputs = keras.Input((6,))
        x = inputs
        for name in ("first", "second"):
            inner = keras.Input((6,))
            x = keras.Model(inner, layers.Dense(6, name="same")(inner), name=name)(x)
        return keras.Model(inputs, layers.Dense(2, name="head")(x))

    model = compiled(optimizers.Adam(0.01), build)
    tfkit.set_weight_decay(model, 0.3, exclude="second/same")
    model.save(tmp_path / "m.keras")
    table = tfkit.training_table(tfkit.models.load_base_model(tmp_path / "m.keras"))
    assert table[table.variable == "kernel"].weight_decay.tolist() == pytest.approx([0.3, 0.0, 0.3])


def test_decay_lives_on_the_inner_optimizer_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = compiled(optimizers.Adam(0.01))
        tfkit.set_weight_decay(model, 0.25)
        assert float(model.optimizer.inner_optimizer.weight_decay) == 0.25
        fit(model)
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_table_says_what_decays():
    model = compiled(optimizers.Adam(0.01))
    table = tfkit.training_table(tfkit.set_weight_decay(model, 0.5, exclude="d1"))
    decaying = table[table.weight_decay > 0]
    assert [*zip(decaying.path, decaying.variable)] == [("d2", "kernel"), ("head", "kernel")]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda m: tfkit.set_weight_decay(m, -0.1),
            tfkit.ArgumentError,
            "`rate` must be .*Received: rate=-0.1",
        ),
        (
            lambda m: tfkit.set_weight_decay(m, 0.1, exclude="d9"),
            tfkit.LayerNotFoundError,
            "Nearest names: d",
        ),
        (lambda m: tfkit.add_weight_penalty(m), tfkit.ArgumentError, "`l1` or `l2` above 0. Received: l1=0"),
        (lambda m: tfkit.add_weight_penalty(m, l2=-1), tfkit.ArgumentError, "`l2` must be .*Received: l2=-1"),
        (lambda m: tfkit.add_weight_penalty(m, l2=1, layers="x"), tfkit.LayerNotFoundError, "Nearest names"),
    ],
)
def test_bad_arguments_change_nothing(change, error, message):
    model = compiled(optimizers.Adam(0.01))
    kind = type(model.optimizer)
    with pytest.raises(error, match=message):
        change(model)
    assert type(model.optimizer) is kind
    assert model.losses == []


def test_an_uncompiled_model_is_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"must be compiled with an optimizer. Received: model="):
        tfkit.set_weight_decay(models.dense_net(), 0.1)


def test_several_optimizers_are_refused():
    parts = [optimizers.SGD(0.1), optimizers.Adam(0.1)]
    model = compiled(optimizers.MultiOptimizer(lambda variable: parts[len(variable.shape) - 1]))
    with pytest.raises(tfkit.ArgumentError, match=r"One optimizer must train.*Received: optimizer=Multi"):
        tfkit.set_weight_decay(model, 0.1)


# --- penalties ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("l1", "l2"), [(0.1, 0.0), (0.0, 0.2), (0.1, 0.2)])
def test_a_penalty_follows_the_formula(l1, l2):
    model = models.dense_net()
    tfkit.add_weight_penalty(model, l1=l1, l2=l2)
    kernels = [np.asarray(w, "float64") for w in model.get_weights() if w.ndim > 1]
    expected = sum(l1 * np.abs(w).sum() + l2 * np.square(w).sum() for w in kernels)
    assert sum(map(float, model.losses)) == pytest.approx(expected, rel=1e-6)


def regularized(penalty):
    keras.utils.set_random_seed(0)
    units = {"d1": 8, "d2": 4, "head": 2}
    stack = [
        layers.Dense(n, activation=None if k == "head" else "relu", kernel_regularizer=penalty, name=k)
        for k, n in units.items()
    ]
    return keras.Sequential([keras.Input((6,)), *stack])


@pytest.mark.parametrize("trained", [False, True])
def test_training_equals_a_model_that_was_built_with_the_penalty(trained):
    mine, theirs = compiled("adam"), compiled("adam", lambda: regularized(None))
    if trained:
        fit(mine)
        fit(theirs)
        weights, theirs = values(theirs), compiled("adam", lambda: regularized(regularizers.L2(0.1)))
        theirs.optimizer.build(theirs.trainable_variables)
        for variable, value in zip((*theirs.variables, *theirs.optimizer.variables), weights, strict=True):
            variable.assign(value)
    else:
        theirs = compiled("adam", lambda: regularized(regularizers.L2(0.1)))
    tfkit.add_weight_penalty(mine, l2=0.1)
    assert fit(mine).history["loss"] == pytest.approx(fit(theirs).history["loss"], rel=1e-6)
    for one, other in zip(mine.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_penalty_adds_to_the_layers_own():
    model = regularized(regularizers.L2(0.1))
    tfkit.add_weight_penalty(model, l1=0.5, l2=0.2, layers="d1")
    table = tfkit.training_table(model)
    kernels = table[table.variable == "kernel"]
    assert kernels.l1.tolist() == pytest.approx([0.5, 0, 0])
    assert kernels.l2.tolist() == pytest.approx([0.3, 0.1, 0.1])


def many_kinds():
    keras.utils.set_random_seed(0)
    images, words = keras.Input((8, 8, 3)), keras.Input((5,), dtype="int32")
    x = layers.Conv2D(4, 3, name="conv")(images)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.SeparableConv2D(4, 2, name="separable")(x)
    x = layers.Conv2DTranspose(3, 2, name="transpose")(x)
    y = layers.Embedding(7, 4, name="embedding")(words)
    y = layers.MultiHeadAttention(2, 4, name="attention")(y, y)
    y = layers.Bidirectional(layers.LSTM(3, name="lstm"), name="both")(y)
    z = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), y])
    return keras.Model([images, words], layers.Dense(2, name="head")(z))


@pytest.mark.filterwarnings("error:The penalty")
def test_penalties_of_keras_layers_are_saved_with_the_model(tmp_path):
    model = many_kinds()
    tfkit.add_weight_penalty(model, l1=0.01, l2=0.02)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    columns = ["path", "variable", "l1", "l2"]
    before, after = tfkit.training_table(model)[columns], tfkit.training_table(loaded)[columns]
    assert (before.l2 > 0).sum() == sum(len(v.shape) > 1 for v in model.weights if "bias" not in v.name)
    assert before.values.tolist() == after.values.tolist()


class Scaled(layers.Layer):
    """A layer with a matrix and no argument for its regularizer."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], shape[-1]), name="matrix")

    def call(self, x):
        return x @ self.matrix


def test_a_layer_that_cannot_save_its_penalty_is_named():
    model = keras.Sequential([keras.Input((3,)), Scaled(name="mine")])
    with pytest.warns(UserWarning, match=r"The penalty on mine/matrix will not be saved"):
        tfkit.add_weight_penalty(model, l2=0.1)
    assert len(model.losses) == 1


def test_a_penalty_of_another_kind_is_left_alone():
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(3, kernel_regularizer=regularizers.OrthogonalRegularizer(), name="other"),
        ]
    )
    message = r"Received: other/kernel with OrthogonalRegularizer. Leave the layer out"
    with pytest.raises(tfkit.ArgumentError, match=message):
        tfkit.add_weight_penalty(model, l2=0.1)


def test_a_selection_without_matrices_is_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"two or more dimensions. Received: layers='bn1'"):
        tfkit.add_weight_penalty(models.conv_net(), l2=0.1, layers="bn1")


def test_frozen_layers_pay_no_penalty():
    model = models.dense_net()
    tfkit.add_weight_penalty(model, l2=0.1)
    tfkit.configure_base_model(model, "head")
    assert len(model.losses) == 1


def test_loading_needs_no_warning(tmp_path):
    model = compiled(optimizers.Adam(0.01))
    tfkit.set_weight_decay(model, 0.1)
    fit(model)
    model.save(tmp_path / "m.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfkit.models.load_base_model(tmp_path / "m.keras")
