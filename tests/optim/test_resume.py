"""Rate callbacks that go on from a backup: rates and weights of a fit that never stopped.

The whole fit keeps a copy of its backups before every epoch. Such a copy is what a process
that dies in that epoch leaves; a fresh model with fresh callbacks goes on from it.

The model is one weight w under (w - 1)², trained at a rate where it overshoots at first: the
loss rises, a plateau lowers the rate, the loss falls, and comes to rest. Most fits go through
`drive`, which makes the calls of `fit` in their order without its datasets and its traces.
"""

import dataclasses
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfkit
from tests.optim.test_callbacks import Metric, Trace
from tfkit import curves

ROOT = pathlib.Path(__file__).parents[2]
EPOCHS, BATCHES = 7, 4
ONES, TWOS = np.ones((BATCHES, 1), "float32"), np.full((2, 1), 2.0, "float32")
SLOPE = curves.linear(1.06, 0.9, 60)


def quadratic(*, accumulation=None, per_execution=1, metrics=None):
    optimizer = keras.optimizers.SGD(1.05, gradient_accumulation_steps=accumulation)
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile(optimizer, "mse", steps_per_execution=per_execution, metrics=metrics)
    return model


def drive(model, callbacks, *, validation_freq=None):
    """Trains on x = y = 1, and validates at x = y = 2."""
    listeners = keras.callbacks.CallbackList(
        callbacks, add_history=True, model=model, epochs=EPOCHS, steps=BATCHES
    )
    weight, optimizer = model.trainable_variables[0], model.optimizer
    listeners.on_train_begin()
    for epoch in range(model._initial_epoch or 0, EPOCHS):
        listeners.on_epoch_begin(epoch)
        losses = []
        for batch in range(BATCHES):
            listeners.on_train_batch_begin(batch)
            error = weight.numpy() - 1
            losses.append(float(error[0, 0] ** 2))
            optimizer.apply([keras.ops.convert_to_tensor(2 * error)], [weight])
            listeners.on_train_batch_end(batch, {"loss": np.mean(losses)})
        logs = {"loss": np.mean(losses)}
        if validation_freq and (epoch + 1) % validation_freq == 0:
            listeners.on_test_begin()
            loss = float(4 * (weight.numpy()[0, 0] - 1) ** 2)
            listeners.on_test_end({"loss": loss})
            logs["val_loss"] = loss
        listeners.on_epoch_end(epoch, logs)
    listeners.on_train_end(logs)


def plateau(monitor="loss", **options):
    return tfkit.ReduceLROnPlateau(monitor, **{"factor": 0.5, "patience": 1, **options})


def slope(unit="step"):
    return tfkit.LearningRateCurve(SLOPE, unit=unit)


