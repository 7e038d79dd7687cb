"""An optimizer with rules by variable, through files: it goes on as one that was never saved."""

import copy
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, optimizers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tfkit import per_variable

ROOT = pathlib.Path(__file__).parents[1]
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(8, 6)).astype("float32"), RANDOM.normal(size=(8, 2)).astype("float32")
OPTIMIZERS = {
    "momentum": lambda: optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: optimizers.Adam(0.05, amsgrad=True),
    "schedule": lambda: optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 20)),
    "average": lambda: optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=3),
    "accumulation": lambda: optimizers.Adam(0.05, gradient_accumulation_steps=3),
    "loss scale": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.05), initial_scale=8.0),
    "muon": lambda: optimizers.Muon(0.01),
}


def net(optimizer=None, build=models.dense_net):
    model = build()
    model.compile(optimizer or optimizers.Adam(0.05), "mse", run_eagerly=True)
    return model


def ruled(model):
    """Rules that differ by layer and by kind of weight."""
    tfkit.set_weight_decay(model, 0.5, exclude="d2")
    return tfkit.set_learning_rate_multipliers(model, {"d1": 0.25, "head": 2.0})


def train(model, count=2):
    for _ in range(count):
        model.train_on_batch(X, Y)
    return model


def reload(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras")


def numbers(model):
    return [np.array(v.numpy()) for v in [*model.variables, *model.optimizer.variables]]


def rules(model):
    """The rules, weight by weight in model order."""
    table = tfkit.training_table(model)
    return table[["learning_rate_multiplier", "weight_decay"]].values.tolist()


def kernels(model):
    """The factors of the kernels in model order."""
    return tfkit.training_table(model).query("variable == 'kernel'").learning_rate_multiplier.tolist()


def each_its_own(model):
    """Gives every layer a factor that names it, and returns the factors in model order."""
    paths = tfkit.training_table(model).path.drop_duplicates().tolist()
    given = {path: 2.0 + place for place, path in enumerate(paths)}
    tfkit.set_learning_rate_multipliers(model, given)
    return kernels(model)


# --- a saved model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_goes_on_bit_for_bit(name, tmp_path):
    model = train(ruled(net(OPTIMIZERS[name]())))
    loaded = reload(model, tmp_path)
    for each in (model, loaded):
        train(each, 3)
    expect_equal(numbers(loaded), numbers(model))


@pytest.mark.parametrize("name", ["momentum", "loss scale"])
def test_may_be_saved_again(name, tmp_path):
    model = train(ruled(net(OPTIMIZERS[name]())))
    again = reload(reload(model, tmp_path), tmp_path)
    assert rules(again) == rules(model)
    for each in (model, again):
        train(each)
    expect_equal(numbers(again), numbers(model))


def test_may_be_saved_before_the_first_update(tmp_path):
    model = ruled(net())
    loaded = reload(model, tmp_path)
    assert rules(loaded) == rules(model)
    for each in (model, loaded):
        train(each)
    expect_equal(loaded.get_weights(), model.get_weights())


def test_a_decay_may_still_change_after_loading(tmp_path):
    model = train(ruled(net()))
    loaded, left = reload(model, tmp_path), reload(model, tmp_path)
    for each in (model, loaded):
        each.optimizer.weight_decay = 2.0
        train(each)
    expect_equal(numbers(loaded), numbers(model))
    assert rules(loaded) == [[0.25, 2.0], [0.25, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 2.0], [2.0, 0.0]]
    kernel = train(left).get_layer("head").kernel
    assert np.linalg.norm(loaded.get_layer("head").kernel) < np.linalg.norm(kernel)


def test_a_decay_that_was_changed_by_hand_is_the_one_that_is_saved(tmp_path):
    model = ruled(net())
    model.optimizer.weight_decay = 0.75
    assert float(reload(model, tmp_path).optimizer.weight_decay) == 0.75


def test_layers_that_were_frozen_have_their_rules_once_they_train(tmp_path):
    model = ruled(net())
    tfkit.configure_base_model(model, "head")
    loaded = reload(train(model), tmp_path)
    for each in (model, loaded):
        train(tfkit.configure_base_model(each, "*"))
    expect_equal(loaded.get_weights(), model.get_weights())
    assert rules(loaded) == rules(model)


def test_the_table_of_a_loaded_model_knows_its_frozen_layers_too(tmp_path):
    model = ruled(net())
    tfkit.configure_base_model(model, "head")
    assert rules(reload(train(model), tmp_path)) == rules(model)


def test_a_decay_set_on_a_loaded_model_leaves_the_multiplier_of_a_frozen_layer(tmp_path):
    model = ruled(net())
    tfkit.configure_base_model(model, "head")
    loaded = tfkit.set_weight_decay(reload(train(model), tmp_path), 0.125)
    assert kernels(tfkit.configure_base_model(loaded, "*")) == [0.25, 1.0, 2.0]


def test_multipliers_set_on_a_loaded_model_leave_the_exclusion_of_a_frozen_layer(tmp_path):
    model = ruled(net())
    tfkit.configure_base_model(model, "head")
    loaded = tfkit.set_learning_rate_multipliers(reload(train(model), tmp_path), {"head": 0.5})
    table = tfkit.training_table(tfkit.configure_base_model(loaded, "*"))
    assert table[(table.path == "d2")].weight_decay.tolist() == [0.0, 0.0]


def test_layers_stay_ruled_through_two_files_and_a_thaw(tmp_path):
    model = ruled(net())
    tfkit.configure_base_model(model, "head")
    again = reload(train(reload(train(model), tmp_path)), tmp_path)
    tfkit.configure_base_model(again, "*")
    tfkit.configure_base_model(model, "*")
    assert rules(again) == rules(model)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("build", [models.deep_net, models.nested_net, models.gated_net, models.sequence_net])
def test_layers_of_one_name_keep_each_its_own(build, trained, tmp_path):
    custom = {"Gate": models.Gate}
    model = build()
    model.compile("sgd", "mse")
    given = each_its_own(model)
    if trained:
        model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    assert kernels(keras.models.load_model(tmp_path / "model.keras", custom_objects=custom)) == given


def untrained(model, folder):
    return model


def trained(model, folder):
    model.optimizer.build(model.trainable_variables)
    return model


@pytest.mark.parametrize("times", [1, 2], ids=["one file", "two files"])
@pytest.mark.parametrize("prepare", [untrained, trained, reload])
@pytest.mark.parametrize("frozen", ["middle/a", "middle/inner/a"])
def test_two_layers_of_one_name_of_which_one_is_frozen(frozen, prepare, times, tmp_path):
    model = models.deep_net()
    model.compile("sgd", "mse")
    given = each_its_own(model)
    model = tfkit.configure_base_model(prepare(model, tmp_path), ["*", f"!{frozen}"])
    for _ in range(times):
        model = reload(model, tmp_path)
    assert kernels(tfkit.configure_base_model(model, "*")) == given


def test_several_attentions_keep_each_their_own(tmp_path):
    inputs = keras.Input((5, 4))
    x = inputs
    for name in ("one", "two", "three"):
        x = layers.MultiHeadAttention(2, 3, name=name)(x, x)
    model = keras.Model(inputs, x)
    model.compile("sgd", "mse")
    tfkit.set_weight_decay(model, 0.5, exclude=["two", "three/query"])
    tfkit.set_learning_rate_multipliers(model, {"one": 0.5, "two/key": 0.25, "three": 0.125})
    model.optimizer.build(model.trainable_variables)
    assert rules(reload(model, tmp_path)) == rules(model)


def test_what_keras_was_told_to_exclude_stays_out(tmp_path):
    model = net(optimizers.SGD(0.05))
    model.optimizer.exclude_from_weight_decay(var_names=["kernel"])
    tfkit.set_weight_decay(model, 0.5, one_dimensional=True)
    assert rules(reload(model, tmp_path)) == rules(model) == 3 * [[1.0, 0.0], [1.0, 0.5]]


# --- weights files, copies and configs ------------------------------------------------------------------


def test_weights_files_carry_a_decay_that_was_changed_by_hand(tmp_path):
    model = ruled(net())
    checkpoint = keras.callbacks.ModelCheckpoint(str(tmp_path / "w.weights.h5"), save_weights_only=True)
    change = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: setattr(model.optimizer, "weight_decay", 0.5 / (epoch + 1))
    )
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0, callbacks=[change, checkpoint])
    fresh = ruled(net())
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "w.weights.h5")
    assert float(fresh.optimizer.weight_decay) == 0.25


