"""`compare_unfreezing`: what differs between stages, what is counted, what wins."""

import gc
import math
import weakref

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from keras import layers, optimizers

import tfkit
from tests import models
from tfkit.errors import ArgumentError

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(12, 6)).astype("float32"), RANDOM.normal(size=(12, 2)).astype("float32")
TRAIN, VALIDATION = (X[:8], Y[:8]), (X[8:], Y[8:])
STAGES = {"top": "head", "half": "d2..head", "all": "*"}


def build(**compiling):
    model = models.dense_net()
    model.compile(optimizers.SGD(0.05), "mse", run_eagerly=True, **compiling)
    return model


def compare(build=build, stages=STAGES, train=TRAIN, validation=VALIDATION, **options):
    options = {"epochs": 2, "batch_size": 8, **options}
    return tfkit.compare_unfreezing(build, stages, train, validation, **options)


def by_hand(patterns, seed=0, epochs=2, train=TRAIN, validation=VALIDATION, **compiling):
    """One stage, written out: the oracle."""
    keras.utils.set_random_seed(seed)
    model = tfkit.configure_base_model(build(**compiling), patterns)
    x, y, *weight = train
    fit = {"batch_size": 8, "epochs": epochs, "validation_data": validation, "verbose": 0}
    return model.fit(x, y, sample_weight=weight[0] if weight else None, **fit).history


class Script(keras.callbacks.Callback):
    """Logs given scores, by how many variables train: 2 in "top", 4 in "half", 6 in "all"."""

    def __init__(self, **scores):
        super().__init__()
        self.scores = scores

    def on_epoch_end(self, epoch, logs=None):
        stage = {2: "top", 4: "half", 6: "all"}[len(self.model.trainable_variables)]
        logs["score"] = self.scores[stage][epoch]


def scripted(mode="min", **scores):
    stages = {name: STAGES[name] for name in scores}
    epochs = len(next(iter(scores.values())))
    return compare(
        stages=stages, callbacks=lambda: [Script(**scores)], objective="score", mode=mode, epochs=epochs
    )


def relogged(name, values):
    """Callbacks that put these values in place of what was measured."""
    return lambda: [
        keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update({name: values[epoch]}))
    ]


# --- the stages ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table():
    return compare()


def test_there_is_a_row_a_stage_in_the_order_given(table):
    assert table.stage.tolist() == ["top", "half", "all"]


def test_the_columns_begin_with_counts_and_end_with_the_choice(table):
    assert table.columns.tolist() == [
        *("stage", "trainable_layers", "trainable_parameters", "epochs", "best_epoch"),
        *("val_loss", "loss", "seconds", "chosen"),
    ]


def test_layers_and_weights_that_train_are_counted(table):
    assert table.trainable_layers.tolist() == [1, 2, 3]
    assert table.trainable_parameters.tolist() == [10, 36 + 10, 56 + 36 + 10]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_what_one_writes_by_hand(table, stage):
    assert table.attrs["history"][stage] == by_hand(STAGES[stage])


def test_each_stage_begins_from_the_same_seed():
    histories = compare(stages={"once": "d2..head", "again": "d2..head"}).attrs["history"]
    assert histories["once"] == histories["again"]


def test_the_seed_decides():
    assert compare(stages=["head"], seed=3).attrs["history"]["head"] == by_hand("head", seed=3)


@pytest.mark.parametrize(("seed", "calls"), [(7, [7, 7]), (None, [])])
def test_without_a_seed_randomness_is_left_alone(seed, calls, monkeypatch):
    seen = []
    monkeypatch.setattr(keras.utils, "set_random_seed", seen.append)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(2, name="head")])

    def build_unseeded():
        clone = keras.models.clone_model(model)
        clone.compile("sgd", "mse", run_eagerly=True)
        return clone

    compare(build_unseeded, ["head"], seed=seed, epochs=1)
    assert seen == calls


def test_frozen_batch_norm_is_not_counted_and_trained_batch_norm_is():
    def build_conv():
        model = models.conv_net()
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    data = RANDOM.normal(size=(4, 8, 8, 3)).astype("float32"), Y[:4]
    counts = [
        compare(build_conv, ["*"], data, data, epochs=1, batch_norm=each).loc[0, "trainable_layers"]
        for each in ("frozen", "train")
    ]
    assert counts == [3, 4]


def test_patterns_may_be_of_any_kind_and_name_themselves():
    stages = [
        "head",
        ["d2", "head"],
        lambda layer: layer.name == "d1",
        tfkit.recommend_trainable_layers(build(), n_samples=20_000, similarity="similar"),
    ]
    table = compare(stages=stages, epochs=1)
    assert table.stage.tolist() == ["head", "d2, head", "<lambda>", "d1, d2, head"]
    assert table.trainable_layers.tolist() == [1, 2, 1, 3]


def test_patterns_that_can_be_read_only_once_are_kept():
    assert compare(stages={"top": iter(["d2", "head"])}, epochs=1).trainable_layers.tolist() == [2]


