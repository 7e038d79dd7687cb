"""A `trainable` changed by hand after training began is refused before the first step; nothing else is."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import tfkit

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(4, 6)).astype("float32"), RANDOM.normal(size=(4, 2)).astype("float32")
CALLBACKS = {
    "LearningRateCurve": lambda: tfkit.LearningRateCurve(lambda step: 0.01),
    "WarmupCosine": lambda: tfkit.WarmupCosine(0.01, warmup_steps=1, total_steps=9, start=0.01),
    "ReduceLROnPlateau": lambda: tfkit.ReduceLROnPlateau("loss"),
    "GradualUnfreezing": lambda: tfkit.GradualUnfreezing({0: "head"}),
}
each_callback = pytest.mark.parametrize("callback", CALLBACKS)


def net():
    """A nested `body` of `d1` and `bn`; `stem` is frozen as a layer and `d2/kernel` as a variable."""
    keras.utils.set_random_seed(0)
    body = [keras.Input((6,)), layers.Dense(6, name="d1"), layers.BatchNormalization(name="bn")]
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(6, name="stem", trainable=False),
            keras.Sequential(body, name="body"),
            layers.Dense(4, name="d2"),
            layers.Dense(2, name="head"),
        ],
        name="net",
    )
    model.get_layer("d2").kernel.trainable = False
    return model


def compiled(model=None, optimizer=None, **options):
    model = net() if model is None else model
    model.compile(optimizer or optimizers.SGD(0.01), "mse", **options)
    return model


def fit(model, *names, epochs=1):
    callbacks = [CALLBACKS[name]() for name in names]
    return model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)


def trained(*names, **options):
    model = compiled(**options)
    fit(model, *names)
    return model


def numbers(model):
    return [np.array(each) for each in [*model.variables, *model.optimizer.variables]]


def moved(model, change):
    """The layers of the root that `change()` moved."""
    before = [[np.array(weight) for weight in layer.weights] for layer in model.layers]
    change()
    after = [[np.array(weight) for weight in layer.weights] for layer in model.layers]
    same = [
        all(np.array_equal(old, new) for old, new in zip(*pair, strict=True))
        for pair in zip(before, after, strict=True)
    ]
    return {layer.name for layer, equal in zip(model.layers, same, strict=True) if not equal}


def put(name, value):
    """Sets `trainable` of the layer at a path."""

    def change(model):
        layer = model
        for part in name.split("/"):
            layer = layer.get_layer(part)
        layer.trainable = value

    return change


def of_model(model):
    model.trainable = False


def of_bias(model):
    model.get_layer("head").bias.trainable = False


def of_kernel(model):
    model.get_layer("d2").kernel.trainable = True


def one_for_another(model):
    put("head", False)(model)
    put("stem", True)(model)


def with_tfkit_but_inside(model):
    tfkit.configure_base_model(model.get_layer("body"), [])


#: How to change, and what the refusal says of it.
WAYS = {
    "a layer is frozen": (put("head", False), "net/head/kernel, net/head/bias frozen since"),
    "a layer is unfrozen": (put("stem", True), "net/stem/kernel, net/stem/bias made trainable since"),
    "a variable is frozen": (of_bias, "net/head/bias frozen since"),
    "a variable is unfrozen": (of_kernel, "net/d2/kernel made trainable since"),
    "a nested model is frozen": (put("body", False), "body/d1/kernel, body/d1/bias, body/bn/gamma … frozen"),
    "a layer inside one is frozen": (put("body/d1", False), "body/d1/kernel, body/d1/bias frozen since"),
    "batch normalization is frozen": (put("body/bn", False), "body/bn/gamma, body/bn/beta frozen since"),
    "the whole model is frozen": (of_model, "body/d1/kernel, body/d1/bias, body/bn/gamma … frozen since"),
    "one for another": (
        one_for_another,
        "net/stem/kernel, net/stem/bias made trainable and net/head/kernel, net/head/bias frozen since",
    ),
    "only an inner model is told": (
        with_tfkit_but_inside,
        "body/d1/kernel, body/d1/bias, body/bn/gamma … frozen since",
    ),
}


@pytest.fixture(scope="module")
def veteran():
    """A trained model; every refusal leaves it as it is."""
    return trained("LearningRateCurve")


@contextlib.contextmanager
def changed(model, way):
    """Changes what trains, and takes the change back."""
    inside = [(layer, layer.trainable) for layer in model._flatten_layers()]  # parents first
    flags = [(variable, variable.trainable) for variable in model.variables]
    WAYS[way][0](model)
    try:
        yield
    finally:
        for each, flag in [*inside, *flags]:
            each.trainable = flag


@each_callback
@pytest.mark.parametrize("way", WAYS)
def test_is_refused_before_the_first_step(veteran, way, callback):
    before = numbers(veteran)
    with changed(veteran, way), pytest.raises(tfkit.ArgumentError) as refusal:
        fit(veteran, callback)
    assert str(refusal.value) == (
        "What trains must not change by hand once training has begun, for Keras would not notice. "
        f"Received: model='net', {WAYS[way][1].removesuffix(' since')} since. "
        "Use tfkit.configure_base_model, or compile the model again."
    )
    for old, new in zip(before, numbers(veteran), strict=True):
        np.testing.assert_array_equal(new, old)


@each_callback
def test_is_refused_after_a_fit_without_such_callbacks(callback):
    model = trained()
    put("head", False)(model)
    with pytest.raises(tfkit.ArgumentError, match="net/head/kernel, net/head/bias frozen since"):
        fit(model, callback)


def test_is_refused_after_several_fits():
    model = trained("LearningRateCurve")
    fit(model, "ReduceLROnPlateau")
    fit(model)
    put("head", False)(model)
    with pytest.raises(tfkit.ArgumentError, match="net/head/kernel, net/head/bias frozen since"):
        fit(model, "LearningRateCurve")


def test_is_refused_after_a_boundary_was_moved_by_tfkit():
    model = trained()
    tfkit.configure_base_model(model, ["d2", "head"])
    fit(model, "LearningRateCurve")
    put("head", False)(model)
    with pytest.raises(tfkit.ArgumentError, match="net/head/kernel, net/head/bias frozen since"):
        fit(model, "LearningRateCurve")


def test_an_unknown_weight_is_refused_when_run_eagerly():
    model = trained("LearningRateCurve", run_eagerly=True)
    put("stem", True)(model)
    with pytest.raises(tfkit.ArgumentError, match="net/stem/kernel, net/stem/bias made trainable since"):
        fit(model, "LearningRateCurve")


def test_an_unknown_weight_is_refused_in_a_loaded_model(tmp_path):
    trained().save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    put("stem", True)(model)
    with pytest.raises(tfkit.ArgumentError, match="stem/kernel, stem/bias made trainable since"):
        fit(model, "LearningRateCurve")


def test_a_weight_unfrozen_after_a_fit_that_began_with_it_frozen_is_refused():
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    put("head", False)(model)
    fit(model, "LearningRateCurve")
    put("head", True)(model)  # the optimizer knows it, the train step does not
    with pytest.raises(tfkit.ArgumentError, match="net/head/kernel, net/head/bias made trainable since"):
        fit(model, "LearningRateCurve")


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "unfrozen"])
def test_batch_normalization_without_gamma_and_beta_is_refused_in_either_direction(frozen):
    bare = layers.BatchNormalization(name="bare", center=False, scale=False, trainable=frozen)
    model = compiled(keras.Sequential([keras.Input((6,)), bare, layers.Dense(2)]))
    fit(model, "LearningRateCurve")
    bare.trainable = not frozen
    with pytest.raises(tfkit.ArgumentError, match=r"bare/moving_mean, .*bare/moving_variance"):
        fit(model, "LearningRateCurve")


# --- ways out -------------------------------------------------------------------------------------


def test_a_change_that_was_taken_back_is_none():
    model = trained("LearningRateCurve")
    put("head", False)(model)
    with pytest.raises(tfkit.ArgumentError, match="head"):
        fit(model, "LearningRateCurve")
    put("head", True)(model)
    assert "head" in moved(model, lambda: fit(model, "LearningRateCurve"))


def test_compiling_again_makes_it_current():
    model = trained("LearningRateCurve")
    put("head", False)(model)
    compiled(model)
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"body", "d2"}


def test_configuring_makes_it_current():
    model = trained("LearningRateCurve")
    put("head", False)(model)
    tfkit.configure_base_model(model, "stem")
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"stem"}


# --- no false alarm ---------------------------------------------------------------------------------


@each_callback
def test_freezing_by_hand_before_the_first_fit_is_nobodys_business(callback):
    model = compiled()
    put("d2", False)(model)
    expected = {"head"} if callback == "GradualUnfreezing" else {"body", "head"}
    assert moved(model, lambda: fit(model, callback)) == expected


def test_an_optimizer_that_was_built_before_the_freezing_trains_twice():
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    put("head", False)(model)
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"body", "d2"}
    assert moved(model, lambda: fit(model, "ReduceLROnPlateau")) == {"body", "d2"}


def test_a_loaded_model_that_is_frozen_by_hand_trains_twice(tmp_path):
    trained().save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    put("head", False)(model)
    fit(model, "LearningRateCurve")
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"body", "d2"}


def test_a_loaded_model_that_is_frozen_by_hand_trains_after_a_fit_of_keras(tmp_path):
    trained().save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    put("head", False)(model)
    fit(model)
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"body", "d2"}


def test_an_optimizer_that_knows_more_than_a_fit_of_keras_trained():
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    put("head", False)(model)
    fit(model)
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"body", "d2"}


COMPILED = {
    "several steps an execution": {"steps_per_execution": 2},
    "XLA": {"jit_compile": True},
    "loss scale": {"optimizer": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.01))},
    "average": {"optimizer": lambda: optimizers.SGD(0.01, momentum=0.9, use_ema=True)},
}


@pytest.mark.parametrize("how", COMPILED)
def test_of_a_fit_that_nobody_watched_the_trace_tells_what_it_trains(how):
    options = dict(COMPILED[how])
    make = options.pop("optimizer", lambda: None)
    model = compiled(optimizer=make(), **options)
    model.optimizer.build(model.trainable_variables)
    put("head", False)(model)
    fit(model)  # d2/bias and body train
    fit(model, "LearningRateCurve")
    untold = compiled(optimizer=make(), **options)
    fit(untold)
    put("body/d1", False)(untold)
    with pytest.raises(tfkit.ArgumentError, match="body/d1/kernel, body/d1/bias frozen since"):
        fit(untold, "LearningRateCurve")


def test_freezing_between_fits_is_fine_when_run_eagerly():
    model = trained("LearningRateCurve", run_eagerly=True)
    put("head", False)(model)
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"body", "d2"}


def test_unfreezing_what_the_optimizer_knows_is_fine_when_run_eagerly():
    model = trained("LearningRateCurve", run_eagerly=True)
    put("head", False)(model)
    fit(model, "LearningRateCurve")
    put("head", True)(model)
    assert "head" in moved(model, lambda: fit(model, "LearningRateCurve"))


def test_batches_trained_one_by_one_are_fits_too():
    model = compiled()
    model.train_on_batch(X, Y)
    assert "head" in moved(model, lambda: fit(model, "LearningRateCurve"))


@pytest.mark.parametrize("scale", [False, True])
def test_moving_the_boundary_with_tfkit_is_fine(scale):
    optimizer = optimizers.LossScaleOptimizer(optimizers.SGD(0.01), initial_scale=8.0) if scale else None
    model = trained("LearningRateCurve", optimizer=optimizer)
    tfkit.configure_base_model(model, "head")
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"head"}


def test_a_boundary_that_moved_during_a_fit_is_fine_in_the_next():
    model = trained("GradualUnfreezing")
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"head"}


def test_setting_to_what_it_is_already_is_fine():
    model = trained("LearningRateCurve")
    put("head", True)(model)
    put("stem", False)(model)
    assert "head" in moved(model, lambda: fit(model, "LearningRateCurve"))


def test_a_model_whose_loop_is_ones_own():
    class OwnLoop(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(2, name="head")
            self.head.build((None, 6))

        def call(self, x):
            return self.head(x)

        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = keras.ops.mean((self(x) - y) ** 2)
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}

    model = OwnLoop()
    model.build((None, 6))
    model.compile(optimizers.SGD(0.01))
    fit(model, "LearningRateCurve")
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"head"}


def test_a_train_function_of_ones_own():
    class OwnFunction(keras.Sequential):
        def make_train_function(self, force=False):
            if self.train_function is None or force:
                self.train_function = tf.function(lambda iterator: self.train_step(next(iterator)))

    model = OwnFunction([keras.Input((6,)), layers.Dense(2, name="head")])
    compiled(model)
    fit(model)
    assert moved(model, lambda: fit(model, "LearningRateCurve")) == {"head"}


def test_two_models_that_share_a_layer_do_not_disturb_each_other():
    shared = layers.Dense(2, name="head")
    first, second = (keras.Sequential([keras.Input((6,)), shared]) for _ in range(2))
    for model in (first, second):
        compiled(model)
        fit(model, "LearningRateCurve")
    assert moved(first, lambda: fit(first, "LearningRateCurve")) == {"head"}
