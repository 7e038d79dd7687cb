import json

import numpy as np
import pytest
import tensorflow as tf

from experiments import pruning_sensitivity, pruning_speed

TINY = pruning_speed.Config(whole_model=False, updates=1, steps=2)
KERNELS = [
    np.random.default_rng(0).normal(size=shape).astype("float32") for shape in [(3, 3, 4, 8), (20, 10)]
]


@pytest.mark.parametrize("update", [pruning_speed.our_update, pruning_speed.their_update])
def test_both_updates_draw_the_masks_that_sorting_gives(update):
    for mask, kernel in zip(update(TINY, KERNELS)(), KERNELS, strict=True):
        kept = np.sort(np.abs(kernel), axis=None)[-round(0.2 * kernel.size) :]
        np.testing.assert_array_equal(mask.numpy() != 0, np.abs(kernel) >= kept[0])


def test_masks_that_differ_stop_the_experiment(monkeypatch):
    whole = [tf.ones(kernel.shape, bool) for kernel in KERNELS]
    monkeypatch.setattr(pruning_speed, "our_update", lambda config, arrays: lambda: whole)
    with pytest.raises(RuntimeError, match="different masks"):
        pruning_speed.time_updates(TINY, KERNELS)


def test_a_half_pruned_kernel_keeps_its_largest_quarter():
    kernel = np.random.default_rng(1).normal(size=(40, 50)).astype("float32")
    half = pruning_speed.half_pruned(kernel)
    unchanged = half == kernel
    assert unchanged.mean() == pytest.approx(0.25, abs=0.01)
    assert np.abs(kernel)[unchanged].min() >= np.abs(kernel)[~unchanged].max()
    np.testing.assert_allclose(half[~unchanged], 1e-3 * kernel[~unchanged], rtol=1e-6)


def test_calls_go_in_turns_and_the_first_does_not_count():
    order = []
    medians = pruning_speed.in_turns({name: lambda name=name: order.append(name) for name in "ab"}, 3)
    assert order == ["a", "b"] * 4
    assert set(medians) == {"a", "b"}


def test_the_bytes_are_those_of_the_masks():
    table = pruning_speed.memory().set_index("added by")
    weights = 3 * 3 * 3 * 32 + 3 * 3 * 32 * 64 + 3 * 3 * 64 * 64 + 64 * 10
    assert table.loc["tfkit", "bytes"] == weights + 8  # a byte each, and one count
    assert table.loc["TFMOT", "bytes"] == 4 * weights + 4 * 4 + 5 * 8  # a threshold a kernel, a count a layer


@pytest.mark.slow
def test_a_small_run_writes_its_tables_and_its_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(pruning_speed, "QUICK", TINY)
    monkeypatch.setattr(pruning_speed, "KERNEL", (3, 3, 16, 16))
    assert pruning_speed.main(["--quick", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["weights"] for row in found["updates"]] == ["initial", "sparse already"]
    assert found["steps"][0]["step"] == "dense"
    assert found["steps"][0]["tfkit, times dense"] == 1
    assert (tmp_path / "pruning_speed.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_the_sensitivity_of_the_denoiser(tmp_path):
    assert pruning_sensitivity.main(["--quick", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["pruning_sensitivity"]
    assert len(rows) == 6 * 2
    baseline = {round(row["score"] - row["change"], 6) for row in rows}
    assert len(baseline) == 1
    assert (tmp_path / "pruning_sensitivity.png").is_file()
