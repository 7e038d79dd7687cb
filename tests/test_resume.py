"""What callbacks leave in the files that are written while a fit runs, on the model, and after it."""

import gc
import json
import os
import subprocess
import sys
import weakref

import h5py
import keras
import numpy as np
import pytest

import tfkit
from tests import models
from tfkit import curves
from tfkit.resume import ResumableCallback

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(8, 6)).astype("float32"), RANDOM.normal(size=(8, 2)).astype("float32")


def net(seed=0):
    model = models.dense_net(seed=seed)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    return model


def every_kind():
    return [
        tfkit.LearningRateCurve(curves.linear(0.02, 0.0, 100)),
        tfkit.ReduceLROnPlateau("loss", warmup_steps=3),
        tfkit.GradualUnfreezing({0: "head", 1: "*"}),
    ]


def fit(model, *callbacks, epochs=3, **options):
    return model.fit(
        X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks], **options
    )


def groups(path):
    """All that a weights file holds."""
    names = []
    with h5py.File(path) as file:
        file.visit(names.append)
    return names


def kinds(path):
    """The callbacks that a weights file holds."""
    with h5py.File(path) as file:
        return sorted({name.split(".")[0] for name in file["callback_states/vars"]})


def on_board(model, *callbacks):
    """Puts callbacks on a model, as a fit does."""
    for callback in callbacks:
        callback.set_model(model)
    return model


