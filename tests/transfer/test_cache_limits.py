"""What `fit_cached` cannot compute once: named, trained as `fit` does, or refused with `strict`."""

import keras
import pytest
import tensorflow as tf
from keras import layers, ops

from tests import models
from tests.transfer.caching import (
    GOES_ON,
    IMAGES,
    TRIAL,
    X,
    Y,
    compiled,
    counting,
    dense,
    require_refused,
    train_both,
)
from tfkit.transfer import fit_cached


def chain(*stack, patterns=("head",), **options):
    """A frozen Dense layer `one`, what the given functions return, and a head that trains."""
    keras.utils.set_random_seed(0)
    made = [layers.Dense(4, activation="tanh", name="one"), *(make() for make in stack)]
    return compiled(
        keras.Sequential([keras.Input((6,)), *made, layers.Dense(2, name="head")]), list(patterns), **options
    )


def centred_by_operations():
    """Takes the mean over a batch in the frozen part."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(4, name="one")(inputs)
    x = layers.Dense(3, name="two")(x - ops.mean(x, axis=0, keepdims=True))
    return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), "head")


def plain(name):
    return lambda: layers.Dense(3, name=name)


# --- models ----------------------------------------------------------------------------------------


def custom(**methods):
    """A functional model of a class with methods of its own."""

    def build():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = layers.Dense(4, name="one")(inputs)
        kind = type("Own", (keras.Model,), methods)
        return compiled(kind(inputs, layers.Dense(2, name="head")(x)), "head")

    return build


def train_step(self, data):
    return keras.Model.train_step(self, data)


def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
    return 3.0 * ops.mean((y - y_pred) ** 2)


def test_step(self, data):
    return keras.Model.test_step(self, data)


def compute_metrics(self, x, y, y_pred, sample_weight=None):
    return keras.Model.compute_metrics(self, x, y, y_pred, sample_weight) | {"mean": ops.mean(x)}


test_step.__test__ = False


def patched():
    """A model whose instance, not its class, computes the loss in a way of its own."""
    model = dense()
    model.compute_loss = lambda *given, **named: compute_loss(model, *given, **named)
    return model


class OwnCall(keras.Sequential):
    """A Sequential model that computes something else than its layers in a row."""

    def call(self, x, training=None, mask=None):
        return 2 * super().call(x, training=training, mask=mask)


def own_call():
    keras.utils.set_random_seed(0)
    stack = [keras.Input((6,)), layers.Dense(4, name="one"), layers.Dense(2, name="head")]
    return compiled(OwnCall(stack), "head")


class Leaky(layers.Layer):
    """Adds to the loss whenever it runs."""

    def call(self, x):
        self.add_loss(ops.mean(x**2))
        return x


class Counting(layers.Layer):
    """Scales by how often it ran."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="ones", trainable=False, name="count")

    def call(self, x):
        self.count.assign_add(1.0)
        return x / self.count


