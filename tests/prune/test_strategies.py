"""Several devices prune as one. Processes of their own run it: devices are split at a program's start."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests.prune.test_magnitude import python

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
pytestmark = pytest.mark.slow

# --- two replicas in one process ------------------------------------------------------------------

CASES = ["layer-sgd", "global-average", "global-scaled", "erk-sgd", "tiles-average", "groups-scaled"]
MIRRORED = """
import json, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras, numpy as np, tfkit
from keras import optimizers
from tests import models

random = np.random.default_rng(0)
X, Y = random.normal(size=(24, 6)).astype("float32"), random.normal(size=(24, 2)).astype("float32")
STRUCTURES = {
    "layer": {}, "global": {"scope": "global"}, "erk": {"scope": "erk"},
    "tiles": {"block_size": (2, 2)}, "groups": {"sparsity_m_by_n": (2, 4)},
}
OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.05),
    "average": lambda: optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5),
    "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.SGD(0.05, momentum=0.9), initial_scale=8.0),
}

def values(variable):
    return [np.array(each) for each in getattr(variable.value, "values", [variable.value])]

def train(strategy, structure, optimizer, early):
    schedule = tfkit.PolynomialDecay(0.2, 0.8, begin_step=0, end_step=6, frequency=2)
    with strategy.scope():
        model = models.dense_net()
        if early:
            tfkit.prune_low_magnitude(model, schedule, **structure)
        model.compile(optimizer(), "mse", jit_compile=False)
    if not early:
        tfkit.prune_low_magnitude(model, schedule, **structure)
    model.fit(X, Y, 4, epochs=2, verbose=0, shuffle=False)
    masks = [layer.kernel.constraint for layer in model.layers]
    variables = [*model.weights, *(mask.mask for mask in masks), masks[0].family.pruning.step]
    state = [values(variable) for variable in variables]
    return state, [int(np.count_nonzero(values(layer.kernel)[0])) for layer in model.layers]

answer = {}
two, one = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), tf.distribute.get_strategy()
for number, case in enumerate(json.loads(sys.argv[1])):
    structure, optimizer = case.split("-")
    (mirrored, counts), (single, alone) = (
        train(strategy, STRUCTURES[structure], OPTIMIZERS[optimizer], number % 2) for strategy in (two, one)
    )
    answer[case] = {
        "counts": counts, "alone": alone, "step": int(mirrored[-1][0]),
        "difference": max(float(np.abs(x[0] * 1.0 - y[0]).max()) for x, y in zip(mirrored, single)),
        "replicas": max(float(np.abs(x[0] * 1.0 - x[1]).max()) for x in mirrored),
    }
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def mirrored():
    return python(MIRRORED, json.dumps(CASES), timeout=250)


@pytest.mark.parametrize("case", CASES)
def test_two_replicas_prune_as_one(case, mirrored):
    facts = mirrored[case]
    assert facts["counts"] == facts["alone"]
    assert facts["step"] == 12
    assert facts["difference"] < 1e-6
    assert facts["replicas"] == 0


# --- two processes --------------------------------------------------------------------------------

WORKER = """
import json, os, sys
index, fit, ports = int(sys.argv[1]), sys.argv[2] == "fit", sys.argv[3:]
workers = [f"127.0.0.1:{port}" for port in ports]
task = {"type": "worker", "index": index}
os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import keras, numpy as np, tfkit
from tests import models

random = np.random.default_rng(0)
X, Y = random.normal(size=(24, 6)).astype("float32"), random.normal(size=(24, 2)).astype("float32")
with strategy.scope():
    model = models.dense_net()
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
if fit:
    try:
        model.fit(data, verbose=0)
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
    sys.exit()
schedule = tfkit.PolynomialDecay(0.2, 0.8, begin_step=0, end_step=6, frequency=1)
tfkit.prune_low_magnitude(model, schedule, scope="global")

def step(x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
    gradients = tape.gradient(loss, model.trainable_variables)
    model.optimizer.apply([each / len(ports) for each in gradients], model.trainable_variables)

train = tf.function(lambda x, y: strategy.run(step, (x, y)))
for x, y in strategy.experimental_distribute_dataset(data):
    train(x, y)
kernels = [np.array(layer.kernel) for layer in model.layers]
print(json.dumps([kernel.tolist() for kernel in kernels]))
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [str(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def two_workers(way):
    ports = free_ports(2)
    crew = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(index), way, *ports],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        answers = []
        for each in crew:
            output, errors = each.communicate(timeout=150)
            assert each.returncode == 0, errors[-3000:]
            answers.append(json.loads(output.strip().splitlines()[-1]))
        return answers
    finally:
        for each in crew:
            if each.poll() is None:
                each.kill()
                each.wait()


def test_two_processes_prune_as_one_in_a_loop_of_ones_own():
    import keras
    import numpy as np

    import tfkit
    from tests import models

    first, second = two_workers("loop")
    assert first == second
    random = np.random.default_rng(0)
    x, y = random.normal(size=(24, 6)).astype("float32"), random.normal(size=(24, 2)).astype("float32")
    alone = models.dense_net()
    alone.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    schedule = tfkit.PolynomialDecay(0.2, 0.8, begin_step=0, end_step=6, frequency=1)
    tfkit.prune_low_magnitude(alone, schedule, scope="global")
    alone.fit(x, y, 8, shuffle=False, verbose=0)
    for kernel, layer in zip(first, alone.layers, strict=True):
        np.testing.assert_allclose(kernel, layer.kernel, atol=1e-6)


def test_keras_itself_cannot_fit_over_processes():
    """The reason that docs/pruning.md gives. If this fails, Keras can, and the page must say so."""
    for answer in two_workers("fit"):
        assert "PerReplica" in answer
