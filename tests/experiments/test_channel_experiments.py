import json

import keras
import numpy as np
import pandas as pd
import pytest

import tfkit
from experiments import channel_accuracy, channel_coverage, channel_latency


def test_every_network_of_keras_applications_is_tried():
    names = channel_coverage.constructors()
    assert len(names) == 40
    assert {"ResNet50", "VGG16", "NASNetLarge", "EfficientNetV2L", "ConvNeXtXLarge"} <= {*names}


def test_random_networks_have_random_statistics_in_every_channel():
    network = channel_coverage.randomized("MobileNetV2", seed=3)
    norm = network.get_layer("bn_Conv1")
    for variable in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance):
        values = np.asarray(variable)
        assert len(np.unique(values)) == len(values)
    again = channel_coverage.randomized("MobileNetV2", seed=3)
    np.testing.assert_array_equal(again.get_layer("Conv1").kernel, network.get_layer("Conv1").kernel)


def test_a_difference_is_a_part_of_the_largest_output():
    assert channel_coverage.difference(np.array([1.0, 4.0]), np.array([2.0, -4.0])) == 2.0


def test_a_network_that_is_refused_stands_in_the_table(monkeypatch):
    def refuse(*_, **__):
        raise tfkit.PruningError("A rule. Received: this.")

    monkeypatch.setattr(tfkit, "plan_channel_pruning", refuse)
    monkeypatch.setattr(channel_coverage, "randomized", lambda name, seed: small())
    row = channel_coverage.try_network("Any", channel_coverage.Config())
    assert row["verdict"] == "A rule. Received: this."


def small():
    layers = keras.layers
    stack = [layers.Conv2D(32, 3, name="a"), layers.BatchNormalization(), layers.Conv2D(16, 3, name="b")]
    stack.append(layers.GlobalAveragePooling2D())
    return keras.Sequential([keras.Input((12, 12, 3)), *stack, layers.Dense(4, name="head")])


def test_a_network_passes_when_all_three_agree(monkeypatch):
    monkeypatch.setattr(channel_coverage, "randomized", lambda name, seed: small())
    row = channel_coverage.try_network("Any", channel_coverage.Config())
    assert row["verdict"] == "passes"
    assert row["flops left"] <= 0.6
    assert max(row["masked"], row["reloaded"], row["TFLite"]) <= 1e-5


def test_a_network_that_differs_does_not_pass(monkeypatch):
    monkeypatch.setattr(channel_coverage, "randomized", lambda name, seed: small())
    monkeypatch.setattr(tfkit.ChannelPlan, "mask", lambda plan, model: lambda x: np.ones((2, 4)))
    row = channel_coverage.try_network("Any", channel_coverage.Config())
    assert row["verdict"].startswith("differs by")


def test_scales_of_channels_keep_their_mean_square():
    network = channel_latency.build("MobileNetV2", channel_latency.QUICK)
    plain = keras.applications.MobileNetV2(weights=None, input_shape=(96, 96, 3))
    norm = network.get_layer("bn_Conv1")
    assert not np.allclose(norm.moving_variance, 1)  # measured
    for layer in ("block_5_expand", "block_5_depthwise"):
        mine, theirs = (np.asarray(each.get_layer(layer).kernel) for each in (network, plain))
        assert mine.std() == pytest.approx(theirs.std(), rel=0.1)
        channels = -1 if mine.shape[-1] > 1 else -2
        norms = np.linalg.norm(np.moveaxis(mine, channels, 0).reshape(mine.shape[channels], -1), axis=1)
        assert norms.std() / norms.mean() > 0.3  # they differ as trained filters do


def test_the_proxy_is_the_geometric_mean_of_what_stays():
    plan = tfkit.plan_channel_pruning(small(), ratio=0.5, scope="uniform")
    shares = plan.table.score.dropna().astype(float)
    assert len(shares) == 2
    assert channel_latency.proxy(plan) == pytest.approx(float(np.sqrt(shares.prod())))


def test_what_is_lost_is_counted_against_the_control_of_the_same_run():
    rows = [
        {"run": 0, "scope": "dense", "flops": 1.0, "FLOPs left": 1.0, "pruned": 97.0, "trained on": 98.0},
        {"run": 1, "scope": "dense", "flops": 1.0, "FLOPs left": 1.0, "pruned": 95.0, "trained on": 96.0},
        {"run": 0, "scope": "uniform", "flops": 0.5, "FLOPs left": 0.49, "pruned": 50.0, "trained on": 97.0},
        {"run": 1, "scope": "uniform", "flops": 0.5, "FLOPs left": 0.5, "pruned": 60.0, "trained on": 95.0},
    ]
    table = channel_accuracy.summarise(pd.DataFrame(rows)).set_index("scope")
    assert table.lost["uniform"] == "1.00 ± 0.00"
    assert table["trained on"]["uniform"] == 96.0
    assert table["FLOPs left"]["uniform"] == pytest.approx(0.495)


def test_a_copy_computes_the_same_and_shares_nothing():
    network = channel_accuracy.residual_network()
    twin = channel_accuracy.copied(network)
    x = np.random.default_rng(0).random((2, 8, 8, 1), "float32")
    np.testing.assert_array_equal(network(x), twin(x))
    assert not {id(each) for each in network.weights} & {id(each) for each in twin.weights}


@pytest.mark.slow
def test_a_small_run_of_accuracy_writes_its_tables_and_its_figure(tmp_path, monkeypatch):
    tiny = channel_accuracy.Config(runs=1, flops=(0.5,), digit_epochs=1, photograph_epochs=1)
    monkeypatch.setattr(channel_accuracy, "QUICK", tiny)
    monkeypatch.setattr(channel_accuracy, "STRIDE", 96)
    monkeypatch.setattr(channel_accuracy, "SCOPES", ("uniform", "sensitivity"))
    assert channel_accuracy.main(["--quick", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["scope"] for row in found["digits"]] == ["dense", "uniform", "sensitivity"]
    assert "recalibrated" not in found["photographs"][1]
    assert all(abs(row["FLOPs left"] - 0.5) <= 0.02 for row in found["digits"][1:])
    assert (tmp_path / "channel_accuracy.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_a_small_run_of_coverage_writes_its_table_and_its_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(channel_coverage, "QUICK", channel_coverage.Config(networks=("MobileNetV3Small",)))
    assert channel_coverage.main(["--quick", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["summary"] == [{"networks": 1, "pass": 1, "fail": 0}]
    assert (tmp_path / "channel_coverage.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
def test_a_small_run_of_latency_writes_its_tables_and_its_figure(tmp_path, monkeypatch):
    def build(name, config):  # large enough for a clock, and for a shorter time to be possible
        layers = keras.layers
        stack = [layers.Conv2D(64, 3), layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(64, 3)]
        stack += [layers.ReLU(), layers.Conv2D(64, 3), layers.GlobalAveragePooling2D(), layers.Dense(4)]
        return keras.Sequential([keras.Input((24, 24, 3)), *stack])

    monkeypatch.setattr(channel_latency, "build", build)
    tiny = channel_latency.Config(networks=("small",), flops=(0.5,), runs=10, side=24)
    monkeypatch.setattr(channel_latency, "QUICK", tiny)
    assert channel_latency.main(["--quick", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["left"] for row in found["speed"]] == ["unpruned", "50% of the work"]
    assert [row["planned for"] for row in found["plans"]] == ["FLOPs", "latency"]
    assert not list(tmp_path.glob("*.tflite"))