class Noise(layers.Layer):
    """Draws from a seed generator of its own."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x, training=None):
        return x + keras.random.normal(ops.shape(x), seed=self.seed_generator) if training else x


def flipped():
    keras.utils.set_random_seed(0)
    stack = [layers.RandomFlip(seed=1, name="flip"), layers.Conv2D(3, 3, name="conv"), layers.Flatten()]
    return compiled(keras.Sequential([keras.Input((8, 8, 3)), *stack, layers.Dense(2, name="head")]), "head")


def recurrent(**arguments):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(5, 6, 1))
    x = layers.LSTM(4, name="lstm", **arguments)(inputs)
    return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), "head")


WHOLLY = {  # nothing can run beforehand
    "subclassed": (
        lambda: compiled(models.subclassed_net(), "head"),
        "the model computes in Python of its own, so it is no graph",
    ),
    "a call of its own": (own_call, "the model computes in Python of its own"),
    "train_step": (custom(train_step=train_step), "the class Own has a train_step of its own"),
    "test_step": (custom(test_step=test_step), "the class Own has a test_step of its own"),
    "compute_loss": (custom(compute_loss=compute_loss), "the class Own has a compute_loss of its own"),
    "compute_metrics": (custom(compute_metrics=compute_metrics), "has a compute_metrics of its own"),
    "compute_loss of the instance": (patched, "compute_loss of its own"),
    "frozen behind trained": (lambda: dense(["d1"]), r"d2 stands behind d1, which trains; head stands"),
    "augmentation": (flipped, "conv stands behind flip, which draws random numbers"),
    "nothing frozen": (lambda: dense("*"), "no layer is frozen"),
}
PARTLY = {  # the layer `one` runs beforehand, another frozen one does not
    "dropout": (
        lambda: chain(lambda: layers.Dropout(0.5, seed=1), plain("two")),
        "two stands behind dropout.*, which draws random numbers",
    ),
    "noise": (
        lambda: chain(lambda: layers.GaussianNoise(0.5, seed=1), plain("two")),
        "two stands behind gaussian_noise.*, which draws random numbers",
    ),
    "noise of a custom layer": (
        lambda: chain(lambda: Noise(name="noise"), plain("two")),
        "two stands behind noise, which draws random numbers",
    ),
    "state of a custom layer": (
        lambda: chain(lambda: Counting(name="state")),
        "state changes its own state when it runs",
    ),
    "activity regularizer": (
        lambda: chain(lambda: layers.Dense(3, activity_regularizer="l2", name="two")),
        "two adds to the loss",
    ),
    "loss of a custom layer": (
        lambda: chain(lambda: Leaky(name="leaky"), plain("two")),
        "two stands behind leaky, which adds to the loss",
    ),
    "frozen behind trained": (
        lambda: chain(plain("two"), plain("three"), patterns=["two", "head"]),
        "three stands behind two, which trains",
    ),
    "an operation over the batch": (
        lambda: centred_by_operations(),
        "two stands behind mean.*, which mixes the samples of a batch",
    ),
    "a layer over the batch": (
        lambda: chain(lambda: layers.Softmax(axis=0, name="soft"), plain("two")),
        "two stands behind soft, which mixes the samples of a batch",
    ),
    "spectral normalization": (
        lambda: chain(lambda: layers.SpectralNormalization(layers.Dense(3), name="norm")),
        "norm changes its own state when it runs",
    ),
}
MODELS = WHOLLY | PARTLY


def data_for(model):
    return (IMAGES if len(model.input_shape) == 4 else X), Y


@pytest.mark.parametrize("name", MODELS)
def test_what_cannot_be_cut_is_named_and_trained_as_by_fit(name):
    build, reason = MODELS[name]
    x, y = data_for(build()) if name != "subclassed" else (IMAGES, Y)
    epochs = 2 if name in PARTLY else 1  # else plain fit does all
    with pytest.warns(UserWarning, match=f"{GOES_ON}.*{reason}"):
        train_both(build, x, y, epochs=epochs, cached={"strict": False})


@pytest.mark.parametrize("name", MODELS)
def test_strict_refuses_before_anything_changes(name):
    build, reason = MODELS[name]
    model = build()
    x, y = data_for(model) if name != "subclassed" else (IMAGES, Y)
    message = (
        r"With `strict`, the whole frozen part must be computed once\. Received: a case where it cannot "
        rf"be, for .*{reason}.*\. Pass strict=False, put augmentation behind the frozen part, or use arrays\."
    )
    require_refused(model, message, x, y)


def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match=GOES_ON) as caught:
        fit_cached(dense("*"), X, Y, verbose=0)
    assert caught[0].filename == __file__


def test_at_most_five_layers_are_named():
    stack = [plain(f"frozen{number}") for number in range(7)]
    model = chain(plain("two"), *stack, patterns=["two", "head"])
    with pytest.warns(UserWarning, match=r"(frozen\d stands behind two, which trains; ){4}frozen4 [^;]* …"):
        fit_cached(model, X, Y, verbose=0)


@pytest.mark.filterwarnings("ignore:fit_cached goes on")
def test_what_stands_before_a_frozen_dropout_runs_once():
    keras.utils.set_random_seed(0)
    model = counting()
    stack = [*model.layers[:2], layers.Dropout(0.5), layers.Dense(2, name="head")]
    model = compiled(keras.Sequential([keras.Input((6,)), *stack]), "head")
    fit_cached(model, X, Y, epochs=5, verbose=0)
    assert sum(model.get_layer("counter").seen) == len(X) + TRIAL


def test_dropout_that_drops_nothing_is_no_obstacle():
    train_both(lambda: chain(lambda: layers.Dropout(0.0), plain("two")))


def test_a_states_trial_leaves_no_trace():
    model = chain(lambda: Counting(name="state"))
    require_refused(model, "state changes its own state")
    assert float(model.get_layer("state").count) == 1.0


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: x + tf.random.normal(tf.shape(x)),
        lambda x: x * tf.cast(tf.random.uniform(()) > 1e-6, x.dtype),  # most trials are alike
    ],
    ids=["noise", "rare dropping"],
)
def test_a_lambda_that_draws_random_numbers_is_named(draw):
    model = chain(lambda: layers.Lambda(draw, name="draw"), plain("two"), run_eagerly=False)
    with pytest.warns(UserWarning, match=f"{GOES_ON}.*two stands behind draw, which "):
        fit_cached(model, X, Y, verbose=0)


def test_a_recurrent_layer_that_keeps_its_state_equals_fit():
    with pytest.warns(UserWarning, match=f"{GOES_ON}.*lstm "):
        train_both(lambda: recurrent(stateful=True), X[..., None], Y, batch_size=5, cached={"strict": False})


def test_a_fixed_batch_size_equals_fit():
    train_both(recurrent, X[..., None], Y, batch_size=5)


def test_a_fixed_batch_size_with_a_custom_layer_equals_fit():
    class Fixed(layers.Layer):
        def call(self, x):
            return ops.reshape(x, (5, 4))

    def build():
        keras.utils.set_random_seed(0)
        inputs = keras.Input(batch_shape=(5, 6))
        x = Fixed(name="fixed")(layers.Dense(4, name="one")(inputs))
        return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), "head")

    train_both(build, batch_size=5)


# --- frozen parts whose results are not one per sample, or that change with what trains -----------------


@pytest.mark.filterwarnings("ignore:fit_cached goes on")
def test_features_without_a_batch_axis_equal_fit():
    class Positions(layers.Layer):
        """Gives one row for each place, as position embeddings do."""

        def build(self, shape):
            self.table = self.add_weight(shape=(shape[-1],), name="table")

        def call(self, x):
            return ops.expand_dims(self.table, 0)

    def build():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = layers.Add()([layers.Dense(6, name="trained")(inputs), Positions(name="positions")(inputs)])
        x = layers.Dense(6, name="one")(inputs) + x
        return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), ["trained", "head"])

    train_both(build, cached={"strict": False})


@pytest.mark.filterwarnings("ignore:fit_cached goes on")
def test_features_with_several_rows_a_sample_equal_fit():
    def build():
        keras.utils.set_random_seed(0)
        inputs = keras.Input((6,))
        x = ops.reshape(layers.Dense(8, name="one")(inputs), (-1, 4))  # two rows a sample
        x = ops.reshape(layers.Dense(4, name="trained")(x), (-1, 8))
        return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), ["trained", "head"])

    train_both(build, cached={"strict": False})


@pytest.mark.filterwarnings("ignore:fit_cached goes on")
@pytest.mark.parametrize(
    "shuffle",
    [True, False],
)
def test_features_that_depend_on_the_rest_of_the_batch_equal_fit(shuffle):
    class Centred(layers.Layer):
        def call(self, x):
            return x - ops.mean(x, axis=0, keepdims=True)

    train_both(lambda: chain(lambda: Centred(name="centred")), shuffle=shuffle, cached={"strict": False})


@pytest.mark.filterwarnings("ignore:fit_cached goes on")
def test_a_lambda_that_reads_a_trained_weight_equals_fit():
    def build():
        keras.utils.set_random_seed(0)
        trained = layers.Dense(6, use_bias=False, name="trained")
        inputs = keras.Input((6,))
        x = trained(layers.Dense(6, name="one")(inputs))
        tied = layers.Lambda(lambda each: ops.matmul(each, ops.transpose(trained.kernel)), name="tied")
        x = layers.Add()([x, tied(inputs)])
        return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), ["trained", "head"])

    train_both(build, cached={"strict": False})


@pytest.mark.filterwarnings("ignore:fit_cached goes on")
def test_a_frozen_layer_that_shares_a_trained_weight_equals_fit():
    def build():
        keras.utils.set_random_seed(0)
        trained = layers.Dense(6, use_bias=False, name="trained")
        inputs = keras.Input((6,))
        x = trained(layers.Dense(6, name="one")(inputs))
        tied = models.TiedOutput(trained.kernel, name="tied")
        x = layers.Add()([x, tied(inputs)])
        model = compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), ["trained", "head"])
        tied.trainable = False
        trained.kernel.trainable = True
        model.compile(keras.optimizers.SGD(0.05), "mse", run_eagerly=True)
        return model

    train_both(build, cached={"strict": False})


def test_frozen_layers_inside_a_composed_layer_that_trains_are_named():
    """They run in every epoch too, for such a layer runs as a whole."""

    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = models.Block(3, name="block")(layers.Conv2D(3, 1, name="one")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.GlobalAveragePooling2D()(x)))
    compiled(model, ["block/norm", "head"], batch_norm="train")
    require_refused(model, "for frozen layers have to run in every epoch: block/conv", IMAGES, Y)


def test_a_layer_that_needs_eager_steps_equals_fit():
    class Eager(layers.Layer):
        def compute_output_shape(self, shape):
            return shape

        def call(self, x):
            return x if isinstance(x, keras.KerasTensor) else ops.convert_to_tensor(x.numpy() * 2)

    train_both(lambda: chain(lambda: Eager(name="eager")), cached={"strict": False})


def test_an_optional_input_that_is_left_out_equals_fit():
    class Sum(layers.Layer):
        def call(self, x, y=None):
            return x if y is None else x + y

    def build():
        keras.utils.set_random_seed(0)
        inputs = {"a": keras.Input((6,), name="a"), "b": keras.Input((4,), name="b", optional=True)}
        x = Sum()(layers.Dense(4, name="one")(inputs["a"]), inputs["b"])
        return compiled(keras.Model(inputs, layers.Dense(2, name="head")(x)), "head")

    train_both(build, {"a": X, "b": None}, cached={"strict": False})