@dataclasses.dataclass(frozen=True)
class Driven:
    """A fit that `drive` makes."""

    callbacks: Callable[[], list]
    validation_freq: int | None = None
    accumulation: int | None = None
    executions: int = BATCHES

    def run(self, *callbacks):
        trace = Trace()
        drive(
            quadratic(accumulation=self.accumulation),
            [*callbacks, trace],
            validation_freq=self.validation_freq,
        )
        return trace


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A real fit: what the model is compiled with, the data, and further arguments of `fit`."""

    callbacks: Callable[[], list]
    model: dict = dataclasses.field(default_factory=dict)
    data: Callable[[], dict] = lambda: {"x": ONES, "y": ONES, "batch_size": 1}
    fit: dict = dataclasses.field(default_factory=dict)

    @property
    def executions(self):
        return BATCHES // self.model.get("per_execution", 1)

    def run(self, *callbacks):
        trace = Trace()
        options = {"epochs": EPOCHS, "shuffle": False, "verbose": 0, **self.fit}
        quadratic(**self.model).fit(**self.data(), **options, callbacks=[*callbacks, trace])
        return trace


def of_unknown_length():
    def batches():
        for _ in range(BATCHES):
            yield ONES[:1], ONES[:1]

    one = tf.TensorSpec((1, 1), "float32")
    return {"x": tf.data.Dataset.from_generator(batches, output_signature=(one, one))}


DRIVEN = {
    "loss": Driven(lambda: [plateau()]),
    "val_loss": Driven(lambda: [plateau("val_loss")], validation_freq=1),
    "val_loss of some epochs": Driven(lambda: [plateau("val_loss")], validation_freq=2),
    "patience": Driven(lambda: [plateau(patience=2)]),
    "cooldown": Driven(lambda: [plateau(cooldown=2)]),
    "a floor": Driven(lambda: [plateau(min_lr=0.2)]),
    "warmup that ends amid an epoch": Driven(lambda: [plateau(warmup_steps=10)]),
    "warmup that ends with an epoch": Driven(
        lambda: [plateau("val_loss", warmup_steps=8)], validation_freq=1
    ),
    "warmup over a curve": Driven(lambda: [slope(), plateau(warmup_steps=10)]),
    "curve, then plateau": Driven(lambda: [slope(), plateau()]),
    "plateau, then curve": Driven(lambda: [plateau("val_loss"), slope()], validation_freq=1),
    "epoch curve, then plateau": Driven(lambda: [slope("epoch"), plateau()]),
    "plateau, then epoch curve": Driven(lambda: [plateau(), slope("epoch")]),
    "two plateaus": Driven(
        lambda: [plateau(), plateau("val_loss", factor=0.9, patience=2)], validation_freq=1
    ),
    "accumulation": Driven(lambda: [slope(), plateau(warmup_steps=2)], accumulation=3),
}
FITTED = {
    "validation": Fitted(lambda: [plateau("val_loss")], fit={"validation_data": (TWOS, TWOS)}),
    "several steps an execution": Fitted(
        lambda: [slope(), plateau(warmup_steps=6)], model={"per_execution": 2}
    ),
    "data of unknown length": Fitted(
        lambda: [tfkit.WarmupCosine(1.06, warmup_steps=6, total_steps=60), plateau()], data=of_unknown_length
    ),
}
CASES = {**DRIVEN, **FITTED}
THOROUGH = ("val_loss", "cooldown", "warmup that ends amid an epoch", "curve, then plateau")


class Keep(keras.callbacks.Callback):
    """Copies the backups before batches of epochs: all first ones, if none are given."""

    def __init__(self, root, places=None):
        super().__init__()
        self.root, self.epoch = root, 0
        self.places = places or [(epoch, 0) for epoch in range(1, EPOCHS)]

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) in self.places:
            for order in ("first", "last"):
                shutil.copytree(self.root / order, self.root / f"{order} {self.epoch} {batch}")


def interrupted(case, root, places=None, save_freq="epoch"):
    """The trace of the whole fit, which leaves copies of its backups in `root`."""
    first, last = (keras.callbacks.BackupAndRestore(root / name, save_freq) for name in ("first", "last"))
    return case.run(first, *case.callbacks(), last, Keep(root, places))


def among(order, backup, own):
    return [backup, *own] if order == "first" else [*own, backup]


def resumed(case, root, order, epoch, batch=0):
    """The trace of a fit that goes on from a copy, which stays for others."""
    with tempfile.TemporaryDirectory() as folder:
        own = pathlib.Path(folder) / "backup"
        shutil.copytree(root / f"{order} {epoch} {batch}", own)
        return case.run(*among(order, keras.callbacks.BackupAndRestore(own), case.callbacks()))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Finds a case's copies and its trace, made once for all the tests that ask."""
    made = {}

    def find(name):
        if name not in made:
            root = tmp_path_factory.mktemp("backups")
            made[name] = (root, interrupted(CASES[name], root))
        return made[name]

    return find


def expect_same(trace, after, done):
    assert after.rates == trace.rates[done:]
    assert after.weights == trace.weights[done:]


# Keras warns of epochs without validation.
@pytest.mark.filterwarnings("ignore:Learning rate reduction is conditioned")
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("name", DRIVEN)
def test_a_fit_that_died_in_any_epoch_ends_as_one_that_did_not(name, order, whole):
    root, trace = whole(name)
    for epoch in range(1, EPOCHS) if name in THOROUGH else (2, 5):
        expect_same(trace, resumed(DRIVEN[name], root, order, epoch), epoch * BATCHES)


@pytest.mark.filterwarnings("ignore:Your input ran out")
@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("name", FITTED)
def test_a_real_fit_that_died_ends_as_one_that_did_not(name, order, whole):
    root, trace = whole(name)
    expect_same(trace, resumed(FITTED[name], root, order, 3), 3 * FITTED[name].executions)


@pytest.mark.parametrize("name", ["loss", "val_loss", "cooldown", "a floor", "two plateaus", "validation"])
def test_the_fits_above_have_reductions_to_lose(name, whole):
    assert len(set(whole(name)[1].rates)) > 2


SCRIPTED = Driven(lambda: [Metric([5.0, 6.0, 4.0, 7.0, 8.0, 3.0, 9.0]), plateau("val_loss", cooldown=1)])
RISING = Driven(lambda: [plateau(warmup_steps=17)])


