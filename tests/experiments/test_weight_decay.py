import dataclasses
import json

import keras
import numpy as np
import pytest

from experiments import weight_decay

TINY = weight_decay.Config(repeats=1, inputs=20, train=10, test=10, epochs=3)


@pytest.fixture(scope="module")
def epochs():
    return {
        (optimizer, kind): weight_decay.train(TINY, optimizer, kind, 0)
        for optimizer in weight_decay.OPTIMIZERS
        for kind in weight_decay.KINDS
    }


def test_a_model_without_decay_follows_gradient_descent_by_hand():
    config = dataclasses.replace(TINY, batch=10, epochs=1)  # one step on all samples
    x, y, x_test, y_test = weight_decay.data(config, 0)
    start = initial_weights(config)
    error = x @ start - y
    w = start - config.rate * x.T @ error / len(x)
    b = -config.rate * error.mean()

    table = weight_decay.train(config, "SGD", "none", 0)

    assert table.norm[0] == pytest.approx(np.linalg.norm(w), rel=1e-5)
    assert table.train_loss[0] == pytest.approx(np.mean((x @ w + b - y) ** 2) / 2, rel=1e-4)
    assert table.test_loss[0] == pytest.approx(np.mean((x_test @ w + b - y_test) ** 2) / 2, rel=1e-4)


def initial_weights(config):
    keras.utils.set_random_seed(config.seed)
    head = keras.layers.Dense(1, kernel_initializer="random_normal", name="head")
    keras.Sequential([keras.Input((config.inputs,)), head])
    return np.asarray(head.kernel)


def test_coupled_and_decoupled_are_one_under_sgd(epochs):
    coupled, decoupled = epochs["SGD", "coupled"], epochs["SGD", "decoupled"]
    np.testing.assert_allclose(coupled.norm, decoupled.norm, rtol=1e-5)


def test_coupled_and_decoupled_differ_under_adam(epochs):
    assert not np.allclose(epochs["Adam", "coupled"].norm, epochs["Adam", "decoupled"].norm, rtol=1e-2)


def test_decay_shrinks_the_weights(epochs):
    for optimizer in weight_decay.OPTIMIZERS:
        assert epochs[optimizer, "coupled"].norm.iloc[-1] < epochs[optimizer, "none"].norm.iloc[-1]


def test_the_truth_is_the_textbooks():
    config = weight_decay.Config(train=5000)
    x, y, *_ = weight_decay.data(config, 0)
    solution, *_ = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)
    np.testing.assert_allclose(solution[:-1], 0.01, atol=1e-3)
    assert solution[-1] == pytest.approx(0.05, abs=1e-3)


def test_the_command_writes_figures_and_table(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_decay, "QUICK", TINY)
    assert weight_decay.main(["--quick", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "weight_decay.png").read_bytes()[1:4] == b"PNG"
    rows = json.loads((tmp_path / "results.json").read_text())["weight_decay"]
    assert [row["decay"] for row in rows] == ["λ = 0", "λ = 3, coupled", "λ = 3, decoupled"] * 2
