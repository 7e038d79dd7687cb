"""Which zeros training makes: schedules by layer, thresholds over layers, tiles, m zeros in n."""

import keras
import numpy as np
import pytest
from keras import layers

import tfkit
from tests import models
from tests.arrays import expect_equal
from tests.prune.test_magnitude import RNG, RULER, always, at_step, compiled, count, fit, kept

SIZES = {"d1": 48, "d2": 32, "head": 8}
TOTAL = sum(SIZES.values())


def counts(model):
    return {layer.name: count(layer) for layer in model.layers}


def trained(model, **options):
    fit(compiled(model, **options))
    return counts(model)


# --- schedules by layer ---------------------------------------------------------------------------


def test_each_pattern_has_its_schedule_and_none_is_none():
    model = tfkit.prune_low_magnitude(
        models.dense_net(), always(0.25), layers={"d1": always(0.75), "d2": None}
    )
    assert trained(model) == {"d1": 12, "d2": 32, "head": 6}


def test_of_several_patterns_the_last_holds():
    model = tfkit.prune_low_magnitude(
        models.dense_net(), layers={"*": always(0.5), "d*": None, "d2": always(0.75)}
    )
    assert trained(model) == {"d1": 48, "d2": 8, "head": 4}


def test_a_number_is_where_the_schedule_ends_there():
    model = tfkit.prune_low_magnitude(models.dense_net(), always(0.25), layers={"d1": 0.75, "d2": 0.5})
    assert trained(model) == {"d1": 12, "d2": 16, "head": 6}


def test_a_number_bends_the_whole_curve():
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(), RULER, layers={"d1": 0.4, "head": None}))
    assert fit(model) == [kept(48, 0.05 * step) for step in (1, 2, 3)]
    assert counts(model)["d2"] == at_step(3, 32)


def test_a_number_below_the_curves_begin_is_held_from_the_begin():
    schedule = tfkit.PolynomialDecay(0.5, 0.8, begin_step=0, end_step=8, frequency=1)
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(), schedule, layers={"d1": 0.25}))
    assert fit(model) == [36, 36, 36]


def test_the_schedules_of_one_call_count_together():
    model = tfkit.prune_low_magnitude(models.dense_net(), RULER, layers={"d1": RULER, "d2": 0.4})
    trained(model)
    steps = {int(np.asarray(layer.kernel.constraint.family.pruning.step)) for layer in model.layers}
    assert steps == {3}


def test_prune_now_takes_a_sparsity_for_each_pattern():
    model = tfkit.prune_now(models.dense_net(), 0.25, layers={"d1": 0.75, "d2": None})
    assert counts(model) == {"d1": 12, "d2": 32, "head": 6}


# --- one threshold, or shares by shape ------------------------------------------------------------


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_the_global_total_is_exact_after_every_update(jit_compile):
    model = compiled(
        tfkit.prune_low_magnitude(models.dense_net(), RULER, scope="global"), jit_compile=jit_compile
    )
    seen = fit(model, layer=None)
    totals = [sum(n for path, n in each.items() if path.endswith("kernel")) for each in seen]
    assert totals == [at_step(step, TOTAL) for step in (1, 2, 3)]


def test_the_global_threshold_is_one():
    model = tfkit.prune_now(models.dense_net(), 0.6, scope="global")
    fresh = models.dense_net()
    kernels = [np.abs(np.asarray(layer.kernel)).ravel() for layer in fresh.layers]
    threshold = np.sort(np.concatenate(kernels))[::-1][kept(TOTAL, 0.6) - 1]
    assert list(counts(model).values()) == [int((kernel >= threshold).sum()) for kernel in kernels]


def test_a_layer_of_tiny_weights_keeps_one_at_least():
    model = models.dense_net()
    model.get_layer("d2").kernel.assign(1e-6 * model.get_layer("d2").kernel)
    tfkit.prune_now(model, 0.9, scope="global")
    assert counts(model)["d2"] == 1
    assert sum(counts(model).values()) == kept(TOTAL, 0.9)


def test_each_schedule_has_a_global_threshold_of_its_own():
    model = tfkit.prune_low_magnitude(
        models.dense_net(), always(0.25), layers={"d*": always(0.75)}, scope="global"
    )
    found = trained(model)
    assert found["d1"] + found["d2"] == 20
    assert found["head"] == 6


