"""Plans of channels: what they reach, where they take it from, and what they refuse."""

import itertools
import json

import keras
import numpy as np
import pandas as pd
import pytest
from keras import layers
from PIL import Image

import tfkit
from tests import models
from tests.arrays import expect_equal

X = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype("float32")


def net(a=16, b=24, d=32, size=8):
    """Two convolutions and two Dense layers; three groups: a, b, d."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            layers.Conv2D(a, 3, padding="same", name="a"),
            layers.BatchNormalization(name="bn"),
            layers.ReLU(name="relu"),
            layers.Conv2D(b, 3, padding="same", activation="relu", name="b"),
            layers.GlobalAveragePooling2D(name="pool"),
            layers.Dense(d, activation="relu", name="d"),
            layers.Dense(5, name="head"),
        ],
        name="net",
    )


def flops(a, b, d, size=8):
    """Twice the multiply-adds of `net`, by hand."""
    return 2 * (size * size * 9 * (3 * a + a * b) + b * d + d * 5)


def parameters(a, b, d):
    return 9 * 3 * a + a + 4 * a + 9 * a * b + b + b * d + d + d * 5 + 5


def residual():
    """`a` and `b` make one group of 8, `c` another of 6."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    x = layers.Add()([x, layers.Conv2D(8, 3, padding="same", name="b")(x)])
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, name="c")(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name="residual")


def plan_of(model=None, **options):
    return tfkit.plan_channel_pruning(model or net(), **({"multiple_of": 1} | options))


def widths(plan):
    """Channels that stay, by group, of those that can be removed."""
    return {group.name: group.channels_after for group in plan.groups if group.kept is not None}


# --- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "cost", "wanted"),
    [
        ({"flops": 0.5}, flops, 0.5 * flops(32, 48, 64)),
        ({"flops": 900_000}, flops, 900_000),
        ({"parameters": 0.3}, parameters, 0.3 * parameters(32, 48, 64)),
        ({"parameters": 10_000}, parameters, 10_000),
        ({"ratio": 0.25}, lambda *each: sum(each), 108),
    ],
)
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_target_is_reached_within_two_percent(target, cost, wanted, scope):
    plan = plan_of(net(32, 48, 64), **target, scope=scope)
    assert 0.98 * wanted <= cost(*widths(plan).values()) <= 1.02 * wanted


@pytest.mark.parametrize("target", [{"flops": 0.4}, {"parameters": 0.4}, {"ratio": 0.4}], ids=str)
def test_before_and_after_are_what_can_be_counted(target):
    model = net()
    plan = plan_of(model, **target)
    assert plan.before == {"flops": flops(16, 24, 32), "parameters": model.count_params()}
    after = widths(plan).values()
    assert plan.after == {"flops": flops(*after), "parameters": parameters(*after)}
    assert plan.apply(model).count_params() == parameters(*after)


def test_the_model_is_not_changed():
    model = net()
    before = model.get_weights()
    plan_of(model, flops=0.5).apply(model)
    expect_equal(model.get_weights(), before)
    assert [model.get_layer("a").filters, model.get_layer("d").units] == [16, 32]


def test_prune_channels_is_the_plan_carried_out():
    model = net()
    smaller = tfkit.prune_channels(model, flops=0.5, multiple_of=1)
    expected = plan_of(model, flops=0.5).apply(model)
    expect_equal(smaller.get_weights(), expected.get_weights())


def test_the_channels_that_stay_are_those_of_the_largest_norm():
    model = net()
    plan = plan_of(model, ratio=0.5, scope="uniform", layers="a")
    norms = np.linalg.norm(np.asarray(model.get_layer("a").kernel).reshape(-1, 16), axis=0)
    assert plan.groups[0].kept == tuple(np.sort(np.argsort(norms)[8:]))


# --- the bounds of a group -------------------------------------------------------------------------


@pytest.mark.parametrize("multiple", [4, 8])
def test_channels_that_stay_are_a_multiple(multiple):
    after = widths(plan_of(flops=0.4, multiple_of=multiple)).values()
    assert [count % multiple for count in after] == [0, 0, 0]


