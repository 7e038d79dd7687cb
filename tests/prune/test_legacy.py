"""tf_keras models: what TFMOT returns is what tfkit returns."""

import keras
import numpy as np
import pytest
import tf_keras
from tensorflow_model_optimization.sparsity import keras as tfmot

import tfkit
from tests import models
from tests.arrays import expect_equal
from tfkit.prune.legacy import is_tf_keras

X = np.random.default_rng(0).normal(size=(8, 6)).astype("float32")
Y = np.random.default_rng(1).normal(size=(8, 2)).astype("float32")


def legacy_net():
    return tf_keras.Sequential(
        [
            tf_keras.layers.Input((6,)),
            tf_keras.layers.Dense(8, activation="relu", name="d1"),
            tf_keras.layers.Dense(2, name="head"),
        ]
    )


def schedule_of(wrapper):
    return wrapper.pruning_schedule.get_config()


def test_a_tf_keras_model_comes_back_in_tfmots_wrappers():
    pruned = tfkit.prune_low_magnitude(legacy_net(), tfkit.ConstantSparsity(0.5, 0))
    assert isinstance(pruned, tf_keras.Model)
    assert [layer.name for layer in pruned.layers] == ["prune_low_magnitude_d1", "prune_low_magnitude_head"]


def test_the_schedule_reaches_tfmot():
    schedule = tfkit.PolynomialDecay(0.1, 0.7, begin_step=3, end_step=9, frequency=2)
    pruned = tfkit.prune_low_magnitude(legacy_net(), schedule)
    assert all(schedule_of(layer) == schedule.get_config() for layer in pruned.layers)


def test_the_default_schedule_is_tfmots():
    ours, theirs = tfkit.prune_low_magnitude(legacy_net()), tfmot.prune_low_magnitude(legacy_net())
    assert schedule_of(ours.layers[0]) == schedule_of(theirs.layers[0])


def test_the_tf_keras_model_itself_is_not_changed():
    model = legacy_net()
    pruned = tfkit.prune_low_magnitude(model)
    assert pruned is not model
    assert [layer.name for layer in model.layers] == ["d1", "head"]


def test_strip_gives_back_plain_layers_with_the_weights():
    model = legacy_net()
    stripped = tfkit.strip_pruning(tfkit.prune_low_magnitude(model))
    assert [type(layer) for layer in stripped.layers] == [tf_keras.layers.Dense] * 2
    expect_equal(stripped.get_weights(), model.get_weights())


def test_the_schedules_are_tfmots_own_classes():
    assert tfkit.ConstantSparsity is tfmot.ConstantSparsity
    assert tfkit.PolynomialDecay is tfmot.PolynomialDecay


@pytest.mark.parametrize("begin", [1, 3])
def test_keras_3_and_tfmot_prune_first_on_the_same_train_step(begin):
    """The one-step schedule shows which number each of them gives to a train step."""

    def first_sparse_step(model, wrapped, callbacks):
        model.compile("sgd", "mse", run_eagerly=True)
        for callback in callbacks:
            callback.set_model(model)
            callback.on_train_begin()
        for step in range(1, 6):
            model.train_on_batch(X, Y)
            weights = wrapped(model)
            if np.count_nonzero(weights) == weights.size // 2:
                return step
        return None

    schedule = tfkit.ConstantSparsity(0.5, begin_step=begin, end_step=begin, frequency=1)
    legacy = tfkit.prune_low_magnitude(legacy_net(), schedule)
    theirs = first_sparse_step(
        legacy, lambda model: np.asarray(model.layers[0].pruning_vars[0][1]), [tfmot.UpdatePruningStep()]
    )
    native = tfkit.prune_low_magnitude(models.dense_net(units=(8,)), schedule)
    ours = first_sparse_step(native, lambda model: np.asarray(model.get_layer("d1").kernel), [])
    assert ours == theirs == begin


