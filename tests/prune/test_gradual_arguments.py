"""What prune_channels_gradually takes: data, layers and callbacks, also under distillation."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkit
from tests.prune.test_gradual import FEATURES, Calls, V, W, X, Y, net, run


def endless():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8).repeat()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"x": endless(), "y": None}, tfkit.ArgumentError, r"`x` must come to an end.*\.take\(10\)"),
        ({"validation_data": endless()}, tfkit.ArgumentError, r"`validation_data` must come to an end"),
        ({"y": None}, tfkit.ArgumentError, r"Targets must be given once.*Received: x of type ndarray, no y"),
        ({"x": endless().take(2)}, tfkit.ArgumentError, r"given once.*Received: x of type .*, and y"),
        (
            {"x": X.tolist()},
            tfkit.ArgumentTypeError,
            r"arrays or a dataset\. Received: x of type list",
        ),
        (
            {"x": iter([])},
            tfkit.ArgumentTypeError,
            r"arrays or a dataset.*tf\.data\.Dataset of a gen",
        ),
        ({"validation_data": X}, tfkit.ArgumentTypeError, r"must be a pair \(x, y\).*of type ndarray"),
        ({"verbose": "auto"}, tfkit.ArgumentError, r"`verbose` must be 0, 1 or 2\. Received: verbose='auto'"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_training(options, error, message):
    calls = Calls()
    with pytest.raises(error, match=message):
        run(callbacks=[calls], **options)
    assert calls.begins == 0


@pytest.mark.parametrize("given", ["layers", "selection", "function"])
def test_layers_may_be_told_by_the_layers_of_the_whole_model(given):
    model = net((32, 32))
    layer = model.layers[0]
    told = {
        "layers": [layer],
        "selection": tfkit.select_layers(model, layer.name),
        "function": lambda each: each is layer,
    }[given]
    done = run(model, layers=told, ratio=0.5, parameters=None, steps=2)
    assert [each.units for each in done.model.layers[:2]] == [16, 32]


def test_one_callback_or_none_are_taken():
    calls = Calls()
    run(callbacks=calls, steps=1)
    assert calls.begins == 1
    run(callbacks=None, steps=1)


def test_a_function_gives_the_callbacks_of_each_step():
    steps, last = [], Calls()

    def callbacks(step):
        steps.append(step)
        return [last] if step == 3 else []

    run(callbacks=callbacks, steps=3)
    assert steps == [1, 2, 3]
    assert last.begins == 1


def test_callbacks_see_the_student_under_distillation():
    calls = Calls()
    done = run(distillation=FEATURES(), callbacks=[calls], steps=1)
    assert calls.seen == [done.model]
    assert calls.epochs == 1
    assert calls.batches == 4


def test_a_checkpoint_under_distillation_is_a_plain_model(tmp_path):
    save = keras.callbacks.ModelCheckpoint(tmp_path / "student.keras")
    done = run(distillation=FEATURES(), callbacks=[save], steps=1)
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert type(loaded) is keras.Sequential
    np.testing.assert_array_equal(loaded(V), done.model(V))


def test_early_stopping_ends_a_distillation():
    stop = keras.callbacks.EarlyStopping(
        monitor="val_loss", patience=0, min_delta=1e9, restore_best_weights=True
    )
    calls = Calls()
    run(
        distillation=FEATURES(), callbacks=[stop, calls], steps=1, epochs=9, validation_data=(V, W),
    )  # fmt: skip
    assert calls.epochs == 2


def test_nan_in_data_is_refused():
    model = net((32,))
    with pytest.raises(tfkit.ArgumentError, match=r"Scores must be finite.*Received: criterion='activation'"):
        tfkit.plan_channel_pruning(model, ratio=0.5, criterion="activation", data=X * np.nan)
    norm = keras.Sequential([keras.Input((6,)), keras.layers.BatchNormalization(name="bn")])
    before = norm.get_weights()
    with pytest.raises(tfkit.ArgumentError, match=r"must be finite.*Received: x that gives bn NaN"):
        tfkit.recalibrate_batch_norm(norm, X * np.nan)
    for one, other in zip(before, norm.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
