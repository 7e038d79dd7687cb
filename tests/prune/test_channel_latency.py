"""Plans for a latency: against times that are known, and for once against the clock."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tfkit.litert import time_layers
from tfkit.prune import latency
from tfkit.prune.groups import Product, Wiring


def wide_net(side=12):
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(width, 3, padding="same", name=f"c{i}") for i, width in enumerate((64, 96, 64))]
    return keras.Sequential([keras.Input((side, side, 3)), *stack, layers.GlobalAveragePooling2D()])


@pytest.fixture
def clock(monkeypatch):
    """Lets a layer take a microsecond for each weight, and tells how often it was asked."""
    asked = []

    def time_layers(named, **_):
        asked.append([*named])
        for layer, shapes in named.values():
            if not layer.built:
                layer.build(*shapes)
        return {name: 1e-3 * layer.count_params() for name, (layer, _) in named.items()}

    monkeypatch.setattr(latency, "time_layers", time_layers)
    return asked


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("fraction", [0.75, 0.5, 0.3])
def test_a_fraction_of_todays_latency_is_reached_and_never_passed(clock, fraction, scope):
    model = wide_net()
    plan = tfkit.plan_channel_pruning(model, latency=fraction, scope=scope)
    assert plan.before["latency_ms"] == pytest.approx(1e-3 * model.count_params())
    assert plan.after["latency_ms"] == pytest.approx(1e-3 * plan.apply(model).count_params())
    assert 0.9 * fraction <= plan.after["latency_ms"] / plan.before["latency_ms"] <= fraction


def test_milliseconds_are_reached_and_never_passed(clock):
    model = wide_net()
    wanted = 0.6e-3 * model.count_params()
    plan = tfkit.plan_channel_pruning(model, latency_ms=wanted)
    assert 0.9 * wanted <= plan.after["latency_ms"] <= wanted
    assert plan.target.startswith("latency_ms=")


def test_layers_that_save_much_lose_more_than_layers_that_save_little(monkeypatch):
    def time_layers(named, **_):
        for layer, shapes in named.values():
            if not layer.built:
                layer.build(*shapes)
        return {name: total(layer) for name, (layer, _) in named.items()}

    def total(layer):
        if isinstance(layer, keras.Model):
            return sum(total(each) for each in layer.layers)
        slow = layer.kernel.shape[:2] == (5, 5) if hasattr(layer, "kernel") else False
        return (10.0 if slow else 0.1) * layer.count_params() / 1e4

    monkeypatch.setattr(latency, "time_layers", time_layers)
    keras.utils.set_random_seed(0)
    chain = [(64, 5), (64, 1), (64, 1)]
    stack = [
        layers.Conv2D(width, size, padding="same", name=f"k{size}_{i}")
        for i, (width, size) in enumerate(chain)
    ]
    model = keras.Sequential([keras.Input((8, 8, 16)), *stack, layers.Conv2D(4, 1, name="end")])
    after = tfkit.plan_channel_pruning(model, latency=0.6).table.set_index("group").channels_after
    assert after["k5_0"] < after["k1_2"] == 64


def test_layers_alike_are_measured_once(clock):
    keras.utils.set_random_seed(0)
    stack = [layers.Conv2D(32, 3, padding="same", name=f"c{i}") for i in range(4)]
    model = keras.Sequential([keras.Input((8, 8, 32)), *stack, layers.Conv2D(2, 1, name="end")])
    latency.time_calls(Wiring(model))
    assert len(clock) == 2


def test_between_measured_widths_the_time_is_a_straight_line(clock):
    model = keras.Sequential([keras.Input((16,)), layers.Dense(64, name="a"), layers.Dense(4, name="b")])
    first, second = latency.time_calls(Wiring(model))
    for units in (64, 40, 24):
        assert first([units]) == pytest.approx(1e-3 * (16 * units + units))
        assert second([units]) == pytest.approx(1e-3 * (4 * units + 4))


def recurrent_net():
    """Layers of other kinds than convolutions and Dense, all of which may lose units."""
    keras.utils.set_random_seed(0)
    inputs = x = keras.Input((5, 4))
    for kind, units, name in ((layers.LSTM, 8, "lstm"), (layers.GRU, 6, "gru")):
        x = kind(units, return_sequences=True, name=name)(x)
    x = layers.MultiHeadAttention(4, 3, name="mha")(x, x)
    x = layers.GlobalAveragePooling1D()(layers.SeparableConv1D(8, 3, name="separable")(x))
    return keras.Model(inputs, layers.Dense(1, name="head")(x))


@pytest.mark.parametrize(
    ("build", "others"),
    [
        (models.sequence_net, {"lstm", "mha"}),
        (recurrent_net, {"lstm", "gru", "mha", "separable"}),
        (models.gated_net, set()),
    ],
)
def test_layers_of_other_kinds_are_measured_whole_and_scaled_with_their_work(build, others, clock):
    def total(products, path, units):
        return sum(each(units) for each in products if getattr(each, "path", None) == path)

    wiring = Wiring(build())
    calls = latency.time_calls(wiring)
    assert len(calls) == len(wiring.works)
    units = wiring.units()
    assert {each.path for each in calls if isinstance(each, Product)} == others
    for path in others:
        time, work = (total(each, path, units) for each in (calls, wiring.works))
        assert time == pytest.approx(1e-3 * wiring.model.get_layer(path).count_params())
        share = total(wiring.works, path, units // 2) / work
        assert total(calls, path, units // 2) == pytest.approx(share * time)


def test_a_latency_out_of_reach_is_refused_with_the_least(clock):
    with pytest.raises(tfkit.PruningError, match=r"possible\. Received: latency_ms=0\.1\. The least is"):
        tfkit.plan_channel_pruning(wide_net(), latency_ms=0.1)


def test_a_latency_above_todays_is_refused(clock):
    with pytest.raises(tfkit.PruningError, match=r"below what .* costs now\. Received: latency_ms=1e\+06"):
        tfkit.plan_channel_pruning(wide_net(), latency_ms=1e6)


def test_open_sizes_are_refused_before_anything_is_measured(clock):
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(4, 3)(layers.Conv2D(32, 3)(inputs)))
    with pytest.raises(tfkit.ArgumentError, match=r"size of its inputs.*Pass input_shape"):
        tfkit.plan_channel_pruning(model, latency=0.5)
    assert not clock


@pytest.mark.slow
def test_a_real_model_is_as_fast_as_planned():
    model = wide_net(side=32)
    plan = tfkit.plan_channel_pruning(model, latency=0.6)
    assert plan.after["latency_ms"] <= 0.6 * plan.before["latency_ms"]
    smaller, x = plan.apply(model), np.random.default_rng(0).random((2, 32, 32, 3), "float32")
    sizes = [(1, 32, 32, 3)]
    times = time_layers({"before": (model, sizes), "after": (smaller, sizes)}, runs=50)
    assert times["after"] < 0.8 * times["before"]  # a noisy machine is given some room
    np.testing.assert_allclose(smaller(x), plan.mask(model)(x), atol=1e-5)