class Numbers(ResumableCallback):
    """A callback with a number to save."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def read_state(self):
        return {"number": self.number}

    def write_state(self, state):
        self.number = state["number"]


class Others(Numbers):
    """The same under another name."""


class At(keras.callbacks.Callback):
    """Does something as an epoch begins."""

    def __init__(self, epoch, act):
        super().__init__()
        self.epoch, self.act = epoch, act

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            self.act(self.model)


# --- files that are written while the fit runs --------------------------------------------------------

PLAIN = """
import sys, warnings, json
import keras, numpy as np
warnings.simplefilter("error")
folder = sys.argv[1]
loaded = keras.models.load_model(folder + "/model.keras")
fresh = keras.models.clone_model(loaded)
fresh.compile("adam", "mse")
fresh.optimizer.build(fresh.trainable_variables)
fresh.load_weights(folder + "/model.weights.h5")
assert not any(name.split(".")[0] == "tfkit" for name in sys.modules)
found = [[weight.tolist() for weight in model.get_weights()] for model in (loaded, fresh)]
counts = [int(model.optimizer.iterations) for model in (loaded, fresh)]
print(json.dumps([found, counts]))
"""


@pytest.mark.slow
def test_plain_keras_loads_them_without_a_word(tmp_path):
    model = net()
    files = [tmp_path / "model.keras", tmp_path / "model.weights.h5"]
    checkpoints = [
        keras.callbacks.ModelCheckpoint(str(path), save_weights_only=path.suffix == ".h5") for path in files
    ]
    fit(model, *every_kind(), *checkpoints)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAIN, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found, counts = json.loads(done.stdout.strip().splitlines()[-1])
    assert counts == [6, 6]
    for weights in found:
        for mine, theirs in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(np.array(theirs, "float32"), mine)


def test_the_files_above_do_hold_the_callbacks(tmp_path):
    fit(net(), *every_kind(), At(2, lambda model: model.save_weights(tmp_path / "w.weights.h5")))
    expected = ["GradualUnfreezing_0", "LearningRateCurve_0", "ReduceLROnPlateau_0"]
    assert kinds(tmp_path / "w.weights.h5") == expected


def test_a_fit_without_such_callbacks_writes_what_keras_writes(tmp_path):
    fit(net(), *every_kind())
    model = net()
    fit(model, At(1, lambda model: model.save_weights(tmp_path / "w.weights.h5")))
    assert not any("callback" in name for name in groups(tmp_path / "w.weights.h5"))


# --- after the fit ---------------------------------------------------------------------------------


def test_a_file_that_is_written_after_the_fit_holds_what_one_of_keras_holds(tmp_path):
    mine, theirs = net(), net()
    fit(mine, *every_kind())
    fit(theirs)
    mine.save_weights(tmp_path / "mine.weights.h5")
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    assert groups(tmp_path / "mine.weights.h5") == groups(tmp_path / "theirs.weights.h5")


def test_the_config_of_the_model_is_that_of_keras():
    mine = net()
    before = mine.get_config()
    fit(mine, *every_kind()[:2])
    assert mine.get_config() == before


def test_the_model_holds_on_to_no_callback():
    model, callbacks = net(), every_kind()
    fit(model, *callbacks)
    watched = [weakref.ref(each) for each in callbacks]
    del callbacks
    gc.collect()
    assert [each() for each in watched] == [None] * 3


def test_a_fit_that_crashed_leaves_nothing_to_the_next(tmp_path):
    def crash(model):
        raise RuntimeError("crash")

    model = net()
    with pytest.raises(RuntimeError, match="crash"):
        fit(model, *every_kind(), At(1, crash))
    fit(model, Numbers(1.0), At(1, lambda model: model.save_weights(tmp_path / "w.weights.h5")))
    assert kinds(tmp_path / "w.weights.h5") == ["Numbers_0"]


# --- what comes back, and when -----------------------------------------------------------------------


@pytest.mark.parametrize("number", [0.1, 1 / 3, 1e300, -5e-324, float("inf"), 2.0**53 - 1])
def test_a_number_comes_back_to_the_last_bit(number, tmp_path):
    path, callback = tmp_path / "w.weights.h5", Numbers(0.0)
    on_board(models.dense_net(), Numbers(number)).save_weights(path)
    on_board(models.dense_net(), callback).load_weights(path)
    assert (callback.number, callback.restored) == (number, True)


def test_callbacks_of_one_kind_get_back_each_its_own(tmp_path):
    path, callbacks = tmp_path / "w.weights.h5", [Numbers(0.0), Numbers(0.0)]
    on_board(models.dense_net(), Numbers(1.0), Numbers(2.0)).save_weights(path)
    on_board(models.dense_net(), *callbacks).load_weights(path)
    assert [callback.number for callback in callbacks] == [1.0, 2.0]


@pytest.mark.parametrize("left", [[Others, Numbers], [Others]], ids=["in another order", "with one less"])
def test_callbacks_of_another_kind_do_not_take_what_is_not_theirs(left, tmp_path):
    path, callbacks = tmp_path / "w.weights.h5", [kind(0.0) for kind in left]
    on_board(models.dense_net(), Numbers(1.0), Others(2.0)).save_weights(path)
    on_board(models.dense_net(), *callbacks).load_weights(path)
    assert [each.number for each in callbacks] == [{Numbers: 1.0, Others: 2.0}[kind] for kind in left]


def test_a_file_without_the_callback_restores_nothing(tmp_path):
    path = tmp_path / "w.weights.h5"
    model = net()
    model.optimizer.build(model.trainable_variables)
    model.save_weights(path)
    callback = Numbers(7.0)
    callback.set_model(model)
    model.load_weights(path)
    assert (callback.number, callback.restored) == (7.0, False)


def test_weights_loaded_while_the_fit_runs_are_no_resumption(tmp_path):
    path = tmp_path / "w.weights.h5"
    callback = Numbers(1.0)

    def change(model):
        callback.number = 2.0

    save, load = lambda model: model.save_weights(path), lambda model: model.load_weights(path)
    fit(net(), callback, At(0, save), At(1, change), At(2, load))
    assert callback.number == 2.0


def test_weights_loaded_while_the_fit_runs_leave_a_plateaus_memory_alone(tmp_path):
    path = tmp_path / "w.weights.h5"
    plateau = tfkit.ReduceLROnPlateau("loss", patience=3, min_delta=1e3, cooldown=2)
    known = []

    def load(model):
        known.append((plateau.best, plateau.wait, plateau.cooldown_counter))
        model.load_weights(path)
        known.append((plateau.best, plateau.wait, plateau.cooldown_counter))

    fit(net(), plateau, At(1, lambda model: model.save_weights(path)), At(3, load), epochs=4)
    assert known[0] == known[1]
    assert known[0][1] == 2  # two epochs without improvement, of which the file knows none


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_weights_loaded_while_the_fit_runs_leave_the_stage_alone(tmp_path):
    path = tmp_path / "w.weights.h5"
    model = net()
    stages = tfkit.GradualUnfreezing({0: "head", 2: ["d2", "head"]})
    seen = []

    def load(model):
        model.load_weights(path)
        seen.extend(variable.path.split("/")[-2] for variable in model.trainable_variables)

    fit(model, stages, At(1, lambda model: model.save_weights(path)), At(3, load), epochs=4)
    assert sorted(set(seen)) == ["d2", "head"]


def test_weights_loaded_while_the_fit_runs_do_not_send_a_curve_below_its_first_step(tmp_path):
    path, asked = tmp_path / "w.weights.h5", []
    model = net()
    model.optimizer.build(model.trainable_variables)
    model.save_weights(path)  # pretrained weights: no update so far
    fit(model)

    def curve(step):
        asked.append(step)
        return 0.01

    fit(model, tfkit.LearningRateCurve(curve), At(1, lambda model: model.load_weights(path)))
    assert min(asked) >= 0


@pytest.mark.parametrize("build", [models.root_weight_net, models.nested_net, models.twins_net])
def test_models_of_every_kind_carry_it(build, tmp_path):
    path, callback = tmp_path / "w.weights.h5", Numbers(0.0)
    on_board(build(), Numbers(3.0)).save_weights(path)
    on_board(build(), callback).load_weights(path)
    assert callback.number == 3.0


def test_plateau_and_curve_may_change_places(tmp_path):
    path = tmp_path / "w.weights.h5"
    first, second = every_kind()[:2], every_kind()[:2][::-1]
    fit(net(), *first, At(2, lambda model: model.save_weights(path)))
    model = net()
    model.optimizer.build(model.trainable_variables)
    on_board(model, *second).load_weights(path)
    assert all(each.restored for each in second)


def test_a_base_class_must_say_what_to_save():
    with pytest.raises(NotImplementedError):
        ResumableCallback().read_state()
    with pytest.raises(NotImplementedError):
        ResumableCallback().write_state({})