@pytest.mark.parametrize("name", ["adam", "loss scale"])
def test_a_fit_that_died_goes_on_with_the_decay_of_its_moment(name, tmp_path):
    class Fall(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                tfkit.set_weight_decay(self.model, 0.125, exclude="d2")

    class Die(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def fit(model, *callbacks):
        return model.fit(X, Y, batch_size=4, epochs=3, shuffle=False, verbose=0, callbacks=list(callbacks))

    whole, killed, again = (ruled(net(OPTIMIZERS[name]())) for _ in range(3))
    fit(whole, Fall())
    with pytest.raises(KeyboardInterrupt):
        fit(killed, keras.callbacks.BackupAndRestore(tmp_path / "b"), Fall(), Die())
    assert fit(again, keras.callbacks.BackupAndRestore(tmp_path / "b"), Fall()).epoch == [2]
    expect_equal(numbers(again), numbers(whole))


def test_an_optimizer_without_rules_reads_the_weights_file_of_one_with(tmp_path):
    model, plain = train(ruled(net())), net()
    model.save_weights(tmp_path / "w.weights.h5")
    plain.optimizer.build(plain.trainable_variables)
    plain.load_weights(tmp_path / "w.weights.h5")
    expect_equal(numbers(plain), numbers(model))


def test_an_optimizer_with_rules_reads_the_weights_file_of_one_without(tmp_path):
    model, plain = ruled(net()), train(net())
    plain.save_weights(tmp_path / "w.weights.h5")
    model.optimizer.build(model.trainable_variables)
    model.load_weights(tmp_path / "w.weights.h5")
    expect_equal(numbers(model), numbers(plain))
    assert float(model.optimizer.weight_decay) == 0.5


def test_a_copy_of_the_model_goes_on_alike():
    model = train(ruled(net()))
    twin = copy.deepcopy(model)
    for each in (model, twin):
        train(each)
    expect_equal(numbers(twin), numbers(model))


def test_a_config_makes_an_optimizer_for_another_model():
    model = ruled(net())
    clone = keras.models.clone_model(model)
    config = keras.optimizers.serialize(model.optimizer)
    clone.compile(keras.optimizers.deserialize(config), "mse")
    clone.optimizer.build(clone.trainable_variables)
    assert rules(clone) == rules(model)


def test_the_config_is_what_json_can_hold():
    config = ruled(net()).optimizer.get_config()
    assert json.loads(json.dumps(config["rules"])) == config["rules"]


def test_compiling_again_with_the_same_optimizer_keeps_the_rules():
    model = train(ruled(net()))
    before = rules(model)
    model.compile(model.optimizer, "mae", run_eagerly=True)
    assert rules(train(model)) == before


# --- the class ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "average", "loss scale", "muon"])
def test_an_optimizer_that_follows_no_rule_goes_as_before(name):
    plain, tailored = net(OPTIMIZERS[name]()), net(OPTIMIZERS[name]())
    per_variable.tailor(tailored.optimizer)
    for each in (plain, tailored):
        train(each, 3)
    expect_equal(numbers(tailored), numbers(plain))


def test_it_stays_the_object_and_the_kind_that_it_was():
    optimizer = optimizers.Adam(0.1)
    assert per_variable.tailor(optimizer) is optimizer
    assert isinstance(optimizer, optimizers.Adam)


def test_of_a_loss_scale_optimizer_it_is_the_inner_one():
    outer = optimizers.LossScaleOptimizer(optimizers.Adam(0.1))
    assert per_variable.tailor(outer) is outer.inner_optimizer
    assert isinstance(outer, optimizers.LossScaleOptimizer)


def test_a_decay_that_was_given_to_keras_is_taken_over():
    assert float(per_variable.tailor(optimizers.AdamW(0.1, weight_decay=0.75)).weight_decay) == 0.75


def test_no_decay_stays_none():
    assert per_variable.tailor(optimizers.Adam(0.1)).weight_decay is None


def test_one_class_serves_a_kind_of_optimizers():
    first, second = (per_variable.tailor(optimizers.Adam(0.1)) for _ in range(2))
    assert type(first) is type(second)


def test_several_optimizers_are_refused():
    two = optimizers.OptimizerMap(optimizers.Adam(0.1), {".*head.*": optimizers.SGD(0.1)})
    rule = (
        r"One optimizer must train the model; rules by variable make several unnecessary\. "
        r"Received: optimizer=MultiOptimizer of 2 optimizers\."
    )
    with pytest.raises(tfkit.ArgumentError, match=rule):
        per_variable.tailor(optimizers.MultiOptimizer(two))


# --- another process ---------------------------------------------------------------------------------

LOADING = """
import json, sys
import keras
import numpy as np
from tfkit import per_variable
def known(name):
    return keras.saving.get_registered_object(f"tfkit>PerVariable{name}") is not None
kinds = {kind.__name__ for kind in vars(keras.optimizers).values()
         if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer)}
kinds -= {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}
model = keras.models.load_model(sys.argv[1] + "/model.keras")
data = np.load(sys.argv[1] + "/data.npz")
model.train_on_batch(data["x"], data["y"])
print(json.dumps({
    "unknown": sorted(kind for kind in kinds if not known(kind)),
    "weights": [weight.tolist() for weight in model.get_weights()],
}))
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """What a process that imports this module alone finds in a file, and how the model went on here."""
    folder = tmp_path_factory.mktemp("file")
    model = train(ruled(net(OPTIMIZERS["loss scale"]())))
    model.save(folder / "model.keras")
    np.savez(folder / "data.npz", x=X, y=Y)
    done = subprocess.run(
        [sys.executable, "-c", LOADING, str(folder)],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), train(model, 1).get_weights()


@pytest.mark.slow
def test_goes_on_in_a_process_that_imports_the_module(elsewhere):
    found, expected = elsewhere
    for mine, theirs in zip(found["weights"], expected, strict=True):
        np.testing.assert_array_equal(np.array(mine, "float32"), theirs)


@pytest.mark.slow
def test_every_optimizer_of_keras_can_be_loaded_there(elsewhere):
    assert elsewhere[0]["unknown"] == []