def test_tiles_and_groups_reach_tfmot():
    tiles = tfkit.prune_low_magnitude(legacy_net(), block_size=(2, 1), block_pooling_type="MAX")
    assert [(layer.block_size, layer.block_pooling_type) for layer in tiles.layers] == [((2, 1), "MAX")] * 2
    groups = tfkit.prune_low_magnitude(legacy_net(), sparsity_m_by_n=(2, 4))
    assert [layer.sparsity_m_by_n for layer in groups.layers] == [(2, 4)] * 2


def test_a_policy_reaches_tfmot():
    class Heads(tfmot.PruningPolicy):
        def allow_pruning(self, layer):
            return layer.name == "head"

        def ensure_model_supports_pruning(self, model):
            return True

    pruned = tfkit.prune_low_magnitude(legacy_net(), pruning_policy=Heads())
    assert [layer.name for layer in pruned.layers] == ["d1", "prune_low_magnitude_head"]


def test_layers_and_lists_of_tf_keras_reach_tfmot():
    layer = tf_keras.layers.Dense(2, name="d")
    assert tfkit.prune_low_magnitude(layer).name == "prune_low_magnitude_d"
    assert [each.name for each in tfkit.prune_low_magnitude([layer])] == ["prune_low_magnitude_d"]


def test_a_scope_of_a_tf_keras_model_is_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"`scope` work on Keras 3.*Received: .*scope='global'"):
        tfkit.prune_low_magnitude(legacy_net(), scope="global")


def test_both_callbacks_are_tfmots_for_a_tf_keras_model(tmp_path):
    schedule = tfkit.ConstantSparsity(0.75, 0, frequency=1)

    def trained(package, prune):
        tf_keras.utils.set_random_seed(0)
        model = prune(legacy_net(), schedule)
        model.compile("sgd", "mse")
        summaries = package.PruningSummaries(log_dir=str(tmp_path / package.__name__))
        model.fit(
            X, Y, epochs=2, verbose=0, shuffle=False, callbacks=[package.UpdatePruningStep(), summaries]
        )
        return [np.asarray(each) for each in package.strip_pruning(model).get_weights()]

    ours, theirs = trained(tfkit, tfkit.prune_low_magnitude), trained(tfmot, tfmot.prune_low_magnitude)
    expect_equal(ours, theirs)
    assert np.count_nonzero(ours[0]) == 12
    written = [sorted(path.parent.name for path in (tmp_path / package.__name__).rglob("events*"))
               for package in (tfkit, tfmot)]  # fmt: skip
    assert written[0] == written[1] == ["metrics", "train"]


@pytest.mark.parametrize("layers", ["d1", ["d1"], []], ids=str)
def test_layers_of_a_tf_keras_model_are_refused(layers):
    with pytest.raises(
        tfkit.ArgumentError, match=r"work on Keras 3 models.*Received: layers=.*scope=.*Wrap single"
    ):
        tfkit.prune_low_magnitude(legacy_net(), layers=layers)


@pytest.mark.parametrize(
    "call",
    [tfkit.sparsity_table, lambda model: tfkit.prune_now(model, 0.5)],
    ids=["sparsity_table", "prune_now"],
)
def test_what_tfmot_does_not_offer_refuses_a_tf_keras_model(call):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"must be a Keras 3 model.*Received: model=.*tf_keras"):
        call(legacy_net())


@pytest.mark.parametrize(
    ("thing", "verdict"),
    [
        (legacy_net, True),
        (lambda: tf_keras.layers.Dense(2), True),
        (lambda: type("Own", (tf_keras.Model,), {})(), True),
        (models.dense_net, False),
        (lambda: keras.layers.Dense(2), False),
        (lambda: "tf_keras", False),
        (lambda: None, False),
        (lambda: [tf_keras.layers.Dense(2)], True),
        (lambda: [keras.layers.Dense(2)], False),
    ],
    ids=[
        "model",
        "layer",
        "subclass",
        "keras model",
        "keras layer",
        "string",
        "None",
        "layers",
        "keras layers",
    ],
)
def test_tf_keras_is_told_from_keras_3(thing, verdict):
    assert is_tf_keras(thing()) is verdict
