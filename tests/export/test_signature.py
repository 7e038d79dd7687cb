"""What goes into a model: specs, names, arrays, and the serving function."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tfkit.export.signature import MOST_SAMPLES, input_specs, random_samples, samples, serving_function

RNG = np.random.default_rng(0)
PAIR = [tf.TensorSpec((None, 3), tf.float32), tf.TensorSpec((None, 2), tf.int32)]
ONE = PAIR[:1]


def net():
    """A functional model of two Dense layers, d1 and head."""
    model = models.dense_net(units=(8,))
    return keras.Model(model.inputs, model.outputs, name="net")


def pair_net(pack=list):
    """Two inputs and two outputs; `pack` is list or dict."""
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    total = layers.Dense(4, name="total")(layers.Concatenate()([a, b]))
    outputs = {"y": layers.Dense(5, name="y")(total), "x": layers.Dense(6, name="x")(a)}
    if pack is dict:
        return keras.Model({"b": b, "a": a}, outputs)
    return keras.Model([b, a], list(outputs.values()))


# input_specs.


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_a_spec_has_the_models_shape_and_the_given_batch(batch_size):
    (spec,) = input_specs(models.backbone(), batch_size=batch_size)
    assert tuple(spec.shape) == (batch_size, 8, 8, 3)


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8"])
def test_a_spec_has_the_inputs_type(dtype):
    inputs = keras.Input((4,), dtype=dtype)
    (spec,) = input_specs(keras.Model(inputs, layers.Rescaling(0.5)(inputs)), batch_size=1)
    assert spec.dtype == dtype


def test_specs_come_in_the_order_of_the_models_inputs():
    assert [spec.shape[1] for spec in input_specs(pair_net(), batch_size=1)] == [2, 3]


def test_the_names_order_is_the_inputs_order():
    """Signatures sort arguments by name, so the order must survive sorting."""
    inputs = [keras.Input((1,), name=name) for name in "kjihgfedcba"]
    specs = input_specs(keras.Model(inputs, layers.Add()(inputs)), batch_size=1)
    names = [spec.name for spec in specs]
    assert names == sorted(names)


def test_a_sequential_model_knows_its_inputs():
    (spec,) = input_specs(models.dense_net(), batch_size=1)
    assert tuple(spec.shape) == (1, 6)


def test_an_input_shape_closes_open_sizes():
    inputs = keras.Input((None, None, 3))
    model = keras.Model(inputs, layers.Conv2D(2, 3)(inputs))
    (spec,) = input_specs(model, batch_size=1, input_shape=(8, 9, 3))
    assert tuple(spec.shape) == (1, 8, 9, 3)


@pytest.mark.parametrize("shape", [(9, 8, 3), (8, 8), (8, 8, 3, 1), ()], ids=str)
def test_an_input_shape_that_contradicts_the_model_is_refused(shape):
    with pytest.raises(
        tfkit.ArgumentError, match=r"agree with the model's one input.*Received: input_shape=\("
    ):
        input_specs(models.backbone(), batch_size=1, input_shape=shape)


def test_an_input_shape_for_several_inputs_is_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"one input.*Received: input_shape=\(3,\), model inputs"):
        input_specs(pair_net(), batch_size=1, input_shape=(3,))


def test_a_model_that_does_not_know_its_inputs_is_refused():
    with pytest.raises(
        tfkit.UnbuiltModelError, match=r"know its inputs.*Received: model='subclassed'.*Wrap it"
    ):
        input_specs(models.subclassed_net(), batch_size=1)


# samples.


@pytest.mark.parametrize(
    "data",
    [
        np.ones((5, 3)),
        np.ones((5, 3)).tolist(),
        [np.ones((5, 3))],
        (np.ones((5, 3)),),
        tf.ones((5, 3)),
        tf.data.Dataset.from_tensor_slices(np.ones((5, 3))).batch(2),
        tf.data.Dataset.from_tensor_slices((np.ones((5, 3)), np.zeros(5))).batch(2),
        tf.data.Dataset.from_tensor_slices({"any": np.ones((5, 3))}).batch(5),
    ],
    ids=[
        "array",
        "nested list",
        "list of one array",
        "tuple of one array",
        "tensor",
        "dataset",
        "(x, y)",
        "dict",
    ],
)
def test_one_input_takes_data_in_any_form(data):
    (array,) = samples(data, ONE)
    np.testing.assert_array_equal(array, np.ones((5, 3), "float32"))


def test_two_inputs_take_a_list_of_arrays():
    one, other = samples([np.ones((5, 3)), np.zeros((5, 2))], PAIR)
    assert (one.shape, other.shape) == ((5, 3), (5, 2))


@pytest.mark.parametrize(
    "pack", [lambda a, b: ((a, b), np.zeros(5)), lambda a, b: ({"a": a, "b": b}, np.zeros(5))]
)
def test_two_inputs_take_a_dataset_with_targets(pack):
    data = tf.data.Dataset.from_tensor_slices(pack(np.ones((5, 3)), np.zeros((5, 2)))).batch(2)
    one, other = samples(data, PAIR)
    assert (one.shape, other.shape) == ((5, 3), (5, 2))


def test_data_takes_the_inputs_type():
    arrays = samples([np.ones((5, 3), "float64"), np.ones((5, 2), "int64")], PAIR)
    assert [array.dtype for array in arrays] == ["float32", "int32"]


def test_open_sizes_take_any_size():
    (array,) = samples(np.ones((2, 7, 3)), [tf.TensorSpec((None, None, 3), tf.float32)])
    assert array.shape == (2, 7, 3)


@pytest.mark.parametrize(
    "data",
    [np.ones((200, 3)), tf.data.Dataset.from_tensor_slices(np.ones((200, 3))).batch(30).repeat()],
    ids=["array", "endless dataset"],
)
def test_no_more_samples_are_taken_than_the_limit(data):
    (array,) = samples(data, ONE)
    assert array.shape == (MOST_SAMPLES, 3)


@pytest.mark.parametrize(
    "data",
    [
        np.ones((5, 4)),
        np.ones(3),
        np.ones((5, 3, 1)),
        np.ones((0, 3)),
        7.0,
        tf.data.Dataset.from_tensor_slices(np.ones((5, 3))),
        tf.data.Dataset.from_tensor_slices(np.ones((0, 3))).batch(2),
    ],
    ids=["width", "rank 1", "rank 3", "empty", "number", "unbatched", "empty dataset"],
)
def test_data_that_does_not_fit_is_refused(data):
    with pytest.raises(
        tfkit.ArgumentError,
        match=r"`x` must hold at least one sample.*Received: x with.*model takes \[\(3,\)\]",
    ):
        samples(data, ONE, name="x")


@pytest.mark.parametrize(
    "data",
    [[np.ones((5, 3))], [np.ones((5, 2)), np.ones((5, 3))], np.ones((5, 3))],
    ids=["one array", "swapped", "no list"],
)
def test_two_inputs_refuse_other_data(data):
    with pytest.raises(
        tfkit.ArgumentError, match=r"`representative_data` must hold.*Received: .*\(3,\), \(2,\)"
    ):
        samples(data, PAIR)


def test_inputs_of_different_length_are_refused():
    with pytest.raises(tfkit.ArgumentError, match=r"(?s)`x` must.*Received: x"):
        samples([np.ones((5, 3)), np.ones((4, 2))], PAIR, name="x")


# random_samples and serving_function.


def test_random_samples_fit_the_specs():
    arrays = random_samples([tf.TensorSpec((None, None, 3), tf.float32), tf.TensorSpec((None, 2), tf.int32)])
    assert [(array.shape[1:], str(array.dtype)) for array in arrays] == [
        ((32, 3), "float32"),
        ((2,), "int32"),
    ]


def test_random_samples_are_seeded_uniform_numbers():
    (one,), (other,) = random_samples(ONE, count=500), random_samples(ONE, count=500)
    np.testing.assert_array_equal(one, other)
    assert 0 <= one.min() < 0.01 < 0.99 < one.max() < 1
    assert one.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("pack", [list, dict])
def test_the_serving_function_computes_the_models_outputs_in_order(pack):
    model = pair_net(pack)
    a, b = RNG.random((4, 3), "float32"), RNG.random((4, 2), "float32")
    expected = keras.tree.flatten(model({"b": b, "a": a} if pack is dict else [b, a]))
    got = serving_function(model)(*([a, b] if pack is dict else [b, a]))
    expect_equal(got, expected)


def test_the_serving_function_runs_in_inference_mode():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dropout(0.9)(inputs))
    np.testing.assert_array_equal(serving_function(model)(np.ones((4, 3)))[0], np.ones((4, 3)))


def test_the_serving_function_takes_a_sequential_model():
    model, x = models.dense_net(), RNG.random((4, 6), "float32")
    np.testing.assert_array_equal(serving_function(model)(x)[0], model(x))


# Data for several inputs, by name.


@pytest.mark.parametrize("batched", [False, True], ids=["dict", "dataset"])
@pytest.mark.parametrize("pack", [list, dict])
def test_a_dict_of_arrays_goes_where_keras_puts_it(pack, batched):
    """Both inputs have one shape, so that only the names tell them apart; b - a is 1 or -1."""
    b, a = keras.Input((2,), name="b"), keras.Input((2,), name="a")
    model = keras.Model([b, a] if pack is list else {"b": b, "a": a}, layers.Subtract()([b, a]))
    data = {"a": np.full((4, 2), 3.0), "b": np.full((4, 2), 4.0)}
    expected = model.predict(data, verbose=0)
    data = tf.data.Dataset.from_tensor_slices(data).batch(2) if batched else data
    arrays = samples(data, input_specs(model, batch_size=None), model=model)
    np.testing.assert_array_equal(serving_function(model)(*arrays)[0], expected)
    np.testing.assert_array_equal(expected, 1.0)


def test_a_dict_that_names_other_inputs_is_refused():
    model = pair_net()
    with pytest.raises(tfkit.ArgumentError, match=r"must name the model's inputs.*\['c'\].*\['b', 'a'\]"):
        samples({"c": np.ones((4, 3))}, input_specs(model, batch_size=None), model=model)


@pytest.mark.parametrize(
    ("data", "received"),
    [
        ((np.ones((4, 3)), np.zeros(4)), r"of type tuple of shapes \[\(4, 3\), \(4,\)\]"),
        ((each for each in np.ones((4, 3))), "of type generator"),
        (np.ones((4, 3), complex), "no array of real numbers"),
        (np.full((4, 3), "1"), "no array of real numbers"),
    ],
    ids=["x and y", "generator", "complex", "text"],
)
def test_data_that_are_no_numbers_are_refused_with_what_to_pass(data, received):
    with pytest.raises(tfkit.ArgumentError, match=rf"Received: .*{received}.*Pass an array, samples first"):
        samples(data, ONE)