def test_what_is_frozen_by_hand_has_no_part_although_the_optimizer_knows_it():
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(), always(0.5), scope="global"))
    fit(model)
    before = np.array(model.get_layer("d1").kernel)
    model.get_layer("d1").trainable = False
    compiled(model, model.optimizer)
    fit(model)
    np.testing.assert_array_equal(model.get_layer("d1").kernel, before)
    assert count(model.get_layer("d2")) + count(model.get_layer("head")) == 20


@pytest.mark.parametrize("half", [0.8, float("0.8"), np.float64(0.8)], ids=["float", "text", "numpy"])
def test_layers_of_one_number_are_ranked_together(half):
    model = models.dense_net()
    model.get_layer("d2").kernel.assign(10 * model.get_layer("d2").kernel)
    tfkit.prune_now(model, half, layers={"d1": 0.8, "d2": float("0.8")}, scope="global")
    assert sum(counts(model).values()) == kept(TOTAL, 0.8)
    assert counts(model)["d2"] > 10


def test_layers_of_one_number_share_a_threshold_while_training():
    model = tfkit.prune_low_magnitude(
        models.dense_net(), always(0.25), layers={"d1": 0.75, "d2": 0.75}, scope="global"
    )
    found = trained(model)
    assert found["d1"] + found["d2"] == 20


def test_what_is_frozen_has_no_part_in_the_threshold():
    model = models.dense_net()
    model.get_layer("d1").trainable = False
    found = trained(tfkit.prune_low_magnitude(model, always(0.75), scope="global"))
    assert found["d1"] == 48
    assert found["d2"] + found["head"] == 10


def test_erk_spares_small_layers():
    found = trained(tfkit.prune_low_magnitude(models.dense_net(), always(0.5), scope="erk"))
    # sides 6 + 8, 8 + 4 and 4 + 2; the head is dense, the rest shares 44 - 8 by 14 to 12
    assert found == {"d1": round(36 * 14 / 26), "d2": round(36 * 12 / 26), "head": 8}


@pytest.mark.parametrize("scope", ["global", "erk"])
def test_a_kernel_that_its_rivals_spare_is_not_reported_by_strip(scope, recwarn):
    model = models.dense_net()
    model.get_layer("head").kernel.assign(np.full((4, 2), 9.0))
    trained(tfkit.prune_low_magnitude(model, always(0.5), scope=scope))
    assert count(model.get_layer("head")) == 8
    tfkit.strip_pruning(model)
    assert not [each for each in recwarn if "No zeros" in str(each.message)]


def test_a_kernel_too_small_for_its_sparsity_is_not_reported(recwarn):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, name="d1")])
    compiled(tfkit.prune_low_magnitude(model, always(0.1))).fit(np.ones((2, 4)), np.ones((2, 1)), verbose=0)
    tfkit.strip_pruning(model)
    assert not [each for each in recwarn if "No zeros" in str(each.message)]


def test_kernels_that_no_update_pruned_are_reported_under_one_threshold_too():
    late = tfkit.ConstantSparsity(0.5, begin_step=100)
    model = tfkit.prune_low_magnitude(models.dense_net(), late, scope="global")
    with pytest.warns(UserWarning, match="No zeros in d1, d2, head"):
        tfkit.strip_pruning(model)


def test_parts_of_an_optimizer_count_together_and_rank_apart():
    def part(variable):
        return first if "d1" in variable.path else second

    first, second = keras.optimizers.SGD(0.01), keras.optimizers.SGD(0.01)
    model = tfkit.prune_low_magnitude(models.dense_net(), RULER, scope="global")
    fit(compiled(model, keras.optimizers.MultiOptimizer(part)))
    assert count(model.get_layer("d1")) == at_step(3, 48)
    assert count(model.get_layer("d2")) + count(model.get_layer("head")) == at_step(3, 40)


# --- tiles and groups -----------------------------------------------------------------------------


