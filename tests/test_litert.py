import keras
import numpy as np
import pytest
from keras import layers

from tests import models
from tfkit import litert


def test_calls_go_in_turns_and_the_first_rounds_do_not_count():
    order = []
    taken = litert.interleave([lambda: order.append("a"), lambda: order.append("b")], runs=5)
    assert order == ["a", "b"] * (3 + 5)  # three warm up
    assert [len(each) for each in taken] == [5, 5]
    assert all(second >= 0 for each in taken for second in each)


def test_a_slow_call_takes_longer():
    slow, fast = litert.interleave([lambda: sum(range(200_000)), lambda: None], runs=5)
    assert np.median(slow) > 10 * np.median(fast)


def test_more_work_takes_longer_on_litert():
    narrow, wide = layers.Conv2D(8, 3), layers.Conv2D(128, 3)
    times = litert.time_layers(
        {"narrow": (narrow, [(1, 64, 64, 32)]), "wide": (wide, [(1, 64, 64, 32)])}, runs=9
    )
    assert times["wide"] > 3 * times["narrow"] > 0  # 16 times the work


@pytest.mark.parametrize("build", [models.conv_net, models.nested_net, models.deep_net])
def test_whole_models_run(build):
    model = build()
    shapes = [(1, *x.shape[1:]) for x in model.inputs]
    assert litert.time_layers({"model": (model, shapes)}, runs=3)["model"] > 0


def test_models_of_several_inputs_run():
    inputs = {"a": keras.Input((6,), name="a"), "n": keras.Input((2,), dtype="int32", name="n")}
    words = layers.Flatten()(layers.Embedding(5, 3)(inputs["n"]))
    model = keras.Model(inputs, layers.Concatenate()([layers.Dense(3)(inputs["a"]), words]))
    assert litert.time_layers({"model": (model, [(1, 6), (1, 2)])}, runs=3)["model"] > 0
