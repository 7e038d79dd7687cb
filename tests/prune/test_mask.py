"""Masks against sorting, against TFMOT, and against the closed form of the count."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl, pruning_schedule

from tfkit.prune.mask import draw_masks, find_threshold, keep_count

SPARSITIES = st.floats(0, 1, exclude_max=True, width=32)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=9)
FINITE = st.floats(-(2.0**120), 2.0**120, width=32)
FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5])  # ties everywhere
DENORMAL = st.floats(-(2.0**-127), 2.0**-127, width=32)


def magnitude_mask(weights, sparsity):
    return draw_masks([weights], sparsity)[0]


def weights_of(elements):
    return hnp.arrays(np.float32, SHAPES, elements=elements)


def count_by_formula(size, sparsity):
    """TFMOT's ``max(round(n (1 - s)), 1)``, every operation in float32."""
    return max(int(np.round(np.float32(size) * (np.float32(1) - np.float32(sparsity)))), 1)


def mask_by_sorting(weights, sparsity):
    magnitudes = np.abs(weights)
    threshold = np.sort(magnitudes, axis=None)[::-1][count_by_formula(weights.size, sparsity) - 1]
    return magnitudes >= threshold


def mask_by_tfmot(weights, sparsity):
    pruning = pruning_impl.Pruning(
        training_step_fn=lambda: 0,
        pruning_vars=[],
        pruning_schedule=pruning_schedule.ConstantSparsity(sparsity, 0),
        block_size=[1, 1],
        block_pooling_type="AVG",
    )
    return np.asarray(pruning._update_mask(tf.constant(weights))[1]).astype(bool)


@pytest.mark.parametrize("elements", [FINITE, FEW_VALUES, DENORMAL], ids=["finite", "ties", "denormal"])
def test_the_mask_is_the_one_that_sorting_gives(elements):
    @settings(deadline=None, max_examples=40)
    @given(weights_of(elements), SPARSITIES)
    def check(weights, sparsity):
        np.testing.assert_array_equal(magnitude_mask(weights, sparsity), mask_by_sorting(weights, sparsity))

    check()


@settings(deadline=None, max_examples=40)
@given(weights_of(st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False) | FEW_VALUES), SPARSITIES)
def test_the_mask_is_the_one_that_tfmot_draws(weights, sparsity):
    np.testing.assert_array_equal(magnitude_mask(weights, sparsity), mask_by_tfmot(weights, sparsity))


@settings(deadline=None, max_examples=20)
@given(weights_of(FINITE), SPARSITIES)
def test_the_mask_does_not_depend_on_signs(weights, sparsity):
    np.testing.assert_array_equal(magnitude_mask(weights, sparsity), magnitude_mask(-weights, sparsity))


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.float32, SHAPES, elements=FINITE.map(abs), unique=True), SPARSITIES)
def test_without_ties_exactly_keep_count_weights_stay(weights, sparsity):
    assert int(np.count_nonzero(magnitude_mask(weights, sparsity))) == count_by_formula(
        weights.size, sparsity
    )


@settings(deadline=None, max_examples=20)
@given(weights_of(FEW_VALUES), SPARSITIES, SPARSITIES)
def test_a_higher_sparsity_never_brings_a_weight_back(weights, one, other):
    denser, sparser = sorted([one, other])
    assert np.all(np.asarray(magnitude_mask(weights, sparser)) <= np.asarray(magnitude_mask(weights, denser)))


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 2**24), SPARSITIES)
def test_keep_count_is_tfmots_formula_in_float32(size, sparsity):
    assert int(keep_count(size, sparsity)) == count_by_formula(size, sparsity)


@pytest.mark.parametrize(
    ("size", "sparsity", "kept"),
    [
        (4, 0.5, 2),
        (10, 0.0, 10),
        (10, 0.999, 1),  # at least one stays
        (1, 0.9, 1),
        (5, 0.5, 2),  # 2.5: halves go to even
        (7, 0.5, 4),  # 3.5
        (1000, 0.8, 200),
    ],
)
def test_keep_count_at_the_borders(size, sparsity, kept):
    assert int(keep_count(size, sparsity)) == kept


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=FINITE.map(abs)), st.data())
def test_the_threshold_has_the_bits_of_the_sorted_number(magnitudes, data):
    k = data.draw(st.integers(1, magnitudes.size))
    expected = np.sort(magnitudes)[::-1][k - 1 : k].view(np.int32)[0]
    assert int(find_threshold([tf.constant(magnitudes.view(np.int32))], k)) == expected


def test_a_kernel_of_zeros_stays_free():
    assert np.all(magnitude_mask(np.zeros((3, 4), "float32"), 0.75))


def test_ties_at_the_threshold_all_stay():
    mask = magnitude_mask(np.float32([3, 1, -1, 1, 0, 0]), 0.5)
    np.testing.assert_array_equal(mask, [True, True, True, True, False, False])


def test_the_smallest_denormal_outlives_zero():
    tiny = np.float32([0.0, np.nextafter(np.float32(0), np.float32(1)), 0.0, 0.0])
    np.testing.assert_array_equal(magnitude_mask(tiny, 0.75), [False, True, False, False])


def test_infinity_is_the_largest():
    mask = magnitude_mask(np.float32([np.inf, np.finfo(np.float32).max, -1.0, 0.0]), 0.75)
    np.testing.assert_array_equal(mask, [True, False, False, False])


def test_a_scalar_weight_stays():
    assert bool(magnitude_mask(np.float32(0.25), 0.9))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_mask_of_every_float_type_follows_its_values(dtype):
    weights = keras.ops.cast(np.random.default_rng(0).permutation(24).reshape(4, 6) - 12.25, dtype)
    mask = np.asarray(magnitude_mask(weights, 0.75))
    values = np.asarray(keras.ops.cast(weights, "float64"))
    np.testing.assert_array_equal(mask, mask_by_sorting(values, 0.75))


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_compiled_code_draws_the_same_mask(jit_compile):
    weights = np.random.default_rng(1).normal(size=(5, 7)).astype("float32")
    compiled = tf.function(magnitude_mask, jit_compile=jit_compile)
    for sparsity in (0.0, 0.3, 0.9):
        mask = compiled(tf.constant(weights), tf.constant(sparsity))
        np.testing.assert_array_equal(mask, mask_by_sorting(weights, sparsity))