def test_tiles_stay_or_go_as_one():
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(), always(0.5), block_size=[2, 2]))
    assert fit(model) == [24, 24, 24]
    for layer in model.layers:
        height, width = layer.kernel.shape
        tiles = (np.asarray(layer.kernel) != 0).reshape(height // 2, 2, width // 2, 2).sum((1, 3))
        assert set(tiles.ravel()) == {0, 4}


def test_tiles_of_every_convolution():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 4)), layers.Conv2D(8, 3, name="conv"), layers.Conv2DTranspose(4, 3, name="up")]
    )
    tfkit.prune_low_magnitude(model, always(0.75), block_size=(4, 2), block_pooling_type="MAX")
    compiled(model).fit(RNG.normal(size=(4, 8, 8, 4)), RNG.normal(size=(4, 8, 8, 4)), verbose=0)
    for name, order in [("conv", (0, 1, 2, 3)), ("up", (0, 1, 3, 2))]:
        kernel = np.asarray(model.get_layer(name).kernel).transpose(order)
        matrix = kernel.reshape(-1, kernel.shape[-1]) != 0
        tiles = matrix.reshape(matrix.shape[0] // 4, 4, matrix.shape[1] // 2, 2).sum((1, 3))
        assert set(tiles.ravel()) == {0, 8}
        assert np.count_nonzero(tiles) == kept(tiles.size, 0.75)


def two_in_four(kernel):
    """Whether every four consecutive inputs of a (…, inputs, outputs) kernel hold two zeros or more."""
    kernel = np.asarray(kernel)
    groups = kernel.reshape(*kernel.shape[:-2], kernel.shape[-2] // 4, 4, kernel.shape[-1])
    return np.all((groups != 0).sum(-2) <= 2)


def eights(seed=0):
    keras.utils.set_random_seed(seed)
    stack = [layers.Dense(8, "relu", name="d1"), layers.Dense(2, name="head")]
    return keras.Sequential([keras.Input((24,)), *stack])


@pytest.mark.parametrize("jit_compile", [False, True], ids=["graph", "xla"])
def test_two_in_four_from_the_first_update_on(jit_compile):
    """As in TFMOT, the schedule's frequency of 100 does not put the first mask off."""
    model = compiled(tfkit.prune_low_magnitude(eights(), sparsity_m_by_n=(2, 4)), jit_compile=jit_compile)
    assert fit(model) == [96, 96, 96]
    assert all(two_in_four(layer.kernel) for layer in model.layers)


@pytest.mark.parametrize(("begin", "expected"), [(2, [192, 96, 96]), (3, [192, 192, 96])])
def test_two_in_four_begins_where_the_schedule_does(begin, expected):
    schedule = tfkit.ConstantSparsity(0.5, begin_step=begin)
    assert fit(compiled(tfkit.prune_low_magnitude(eights(), schedule, sparsity_m_by_n=(2, 4)))) == expected


def test_two_in_four_on_a_model_that_was_trained_before():
    model = compiled(eights())
    fit(model, epochs=2)
    assert fit(tfkit.prune_low_magnitude(model, sparsity_m_by_n=(2, 4))) == [96, 96, 96]


def test_two_in_four_of_a_layer_that_is_unfrozen_later():
    schedule = tfkit.ConstantSparsity(0.5, begin_step=0, frequency=1000)
    model = compiled(tfkit.prune_low_magnitude(eights(), schedule, sparsity_m_by_n=(2, 4)))
    seen = fit(model, epochs=2, callbacks=[tfkit.GradualUnfreezing({0: "head", 1: "*"})])
    assert seen == [192, 192, 192, 96, 96, 96]


@pytest.mark.parametrize("frequency", [1, 100])
def test_the_schedule_says_whether_the_groups_are_drawn_anew(frequency):
    """With a rate this high, other weights are the largest after every update."""
    schedule = tfkit.ConstantSparsity(0.5, begin_step=1, frequency=frequency)
    model = tfkit.prune_low_magnitude(eights(), schedule, sparsity_m_by_n=(2, 4))
    compiled(model, keras.optimizers.SGD(0.5))
    masks = []
    for _ in range(2):
        fit(model)
        masks.append(np.asarray(model.get_layer("d1").kernel) != 0)
    assert np.array_equal(*masks) == (frequency == 100)


def test_prune_now_by_groups():
    model = tfkit.prune_now(eights(), sparsity_m_by_n=(3, 4))
    assert counts(model) == {"d1": 48, "head": 4}


def test_prune_now_in_tiles():
    model = tfkit.prune_now(eights(), 0.75, block_size=(1, 2))
    assert counts(model) == {"d1": 48, "head": 4}
    pairs = (np.asarray(model.get_layer("d1").kernel) != 0).reshape(24, 4, 2).sum(-1)
    assert set(pairs.ravel()) == {0, 2}


# --- what is refused ------------------------------------------------------------------------------

CALLS = [
    pytest.param(
        lambda model, **options: tfkit.prune_low_magnitude(model, always(0.5), **options), id="train"
    ),
    pytest.param(lambda model, **options: tfkit.prune_now(model, 0.5, **options), id="now"),
]


def refused(call, error, message, model=None, **options):
    model = model or models.dense_net()
    before = model.get_weights()
    with pytest.raises(error, match=message):
        call(model, **options)
    expect_equal(model.get_weights(), before)
    assert all(variable.constraint is None for variable in model.variables)


@pytest.mark.parametrize("call", CALLS, ids=["train", "now"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scope": "model"}, tfkit.ArgumentError, r"one of erk, global, layer\. Received: scope='model'"),
        ({"block_pooling_type": "SUM"}, tfkit.ArgumentError, r"must be 'AVG' or 'MAX'.*Received: .*'SUM'"),
        ({"block_size": (0, 2)}, tfkit.ArgumentError, r"at least 1 each.*Received: block_size=\(0, 2\)"),
        ({"block_size": 4}, tfkit.ArgumentTypeError, r"must be a pair of integers.*Received: block_size=4"),
        ({"block_size": (2, 2.0)}, tfkit.ArgumentTypeError, r"pair of int.*Received: block_size=\(2, 2\.0\)"),
        ({"layers": {"d1": "0.5"}}, tfkit.ArgumentTypeError, r"Received: layers\['d1'\]='0\.5'"),
        ({"layers": {"d1": 1.0}}, tfkit.ArgumentError, r"\[0, 1\).*Received: layers\['d1'\]=1\.0"),
        ({"layers": {"d9": 0.5}}, tfkit.LayerNotFoundError, r"Received: pattern='d9'.*d1"),
        ({"layers": {"*": None}}, tfkit.PruningError, r"something to prune.*layers=\{'\*': None\}"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)  # fmt: skip
def test_arguments_outside_their_range(call, options, error, message):
    refused(call, error, message, **options)


@pytest.mark.parametrize("call", CALLS, ids=["train", "now"])
def test_a_pattern_of_a_mapping_that_reaches_nothing_prunable(call):
    message = r"must reach at least one weight.*Received: 'bn1'.*reaches none.*sparsity_table"
    refused(call, tfkit.PruningError, message, models.conv_net(), layers={"bn1": 0.5})


@pytest.mark.parametrize("call", CALLS, ids=["train", "now"])
def test_tiles_that_do_not_fit_name_the_kernels_and_the_way_out(call):
    message = (
        r"must divide each kernel's matrix.*Received: block_size=\(4, 1\), which does not fit "
        r"d1/kernel \(6 x 8\)\. Leave such layers out: layers=\['\*', '!d1'\]"
    )
    refused(call, tfkit.PruningError, message, block_size=(4, 1))
    call(models.dense_net(), block_size=(4, 1), layers=["*", "!d1"])


@pytest.mark.parametrize("pair", [(4, 2), (0, 4), (4, 4), (-1, 4)], ids=str)
def test_m_that_is_not_below_n(pair):
    message = r"\(m, n\) with 0 < m < n.*Received: sparsity_m_by_n=.*\(2, 4\) for 2:4"
    refused(tfkit.prune_low_magnitude, tfkit.ArgumentError, message, sparsity_m_by_n=pair)
    refused(tfkit.prune_now, tfkit.ArgumentError, message, sparsity_m_by_n=pair)


@pytest.mark.parametrize("value", [2, (2,), "24", (2, 4, 1), (True, 4)], ids=str)
def test_a_group_that_is_no_pair(value):
    message = r"`sparsity_m_by_n` must be a pair of integers.*Received: sparsity_m_by_n="
    refused(tfkit.prune_low_magnitude, tfkit.ArgumentTypeError, message, sparsity_m_by_n=value)


@pytest.mark.parametrize("options", [{"scope": "global"}, {"block_size": (2, 2)}], ids=str)
def test_groups_beside_another_structure(options):
    message = r"alone decides which weights stay.*Received: sparsity_m_by_n=\(2, 4\).*Leave the other two out"
    refused(tfkit.prune_low_magnitude, tfkit.ArgumentError, message, sparsity_m_by_n=(2, 4), **options)


def test_groups_that_find_too_few_inputs():
    message = (
        r"at least n inputs.*Received: sparsity_m_by_n=\(2, 4\), which does not fit "
        r"conv1/kernel \(3 inputs\)\. Leave such layers out: layers=\['\*', '!conv1'\]"
    )
    refused(tfkit.prune_now, tfkit.PruningError, message, models.conv_net(), sparsity_m_by_n=(2, 4))
    tfkit.prune_now(models.conv_net(), sparsity_m_by_n=(2, 4), layers=["*", "!conv1"])


def test_groups_on_a_depthwise_kernel():
    model = keras.Sequential([keras.Input((8, 8, 8)), layers.DepthwiseConv2D(3, name="depth")])
    refused(tfkit.prune_now, tfkit.PruningError, r"depth/kernel \(1 input\)", model, sparsity_m_by_n=(2, 4))


def test_a_sparsity_beside_groups():
    message = r"is a sparsity by itself.*Received: sparsity=0\.5, sparsity_m_by_n=\(2, 4\).*Leave"
    with pytest.raises(tfkit.ArgumentError, match=message):
        tfkit.prune_now(eights(), 0.5, sparsity_m_by_n=(2, 4))


def test_a_number_beside_a_schedule_of_ones_own():
    message = r"tells its final sparsity.*Received: layers\['d1'\]=0\.5 beside.*schedule of its own"
    with pytest.raises(tfkit.ArgumentError, match=message):
        tfkit.prune_low_magnitude(models.dense_net(), lambda step: (True, 0.5), layers={"d1": 0.5})


@pytest.mark.parametrize("call", [tfkit.prune_low_magnitude, tfkit.prune_now])
def test_a_number_beside_groups(call):
    message = r"is the sparsity of every layer.*Received: layers\['d1'\]=0\.5, sparsity_m_by_n=\(2, 4\)"
    refused(call, tfkit.ArgumentError, message, eights(), layers={"d1": 0.5}, sparsity_m_by_n=(2, 4))


@pytest.mark.parametrize(
    "schedule",
    [
        lambda step: (True, 0.5) if step > 3 else (False, 0.0),
        lambda step: (True, 0.1 * float(step)),
        lambda step, total: (True, 0.5),
        lambda step: (step > 1, np.sin(step)),
    ],
    ids=["if", "float", "two arguments", "numpy"],
)
def test_a_schedule_that_cannot_be_compiled(schedule):
    message = r"operations on the step.*Received: pruning_schedule=.*which raised .*keras\.ops\.where"
    refused(tfkit.prune_low_magnitude, tfkit.ArgumentTypeError, message, pruning_schedule=schedule)


@pytest.mark.parametrize("answer", [None, "yes", 1, [True, False]], ids=str)
def test_a_schedule_that_does_not_say_whether(answer):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"truth value.*Received: should_prune=.*at step 1"):
        tfkit.prune_low_magnitude(models.dense_net(), lambda step: (answer, 0.5))


@pytest.mark.parametrize("begin", [None, "5", float("nan"), float("inf")], ids=str)
def test_a_begin_that_is_no_number_of_a_step_is_passed_by(begin):
    def schedule(step):
        return keras.ops.greater(step, 0), 0.5

    schedule.begin_step = begin
    assert trained(tfkit.prune_low_magnitude(models.dense_net(), schedule))["d1"] == 24


def test_a_schedule_from_a_table_is_taken():
    table = keras.ops.convert_to_tensor([0.0, 0.25, 0.5, 0.75])
    schedule = lambda step: (True, keras.ops.take(table, step))  # noqa: E731
    model = compiled(tfkit.prune_low_magnitude(models.dense_net(), schedule))
    assert fit(model) == [36, 24, 12]


def test_a_policy_of_tfmots():
    message = r"TFMOT's way of choosing layers.*Received: pruning_policy=.*`layers`"
    with pytest.raises(tfkit.ArgumentError, match=message):
        tfkit.prune_low_magnitude(models.dense_net(), pruning_policy=object())


@pytest.mark.parametrize(
    "schedule",
    [keras.optimizers.schedules.CosineDecay(0.1, 10), tfkit.curves.cosine(0.1, 10)],
    ids=["keras", "tfkit.curves"],
)
def test_a_schedule_of_learning_rates(schedule):
    with pytest.raises(tfkit.ArgumentTypeError, match=r"pair \(should_prune, sparsity\).*of learning rates"):
        tfkit.prune_low_magnitude(models.dense_net(), schedule)
