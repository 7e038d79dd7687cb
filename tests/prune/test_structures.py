"""Masks that go beyond one kernel's single weights, against NumPy and TFMOT."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensorflow_model_optimization.python.core.sparsity.keras import (
    pruning_impl,
    pruning_schedule,
    pruning_utils,
)

from tests.prune.test_mask import FEW_VALUES, FINITE, SPARSITIES
from tfkit.prune.mask import Layout, Structure, draw_masks, erk_keep_counts, keep_count

CONVOLUTION = Layout((0, 1), (2,), (3,))
TRANSPOSED = Layout((0, 1), (3,), (2,))
RNG = np.random.default_rng(0)


def masks_of(kernels, sparsity, layouts=None, **structure):
    masks = draw_masks(kernels, sparsity, layouts, Structure(**structure))
    return [np.asarray(mask) for mask in masks]


def kernels_of(elements, most=4):
    shapes = hnp.array_shapes(min_dims=2, max_dims=4, max_side=6)
    return st.lists(hnp.arrays(np.float32, shapes, elements=elements), min_size=1, max_size=most)


# --- one threshold for all -----------------------------------------------------------------------


def global_masks_by_sorting(kernels, sparsity):
    """The k largest of all, where each kernel counts for one at least."""
    magnitudes = [np.abs(kernel) for kernel in kernels]
    total = sum(each.size for each in magnitudes)
    keep = max(int(np.round(total * (1 - np.round(np.float64(np.float32(sparsity)), 7)))), 1)
    for threshold in sorted(np.concatenate([each.ravel() for each in magnitudes]))[::-1]:
        if sum(max((each >= threshold).sum(), 1) for each in magnitudes) >= keep:
            break
    return [each >= min(threshold, each.max()) for each in magnitudes]


@pytest.mark.parametrize("elements", [FINITE, FEW_VALUES], ids=["finite", "ties"])
def test_the_global_masks_are_those_that_sorting_gives(elements):
    @settings(deadline=None, max_examples=40)
    @given(kernels_of(elements), SPARSITIES)
    def check(kernels, sparsity):
        masks, expected = (
            masks_of(kernels, sparsity, scope="global"),
            global_masks_by_sorting(kernels, sparsity),
        )
        for mask, wanted in zip(masks, expected, strict=True):
            np.testing.assert_array_equal(mask, wanted)

    check()


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9, 0.99])
def test_the_total_is_exact(sparsity):
    kernels = [scale * RNG.normal(size=shape).astype("float32")
               for shape, scale in [((7, 9), 1), ((3, 3, 4, 8), 0.1), ((50, 20), 3)]]  # fmt: skip
    total = sum(kernel.size for kernel in kernels)
    kept = sum(mask.sum() for mask in masks_of(kernels, sparsity, scope="global"))
    assert kept == round(total * (1 - sparsity))


def test_each_kernel_keeps_its_largest_weight_and_the_total_stays():
    kernels = [1e-3 * RNG.normal(size=(5, 5)), RNG.normal(size=(20, 20)), 1e-6 * RNG.normal(size=(4, 4))]
    masks = masks_of([kernel.astype("float32") for kernel in kernels], 0.9, scope="global")
    assert [mask.sum() for mask in masks][::2] == [1, 1]
    assert sum(mask.sum() for mask in masks) == round(441 * 0.1)
    for mask, kernel in zip(masks, kernels, strict=True):
        assert mask.flat[np.abs(kernel).argmax()]


def test_the_total_of_a_large_model_is_the_one_of_the_decimals():
    """float32 has 0.9 as 0.89999998, which would keep 2,500,001."""
    assert int(keep_count(25_000_000, tf.constant(0.9), "float64")) == 2_500_000


@pytest.mark.parametrize("scope", ["layer", "global", "erk"])
@pytest.mark.parametrize(("sparsity", "kept"), [(np.nan, 24), (-0.5, 24), (1.5, 1), (np.inf, 1)])
def test_a_sparsity_that_is_none_destroys_nothing(sparsity, kept, scope):
    kernel = RNG.normal(size=(4, 6)).astype("float32")
    (mask,) = masks_of([kernel], tf.constant(sparsity, "float32"), scope=scope)
    assert mask.sum() == kept


def test_one_kernel_alone_is_pruned_globally_as_by_itself():
    kernel = RNG.normal(size=(11, 13)).astype("float32")
    for sparsity in (0.1, 0.5, 0.93):
        np.testing.assert_array_equal(
            masks_of([kernel], sparsity, scope="global")[0], masks_of([kernel], sparsity)[0]
        )


# --- Erdős–Rényi-kernel --------------------------------------------------------------------------


def erk_densities_by_bisection(sizes, units, sparsity):
    """The factor c for which the shares min(c u / n, 1) leave the whole as dense as asked."""
    n, u = np.array(sizes, float), np.array(units, float)
    low, high = 0.0, (n / u).max()
    for _ in range(200):
        middle = (low + high) / 2
        if (np.minimum(middle * u / n, 1) * n).sum() < (1 - sparsity) * n.sum():
            low = middle
        else:
            high = middle
    return np.minimum(high * u / n, 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6), SPARSITIES)
def test_erk_keeps_what_a_search_for_its_factor_keeps(shapes, sparsity):
    sizes, units = [rows * columns for rows, columns in shapes], [sum(shape) for shape in shapes]
    counts = np.asarray(erk_keep_counts(sizes, units, sparsity))
    expected = erk_densities_by_bisection(sizes, units, float(np.float32(sparsity))) * sizes
    assert np.all(np.abs(counts - np.maximum(expected, 1)) <= 0.51)


def test_erk_by_hand():
    """Shares 20/100 and 40/400: c = 0.2 * 500 / 60 = 5/3 keeps 33 and 67 of them."""
    assert np.asarray(erk_keep_counts([100, 400], [20, 40], 0.8)).tolist() == [33, 67]


def test_erk_leaves_a_small_kernel_dense_and_takes_from_the_large_one():
    """c would keep 157 of the 25 weights: it keeps all 25, and the other kernel 2,513 - 25."""
    counts = np.asarray(erk_keep_counts([25, 5001], [10, 150], 0.5))
    assert counts.tolist() == [25, 2488]


def test_erk_masks_are_the_largest_of_each_kernel():
    kernels = [RNG.normal(size=shape).astype("float32") for shape in [(10, 10), (3, 3, 4, 8)]]
    masks = masks_of(kernels, 0.8, [Layout.of_matrix(2), CONVOLUTION], scope="erk")
    # 100 and 288 weights, sides of 10 + 10 and 3 + 3 + 4 + 8: c = 77.6 / 38
    assert [int(mask.sum()) for mask in masks] == [round(77.6 / 38 * 20), round(77.6 / 38 * 18)]
    for mask, kernel in zip(masks, kernels, strict=True):
        assert np.abs(kernel)[mask].min() > np.abs(kernel)[~mask].max()


# --- tiles ---------------------------------------------------------------------------------------


def tile_mask_by_numpy(matrix, block, pooling, sparsity):
    (height, width), (rows, columns) = matrix.shape, block
    tiles = np.abs(matrix).reshape(height // rows, rows, width // columns, columns)
    scores = tiles.max((1, 3)) if pooling == "MAX" else tiles.astype("float64").mean((1, 3))
    keep = max(int(np.round(np.float32(scores.size) * (np.float32(1) - np.float32(sparsity)))), 1)
    mask = scores >= np.sort(scores, axis=None)[::-1][keep - 1]
    return np.repeat(np.repeat(mask, rows, 0), columns, 1)


@pytest.mark.parametrize("pooling", ["AVG", "MAX"])
@pytest.mark.parametrize("block", [(1, 4), (4, 1), (2, 3), (4, 6)], ids=str)
def test_tiles_of_a_matrix(block, pooling):
    kernel = RNG.normal(size=(8, 12)).astype("float32")
    for sparsity in (0.2, 0.5, 0.75):
        (mask,) = masks_of([kernel], sparsity, block_size=block, block_pooling_type=pooling)
        np.testing.assert_array_equal(mask, tile_mask_by_numpy(kernel, block, pooling, sparsity))


@pytest.mark.parametrize("pooling", ["AVG", "MAX"])
@pytest.mark.parametrize("block", [(1, 4), (2, 2), (4, 2)], ids=str)
def test_tiles_are_tfmots(block, pooling):
    kernel = RNG.normal(size=(8, 12)).astype("float32")
    theirs = pruning_impl.Pruning(
        lambda: 0, [], pruning_schedule.ConstantSparsity(0.6, 0), list(block), pooling
    )._maybe_update_block_mask(tf.constant(kernel))[1]
    (mask,) = masks_of([kernel], 0.6, block_size=block, block_pooling_type=pooling)
    np.testing.assert_array_equal(mask, np.asarray(theirs).astype(bool))


@pytest.mark.parametrize(
    ("layout", "order"), [(CONVOLUTION, (0, 1, 2, 3)), (TRANSPOSED, (0, 1, 3, 2))], ids=["conv", "transposed"]
)
def test_tiles_of_a_convolution_lie_in_its_matrix(layout, order):
    kernel = RNG.normal(size=(3, 2, 4, 6)).astype("float32")
    matrix = kernel.transpose(order).reshape(3 * 2 * kernel.shape[order[2]], -1)
    expected = tile_mask_by_numpy(matrix, (2, 2), "AVG", 0.5)
    (mask,) = masks_of([kernel], 0.5, [layout], block_size=(2, 2))
    np.testing.assert_array_equal(mask.transpose(order).reshape(matrix.shape), expected)


def test_tiles_compete_over_all_kernels_under_a_global_threshold():
    kernels = [RNG.normal(size=(4, 6)).astype("float32"), 0.1 * RNG.normal(size=(8, 4)).astype("float32")]
    masks = masks_of(kernels, 0.5, scope="global", block_size=(2, 2))
    assert sum(int(mask.sum()) for mask in masks) == 4 * 7  # 14 tiles of 4 weights
    assert masks[0].sum() == 24


@settings(deadline=None, max_examples=30)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=5, max_side=4), elements=FINITE), st.data()
)
def test_a_matrix_turns_back_into_its_kernel(kernel, data):
    axes = data.draw(st.permutations(range(kernel.ndim)))
    cuts = sorted(data.draw(st.tuples(st.integers(0, kernel.ndim), st.integers(0, kernel.ndim))))
    layout = Layout(tuple(axes[: cuts[0]]), tuple(axes[cuts[0] : cuts[1]]), tuple(axes[cuts[1] :]))
    matrix = layout.to_matrix(kernel)
    assert tuple(matrix.shape) == layout.matrix_shape(kernel.shape)
    np.testing.assert_array_equal(layout.from_matrix(matrix, kernel.shape), kernel)


# --- m zeros in n --------------------------------------------------------------------------------


def m_by_n_by_numpy(line, zeros, group):
    """For one output: in each group of n the m smallest go, the last ones first among equals."""
    mask = np.ones(line.size, bool)
    for start in range(0, line.size, group):
        part = np.abs(line[start : start + group])
        order = sorted(range(part.size), key=lambda i: (-part[i], i))
        mask[[start + i for i in order[group - zeros :]]] = False
    return mask


@pytest.mark.parametrize("pair", [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)], ids=str)
def test_each_group_loses_its_smallest(pair):
    @settings(deadline=None, max_examples=15)
    @given(
        hnp.arrays(
            np.float32, st.tuples(st.integers(pair[1], 20), st.integers(1, 5)), elements=FINITE | FEW_VALUES
        )
    )
    def check(kernel):
        (mask,) = masks_of([kernel], None, m_by_n=pair)
        for column in range(kernel.shape[1]):
            np.testing.assert_array_equal(mask[:, column], m_by_n_by_numpy(kernel[:, column], *pair))

    check()


@pytest.mark.parametrize("shape", [(8, 6), (3, 3, 8, 5), (10, 3), (2, 2, 6, 3)], ids=str)
def test_two_of_four_are_tfmots(shape):
    kernel = RNG.normal(size=shape).astype("float32")
    layout = CONVOLUTION if len(shape) == 4 else Layout.of_matrix(2)
    rows = pruning_utils.weights_rearrange(tf.constant(kernel))
    theirs = pruning_utils.m_by_n_sparsity_mask_prepare(
        pruning_utils.generate_m_by_n_mask(rows, (2, 4)), tf.constant(kernel).shape
    )
    (mask,) = masks_of([kernel], None, [layout], m_by_n=(2, 4))
    np.testing.assert_array_equal(mask, np.asarray(theirs).astype(bool))


def test_the_groups_of_a_convolution_run_along_its_inputs():
    kernel = RNG.normal(size=(3, 3, 8, 2)).astype("float32")
    (mask,) = masks_of([kernel], None, [CONVOLUTION], m_by_n=(2, 4))
    for row, column, output in itertools.product(range(3), range(3), range(2)):
        np.testing.assert_array_equal(mask[row, column, :, output].reshape(2, 4).sum(1), [2, 2])


def test_a_zero_kernel_loses_two_of_four_all_the_same():
    (mask,) = masks_of([np.zeros((8, 3), "float32")], None, m_by_n=(2, 4))
    assert mask.reshape(2, 4, 3).sum(1).tolist() == [[2] * 3] * 2


# --- large kernels, compiled code ----------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "already sparse"])
def test_a_kernel_of_a_million_weights(sparse):
    kernel = RNG.normal(size=(1000, 1000)).astype("float32")
    if sparse:  # as it is while it trains: most weights are a step away from zero
        kernel = np.where(np.abs(kernel) > 1.28, kernel, 1e-4 * kernel).astype("float32")
    for sparsity in (0.5, 0.8, 0.999):
        threshold = np.partition(np.abs(kernel), kernel.size - round(kernel.size * (1 - sparsity)), axis=None)
        expected = np.abs(kernel) >= threshold[kernel.size - round(kernel.size * (1 - sparsity))]
        np.testing.assert_array_equal(masks_of([kernel], sparsity)[0], expected)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize(
    "structure",
    [{"scope": "global"}, {"scope": "erk"}, {"block_size": (2, 2)}, {"m_by_n": (2, 4)}],
    ids=lambda each: "-".join(each),
)
def test_compiled_code_draws_the_same_masks(structure, jit_compile):
    kernels = [RNG.normal(size=shape).astype("float32") for shape in [(8, 6), (12, 10)]]
    draw = tf.function(
        lambda kernels, sparsity: draw_masks(kernels, sparsity, None, Structure(**structure)),
        jit_compile=jit_compile,
    )
    for mask, expected in zip(
        draw([tf.constant(each) for each in kernels], tf.constant(0.7)),
        masks_of(kernels, 0.7, **structure),
        strict=True,
    ):
        np.testing.assert_array_equal(mask, expected)


def test_keras_arrays_are_taken_as_they_are():
    kernel = keras.ops.convert_to_tensor(RNG.normal(size=(4, 4)), dtype="float16")
    (mask,) = draw_masks([kernel], 0.5)
    assert int(np.count_nonzero(mask)) == 8
