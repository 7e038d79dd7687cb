import json

import keras
import pytest

from experiments import training_speed

TINY = training_speed.Config(images=(8,), side=32, epochs=2, rounds=1, layers=100, steps=2)


@pytest.mark.slow
def test_the_command_writes_a_table_for_each_question(tmp_path, monkeypatch):
    monkeypatch.setattr(training_speed, "QUICK", TINY)
    assert training_speed.main(["--quick", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [len(results[each]) for each in ("frozen_once", "callbacks")] == [2, 4]
    for row in results["frozen_once"]:
        assert row["times as fast"] == pytest.approx(row["fit, s"] / row["fit_cached, s"])
    assert {row["pattern"]: row["selected"] for row in results["selection"]}["layer_*"] == 100
    for row in results["callbacks"]:
        assert row["share of the step, %"] == pytest.approx(100 * row["callback, ms"] / row["step, ms"])
    assert (tmp_path / "training_speed.png").read_bytes()[1:4] == b"PNG"


def test_only_the_head_of_the_classifier_trains():
    model = training_speed.classifier(TINY)
    assert {variable.path.split("/")[0] for variable in model.trainable_variables} == {"head"}


def test_the_wide_model_has_as_many_layers_as_asked_for():
    model = training_speed.many_layers(100)
    assert sum(isinstance(layer, keras.layers.Dense) for layer in model.layers) == 100


def test_pictures_are_raw_rgb():
    x, y = training_speed.pictures(TINY, 8)
    assert x.shape == (8, 32, 32, 3)
    assert 1 < x.max() <= 255
    assert x.min() >= 0
    assert len(y) == 8
