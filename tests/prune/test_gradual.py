"""Channels that go in steps: what each step leaves, what is trained, and what is not touched."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 6)).astype("float32")
Y = np.tanh(X @ RNG.normal(size=(6, 2))).astype("float32")
V = RNG.normal(size=(8, 6)).astype("float32")
W = np.tanh(V[:, :2])
FEATURES = keras.distillation.FeatureDistillation


def net(units=(64,), optimizer=None, **options):
    """A dense net; eager, for it trains a few batches only."""
    model = models.dense_net(units)
    options = {"run_eagerly": True} | options
    model.compile(optimizer or keras.optimizers.SGD(0.05), "mse", **options)
    return model


def run(model=None, x=X, y=Y, **options):
    target = {} if {"flops", "parameters", "ratio"} & options.keys() else {"parameters": 0.5}
    options = {"multiple_of": 1, "steps": 2, "batch_size": 8} | target | options
    return tfkit.prune_channels_gradually(model or net(), x, y, **options)


def mse(a, b):
    return float(np.square(np.asarray(a) - np.asarray(b)).mean())


class Calls(keras.callbacks.Callback):
    """Counts trainings, epochs and batches, and keeps the models."""

    def __init__(self):
        super().__init__()
        self.begins = self.epochs = self.batches = 0
        self.seen = []

    def on_train_begin(self, logs=None):
        self.begins += 1
        self.seen.append(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1
        self.logs = logs

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1


class Batches(keras.utils.PyDataset):
    @property
    def num_batches(self):
        return 4

    def __getitem__(self, number):
        return X[8 * number : 8 * number + 8], Y[8 * number : 8 * number + 8]


# --- steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["flops", "parameters"])
@pytest.mark.parametrize("absolute", [False, True])
def test_step_i_of_n_leaves_the_target_to_the_power_of_i_over_n(name, steps, absolute):
    """A net of u units costs 2·8u operations and 9u + 2 weights."""
    whole = {"flops": 2 * 8 * 64, "parameters": 9 * 64 + 2}[name]
    done = run(**{name: round(0.3 * whole) if absolute else 0.3}, steps=steps)
    wanted = [whole * 0.3 ** (step / steps) for step in range(1, steps + 1)]
    assert done.table[name].tolist() == pytest.approx(wanted, rel=0.03)
    assert done.table.step.tolist() == [*range(1, steps + 1)]
    units = done.model.layers[0].units
    assert done.table[name].tolist()[-1] == {"flops": 16 * units, "parameters": 9 * units + 2}[name]


def test_a_ratio_takes_the_same_share_of_what_is_left():
    done = run(ratio=0.75, steps=2)
    assert [plan.groups[0].channels_after for plan in done.plans] == [32, 16]


def test_each_plan_begins_where_the_one_before_ended():
    done = run(steps=3)
    assert [plan.before for plan in done.plans[1:]] == [plan.after for plan in done.plans[:-1]]
    assert done.plans[-1].after["parameters"] == done.model.count_params()


@pytest.mark.parametrize("target", [{"parameters": 0.6}, {"flops": 0.6}, {"ratio": 0.5}], ids=str)
def test_steps_that_are_reached_already_only_train(target):
    """Of 16 units 8 or 16 may stay, so the first of five steps takes all that should go."""
    calls = Calls()
    done = run(net((16,)), steps=5, multiple_of=8, callbacks=[calls], **target)
    assert [plan.groups[0].channels_after for plan in done.plans] == [8]
    assert done.table.step.tolist() == [1, 2, 3, 4, 5]
    assert set(done.table.parameters) == {9 * 8 + 2}
    assert calls.begins == 5
    assert done.table.pruned_loss.tolist()[1:] == pytest.approx(done.table.loss.tolist()[:-1], rel=1e-4)


def test_a_ratio_is_counted_from_the_whole_model_where_widths_are_coarse():
    """Widths of 32, 24, 16 and 8: after 32·0.5^(i/4), which is 26.9, 22.6, 19.0 and 16."""
    done = run(net((32,)), steps=4, multiple_of=8, ratio=0.5)
    assert [plan.groups[0].channels_after for plan in done.plans] == [24, 16]


def test_options_reach_the_plan():
    done = run(net((16, 16)), steps=1, ratio=0.25, layers="d1", multiple_of=4, criterion="l1")
    assert [done.model.layers[0].units, done.model.layers[1].units] == [12, 16]
    assert done.plans[0].criterion == "l1"


@pytest.mark.parametrize("data", ["arrays", "dataset", "PyDataset"])
@pytest.mark.parametrize("criterion", ["activation", "taylor"])
def test_a_criterion_that_needs_data_takes_the_training_data(criterion, data):
    """The first step is the plan on these data."""
    pairs = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    x, y = {"arrays": (X, Y), "dataset": (pairs, None), "PyDataset": (Batches(), None)}[data]
    done = run(x=x, y=y, criterion=criterion, steps=1)
    plan = tfkit.plan_channel_pruning(
        net(), parameters=0.5, multiple_of=1, criterion=criterion, data=(X, Y), batch_size=8
    )
    assert done.plans[0].groups[0].kept == plan.groups[0].kept


# --- training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", ["arrays", "dataset", "PyDataset"])
def test_every_step_trains_so_many_epochs(data):
    calls = Calls()
    pairs = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    x, y = {"arrays": (X, Y), "dataset": (pairs, None), "PyDataset": (Batches(), None)}[data]
    run(x=x, y=y, steps=2, epochs=3, callbacks=[calls])
    assert [calls.begins, calls.epochs, calls.batches] == [2, 6, 24]


def test_training_makes_the_loss_fall():
    done = run(net(optimizer=keras.optimizers.SGD(0.1)), epochs=4)
    assert (done.table.loss < done.table.pruned_loss).all()


def test_a_step_that_cannot_learn_is_the_plan_carried_out():
    model = net(optimizer=keras.optimizers.SGD(0.0))
    done = run(model, steps=1)
    expected = tfkit.prune_channels(model, parameters=0.5, multiple_of=1)
    expect_equal(done.model.get_weights(), expected.get_weights())
    assert done.table.loss[0] == pytest.approx(mse(expected(X), Y), rel=1e-4)


@pytest.mark.parametrize(("keep", "updates"), [(False, 4), (True, 12)])
@pytest.mark.parametrize("distillation", [None, FEATURES(loss="mse")], ids=["plain", "distilled"])
def test_the_optimizer_goes_on_or_begins_anew(keep, updates, distillation):
    """4 updates before, 4 in each of two steps."""
    model = net(optimizer=keras.optimizers.Adam(0.01))
    model.fit(X, Y, 8, verbose=0)
    done = run(model, keep_optimizer=keep, distillation=distillation)
    assert int(done.model.optimizer.iterations) == updates


@pytest.mark.parametrize("recalibrate", [True, False])
def test_statistics_are_measured_anew_behind_each_removal(recalibrate):
    def build():
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [keras.Input((6,)), layers.Dense(16, name="a"), layers.BatchNormalization(), layers.ReLU(),
             layers.Dense(8, name="b"), layers.BatchNormalization(), layers.Dense(2)]
        )  # fmt: skip
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    done = run(build(), steps=1, recalibrate=recalibrate)
    expected = done.plans[0].apply(build())
    if recalibrate:
        tfkit.recalibrate_batch_norm(expected, X, batch_size=8)
    assert done.table.pruned_loss[0] == pytest.approx(mse(expected(X), Y), rel=1e-3)


# --- what is not touched ---------------------------------------------------------------------------


@pytest.mark.parametrize("distillation", [None, FEATURES(loss="mse")], ids=["plain", "distilled"])
def test_the_model_is_as_it_was(distillation):
    model = net((16, 16), optimizer=keras.optimizers.Adam(0.01))
    model.get_layer("d2").trainable = False
    model.fit(X, Y, 8, verbose=0)
    held = [*model.variables, *model.optimizer.variables]
    before, flags = [np.asarray(v) for v in held], [v.trainable for v in model.variables]
    done = run(model, distillation=distillation, keep_optimizer=True)
    expect_equal(map(np.asarray, held), before)
    assert [v.trainable for v in model.variables] == flags
    assert [layer.trainable for layer in model.layers] == [True, False, True]
    assert [layer.trainable for layer in done.model.layers] == [True, False, True]


# --- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize("distillation", [None, FEATURES(loss="mse")], ids=["plain", "distilled"])
def test_metrics_are_those_of_the_model_and_stay_compiled(distillation):
    model = net(metrics=["mae", keras.metrics.CosineSimilarity(name="cosine")])
    done = run(model, distillation=distillation, steps=1)
    names = ["loss", "mae", "cosine"]
    pruned = [f"pruned_{name}" for name in names]
    assert {*done.table.columns} == {"step", "flops", "parameters", *pruned, *names}
    assert list(done.table.columns)[:3] == ["step", "flops", "parameters"]
    found = done.model.evaluate(X, Y, verbose=0, return_dict=True)
    assert found == pytest.approx(done.table.iloc[-1][names].to_dict(), rel=1e-4)
    assert found["mae"] == pytest.approx(np.abs(np.asarray(done.model(X)) - Y).mean(), rel=1e-4)


@pytest.mark.parametrize("kind", ["pair", "list", "weighted", "dataset"])
def test_validation_data_are_what_the_table_is_of(kind):
    weights = np.linspace(0, 2, 8)
    data = {
        "pair": (V, W),
        "list": [V, W],
        "weighted": (V, W, weights),
        "dataset": tf.data.Dataset.from_tensor_slices((V, W)).batch(4),
    }[kind]
    calls = Calls()
    done = run(validation_data=data, steps=1, callbacks=[calls])
    errors = np.square(np.asarray(done.model(V)) - W).mean(1)
    expected = (errors * (weights if kind == "weighted" else 1)).mean()
    assert done.table.loss[0] == pytest.approx(expected, rel=1e-4)
    assert calls.logs["val_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("verbose", "shown"), [(0, False), (1, True)])
def test_steps_are_shown_on_request(verbose, shown, capsys):
    run(steps=1, verbose=verbose)
    assert ("step 1: " in capsys.readouterr().err) == shown


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ratio": 1.5}, tfkit.ArgumentError, r"`ratio` is the fraction.*Received: ratio=1\.5"),
        ({"flops": 0.5, "ratio": 0.5}, tfkit.ArgumentError, r"Exactly one target.*flops=0\.5, ratio=0\.5"),
        ({"ratio": 0.5, "latency": 0.5}, tfkit.ArgumentError, r"Exactly one.*ratio=0\.5, latency=0\.5"),
        ({"steps": 0}, tfkit.ArgumentError, r"`steps`.*Received: steps=0"),
        ({"epochs": 0}, tfkit.ArgumentError, r"`epochs`.*Received: epochs=0"),
        ({"batch_size": -1}, tfkit.ArgumentError, r"`batch_size`.*Received: batch_size=-1"),
        ({"criterion": "best"}, tfkit.ArgumentError, r"`criterion` must be one of.*criterion='best'"),
        ({"layers": "d9"}, tfkit.LayerNotFoundError, r"pattern='d9'"),
        ({"parameters": 0.01}, tfkit.PruningError, r"must be possible.*The least is"),
        ({"distillation": "mse"}, tfkit.ArgumentTypeError, r"loss of keras\.dis.*distillation='mse'.*Write"),
        ({"distillation": []}, tfkit.ArgumentTypeError, r"or a list of them.*Received: distillation=\[\]"),
        ({"distillation": [FEATURES(loss="mse"), 3]}, tfkit.ArgumentTypeError, r"loss of keras\.dist"),
        ({"distillation": FEATURES(loss="mse"), "distillation_weight": 0}, tfkit.ArgumentError,
         r"share of distillation.*\(0, 1\].*Received: distillation_weight=0"),
        ({"distillation": FEATURES(loss="mse"), "distillation_weight": True}, tfkit.ArgumentError,
         r"Received: distillation_weight=True"),
        ({"distillation": FEATURES(loss="mse"), "distillation_weight": 1.5}, tfkit.ArgumentError,
         r"Received: distillation_weight=1\.5"),
        ({"model": models.dense_net()}, tfkit.ArgumentError, r"must be compiled.*Received: model='seq"),
        ({"model": 7}, tfkit.ArgumentTypeError, r"must be a Keras 3 model.*Received: model=7"),
    ],
    ids=lambda each: str(each)[:40],
)  # fmt: skip
def test_bad_arguments_are_refused_before_anything_is_trained(options, error, message):
    calls = Calls()
    with pytest.raises(error, match=message):
        run(**{"callbacks": [calls]} | options)
    assert calls.begins == 0


def test_no_target_is_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"Exactly one target.*Received: none"):
        tfkit.prune_channels_gradually(net(), X, Y)


def test_a_subclassed_model_is_refused():
    model = models.subclassed_net()
    model.compile("sgd", "mse")
    with pytest.raises(tfkit.PruningError, match=r"functional or Sequential.*Received: model='subclassed'"):
        run(model, x=np.zeros((4, 8, 8, 3)), y=np.zeros((4, 2)))


def test_groups_end_no_narrower_than_one_plan_would_leave_them():
    done = run(net((32, 32, 32)), parameters=0.2, steps=6, multiple_of=8)
    assert min(layer.units for layer in done.model.layers[:-1]) >= 8
