"""`features`: data as batches, and what is kept of them."""

import contextlib

import numpy as np
import pytest
import tensorflow as tf

from tests.transfer.caching import RANDOM, X, Y
from tfkit.frozen.features import Features, Source, Storage, cut
from tfkit.frozen.split import NotSplittable

WEIGHTS = np.linspace(0, 1, 10)
BUDGETS = pytest.mark.parametrize("budget", [1e9, 0], ids=["memory", "disk"])


@pytest.fixture
def lifetime():
    with contextlib.ExitStack() as stack:
        yield stack


def source(x=X, y=Y, weight=None, size=4, shuffle=False):
    return Source(x, y, weight, size, shuffle)


def stored(given, lifetime, budget=1e9, compute=lambda x: [np.asarray(x)], directory=None):
    return Features(given, compute, Storage(budget, directory, lifetime), lambda: None)


# --- sources -------------------------------------------------------------------------------------


def test_arrays_are_kept_in_batches_with_a_smaller_last_one(lifetime):
    assert stored(source(), lifetime).sizes == [4, 4, 2]


def test_arrays_come_whole():
    np.testing.assert_array_equal(np.concatenate([x for x, _, _ in source()]), X)


def test_a_source_can_be_gone_through_again():
    data = source()
    first, second = ([x for x, _, _ in data] for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_not_there_stays_none():
    assert {(y, weight) for _, y, weight in source(y=None)} == {(None, None)}


@pytest.mark.parametrize("shuffle", [True, False, "batch"])
def test_arrays_are_shuffled_as_asked(shuffle):
    assert source(shuffle=shuffle).shuffle == shuffle


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y))


def test_a_data_set_that_keeps_its_order_is_not_shuffled():
    assert source(dataset().batch(4), None, shuffle=True).shuffle is False


def test_a_data_set_that_shuffles_is_recognized():
    assert source(dataset().shuffle(10, seed=0).batch(4), None, shuffle=False).shuffle is True


def test_a_data_set_that_shuffled_once_keeps_its_order():
    data = dataset().shuffle(10, seed=0, reshuffle_each_iteration=False).batch(4)
    assert source(data, None).shuffle is False


def test_a_data_set_that_shuffles_whole_batches_is_recognized():
    assert source(dataset().batch(2).shuffle(5, seed=0), None).shuffle is True


def test_samples_that_are_alike_may_change_places():
    data = tf.data.Dataset.from_tensor_slices((np.ones((10, 6)), np.arange(10))).shuffle(10, seed=0)
    assert source(data.batch(4), None).shuffle is True


def test_texts_of_a_data_set_are_compared_by_their_letters():
    texts = np.array([[f"title {number}", f"a text of some length, {number}"] for number in range(10)])
    data = tf.data.Dataset.from_tensor_slices((texts, Y))
    assert source(data.batch(4), None).shuffle is False


def test_other_targets_at_every_pass_are_refused():
    def generate():
        yield X, RANDOM.normal(size=Y.shape)

    kinds = (tf.TensorSpec((None, 6)), tf.TensorSpec((None, 2)))
    with pytest.raises(NotSplittable, match="gives other samples at every pass, as augmentation does"):
        source(tf.data.Dataset.from_generator(generate, output_signature=kinds), None)


def test_a_part_of_a_structure_keeps_its_form():
    part = cut(({"a": X}, None, [Y]), slice(3, 5))
    assert part[1] is None
    np.testing.assert_array_equal(part[0]["a"], X[3:5])
    np.testing.assert_array_equal(part[2][0], Y[3:5])


# --- what is kept -----------------------------------------------------------------------------------


@BUDGETS
def test_features_targets_and_weights_are_kept_in_order(budget, lifetime):
    kept = stored(source(weight=WEIGHTS), lifetime, budget)
    for leaf, wanted in zip(kept.leaves, (X, Y, WEIGHTS.astype("float32")), strict=True):
        np.testing.assert_array_equal(leaf, wanted)


@BUDGETS
@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float16", "float64", "bfloat16"])
def test_dtypes_are_kept(dtype, budget, lifetime):
    values = np.asarray(tf.cast(RANDOM.integers(0, 2, size=(10, 3)), dtype))
    kept = stored(source(values), lifetime, budget, lambda x: [np.asarray(tf.cast(x, dtype))])
    assert kept.leaves[0].dtype == values.dtype
    np.testing.assert_array_equal(kept.leaves[0], values)


@pytest.mark.parametrize("place", range(3))
def test_arrays_come_in_the_precision_in_which_keras_takes_them(place, lifetime):
    arrays = [X, Y, WEIGHTS.astype("float32")]
    arrays[place] = arrays[place].astype("float64") + 1e-9
    kept = stored(source(*arrays), lifetime)
    assert [leaf.dtype for leaf in kept.leaves] == ["float32"] * 3


@pytest.mark.parametrize(("budget", "on_disk"), [(9 * 32, True), (10 * 32, False)])
def test_what_fills_the_budget_to_the_byte_stays_in_memory(budget, on_disk, lifetime):
    assert stored(source(), lifetime, budget).on_disk is on_disk  # 10 samples of 6 + 2 numbers


def test_files_hold_exactly_the_samples(lifetime, tmp_path):
    stored(source(), lifetime, 0, directory=tmp_path)
    assert sorted(path.stat().st_size for path in tmp_path.rglob("*.bin")) == [10 * 2 * 4, 10 * 6 * 4]


def test_files_go_with_their_lifetime(tmp_path):
    with contextlib.ExitStack() as stack:
        stored(source(), stack, 0, directory=tmp_path)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_a_single_row_per_sample_may_be_a_number(lifetime):
    kept = stored(source(), lifetime, 0, compute=lambda x: [x[:, 0]])
    np.testing.assert_array_equal(kept.leaves[0], X[:, 0])


def test_samples_of_different_shapes_are_refused(lifetime):
    given = iter([[np.zeros((4, 3))], [np.zeros((4, 5))]])
    data = dataset().take(8).batch(4)
    with pytest.raises(NotSplittable, match="the samples have different shapes"):
        stored(source(data, None), lifetime, compute=lambda x: next(given))


@BUDGETS
def test_batches_from_disk_are_those_of_the_source(budget, lifetime):
    data = dataset().take(5).batch(5).concatenate(dataset().skip(5).batch(3))
    given = stored(source(data, None), lifetime, budget).training_data()["x"]
    assert given.num_batches == 3
    for number, (x, y) in enumerate(data):
        features, targets = given[number]
        np.testing.assert_array_equal(features[0], x)
        np.testing.assert_array_equal(targets, y)


def test_shuffled_batches_from_disk_keep_targets_with_their_samples(lifetime):
    given = stored(source(X, X[:, :1], shuffle=True), lifetime, 0).training_data()["x"]
    batches = [given[number] for number in range(given.num_batches)]
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    for features, targets in batches:
        np.testing.assert_array_equal(features[0][:, :1], targets)
    assert sorted(np.concatenate([targets for _, targets in batches])[:, 0]) == sorted(X[:, 0])