@pytest.mark.parametrize("most", [0.25, 0.5, 0.75])
def test_no_group_loses_more_than_max_ratio(most):
    plan = plan_of(parameters=0.9 if most == 0.25 else 0.6, max_ratio=most)
    assert all(1 - g.channels_after / g.channels_before <= most for g in plan.groups)


def test_only_the_named_layers_lose_channels():
    plan = plan_of(flops=0.7, layers=["b", "d"])
    assert widths(plan)["a"] == 16
    assert plan.table.set_index("group").reason["a"] == "a is not among `layers`"
    assert widths(plan)["b"] < 24


def test_a_group_is_left_whole_when_one_of_its_makers_is_not_named():
    plan = plan_of(residual(), parameters=0.8, layers=["a", "c"])
    row = plan.table.set_index("group").loc["a"]
    assert [row.layers, row.channels_after, row.reason] == ["a, b, c", 8, "b is not among `layers`"]


# --- scopes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.125, 0.25, 0.5, 0.75])
def test_uniform_takes_the_same_fraction_of_each(ratio):
    assert list(widths(plan_of(ratio=ratio, scope="uniform")).values()) == [
        (1 - ratio) * each for each in (16, 24, 32)
    ]


def test_global_takes_more_where_channels_are_worth_less():
    """Half of b's channels are nearly nothing, so they go before any other."""
    model = net()
    kernel = np.array(model.get_layer("b").kernel)
    kernel[..., ::2] *= 1e-3
    model.get_layer("b").kernel.assign(kernel)
    plan = plan_of(model, ratio=12 / 72)
    assert widths(plan) == {"a": 16, "b": 12, "d": 32}
    assert plan.groups[1].kept == tuple(range(1, 24, 2))


@pytest.mark.parametrize("spared", ["a", "b", "d"])
def test_sensitivity_spares_the_group_that_hurts(spared):
    rows = [(n, s, -s if n == spared else -0.01 * s) for n in "abd" for s in (0.25, 0.5, 0.9)]
    table = pd.DataFrame(rows, columns=["path", "sparsity", "change"])
    plan = plan_of(ratio=0.3, scope="sensitivity", sensitivity=table)
    assert widths(plan)[spared] == {"a": 16, "b": 24, "d": 32}[spared]


def test_a_measured_table_is_followed():
    model = net()
    wanted = np.asarray(model(X))

    def close(model):
        return -float(np.abs(np.asarray(model(X)) - wanted).mean())

    table = tfkit.layer_sensitivity(model, close, sparsities=[0.25, 0.5, 0.75], kind="channels")
    plan = plan_of(model, flops=0.6, scope="sensitivity", sensitivity=table)
    assert 0.98 * 0.6 <= plan.after["flops"] / plan.before["flops"] <= 1.02 * 0.6
    swapped = table.assign(path=table.path.replace({"a": "b", "b": "a"}))
    assert widths(plan) != widths(plan_of(model, flops=0.6, scope="sensitivity", sensitivity=swapped))


