import json

import numpy as np
import pandas as pd
import pytest

from experiments import unfreeze_depth
from experiments.unfreeze_depth import Config
from tests.experiments.configs import changed

TINY = Config(images=(20,), patches=(4,), runs=1, rounds=1, pretrain_epochs=1)


def rows_of(*groups):
    """Rows as `repeat` returns them: (run, size, stage, score, chosen)."""
    table = pd.DataFrame(groups, columns=["run", "size", "stage", "score", "chosen"])
    return table.assign(advised=table.stage == "few")


@pytest.mark.slow
def test_both_tasks_are_run_tabulated_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(unfreeze_depth, "QUICK", TINY)
    assert unfreeze_depth.main(["--quick", "--output", str(tmp_path), "--seed", "3"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["config"]["seed"] == 3
    for name, stages in (
        ("digits", unfreeze_depth.DIGIT_STAGES),
        ("photographs", unfreeze_depth.PHOTOGRAPH_STAGES),
    ):
        rows = found[name]
        assert [row["stage"] for row in rows] == [*stages, unfreeze_depth.PICKED, unfreeze_depth.SCRATCH]
        assert [row["advised"] for row in rows] == ["yes", "no", "no", None, None]
        assert sorted(row["picked"] or "" for row in rows) == ["", "", "0 of 1", "0 of 1", "1 of 1"]
    assert (tmp_path / "depth.png").read_bytes()[1:4] == b"PNG"


def test_gains_are_over_the_first_stage_of_the_same_run():
    table = unfreeze_depth.tabulate(
        rows_of(
            (0, 10, "few", 50.0, True),
            (0, 10, "all", 60.0, False),
            (1, 10, "few", 70.0, False),
            (1, 10, "all", 76.0, True),
        ),
        decimals=3,
    )
    assert table.score.tolist() == [60.0, 68.0]
    assert table.gain.tolist() == [0.0, 8.0]
    assert table.gain_spread.tolist() == [0.0, round(8**0.5, 3)]
    assert table.picked.tolist() == ["1 of 2", "1 of 2"]


def test_rows_stand_by_size_in_the_order_of_the_stages():
    table = unfreeze_depth.tabulate(
        rows_of(
            (0, 10, "few", 1.0, True),
            (0, 10, "all", 1.0, False),
            (0, 90, "few", 1.0, True),
            (0, 90, "all", 1.0, False),
        ),
        decimals=3,
    )
    assert table[["size", "stage"]].values.tolist() == [[10, "few"], [10, "all"], [90, "few"], [90, "all"]]


def split(sizes=(20, 100, 400), seed=0):
    _, groups = unfreeze_depth.load_digits()
    return unfreeze_depth.split_digits(groups, sizes, np.random.default_rng(seed))


def images_of(parts, *names):
    return {image.tobytes() for name in names for image in parts[name][0]}


def test_digits_that_are_judged_train_and_choose_nothing():
    parts = split()
    judged = images_of(parts, "test")
    assert len(judged) == 5 * 70
    for size in (20, 100, 400):
        train, choose = images_of(parts, ("train", size)), images_of(parts, ("validation", size))
        assert not judged & (train | choose)
        assert not train & choose


def test_digits_are_balanced_and_as_many_as_asked_for():
    parts = split()
    counts = {name: np.bincount(labels).tolist() for name, (_, labels) in parts.items()}
    assert counts == {
        "test": [70] * 5,
        ("train", 20): [4] * 5,
        ("validation", 20): [2] * 5,
        ("train", 100): [20] * 5,
        ("validation", 100): [5] * 5,
        ("train", 400): [80] * 5,
        ("validation", 400): [20] * 5,
    }


def test_smaller_sets_are_parts_of_larger_ones():
    parts = split()
    assert (
        images_of(parts, ("train", 20)) < images_of(parts, ("train", 100)) < images_of(parts, ("train", 400))
    )


def test_known_and_new_digits_share_no_label():
    (images, labels), groups = unfreeze_depth.load_digits()
    assert set(labels) == {0, 1, 2, 3, 4}
    assert len(images) + sum(map(len, groups)) == 1797


def test_shifted_images_move_by_at_most_a_pixel():
    image = np.zeros((50, 8, 8, 1), "float32")
    image[:, 4, 4] = 1
    rows, columns = np.argwhere(unfreeze_depth.shift(image, np.random.default_rng(0))[..., 0])[:, 1:].T
    assert set(rows) == set(columns) == {3, 4, 5}


def test_quick_differs_from_the_full_run_in_size_only():
    sizes = {"images", "patches", "runs", "rounds", "pretrain_epochs"}
    assert set() < changed(Config(), unfreeze_depth.QUICK) <= sizes
    assert set(unfreeze_depth.QUICK.images) <= set(Config().images)
