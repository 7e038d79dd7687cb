"""After a search every number is the one it was before, and a fit goes as if there had been none."""

import json
import math
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import tfkit
from tests.optim.test_finder import STEPS, X, Y, batches, compiled, find, fit, noisy_net

ROOT = pathlib.Path(__file__).parents[2]


def pruned(model):
    tfkit.prune_low_magnitude(model, tfkit.PolynomialDecay(0.2, 0.8, 1, 100, frequency=1))


def tailored(model):
    tfkit.set_weight_decay(model, 0.1)
    tfkit.set_learning_rate_multipliers(model, {"d1": 0.5})


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01, amsgrad=True),
    "average": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.9),
    "accumulation": lambda: keras.optimizers.Adam(0.01, gradient_accumulation_steps=4),
    "half": lambda: keras.optimizers.Adam(0.01),
    "per execution": lambda: keras.optimizers.Adam(0.01),
    "pruned": lambda: keras.optimizers.SGD(0.01, momentum=0.9),
    "tailored": lambda: keras.optimizers.AdamW(0.01),
}


def make(kind, *, trained):
    """A compiled model, and whether it has been trained before."""
    keras.config.set_dtype_policy("mixed_float16" if kind == "half" else "float32")
    try:
        model = noisy_net()
    finally:
        keras.config.set_dtype_policy("float32")
    if kind == "pruned":
        pruned(model)
    executions = 4 if kind == "per execution" else 1
    compiled(OPTIMIZERS[kind](), model, metrics=["mae"], steps_per_execution=executions)
    if kind == "tailored":
        tailored(model)
    if trained:
        fit(model)  # six batches: an accumulation is under way
    return model


def read(variables):
    return [(id(variable), np.array(variable.numpy())) for variable in variables]


def snapshot(model):
    """Everything that a fit moves, read without tfkit."""
    pruning = [each.constraint for each in model.variables if hasattr(each.constraint, "mask")]
    masks = [variable for each in pruning for variable in (each.mask, each.family.pruning.step)]
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    return {
        "weights": read(model.variables),
        "metrics": read(model.metrics_variables) if model.optimizer.built else None,  # they are built in fit
        "optimizer": read(model.optimizer.variables),
        "inner": read(inner.variables),
        "masks": read(masks),
        "built": (model.optimizer.built, inner.built),
        "rate": float(model.optimizer.learning_rate),
        "function": id(model.train_function),
        "executions": model.steps_per_execution,
        "stop": model.stop_training,
        "history": id(model.history) if hasattr(model, "history") else None,
    }


def same(first, second):
    for name, expected in first.items():
        if isinstance(expected, list):
            assert [key for key, _ in second[name]] == [key for key, _ in expected], name
            for (_, new), (_, old) in zip(second[name], expected, strict=True):
                np.testing.assert_array_equal(new, old, err_msg=name, strict=True)
        else:
            assert second[name] == expected, name


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "fresh"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_everything_ends_as_it_began(kind, trained):
    model = make(kind, trained=trained)
    before = snapshot(model)
    assert bool(before["masks"]) == (kind == "pruned")
    assert len(find(model).table) == STEPS
    same(before, snapshot(model))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_first_fit_goes_as_if_nothing_had_been(kind):
    model, twin = make(kind, trained=False), make(kind, trained=False)
    find(model)
    fit(model)
    fit(twin)
    assert model.history.history == twin.history.history
    for mine, theirs in (
        (model.variables, twin.variables),
        (model.optimizer.variables, twin.optimizer.variables),
    ):
        for new, expected in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(new.numpy(), expected.numpy())


def test_a_run_into_infinity_leaves_no_trace():
    model = make("adam", trained=True)
    before = snapshot(model)
    table = find(model, stop=1e30, steps=100, divergence=1e300).table
    assert not math.isfinite(table.loss.iloc[-1])
    same(before, snapshot(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "fresh"])
def test_an_interruption_leaves_no_trace(monkeypatch, error, trained):
    model = make("adam", trained=trained)
    before = snapshot(model)

    def interrupt(self, *_):
        if len(self.losses) == 7:
            raise error("stop")

    monkeypatch.setattr("tfkit.optim.finder._Sweep.on_epoch_begin", interrupt)
    with pytest.raises(error, match="stop"):
        find(model, X[:8], Y[:8])
    same(before, snapshot(model))


def test_data_that_fails_leaves_no_trace():
    def failing():
        for number, (x, y, _) in enumerate(batches()):
            if number == 9:
                raise OSError("disk gone")
            yield x, y

    model = make("pruned", trained=True)
    before = snapshot(model)
    assert before["masks"]
    with pytest.raises(Exception, match="disk gone"):
        find(model, failing(), None)
    same(before, snapshot(model))


def test_a_refusal_after_training_leaves_no_trace():
    model = make("momentum", trained=True)
    before = snapshot(model)
    with pytest.raises(tfkit.ArgumentError, match="not diverge"):
        find(model, start=1e20, stop=1e30)
    same(before, snapshot(model))


def test_a_fit_that_was_resumed_does_not_shorten_the_search():
    model = compiled()
    model._initial_epoch = 1000  # Keras's BackupAndRestore leaves such a number
    assert len(find(model).table) == STEPS
    assert model._initial_epoch == 1000


MIRRORED = """
import json
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from tests.optim.test_finder import X, Y, compiled, find, fit, noisy_net
from tests.models import dense_net
def read(model):
    variables = [*model.variables, *model.optimizer.variables, *(model.metrics_variables if trained else [])]
    return [[each.numpy().tolist() for each in getattr(v.value, "values", [v.value])] for v in variables]
answer, strategy = [], tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for trained in (True, False):
    with strategy.scope():
        model = compiled("adam", noisy_net())
        if trained:
            fit(model)
        before = read(model)
        find(model)
        answer.append([before == read(model), model.optimizer.built])
        fit(model)
with strategy.scope():
    model = compiled("sgd", dense_net())
print(json.dumps([answer, find(model).table.loss.tolist()]))
"""


@pytest.mark.slow
def test_two_replicas_search_as_one():
    done = subprocess.run(
        [sys.executable, "-c", MIRRORED], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    restored, losses = json.loads(done.stdout.strip().splitlines()[-1])
    assert restored == [[True, True], [True, False]]
    np.testing.assert_allclose(losses, find(compiled()).table.loss, rtol=1e-4)
