import dataclasses
import json
import statistics

import keras
import numpy as np
import pandas as pd
import pytest
import tf_keras

import tfkit
from experiments import pruning_accuracy, pruning_tasks
from experiments.pruning_accuracy import DENSE, ONE_SHOT, WAYS, Config
from experiments.pruning_tasks import Task
from tests.experiments.configs import changed

TINY = Config(runs=1, sparsities=(0.9,), digit_epochs=1, photograph_epochs=1)


def two_kernels(framework=keras):
    """48 and 16 weights."""
    layers = framework.layers
    return framework.Sequential([framework.Input((6,)), layers.Dense(8, "tanh"), layers.Dense(2)])


def tiny_task(updates):
    random = np.random.default_rng(0)
    return Task(
        build=two_kernels,
        loss="mse",
        batch_size=4,
        inputs=random.normal(size=(4 * 30, 6)).astype("float32")[: 4 * updates],
        targets=random.normal(size=(4 * 30, 2)).astype("float32")[: 4 * updates],
        judge=lambda model: 0.0,
        weights=[random.normal(size=shape).astype("float32") for shape in ((6, 8), (8,), (8, 2), (2,))],
    )


@pytest.mark.slow
def test_both_tasks_are_run_tabulated_and_drawn(tmp_path, monkeypatch):
    ways = {way: WAYS[way] for way in (ONE_SHOT, "gradual, ERK", "TFMOT")}
    monkeypatch.setattr(pruning_accuracy, "WAYS", ways)
    monkeypatch.setattr(pruning_accuracy, "QUICK", TINY)
    assert pruning_accuracy.main(["--quick", "--output", str(tmp_path), "--seed", "3"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["config"]["seed"] == 3
    for data in ("digits", "photographs"):
        rows = found[data]
        assert [row["way"] for row in rows] == [DENSE, *ways]
        assert [row["0%"] is None for row in rows] == [False, False, True, True]
        assert [row["90%"] is None for row in rows] == [True, False, False, False]
    assert len(found["runs"]) == 2 * (2 + len(ways))
    assert {row["sparsity"] for row in found["runs"]} == {0.0, 0.9}
    kept = {(row["scope"], row["last_layer"]): row["last_layer_weights"] for row in found["last_layer"]}
    assert kept["layer", "pruned"] == "22 of 216"
    assert kept["layer", "left out"] == kept["global", "left out"] == "216 of 216"
    assert (tmp_path / "pruning_accuracy.png").read_bytes()[1:4] == b"PNG"


TRAINED = [way for way in WAYS if way != ONE_SHOT]


@pytest.mark.parametrize("way", TRAINED)
def test_a_way_that_prunes_nothing_ends_where_the_dense_control_does(way):
    tasks = [tiny_task(updates=25)]
    for ours, dense in zip(*WAYS[way](tasks, 0.0), *pruning_tasks.train(tasks), strict=True):
        np.testing.assert_allclose(ours, dense, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", TRAINED)
def test_what_was_trained_before_leaves_no_trace(way):
    task = tiny_task(updates=25)
    other = dataclasses.replace(task, weights=[-2 * weight for weight in task.weights])
    first, different, again = WAYS[way]([task, other, task], 0.5)
    for before, between, after in zip(first, different, again, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-5)
        assert not np.allclose(between, before, rtol=0.1)


def test_training_makes_an_update_of_every_batch():
    kept = []
    task = tiny_task(updates=25)  # no multiple of what one execution takes
    list(pruning_tasks.train([task], lambda network: kept.append(network) or network))
    assert int(kept[0].optimizer.iterations) == task.updates == 25


def test_the_first_masks_are_held():
    def zeros(updates):
        (weights,) = WAYS["one-shot, then trained"]([tiny_task(updates)], 0.5)
        return [weight == 0 for weight in weights]

    for after_one, at_the_end in zip(zeros(1), zeros(25), strict=True):
        assert after_one.mean() == (0.5 if after_one.ndim > 1 else 0.0)
        np.testing.assert_array_equal(after_one, at_the_end)


def test_one_shot_drops_the_smallest_weights_and_trains_none():
    task = tiny_task(updates=1)
    (weights,) = WAYS[ONE_SHOT]([task], 0.75)
    for before, after in zip(task.weights, weights, strict=True):
        if before.ndim > 1:
            smallest = np.argsort(abs(before), axis=None)[: before.size * 3 // 4]
            before = before.copy()
            before.flat[smallest] = 0
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("build", [pruning_tasks.digit_net, pruning_tasks.denoiser])
def test_a_tf_keras_twin_computes_the_same(build):
    model, twin = build(keras), build(tf_keras)
    random = np.random.default_rng(0)
    weights = [random.normal(0, 0.2, weight.shape).astype("float32") for weight in model.get_weights()]
    model.set_weights(weights)
    twin.set_weights(weights)
    x = random.random((2, 8, 8, model.input_shape[-1])).astype("float32")
    np.testing.assert_allclose(np.asarray(twin(x)), np.asarray(model(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("updates", [7, 40, 405, 1000])
def test_a_gradual_way_is_at_its_sparsity_by_half_of_the_updates(updates):
    schedule = pruning_accuracy.gradual(dataclasses.replace(tiny_task(1), inputs=np.zeros(4 * updates)), 0.8)
    answers = {step: schedule(step) for step in range(1, updates + 1)}
    drawn = {step: float(sparsity) for step, (prune, sparsity) in answers.items() if prune}
    last = max(drawn)
    assert drawn[1] == 0
    assert drawn[last] == pytest.approx(0.8)
    assert 0.4 * updates < last <= 0.5 * updates + 1
    assert list(drawn.values()) == sorted(drawn.values())


def with_kept(*counts):
    """The weights of `two_kernels` with so many that are not zero in each kernel."""
    first, second = ((np.arange(size) < count).astype("float32") for size, count in zip((48, 16), counts))
    return [first.reshape(6, 8), np.zeros(8), second.reshape(8, 2), np.zeros(2)]


@pytest.mark.parametrize(
    ("kept", "way"),
    [((12, 4), ONE_SHOT), ((13, 3), "TFMOT"), ((3, 13), "gradual, global"), ((2, 16), "gradual, ERK")],
)
def test_the_sparsity_that_is_claimed_passes(kept, way):
    pruning_accuracy.require_sparsity(with_kept(*kept), 0.75, way)


@pytest.mark.parametrize(
    ("kept", "way", "excess"),
    [
        ((14, 4), ONE_SHOT, r"\[2\.0, 0\.0\]"),
        ((12, 2), "TFMOT", r"\[0\.0, -2\.0\]"),
        ((3, 13), "gradual, per layer", r"\[-9\.0, 9\.0\]"),
        ((3, 16), "gradual, global", r"\[-9\.0, 12\.0\]"),
        ((48, 16), "gradual, ERK", r"\[36\.0, 12\.0\]"),
    ],
)
def test_another_sparsity_than_claimed_is_refused(kept, way, excess):
    message = f"must have the sparsity it is judged by. Received: {way} at 0.75, which keeps {excess}"
    with pytest.raises(tfkit.PruningError, match=message):
        pruning_accuracy.require_sparsity(with_kept(*kept), 0.75, way)


def scores_of(*rows):
    return pd.DataFrame(rows, columns=["data", "way", "sparsity", "run", "score"])


def test_costs_are_of_the_dense_control_of_the_same_run():
    table = pruning_accuracy.summary(
        scores_of(
            ("digits", DENSE, 0.0, 0, 90.0),
            ("digits", "TFMOT", 0.8, 0, 88.0),
            ("digits", DENSE, 0.0, 1, 99.0),
            ("digits", "TFMOT", 0.8, 1, 98.0),
            ("photographs", DENSE, 0.0, 0, 25.0),
            ("photographs", "TFMOT", 0.8, 0, 26.0),
        )
    ).set_index(["data", "way"])
    pruned = table.loc["digits", "TFMOT"]
    assert pruned["mean"] == 93
    assert pruned.spread == pytest.approx(statistics.stdev([88, 98]), abs=1e-3)
    assert pruned.cost == pytest.approx(statistics.mean([2, 1]))
    assert pruned.cost_spread == pytest.approx(statistics.stdev([2, 1]), abs=1e-3)
    assert table.loc["digits", DENSE].cost == 0
    assert table.loc["photographs", "TFMOT"].cost == -1


def test_a_wide_table_has_a_column_for_each_sparsity():
    table = pd.DataFrame(
        [
            ("digits", DENSE, 0.0, 98.04, 0.25),
            ("digits", "TFMOT", 0.5, 97.0, 1.0),
            ("digits", "TFMOT", 0.95, 90.0, float("nan")),
        ],
        columns=["data", "way", "sparsity", "mean", "spread"],
    )
    assert pruning_accuracy.wide(table).to_dict("records") == [
        {"way": DENSE, "0%": "98.0 ± 0.2", "50%": None, "95%": None},
        {"way": "TFMOT", "0%": None, "50%": "97.0 ± 1.0", "95%": "90.0"},
    ]


def test_digits_that_are_judged_train_nothing():
    (train, labels), (judged, answers) = pruning_tasks.split_digits(np.random.default_rng(0))
    assert (len(train), len(judged)) == (len(labels), len(answers)) == (1297, 500)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in judged}


def test_every_epoch_has_every_sample_in_an_order_of_its_own():
    first, second = pruning_tasks.repeat(50, 2, np.random.default_rng(0)).reshape(2, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert list(first) != list(second)


def test_quick_differs_from_the_full_run_in_size_only():
    sizes = {"runs", "sparsities", "digit_epochs", "photograph_epochs"}
    assert set() < changed(Config(), pruning_accuracy.QUICK) <= sizes
    assert set(pruning_accuracy.QUICK.sparsities) <= set(Config().sparsities)