def test_chance_is_the_same_for_a_seed():
    one, same, other = (plan_of(ratio=0.5, criterion="random", seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.groups != other.groups


# --- what a plan tells -----------------------------------------------------------------------------


def test_the_table_has_a_row_a_group_and_a_reason_for_what_stays():
    table = plan_of(ratio=0.5, scope="uniform").table
    assert list(table.columns) == ["group", "layers", "channels_before", "channels_after", "score", "reason"]
    assert table[["group", "layers", "channels_before", "channels_after", "reason"]].values.tolist() == [
        ["a", "a, bn, b", 16, 8, ""],
        ["b", "b, d", 24, 12, ""],
        ["d", "d, head", 32, 16, ""],
        ["head", "head", 5, 5, "goes out of the network"],
    ]


def test_the_score_is_the_share_of_the_norm_that_stays():
    model = net()
    plan = plan_of(model, ratio=0.5, scope="uniform")
    norms = np.linalg.norm(np.asarray(model.get_layer("d").kernel), axis=0)
    assert plan.table.score[2] == pytest.approx(np.sort(norms)[16:].sum() / norms.sum(), rel=1e-5)


def test_a_plan_in_a_line():
    text = str(plan_of(ratio=0.5, scope="uniform"))
    a, b = flops(16, 24, 32), flops(8, 12, 16)
    assert text.startswith(f"net for ratio=0.5 by l2, uniform: flops {a / 1e3:.0f}k to {b / 1e3:.0f}k (")


def test_the_picture_is_written(tmp_path):
    assert Image.open(plan_of(ratio=0.5).plot(tmp_path / "plan.png")).size[0] > 300


# --- sizes that are open ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16])
def test_a_model_with_open_sizes_is_counted_at_the_given_one(size):
    plan = plan_of(net(size=None), flops=0.5, input_shape=(size, size, 3))
    assert plan.before["flops"] == flops(16, 24, 32, size)
    assert plan.after["flops"] == flops(*widths(plan).values(), size)


def test_open_sizes_do_not_matter_where_work_is_not_the_target():
    assert plan_of(net(size=None), parameters=0.5).after["parameters"] == pytest.approx(
        0.5 * parameters(16, 24, 32), rel=0.02
    )


def test_open_sizes_are_refused_where_it_is():
    message = r"must be known.*Received: model='net' with inputs \[\(None, None, None, 3\)\].*input_shape="
    with pytest.raises(tfkit.ArgumentError, match=message):
        plan_of(net(size=None), flops=0.5)


# --- a file ----------------------------------------------------------------------------------------


def test_a_plan_comes_back_from_a_file_as_it_was(tmp_path):
    plan = plan_of(ratio=0.4)
    assert tfkit.ChannelPlan.load(plan.save(tmp_path / "plan.json")) == plan
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_a_plan_fits_another_copy_under_other_names(tmp_path):
    """Auto-names count on; the plan goes by classes, sizes and wiring."""

    def build(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((6,))
        x = layers.Dense(8, activation="relu")(inputs)
        return keras.Model(inputs, layers.Dense(2)(x))

    one, other = build(0), build(1)
    assert one.layers[1].name != other.layers[1].name
    plan = tfkit.ChannelPlan.load(plan_of(one, ratio=0.5).save(tmp_path / "plan.json"))
    smaller, kept = plan.apply(other), list(plan.groups[0].kept)
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in other.layers]
    np.testing.assert_array_equal(smaller.layers[1].kernel, np.asarray(other.layers[1].kernel)[:, kept])
    np.testing.assert_array_equal(smaller.layers[2].kernel, np.asarray(other.layers[2].kernel)[kept])


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_a_torn_file_is_refused(cut, tmp_path):
    path = plan_of(ratio=0.4).save(tmp_path / "plan.json")
    path.write_text(path.read_text()[:cut])
    with pytest.raises(tfkit.ArgumentError, match=r"ChannelPlan\.save wrote\. Received: path='.*JSONDecodeE"):
        tfkit.ChannelPlan.load(path)


@pytest.mark.parametrize(
    ("text", "why"),
    [("{}", "KeyError"), ("[1]", "TypeError"), ('{"tfkit_channel_plan": 99}', "another format"),
     ('{"tfkit_channel_plan": 1, "groups": [], "architecture": []}', "TypeError"),
     ('{"tfkit_channel_plan": 1, "groups": [3]}', "AttributeError")],
)  # fmt: skip
def test_another_file_is_refused(text, why, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(tfkit.ArgumentError, match=rf"file that ChannelPlan\.save wrote\. Received: .*{why}"):
        tfkit.ChannelPlan.load(tmp_path / "plan.json")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(tfkit.ArgumentError, match=r"Received: path='.*none\.json' \(FileNotFoundError"):
        tfkit.ChannelPlan.load(tmp_path / "none.json")


def test_a_file_without_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "no" / "plan.json", tmp_path):
        with pytest.raises(tfkit.OutputPathError, match=r"folder that exists\. Received: path=.*plan\.json"):
            plan_of(ratio=0.4).save(path)


def test_a_file_holds_plain_json(tmp_path):
    plan = plan_of(ratio=0.4)
    record = json.loads(plan.save(tmp_path / "plan.json").read_text())
    assert record["groups"][0]["kept"] == list(plan.groups[0].kept)
    assert record["after"] == plan.after


# --- another model ---------------------------------------------------------------------------------


def rewired():
    """`residual` with the addition of other tensors."""
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="a")(inputs)
    y = layers.Conv2D(8, 3, padding="same", name="b")(x)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, name="c")(layers.Add()([y, y])))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def normalised(groups):
    stack = [layers.Conv2D(8, 3, name="a"), layers.GroupNormalization(groups), layers.Flatten()]
    return keras.Sequential([keras.Input((4, 4, 3)), *stack, layers.Dense(2)])


