"""`split`: which calls run beforehand, and which tensors cross over."""

import keras
import numpy as np
import pytest
from keras import layers

from tests import models
from tests.transfer.caching import IMAGES, X, compiled
from tests.transfer.test_cache import branches, residual, u_net
from tfkit.frozen.split import NotSplittable, split


def cut(build, patterns, x=X):
    return split(compiled(build(), patterns), x[:2])


def paths(calls):
    return {call.path for call in calls}


def crossing(parts):
    """The paths of the calls whose results cross over; `input` for the model's inputs."""
    made = {key: call.path for call in parts.front for key in call.outputs}
    return sorted(made.get(key, "input") for key in parts.features)


CROSSING = {
    "the bottleneck and the skips": (
        u_net,
        ["decoder*", "out"],
        IMAGES,
        ["encoder1", "concatenate"],
    ),
    "the only tensor before the end": (u_net, "out", IMAGES, ["decoder1"]),
    "raw inputs of trained layers": (
        branches,
        ["trained*", "head"],
        X,
        ["frozen2", "frozen3", "input"],
    ),
    "a concatenation of frozen tensors alone": (branches, "head", X, ["concatenate"]),
    "one tensor, however often it is used": (residual, ["trained1", "head"], X, ["add"]),
    "inside a nested model": (models.deep_net, ["middle/inner/b", "middle/c", "head"], X[:, :4], ["a"]),
}


@pytest.mark.parametrize("name", CROSSING)
def test_exactly_the_tensors_at_the_boundary_cross_over(name):
    build, patterns, x, wanted = CROSSING[name]
    bare = [path.split("/")[-1].rstrip("_0123456789") for path in crossing(cut(build, patterns, x))]
    assert bare == sorted(path.rstrip("_0123456789") for path in wanted)


def test_every_call_is_on_one_side():
    parts = cut(u_net, ["decoder*", "out"], IMAGES)
    assert len(parts.front) + len(parts.rest) == len(parts.flow.calls)
    assert not set(parts.front) & set(parts.rest)


def test_operations_without_weights_run_beforehand_where_they_can():
    front = paths(cut(u_net, "out", IMAGES).front)
    assert any(path.startswith("concatenate") for path in front)


def test_a_wholly_frozen_nested_model_is_one_call():
    assert "wrapper" in paths(cut(models.nested_net, "head", IMAGES).front)


def test_a_nested_model_is_entered_where_it_trains():
    parts = cut(models.nested_net, ["wrapper/project", "head"], IMAGES)
    assert paths(parts.front) == {"wrapper/backbone"}
    assert paths(parts.rest) == {"wrapper/project", "pool", "head"}


def test_frozen_layers_without_weights_are_not_named():
    parts = cut(models.nested_net, ["wrapper/project"], IMAGES)
    assert parts.uncached == {"head": "stands behind wrapper/project, which trains"}


def test_the_layer_at_the_root_of_the_obstacle_is_named():
    keras.utils.set_random_seed(0)
    stack = [layers.Dense(4, name=name) for name in ("one", "two", "three", "four")]
    model = compiled(keras.Sequential([keras.Input((6,)), *stack]), ["two"])
    parts = split(model, X[:2])
    assert parts.uncached == dict.fromkeys(["three", "four"], "stands behind two, which trains")


@pytest.mark.parametrize("count", [1, 2])
def test_few_samples_suffice_for_the_trial(count):
    model = compiled(models.gated_net(), ["gate2", "head"])
    assert paths(split(model, X[:count]).front) == {"gate1"}


class Foreign(layers.Layer):
    """Looks at numbers that are no numbers."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, x):
        return x * self.scale


def test_results_that_are_no_numbers_may_be_equal():
    stack = [Foreign(name="foreign"), layers.Dense(2, name="head")]
    model = compiled(keras.Sequential([keras.Input((6,)), *stack]), "head")
    assert paths(split(model, np.full((2, 6), np.nan, "float32")).front) == {"foreign"}


def test_only_layers_of_others_are_tried():
    model = compiled(models.conv_net(), "head")
    assert paths(split(model, IMAGES[:2]).front) >= {"conv1", "bn1", "conv2"}


def test_a_frozen_layer_without_weights_alone_is_not_worth_it():
    inputs = keras.Input((6,))
    model = compiled(keras.Model(inputs, layers.Dense(2, name="head")(layers.ReLU()(inputs))), "head")
    with pytest.raises(NotSplittable, match=r"no frozen layer could run beforehand \(no layer is frozen\)"):
        split(model, X[:2])