@pytest.mark.parametrize("order", ["first", "last"])
@pytest.mark.parametrize("case", [SCRIPTED, RISING], ids=["judging", "rising"])
def test_an_epoch_that_was_saved_in_its_midst_is_done_again_at_its_own_rates(case, order, tmp_path):
    places = [(1, 2), (2, 0), (3, 3), (5, 1)]
    trace = interrupted(case, tmp_path, places, save_freq=3)
    for epoch, batch in places:
        after = resumed(case, tmp_path, order, epoch, batch)
        saved = EPOCHS - len(after.rates) // BATCHES  # the epoch in which the last backup was written
        assert saved in (epoch - 1, epoch)
        assert after.rates == trace.rates[saved * BATCHES :]


BY_ACCURACY = Fitted(
    lambda: [plateau("val_binary_accuracy")],
    model={"metrics": [keras.metrics.BinaryAccuracy()]},
    fit={"validation_data": (TWOS, TWOS)},
)


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_metric_whose_direction_keras_knows_only_once_it_is_built(order, tmp_path):
    trace = interrupted(BY_ACCURACY, tmp_path, [(3, 0)])
    expect_same(trace, resumed(BY_ACCURACY, tmp_path, order, 3), 3 * BATCHES)


class Die(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 4:
            raise KeyboardInterrupt


@pytest.mark.parametrize("order", ["first", "last"])
def test_a_second_death_is_survived_as_the_first(order, whole, tmp_path):
    case = DRIVEN["curve, then plateau"]
    root, trace = whole("curve, then plateau")
    shutil.copytree(root / f"{order} 2 0", tmp_path / "backup")

    def run(*more):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        return case.run(*among(order, backup, case.callbacks()), *more)

    with pytest.raises(KeyboardInterrupt):
        run(Die())
    expect_same(trace, run(), 4 * BATCHES)


@pytest.mark.parametrize("order", ["first", "last"])
def test_the_same_callbacks_may_go_on_in_the_same_process(order, whole, tmp_path):
    case = DRIVEN["warmup over a curve"]
    callbacks = among(order, keras.callbacks.BackupAndRestore(tmp_path / "backup"), case.callbacks())
    with pytest.raises(KeyboardInterrupt):
        case.run(*callbacks, Die())
    expect_same(whole("warmup over a curve")[1], case.run(*callbacks), 4 * BATCHES)


KILLED = """
import os, signal, sys, keras
from tests.optim.test_resume import FITTED
class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (4, 2):
            os.kill(os.getpid(), signal.SIGKILL)
case = FITTED["validation"]
case.run(*case.callbacks(), keras.callbacks.BackupAndRestore(sys.argv[1]), Kill())
"""


@pytest.mark.slow
def test_a_fit_in_a_process_that_was_killed_goes_on_in_another(whole, tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "last 4 0")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}, timeout=200, check=False
    )
    assert done.returncode == -signal.SIGKILL
    after = resumed(FITTED["validation"], tmp_path, "last", 4)
    expect_same(whole("validation")[1], after, 4 * BATCHES)


class Look(keras.callbacks.Callback):
    """What a plateau knows as each epoch begins."""

    def __init__(self, watched):
        super().__init__()
        self.watched, self.known = watched, {}

    def on_epoch_begin(self, epoch, logs=None):
        self.known[epoch] = (self.watched.best, self.watched.wait, self.watched.cooldown_counter)


@pytest.mark.parametrize("order", ["first", "last"])
def test_what_the_plateau_knows_comes_back_to_the_last_digit(order, tmp_path):
    case = Driven(lambda: [plateau("val_loss", cooldown=3, patience=2)], validation_freq=1)
    first, last = (keras.callbacks.BackupAndRestore(tmp_path / name) for name in ("first", "last"))
    [whole], [again] = case.callbacks(), case.callbacks()
    expected, found = Look(whole), Look(again)
    case.run(first, whole, last, expected, Keep(tmp_path))
    backup = keras.callbacks.BackupAndRestore(tmp_path / f"{order} 4 0")
    case.run(*among(order, backup, [again]), found)
    assert found.known == {epoch: known for epoch, known in expected.known.items() if epoch >= 4}


def test_two_plateaus_get_back_each_its_own(tmp_path):
    def make():
        return [plateau(patience=4), plateau("val_loss", cooldown=5)]

    def run(backup, callbacks, *more):
        looks = [Look(each) for each in callbacks]
        Driven(make, validation_freq=1).run(backup, *callbacks, *looks, *more)
        return [look.known[5] for look in looks]

    last = keras.callbacks.BackupAndRestore(tmp_path / "last")
    expected = run(keras.callbacks.BackupAndRestore(tmp_path / "first"), make(), last, Keep(tmp_path))
    assert expected[0] != expected[1]
    assert run(keras.callbacks.BackupAndRestore(tmp_path / "first 5 0"), make()) == expected
