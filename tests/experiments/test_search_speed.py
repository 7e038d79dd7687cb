import json

import pytest

from experiments import search_speed

TINY = search_speed.Config(images=8, side=32, trials=2, epochs=1, memory_trials=(1, 2), worker_trials=3)


@pytest.mark.slow
def test_the_command_writes_a_table_for_each_question(tmp_path, monkeypatch):
    monkeypatch.setattr(search_speed, "QUICK", TINY)
    assert search_speed.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["speed"]) == 2
    for row in results["speed"]:
        assert row["times as fast"] == pytest.approx(row["keras-tuner, s"] / row["tfkit, s"])
        assert row["best val_loss, tfkit"] == pytest.approx(row["best val_loss, keras-tuner"], rel=0.01)
    assert [row["trials"] for row in results["memory"]] == [1, 2]
    assert [row["workers"] for row in results["workers"]] == [1, 2]
    for name in ("search_speed.png", "search.png"):
        assert (tmp_path / name).read_bytes()[1:4] == b"PNG"
