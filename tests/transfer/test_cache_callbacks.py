"""`fit_cached` and callbacks: they see the whole model and hear what `fit` would tell them."""

import keras
import numpy as np
import pytest
from keras import callbacks

import tfkit
from tests import models
from tests.transfer.caching import (
    BATCH,
    X,
    Y,
    compiled,
    dense,
    fit_quietly,
    numbers,
    require_same,
    train_both,
)

HELD = (X[:5], Y[:5])
HOOKS = [
    f"on_{what}{step}_{end}"
    for what, step in (("train", ""), ("test", ""), ("epoch", ""), ("train", "_batch"), ("test", "_batch"))
    for end in ("begin", "end")
]


class Listener(callbacks.Callback):
    """Notes every call with its number and logs, and what `look` returns."""

    def __init__(self, look=None):
        super().__init__()
        self.heard = []
        for name in HOOKS:
            setattr(self, name, lambda *given, name=name, **more: self.note(name, look, *given, **more))

    def note(self, name, look, *given, logs=None):
        *place, told = given if given and isinstance(given[-1], dict | None) else (*given, logs)
        told = {key: float(value) for key, value in (told or {}).items()}
        self.heard.append((name, place, told, look(self) if look else None))


def listen(fit, look=None, build=dense, **arguments):
    """Returns what a callback heard, and the callback."""
    listener = Listener(look)
    fit(build(), callbacks=[listener], **arguments)
    return listener


def plain(model, x=X, y=Y, **arguments):
    return model.fit(x, y, **({"verbose": 0, "batch_size": BATCH} | arguments))


# --- what they see ------------------------------------------------------------------------------------


def test_callbacks_hear_what_fit_tells_them():
    options = {"epochs": 2, "validation_data": HELD, "shuffle": False}
    mine, theirs = listen(fit_quietly, **options).heard, listen(plain, **options).heard
    assert [each[:2] for each in mine] == [each[:2] for each in theirs]
    assert [list(each[2]) for each in mine] == [list(each[2]) for each in theirs]
    for (*_, told, _), (*_, wanted, _) in zip(mine, theirs):
        np.testing.assert_allclose(list(told.values()), list(wanted.values()), rtol=1e-5)


def test_callbacks_see_the_whole_model_at_every_call():
    seen = listen(fit_quietly, lambda each: each.model, epochs=2, validation_data=HELD).heard
    assert {each[3].name for each in seen} == {seen[0][3].name}
    assert all(isinstance(each[3], keras.Sequential) for each in seen)


def test_the_callbacks_model_is_the_one_that_was_given():
    model, listener = dense(), Listener()
    fit_quietly(model, callbacks=[listener])
    assert listener.model is model


def test_callbacks_see_the_weights_of_now():
    options = {"epochs": 2, "shuffle": False}
    mine = listen(fit_quietly, lambda each: numbers(each.model.weights), **options).heard
    theirs = listen(plain, lambda each: numbers(each.model.weights), **options).heard
    assert mine
    for (*_, got), (*_, wanted) in zip(mine, theirs, strict=True):
        for one, other in zip(got, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"verbose": "auto"}, {"verbose": 2}, {"epochs": 3}, {"steps_per_epoch": 1}],
    ids=str,
)
def test_the_parameters_are_those_of_fit(options, capsys):
    mine, theirs = (listen(fit, **options).params for fit in (fit_quietly, plain))
    assert mine == theirs


def test_a_single_callback_needs_no_list():
    listener = Listener()
    fit_quietly(dense(), callbacks=listener)
    assert listener.heard


def test_a_history_of_ones_own_is_the_one_returned():
    own = callbacks.History()
    assert fit_quietly(dense(), callbacks=[own]) is own


def test_a_finished_callback_list_equals_fit():
    def run(fit):
        model = dense()
        fit(model, callbacks=callbacks.CallbackList([callbacks.History()], model=model), shuffle=False)
        return model

    require_same(run(fit_quietly), run(plain))


