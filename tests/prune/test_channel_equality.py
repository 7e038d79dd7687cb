"""The model with silent channels and the smaller one compute the same, on every architecture."""

import dataclasses

import keras
import numpy as np
import pytest

import tfkit
from tests.prune import topologies_sequences, topologies_shapes  # noqa: F401 (they add to TOPOLOGIES)
from tests.prune.topologies import TOPOLOGIES, Topology, batch, made, outputs, randomize
from tfkit.prune.normalization import MaskedNormalization

RANDOM = {"criterion": "random", "seed": 1, "multiple_of": 1, "ratio": 0.4}
UNIFORM = {"criterion": "l2", "scope": "uniform", "multiple_of": 1, "ratio": 0.5}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with what a random plan made of it, and its weights from before."""

    topology: Topology
    model: keras.Model
    before: list
    options: dict
    plan: tfkit.ChannelPlan
    masked: keras.Model
    smaller: keras.Model


@pytest.fixture(scope="module", params=TOPOLOGIES)
def case(request):
    model = made(request.param)
    before = [keras.ops.convert_to_numpy(each).copy() for each in model.weights]
    options = {"input_shape": (8, 8, 3)} if request.param == "open_size" else {}
    plan = tfkit.plan_channel_pruning(model, **RANDOM, **options)
    masked, smaller = plan.mask(model), plan.apply(model)
    return Case(TOPOLOGIES[request.param], model, before, options, plan, masked, smaller)


def difference(one, other, x):
    """Largest difference of two models' outputs, as a part of the largest output."""
    pairs = list(zip(outputs(one, x), outputs(other, x), strict=True))
    assert all(a.shape == b.shape and np.isfinite(a).all() for a, b in pairs)
    return max(np.abs(a - b).max() / np.abs(a).max() for a, b in pairs)


def test_the_masked_model_computes_what_the_smaller_one_does(case):
    x = batch(case.model)
    assert difference(case.masked, case.smaller, x) <= case.topology.tolerance
    for old, new in zip(outputs(case.model, x), outputs(case.smaller, x), strict=True):
        assert old.shape == new.shape
        assert new.std(axis=0).max() > 1e-4  # it still answers to what comes in


def test_it_does_with_the_smallest_weights_of_each_group_gone(case):
    plan = tfkit.plan_channel_pruning(case.model, **UNIFORM, **case.options)
    masked, smaller = plan.mask(case.model), plan.apply(case.model)
    assert difference(masked, smaller, batch(case.model, count=2, seed=7)) <= case.topology.tolerance
    assert plan.after["parameters"] == smaller.count_params() < case.model.count_params()


def test_the_plan_tells_the_size_of_the_smaller_model(case):
    model, plan, smaller = case.model, case.plan, case.smaller
    assert plan.before["parameters"] == model.count_params() == case.masked.count_params()
    assert plan.after["parameters"] == smaller.count_params() < model.count_params()
    assert plan.after["flops"] < plan.before["flops"]
    for old, new in zip(model.inputs + model.outputs, smaller.inputs + smaller.outputs, strict=True):
        assert (old.shape, old.dtype) == (new.shape, new.dtype)


def test_the_model_is_not_touched(case):
    for old, new in zip(case.before, case.model.weights, strict=True):
        np.testing.assert_array_equal(old, new)


def test_what_stays_is_the_models_own(case):
    """Weights are all different, so the smaller ones tell where they are from."""
    for old, silent, small in zip(case.before, case.masked.weights, case.smaller.weights, strict=True):
        silent, small = keras.ops.convert_to_numpy(silent), keras.ops.convert_to_numpy(small)
        places = np.ix_(*(np.unique(axis) for axis in np.nonzero(np.isin(old, small))))
        np.testing.assert_array_equal(old[places], small)
        np.testing.assert_array_equal(silent[places], small)
        assert ((silent == old) | (silent == 0)).all()


def test_both_models_can_be_saved(case, tmp_path):
    wraps = any(isinstance(layer, MaskedNormalization) for layer in case.masked._flatten_layers())
    for each in [case.smaller, case.masked] if wraps else [case.smaller]:
        each.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(
            tmp_path / "model.keras", custom_objects=case.topology.custom_objects, safe_mode=False
        )
        assert difference(each, loaded, batch(each)) == 0


def test_a_saved_plan_does_the_same_to_another_copy(tmp_path):
    model = made("unet")
    plan = tfkit.plan_channel_pruning(model, **RANDOM)
    read = tfkit.ChannelPlan.load(plan.save(tmp_path / "plan.json"))
    assert read == plan
    assert difference(plan.apply(model), read.apply(made("unet")), batch(model)) == 0


@pytest.mark.parametrize("criterion", ["l1", "fpgm", "bn_scale", "activation", "taylor"])
@pytest.mark.parametrize("name", ["residual_blocks_with_projection", "squeeze_and_excite", "unet"])
def test_every_criterion_keeps_the_promise(name, criterion):
    model = made(name)
    x = batch(model, count=8)
    data = (x, outputs(model, x)[0] + 0.5) if criterion == "taylor" else x
    plan = tfkit.plan_channel_pruning(
        model, flops=0.6, criterion=criterion, multiple_of=2, data=data, loss=keras.losses.MeanSquaredError()
    )
    smaller = plan.apply(model)
    assert difference(plan.mask(model), smaller, x) <= 1e-5
    assert smaller.count_params() < model.count_params()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "name", ["add_of_shifted_concatenations", "channel_shuffle", "group_norms", "operators_that_gate"]
)
def test_any_pattern_keeps_the_promise(name, seed):
    model = randomize(made(name), seed)
    options = {"criterion": "random", "seed": seed, "multiple_of": 1, "max_ratio": 0.95}
    plan = tfkit.plan_channel_pruning(model, ratio=0.15 + 0.12 * seed, **options)
    assert difference(plan.mask(model), plan.apply(model), batch(model)) <= 1e-5


def test_the_smaller_model_can_be_made_smaller():
    model = made("residual_add")
    for seed in range(3):
        plan = tfkit.plan_channel_pruning(model, ratio=0.3, criterion="random", seed=seed, multiple_of=1)
        smaller = plan.apply(model)
        assert difference(plan.mask(model), smaller, batch(model)) <= 1e-5
        assert smaller.count_params() < model.count_params()
        model = smaller


def test_a_frozen_layer_stays_frozen():
    model = made("residual_add")
    model.get_layer("inner").trainable = False
    for each in (
        tfkit.prune_channels(model, ratio=0.5),
        tfkit.plan_channel_pruning(model, ratio=0.5).mask(model),
    ):
        assert [layer.trainable for layer in each.layers] == [layer.trainable for layer in model.layers]
        assert len(each.trainable_weights) == len(model.trainable_weights)


def test_the_smaller_model_trains():
    """Noise, dropout and statistics included."""
    for name in ("noise_and_dropout", "transformer"):
        smaller = tfkit.prune_channels(made(name), **RANDOM)
        x = batch(smaller, count=8)
        smaller.compile("sgd", "mse")
        smaller.fit(x, np.zeros((8, *smaller.outputs[0].shape[1:])), verbose=0)
        assert all(np.isfinite(keras.ops.convert_to_numpy(each)).all() for each in smaller.weights)