def twice(shared):
    """Two layers alike, or one that is called twice."""
    inputs = keras.Input((8,))
    one, other = layers.Dense(8), layers.Dense(8)
    return keras.Model(inputs, layers.Dense(2)((one if shared else other)(one(inputs))))


FITS = r"A plan fits the model it was made for, and others.*Received: model='.*'"
AGAIN = r"Make a plan for this model with tfkit\.plan_channel_pruning"


@pytest.mark.parametrize("carry_out", ["apply", "mask"])
@pytest.mark.parametrize(
    ("build", "other", "message"),
    [
        (net, lambda: net(a=20), r"where layer 0 is 'Conv2D.*20\).* and the plan has 'Conv2D.*16\)"),
        (residual, rewired, r"where layer 2 is 'Add\(.*from 1, 1' and the plan has .*from 0, 1'"),
        (lambda: normalised(2), lambda: normalised(4), r"layer 1 is 'GroupNorm.*groups=4.*groups=2"),
        (lambda: twice(False), lambda: twice(True), r"layer 1 is 'Dense.*from 0, the layer of 0' and"),
        (net, models.dense_net, r"where layer 0 is 'Dense.* and the plan has 'Conv2D"),
    ],
    ids=["widths", "wiring", "groups", "shared", "classes"],
)
def test_another_model_is_refused(build, other, message, carry_out):
    plan = plan_of(build(), ratio=0.4)
    with pytest.raises(tfkit.PruningError, match=f"(?s){FITS}.*{message}.*{AGAIN}"):
        getattr(plan, carry_out)(other())


def test_a_model_that_only_goes_on_longer_is_refused():
    short = models.dense_net((8,), outputs=4)
    plan = plan_of(short, ratio=0.4)
    longer = keras.Sequential([*models.dense_net((8,), outputs=4).layers, layers.Dense(4)])
    longer.build((None, 6))
    with pytest.raises(tfkit.PruningError, match=f"(?s){FITS}.*{AGAIN}"):
        plan.apply(longer)


# --- the least that is possible --------------------------------------------------------------------


@pytest.mark.parametrize(("most", "units"), [(0.5, (8, 12, 16)), (0.9, (2, 3, 4)), (0.75, (4, 6, 8))])
def test_an_impossible_target_tells_the_least(most, units):
    least = flops(*units)
    share = least / flops(16, 24, 32)
    with pytest.raises(tfkit.PruningError) as caught:
        plan_of(flops=0.9 * share, max_ratio=most)
    number = f"{least:.0f} multiplications and additions a sample, {share:.4g} of today's"
    assert f"must be possible. Received: flops={0.9 * share:g}. The least is {number}" in str(caught.value)
    assert "raise max_ratio, lower multiple_of, or let more `layers`" in str(caught.value)


def test_a_percentage_in_place_of_a_share_is_told_apart_from_a_count():
    with pytest.raises(
        tfkit.PruningError, match=r"flops=50\. The least is .* a fraction: 0\.5 for 50%\. Ask"
    ):
        plan_of(flops=50)
    with pytest.raises(tfkit.PruningError, match=r"flops=100\. The least is .* of today's\. Ask for less"):
        plan_of(flops=100)


def test_the_least_itself_is_possible():
    for most, units in ((0.5, (8, 12, 16)), (0.75, (4, 6, 8))):
        assert list(widths(plan_of(flops=flops(*units), max_ratio=most)).values()) == list(units)


def test_a_target_above_what_there_is_tells_what_there_is():
    message = r"below what the model costs now\. Received: parameters=1e\+06; the model takes 4957 weights\."
    assert parameters(16, 24, 32) == 4957
    with pytest.raises(tfkit.PruningError, match=message):
        plan_of(parameters=1_000_000)


def test_every_width_in_reach_can_be_asked_for():
    """Each number of channels between the least and the whole is met exactly."""
    for gone in itertools.chain(range(1, 8), (30, 63)):
        assert sum(widths(plan_of(ratio=gone / 72)).values()) == 72 - gone