def test_at_most_one_model_is_alive():
    alive, made = [], []

    def build_counted():
        gc.collect()
        alive.append(sum(reference() is not None for reference in made))
        made.append(weakref.ref(model := build()))
        return model

    table = compare(build_counted, callbacks=lambda: [keras.callbacks.EarlyStopping()])
    gc.collect()
    assert alive == [0] * 4
    assert not any(reference() for reference in made)
    assert len(table) == 3


# --- data ----------------------------------------------------------------------------------------


def dataset(arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(8)


@pytest.mark.parametrize("train", [TRAIN, dataset(TRAIN)], ids=["arrays", "dataset"])
@pytest.mark.parametrize("validation", [VALIDATION, dataset(VALIDATION)], ids=["arrays", "dataset"])
def test_arrays_and_datasets_go_together(train, validation):
    table = compare(stages=["head"], train=train, validation=validation, epochs=1)
    assert table.val_loss.tolist() == pytest.approx(by_hand("head", epochs=1)["val_loss"])


def test_sample_weights_count():
    weighted = (*TRAIN, np.linspace(0, 1, 8, dtype="float32"))
    table = compare(stages=["head"], train=weighted)
    assert table.attrs["history"]["head"] == by_hand("head", train=weighted)


def test_validation_may_be_weighted():
    weighted = (*VALIDATION, np.array([0, 0, 0, 4], "float32"))
    table = compare(stages=["head"], validation=weighted)
    assert table.attrs["history"]["head"]["val_loss"] == by_hand("head", validation=weighted)["val_loss"]


def test_several_inputs_are_arrays_too():
    def build_two():
        a, b = keras.Input((6,), name="a"), keras.Input((6,), name="b")
        model = keras.Model({"a": a, "b": b}, layers.Dense(2, name="head")(layers.Add()([a, b])))
        model.compile("sgd", "mse", run_eagerly=True)
        return model

    data = {"a": X, "b": X}, Y
    assert compare(build_two, ["head"], data, data, epochs=1).trainable_layers.tolist() == [1]


# --- which stage wins ----------------------------------------------------------------------------


def test_the_lowest_value_of_any_epoch_wins():
    table = scripted(top=[4.0, 3.0], half=[2.0, 9.0], all=[2.5, 7.0])
    assert table.score.tolist() == [3.0, 2.0, 2.5]
    assert table.best_epoch.tolist() == [2, 1, 1]
    assert table.chosen.tolist() == [False, True, False]


def test_the_highest_value_wins_where_high_is_good():
    table = scripted("max", top=[4.0, 3.0], half=[2.0, 9.0], all=[2.5, 7.0])
    assert table.score.tolist() == [4.0, 9.0, 7.0]
    assert table.best_epoch.tolist() == [1, 2, 2]
    assert table.chosen.tolist() == [False, True, False]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_tie_goes_to_the_earlier_stage(mode):
    assert scripted(mode, top=[2.0], half=[1.0], all=[1.0]).chosen.tolist() == (
        [False, True, False] if mode == "min" else [True, False, False]
    )


def test_a_tie_between_epochs_goes_to_the_earlier_epoch():
    assert scripted(top=[2.0, 1.0, 1.0]).best_epoch.tolist() == [2]


@pytest.mark.parametrize(("mode", "bad"), [("min", math.nan), ("min", -math.inf), ("max", math.inf)])
def test_a_stage_that_was_never_finite_does_not_win(mode, bad):
    table = scripted(mode, top=[bad], half=[2.0], all=[bad])
    assert table.chosen.tolist() == [False, True, False]
    assert np.isnan(table.score[[0, 2]]).all()
    assert table.best_epoch.isna().tolist() == [True, False, True]


def test_epochs_that_are_not_finite_are_passed_over():
    table = scripted(top=[math.nan, 3.0, -math.inf, math.nan])
    assert (table.score[0], table.best_epoch[0]) == (3.0, 2)


@pytest.mark.parametrize(
    ("metric", "objective", "high_is_good"),
    [
        ("accuracy", "val_accuracy", True),
        (keras.metrics.AUC(name="area"), "val_area", True),
        (keras.metrics.R2Score(name="r2"), "val_r2", True),
        ("mae", "val_mae", False),
        ("mae", "mae", False),
        ("mae", "loss", False),
    ],
    ids=str,
)
def test_the_direction_is_keras_own(metric, objective, high_is_good):
    def build_metric():
        model = keras.Sequential([keras.Input((6,)), layers.Dense(2, activation="sigmoid", name="head")])
        metrics = [metric if isinstance(metric, str) else type(metric).from_config(metric.get_config())]
        model.compile(optimizers.SGD(0.5), "mse", metrics=metrics, run_eagerly=True)
        return model

    targets = (Y > 0).astype("float32")
    options = {"objective": objective, "epochs": 3, "callbacks": relogged(objective, [2.0, 3.0, 1.0])}
    table = compare(build_metric, ["head"], (X, targets), (X, targets), **options)
    assert table[objective].tolist() == [3.0 if high_is_good else 1.0]


def test_the_loss_of_one_output_is_best_when_low():
    def build_two():
        inputs = keras.Input((6,))
        outputs = {name: layers.Dense(2, name=name)(inputs) for name in ("a", "b")}
        model = keras.Model(inputs, outputs)
        model.compile("sgd", {"a": "mse", "b": "mse"}, run_eagerly=True)
        return model

    data = X, {"a": Y, "b": Y}
    table = compare(build_two, ["*"], data, data, objective="val_a_loss", epochs=3)
    assert table.val_a_loss[0] == min(table.attrs["history"]["*"]["val_a_loss"])


# --- the frame -----------------------------------------------------------------------------------


def test_the_objective_and_its_counterpart_stand_before_the_other_metrics():
    table = compare(lambda: build(metrics=["mae"]), ["head"], objective="val_mae")
    assert table.columns.tolist()[5:] == ["val_mae", "mae", "loss", "val_loss", "seconds", "chosen"]


def test_other_metrics_are_those_of_the_best_epoch():
    second = relogged("val_loss", [3.0, 1.0, 2.0])
    table = compare(lambda: build(metrics=["mae"]), ["*"], epochs=3, callbacks=second)
    history = table.attrs["history"]["*"]
    assert table.best_epoch[0] == 2
    assert {*history} == {"loss", "mae", "val_loss", "val_mae"}
    for name, values in history.items():
        assert len({*values}) == 3
        assert table.loc[0, name] == values[1]


def test_what_callbacks_log_becomes_a_column():
    scores = {"top": [1.0, 2.0], "half": [3.0, 4.0], "all": [5.0, 6.0]}
    table = compare(callbacks=lambda: [Script(**scores)])
    assert table.score.tolist() == [
        scores[stage][epoch - 1] for stage, epoch in zip(table.stage, table.best_epoch)
    ]


def test_a_metric_with_several_numbers_is_passed_over():
    f1 = [keras.metrics.F1Score(average=None, name="f1")]
    table = compare(
        lambda: build(metrics=f1), ["head"], train=(X, (Y > 0) * 1.0), validation=(X, (Y > 0) * 1.0)
    )
    assert "f1" not in table.columns


def test_something_logged_now_and_then_is_missing_elsewhere():
    class Odd(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                logs["odd"] = 1.0

    table = compare(stages=["head"], callbacks=lambda: [Odd()], epochs=3)
    np.testing.assert_equal(table.attrs["history"]["head"]["odd"], [math.nan, 1.0, math.nan])


def test_callbacks_can_end_a_stage_early():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    assert compare(stages=["head"], epochs=5, callbacks=lambda: [Stop()]).epochs.tolist() == [2]


def test_frames_can_be_put_together(table):
    assert len(pd.concat([table, table])) == 6


def test_seconds_are_measured(table):
    assert (table.seconds > 0).all()


@pytest.mark.parametrize("verbose", [0, 2])
def test_a_line_a_stage_is_printed_only_when_asked(verbose, capsys):
    table = compare(stages=["head"], epochs=1, verbose=verbose)
    line = f"head: val_loss {table.val_loss[0]:.4g} at epoch 1 of 1, 10 weights in 1 layers trained in"
    assert (line in capsys.readouterr().out) == bool(verbose)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_figure_is_written(tmp_path, ending):
    path = tmp_path / f"depth.{ending}"
    compare(stages=["head", "re:(d2|head)$", "re:(d1|head)$"], epochs=1, plot=path)
    assert (b"PNG" if ending == "png" else b"<svg") in path.read_bytes()


def test_the_figure_shows_a_stage_that_diverged(tmp_path):
    class Broken(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if len(self.model.trainable_variables) == 2:
                logs["val_loss"] = math.nan

    compare(callbacks=lambda: [Broken()], plot=tmp_path / "depth.svg", epochs=1)
    assert (tmp_path / "depth.svg").read_text().count("<!-- top -->") == 2  # at the axis and in the legend


# --- errors that only training shows ----------------------------------------------------------------


def test_an_objective_that_is_not_logged_stops_the_first_stage_after_one_epoch():
    epochs = []

    class Count(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            epochs.append(epoch)

    message = r"`objective` must be in the history.*objective='val_acc'; the history has loss, val_loss"
    with pytest.raises(ArgumentError, match=message):
        compare(objective="val_acc", callbacks=lambda: [Count()], epochs=3)
    assert epochs == [0]


def test_a_direction_that_keras_does_not_know_must_be_given():
    def closeness(y_true, y_pred):
        return -keras.ops.mean(keras.ops.abs(y_true - y_pred))

    message = (
        r"Keras must know whether.*objective='val_closeness', mode='auto'\. Pass mode='min' or mode='max'"
    )
    with pytest.raises(ArgumentError, match=message):
        compare(lambda: build(metrics=[closeness]), objective="val_closeness")


def test_a_comparison_in_which_everything_diverged_is_refused():
    message = (
        r"must be a finite number in at least one epoch.*score=nan.*of top, all\. Lower the learning rate"
    )
    with pytest.raises(ArgumentError, match=message):
        scripted(top=[math.nan], all=[math.inf])
