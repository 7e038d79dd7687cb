import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest

import tfkit
from experiments import schedules

TINY = schedules.Config(
    seeds=2, rate_seeds=1, rates=(1e-3, 2e-3), epochs=3, filters=(4,), keep_every=20, batch=4
)
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    return schedules.Bench(TINY)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 1, 599: 1}),
        ("factor", {0: 1, 99: 1, 100: 1 / 2, 200: 1 / 4, 599: 1 / 32}),
        ("multi-step", {0: 1, 299: 1, 300: 0.1, 450: 0.01, 599: 0.01}),
        ("cosine", {0: 1, 300: 1 / 2, 600: 0}),
        ("warmup, cosine", {0: 0, 30: 1 / 2, 60: 1, 330: 1 / 2, 600: 0}),
        ("one-cycle", {0: 1 / 25, 180: 1, 390: 1 / 2, 600: 0}),
    ],
)
def test_each_schedule_has_its_shape_and_the_same_peak(schedule, expected):
    curve = schedules.callback(schedule, 0.5, 600).curve
    assert [curve(step) / 0.5 for step in expected] == pytest.approx(list(expected.values()), abs=1e-5)
    assert max(curve(step) for step in range(600)) == 0.5


def test_the_plateau_rises_as_long_as_the_cosine():
    plateau = schedules.callback("plateau", 0.5, 600)
    assert isinstance(plateau, tfkit.ReduceLROnPlateau)
    assert plateau.warmup_steps == 60


def test_every_run_starts_anew(bench):
    first = bench.run("cosine", 2e-3, 0)
    bench.done.clear()
    bench.run("constant", 1e-2, 1)
    again = bench.run("cosine", 2e-3, 0)
    for name in ("rates", "losses", "validation"):
        np.testing.assert_allclose(getattr(again, name), getattr(first, name), rtol=1e-4)


def test_a_run_uses_the_rates_of_its_schedule(bench):
    run = bench.run("cosine", 2e-3, 0)
    curve = tfkit.curves.cosine(2e-3, bench.steps)
    np.testing.assert_allclose(run.rates, [curve(step) for step in range(bench.steps)], rtol=1e-5)
    assert len(run.losses) == bench.steps == 3 * bench.epoch_steps
    assert len(run.validation) == 3


def test_schedules_see_the_same_batches_from_the_same_weights(bench):
    losses = {name: bench.run(name, 2e-3, 0).losses[0] for name in ("constant", "cosine", "multi-step")}
    assert len(set(losses.values())) == 1


def made(losses, validation, test_db):
    return schedules.Run(np.zeros(len(losses)), np.array(losses), np.array(validation), test_db)


def test_the_table_has_means_and_spreads_over_the_seeds():
    first = made([9, 9, 0.1, 0.3], [0.1, 0.01], 20.0), made([9, 9, 0.2, 0.2], [0.1, 0.2], 22.0)
    second = made([9, 9, 0.1, 0.1], [0.1, 0.01], 21.0), made([9, 9, 0.3, 0.3], [0.1, 0.001], 25.0)
    runs = {("constant", 0.1): first, ("cosine", 0.1): second}
    constant, cosine = schedules.schedule_table(runs, 2).to_dict("records")
    assert constant["train_loss"] == cosine["train_loss"] == 0.2
    assert cosine["validation_db"] == 25.0  # of 0.01 and 0.001: 20 and 30
    assert cosine["validation_spread"] == round(10 / math.sqrt(2), 2)
    assert (constant["gain_db"], constant["gain_spread"]) == (0, 0)
    assert (cosine["gain_db"], cosine["gain_spread"]) == (2.0, 1.41)  # of 1 and 3
    assert (constant["best_epoch"], cosine["best_epoch"]) == (1.5, 2.0)


def test_one_seed_has_no_spread():
    table = schedules.schedule_table({("constant", 0.1): [made([1.0], [0.1], 20.0)]}, 1)
    assert table[["validation_spread", "test_spread", "gain_spread"]].isna().all(axis=None)


@pytest.mark.slow
def test_the_command_writes_tables_and_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(schedules, "QUICK", TINY)
    assert schedules.main(["--quick", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    best, own = (
        max(found["rates"], key=lambda row: row[name])["learning_rate"]
        for name in ("constant_db", "cosine_db")
    )
    rows = {(row["schedule"], row["peak_rate"]) for row in found["schedules"]}
    assert rows == {(name, best) for name in schedules.SCHEDULES} | {(schedules.COSINE, own)}
    assert list(found["suggestions"][0]) == ["valley", "steep", "minimum", "slide"]
    for picture in ("schedules.png", "finder.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_what_the_full_experiment_found():
    found = json.loads((ROOT / "docs/results/schedules/results.json").read_text())
    assert found["config"] == json.loads(json.dumps(dataclasses.asdict(schedules.Config())))
