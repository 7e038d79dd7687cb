"""On two replicas everything goes as on one. A process of its own runs it: devices are split at its start.

Keras itself fails under MirroredStrategy with gradient accumulation, which is why it is missing here.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

WORKER = """
import json, tempfile
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
import numpy as np
import tfkit
from keras import optimizers
from tests import models
from tfkit.training import TrainingState

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(8, 6)).astype("float32"), RANDOM.normal(size=(8, 2)).astype("float32")
STAGES = {0: ["d2", "head"], 1: "*"}
STRATEGY = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
OPTIMIZERS = {
    "adam": lambda: optimizers.Adam(0.01),
    "average": lambda: optimizers.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.5),
    "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.05, momentum=0.9), initial_scale=8.0),
}

def values(variable):
    return [np.array(each) for each in getattr(variable.value, "values", [variable.value])]

def read(model):
    return [values(v) for v in [*model.weights, *model.optimizer.variables]]

def difference(first, second):
    return max(float(np.abs(x[0] - y[0]).max(initial=0)) for x, y in zip(first, second, strict=True))

def count(model):
    return int(values(getattr(model.optimizer, "inner_optimizer", model.optimizer)._iterations)[0])

def net(name, mirrored=True):
    with STRATEGY.scope() if mirrored else tf.distribute.get_strategy().scope():
        model = models.dense_net()
        model.compile(OPTIMIZERS[name](), "mse")
    return model

def fit(model, *callbacks, epochs=1, **options):
    return model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks),
                     **options)

def slots(model):
    return {v.name: values(v)[0] for v in model.optimizer.variables}

def configure(model):
    fit(model)
    before = slots(model)
    tfkit.configure_base_model(model, ["d2", "head"])
    after = slots(model)
    kept = [name for name in after if "d2" in name or "head" in name]
    facts = {"kept": len(kept), "same": all(np.array_equal(before[name], after[name]) for name in kept)}
    fit(model)
    return facts | {"count": count(model)}

def gradual(model):
    fit(model, tfkit.GradualUnfreezing(STAGES), epochs=2)
    return {"count": count(model)}

def rates(model):
    tfkit.set_weight_decay(model, 0.5, exclude="head")
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.25, "d2": 2.0})
    curve = tfkit.LearningRateCurve(tfkit.curves.linear(0.1, 0.0, 20))
    plateau = tfkit.ReduceLROnPlateau("loss", patience=1, min_delta=9, factor=0.5, warmup_steps=1)
    fit(model, curve, plateau, epochs=3)
    function, rates = model.train_function, model.history.history["learning_rate"]
    tfkit.set_weight_decay(model, 1.5, exclude="head")
    fit(model)
    decay = tfkit.training_table(model).weight_decay.tolist()
    return {"rates": rates, "traced once": function is model.train_function, "decay": decay}

answer = {}
for story, name in [(configure, "adam"), (gradual, "average"), (rates, "scaled")]:
    two, one = net(name), net(name, mirrored=False)
    answer[story.__name__] = {
        "two": story(two), "one": story(one), "difference": difference(read(two), read(one)),
        "replicas": max(float(np.abs(x - each[0]).max(initial=0)) for each in read(two) for x in each),
    }

class Die(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt

def callbacks(folder):
    return [keras.callbacks.BackupAndRestore(folder), tfkit.GradualUnfreezing(STAGES),
            tfkit.LearningRateCurve(tfkit.curves.linear(0.1, 0.0, 20))]

with tempfile.TemporaryDirectory() as folder:
    whole, killed, again = (net("adam") for _ in range(3))
    fit(whole, *callbacks(folder + "/whole"), epochs=3)
    try:
        fit(killed, *callbacks(folder + "/b"), Die(), epochs=3)
    except KeyboardInterrupt:
        answer["epochs"] = fit(again, *callbacks(folder + "/b"), epochs=3).epoch
    answer["resumed"] = difference(read(again), read(whole))

with tempfile.TemporaryDirectory() as folder:
    model = tfkit.set_weight_decay(net("average"), 0.5, exclude="d1")
    fit(model)
    model.save(folder + "/model.keras")
    loaded = keras.models.load_model(folder + "/model.keras")
    answer["loaded"] = difference(read(loaded), read(model))
    answer["decay"] = tfkit.training_table(loaded).weight_decay.tolist()

state, before = TrainingState(model), read(model)
fit(model)
state.restore()
pairs = [pair for old, new in zip(before, read(model), strict=True) for pair in zip(old, new, strict=True)]
answer["restored"] = all(np.array_equal(*pair) for pair in pairs)

model.get_layer("d1").trainable = False
try:
    fit(model, tfkit.LearningRateCurve(lambda step: 0.1))
except tfkit.ArgumentError as refusal:
    answer["refusal"] = str(refusal)
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def answer():
    done = subprocess.run(
        [sys.executable, "-c", WORKER],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


pytestmark = pytest.mark.slow
STORIES = ["configure", "gradual", "rates"]


@pytest.mark.parametrize("story", STORIES)
def test_two_replicas_end_where_one_does(answer, story):
    assert answer[story]["difference"] < 1e-6


@pytest.mark.parametrize("story", STORIES)
def test_both_replicas_hold_the_same(answer, story):
    assert answer[story]["replicas"] == 0


@pytest.mark.parametrize("story", STORIES)
def test_what_the_model_tells_is_what_one_replica_tells(answer, story):
    assert answer[story]["two"] == answer[story]["one"]


def test_configuring_keeps_the_slots_of_weights_that_keep_training(answer):
    assert answer["configure"]["two"] == {"kept": 8, "same": True, "count": 4}


def test_a_decay_changes_without_a_new_trace(answer):
    assert answer["rates"]["two"]["traced once"] is True
    assert answer["rates"]["two"]["decay"] == [1.5, 0, 1.5, 0, 0, 0]


def test_the_rates_are_those_of_the_curve_and_the_plateau(answer):
    # 0.1 · (1 - step / 20) at steps 1, 3 and 5; the second epoch is no improvement
    assert answer["rates"]["two"]["rates"] == pytest.approx([0.095, 0.085, 0.0375])


def test_a_fit_that_died_ends_as_one_that_did_not(answer):
    assert answer["epochs"] == [2]
    assert answer["resumed"] == 0


def test_a_saved_model_comes_back_on_one_replica(answer):
    assert answer["loaded"] == 0
    assert answer["decay"] == [0, 0, 0.5, 0, 0.5, 0]


def test_a_training_state_puts_back_every_replica(answer):
    assert answer["restored"] is True


def test_a_stale_freeze_is_refused(answer):
    assert "d1/kernel" in answer["refusal"]
    assert "frozen since" in answer["refusal"]