def test_predictions_on_raw_input_inside_a_callback_equal_those_of_fit():
    class Predicting(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["sum"] = float(np.sum(self.model.predict(X, verbose=0)))

    train_both(dense, callbacks=lambda: [Predicting()])


def test_evaluations_on_raw_input_inside_a_callback_equal_those_of_fit():
    class Evaluating(callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs |= {f"held_{k}": v for k, v in self.model.evaluate(*HELD, 2, 0, return_dict=True).items()}

    train_both(lambda: dense(metrics=["mae"]), callbacks=lambda: [Evaluating()], validation_data=HELD)


# --- keras's callbacks --------------------------------------------------------------------------------


def test_a_checkpoint_is_the_whole_model_with_the_weights_of_its_epoch(tmp_path):
    keep = callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    model, oracle = dense(), dense()
    fit_quietly(model, callbacks=[keep], epochs=3, shuffle=False)
    plain(oracle, epochs=2, shuffle=False)
    loaded = keras.models.load_model(tmp_path / "2.keras")
    loaded.reset_metrics(), oracle.reset_metrics()  # a file holds none
    require_same(loaded, oracle)
    np.testing.assert_allclose(loaded.predict(X, verbose=0), oracle.predict(X, verbose=0), rtol=1e-5)


def test_the_best_checkpoint_is_chosen_as_by_fit(tmp_path):
    paths = [tmp_path / "fit.weights.h5", tmp_path / "cached.weights.h5"]
    unused = iter(paths)

    def keep():
        return [callbacks.ModelCheckpoint(next(unused), "val_loss", 0, True, True)]

    build = lambda: dense(optimizer=keras.optimizers.SGD(0.4))  # noqa: E731 - jumps about
    model, _ = train_both(build, epochs=4, validation_data=HELD, callbacks=keep)
    assert np.argmin(model.history.history["val_loss"]) < 3
    wanted, got = models.dense_net(), models.dense_net()
    for each, path in zip((wanted, got), paths):
        each.load_weights(path)
    for one, other in zip(numbers(got.weights), numbers(wanted.weights)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("restore", [True, False])
def test_early_stopping_stops_and_restores_as_in_fit(restore):
    def stop():
        return [callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=restore)]

    build = lambda: dense(optimizer=keras.optimizers.SGD(0.8))  # noqa: E731 - too fast
    model, _ = train_both(build, epochs=8, validation_data=HELD, callbacks=stop)
    assert len(model.history.epoch) < 8


def test_a_callback_can_stop_within_an_epoch():
    class Stop(callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = self.model.optimizer.iterations >= 3

    model, _ = train_both(dense, epochs=5, callbacks=lambda: [Stop()])
    assert int(model.optimizer.iterations) == 3


def test_a_scheduler_sets_the_rate_as_in_fit():
    train_both(dense, epochs=3, callbacks=lambda: [callbacks.LearningRateScheduler(lambda e, r: r / (e + 1))])


def test_swapped_moving_averages_equal_fit():
    build = lambda: dense(optimizer=keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.5))  # noqa: E731
    train_both(build, validation_data=HELD, callbacks=lambda: [callbacks.SwapEMAWeights(swap_on_epoch=True)])


def test_tensorboard_writes_its_files(tmp_path):
    board = callbacks.TensorBoard(tmp_path, histogram_freq=1, update_freq="batch", profile_batch=0)
    fit_quietly(dense(), callbacks=[board], validation_data=HELD, epochs=2)
    folders = {path.parent.name for path in tmp_path.rglob("events*")}
    assert folders == {"train", "validation"}


class Kill(callbacks.Callback):
    """Ends the training as a signal would."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def resumed(build, folder):
    """Trains for one epoch of three, then again from the backup with a new model."""
    options = {"epochs": 3, "shuffle": False, "validation_data": HELD}
    with pytest.raises(KeyboardInterrupt):
        fit_quietly(build(0), callbacks=[callbacks.BackupAndRestore(folder), Kill(1)], **options)
    model = build(1)
    history = fit_quietly(model, callbacks=[callbacks.BackupAndRestore(folder)], **options)
    oracle = build(0)
    wanted = plain(oracle, **options)
    return model, oracle, history, wanted


def test_a_killed_run_resumes_as_if_it_had_never_stopped(tmp_path):
    model, oracle, history, wanted = resumed(lambda run: dense(), tmp_path)
    require_same(model, oracle)
    np.testing.assert_allclose(history.history["val_loss"], wanted.history["val_loss"][1:], rtol=1e-5)


def test_a_run_resumes_with_the_frozen_weights_of_its_backup(tmp_path):
    # The new process begins with other weights everywhere; the backup brings back the old ones.
    def build(run):
        return compiled(models.dense_net(seed=run), ["d2", "head"])

    model, oracle, _, _ = resumed(build, tmp_path)
    require_same(model, oracle)


# --- tfkit's callbacks ---------------------------------------------------------------------------------


def test_a_curve_sets_the_rate_as_in_fit():
    curve = tfkit.curves.linear(0.1, 0.0, 6)
    train_both(dense, callbacks=lambda: [tfkit.LearningRateCurve(curve), Rates()])


class Rates(callbacks.Callback):
    """Puts the rate of every epoch's end into the history."""

    def on_epoch_end(self, epoch, logs=None):
        logs["rate"] = float(self.model.optimizer.learning_rate)


def test_a_plateau_lowers_the_rate_as_in_fit():
    def lower():
        return [tfkit.ReduceLROnPlateau(monitor="val_loss", patience=1, min_delta=10.0, factor=0.5), Rates()]

    model, _ = train_both(dense, epochs=3, validation_data=HELD, callbacks=lower)
    assert model.history.history["rate"][-1] < 0.05


def test_a_warmup_equals_fit():
    train_both(dense, callbacks=lambda: [tfkit.WarmupCosine(0.1, warmup_steps=2, total_steps=6), Rates()])


def test_pruning_steps_log_the_sparsity_as_in_fit():
    def build():
        schedule = tfkit.ConstantSparsity(0.5, 0, frequency=1)
        return tfkit.prune_low_magnitude(dense(), schedule)

    train_both(build, callbacks=lambda: [tfkit.UpdatePruningStep()])


# --- before and after ----------------------------------------------------------------------------------


def train_in_turn(*stages, build=dense):
    """Runs stages on a model and on an oracle that only knows `fit`, and compares them."""
    models_ = []
    for fit in (fit_quietly, plain):
        model = build()
        for stage in stages:
            stage(model, fit)
        models_.append(model)
    require_same(*models_)
    return models_[0]


def run(model, fit):
    fit(model, epochs=2, shuffle=False)


def test_a_second_run_goes_on():
    model = train_in_turn(run, run)
    assert int(model.optimizer.iterations) == 8


def test_plain_fit_goes_on_after_it():
    model = train_in_turn(run, lambda model, fit: run(model, plain), build=lambda: dense(jit_compile=False))
    assert int(model.optimizer.iterations) == 8


def test_it_goes_on_after_plain_fit():
    train_in_turn(lambda model, fit: run(model, plain), run, build=lambda: dense(jit_compile=False))


def test_it_goes_on_after_the_boundary_moved():
    def thaw(model, fit):
        tfkit.configure_base_model(model, ["head"])

    model = train_in_turn(run, thaw, run, build=lambda: dense(jit_compile=False))
    assert int(model.optimizer.iterations) == 8


def test_more_layers_may_train_in_a_second_run():
    def build():
        return compiled(models.dense_net((8, 4, 5)), ["head"])

    train_in_turn(run, lambda model, fit: tfkit.configure_base_model(model, ["d3", "head"]), run, build=build)


def test_layers_frozen_by_hand_are_those_of_now():
    def freeze(model, fit):
        model.get_layer("d2").trainable = False
        if fit is plain:
            tfkit.configure_base_model(model, "head")  # fit alone would not notice

    train_in_turn(run, freeze, run, build=lambda: dense(jit_compile=False))


def test_a_loaded_model_goes_on(tmp_path):
    model, oracle = dense(), dense()
    run(model, fit_quietly)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    run(loaded, fit_quietly)
    run(oracle, plain)
    run(oracle, plain)
    require_same(loaded, oracle)


def test_the_returned_history_is_the_models():
    model = dense()
    assert fit_quietly(model) is model.history


def test_the_model_can_train_after_a_callback_stopped_it_by_an_error():
    model, oracle = dense(), dense()
    for each, fit in ((model, fit_quietly), (oracle, plain)):
        with pytest.raises(KeyboardInterrupt):
            fit(each, epochs=2, shuffle=False, callbacks=[Kill(1)])
        fit(each, epochs=2, shuffle=False)
    require_same(model, oracle)


def test_a_saved_model_has_no_trace_of_it(tmp_path):
    model, oracle = dense(), dense()
    run(model, fit_quietly)
    run(oracle, plain)
    model.save(tmp_path / "mine.keras")
    loaded = keras.models.load_model(tmp_path / "mine.keras")
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in oracle.layers]
    assert len(loaded.weights) == len(oracle.weights)


# --- what is printed -----------------------------------------------------------------------------------


def test_nothing_is_printed_when_asked_for_silence(capfd):
    model = dense()
    capfd.readouterr()
    fit_quietly(model, verbose=0)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("verbose", [1, "auto"])
def test_the_progress_of_features_and_epochs_is_printed(verbose, capfd):
    fit_quietly(dense(), verbose=verbose, epochs=2)
    printed = capfd.readouterr().out
    assert printed.index("Computing features of the frozen layers") < printed.index("Epoch 1/2")
