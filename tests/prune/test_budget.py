"""The budget of channels against direct sums and brute force, and what a step costs."""

import itertools
import math

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfkit
from tests import models
from tfkit.prune.budget import Ladder, SumCost, least, levels, spend
from tfkit.prune.groups import Count, Product, Wiring
from tfkit.prune.price import (
    price_by_fraction,
    price_by_score,
    price_by_sensitivity,
    price_by_share,
    read_sensitivity,
)

numbers = st.integers(0, 5)


@st.composite
def products(draw, groups):
    """Sums of products whose counts depend on any of the groups."""

    def count():
        factors = draw(st.dictionaries(st.integers(0, groups - 1), st.integers(1, 3), max_size=2))
        return Count(draw(numbers), tuple(factors.items()))

    def product(number):
        return Product(
            f"layer{number}", draw(st.integers(1, 9)), tuple(count() for _ in range(draw(numbers)))
        )

    return [product(number) for number in range(draw(st.integers(1, 5)))]


@st.composite
def instances(draw):
    """Ladders, what they cost and a price for every step, which never falls along a ladder."""
    groups = draw(st.integers(1, 3))
    ladders, prices = [], []
    for _ in range(groups):
        units = draw(st.integers(1, 6))
        lower = draw(st.sets(st.integers(1, units - 1), max_size=4)) if units > 1 else set()
        ladders.append(Ladder((units, *sorted(lower, reverse=True)), np.arange(units)))
        steps = draw(st.lists(st.floats(0, 9), min_size=len(lower), max_size=len(lower)))
        prices.append([0.0, *sorted(steps)])
    return ladders, prices, draw(products(groups))


def direct(parts, units):
    """The sum of products, written out."""
    return sum(
        part.factor
        * math.prod(
            count.fixed + sum(k * units[group] for group, k in count.factors) for count in part.counts
        )
        for part in parts
    )


def spent(ladders, prices, parts, share):
    """The levels and their cost, and the target: a share of the way between least and whole."""
    cost = SumCost(parts, [ladder.levels[0] for ladder in ladders])
    low = least(ladders, cost)
    target = low + share * (cost.value() - low)
    at = spend(ladders, lambda group, level: prices[group][level], cost, target)
    return at, cost.value(), target


def units_at(ladders, at):
    return [ladder.levels[level] for ladder, level in zip(ladders, at, strict=True)]


def ladder_of(scores, steps=None):
    """A ladder down to one unit, in the order of scores."""
    return Ladder(tuple(steps or range(len(scores), 0, -1)), np.argsort(scores, kind="stable"))


def one_each(groups):
    """A cost of one for each unit."""
    return [Product(f"layer{group}", 1.0, (Count(0, ((group, 1),)),)) for group in range(groups)]


# --- levels ----------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 4), st.sampled_from([1, 2, 4, 8, 16]), st.floats(0.01, 0.99))
def test_levels_fall_from_all_units_to_the_least_that_must_stay(units, width, multiple, most):
    found = levels(units, width, multiple, most)
    assert found[0] == units
    assert all(a > b for a, b in itertools.pairwise(found))
    assert found[-1] >= 1
    assert (units - found[-1]) / units <= most + 1e-6


@given(st.integers(1, 200), st.integers(1, 4), st.sampled_from([1, 2, 4, 8, 16]), st.floats(0.01, 0.99))
def test_levels_are_all_multiples_of_the_largest_power_that_the_group_has_room_for(
    units, width, multiple, most
):
    low = max(1, math.ceil(units * (1 - most) - 1e-9))

    def possible(each):
        return [count for count in range(low, units) if count * width % each == 0]

    found = [possible(each) for each in (16, 8, 4, 2, 1) if each <= multiple]
    expected = next((each for each in found if each), [])
    assert levels(units, width, multiple, most)[1:] == tuple(expected[::-1])


@pytest.mark.parametrize(
    ("units", "width", "multiple", "most", "expected"),
    [
        (10, 1, 8, 0.9, (10, 8)),
        (16, 4, 8, 0.5, (16, 14, 12, 10, 8)),
        (12, 1, 3, 0.9, (12, 9, 6, 3)),
        (2, 1, 6, 0.9, (2, 1)),
        (10, 1, 1, 0.1, (10, 9)),
        (1, 8, 8, 0.9, (1,)),
    ],
)
def test_levels_by_hand(units, width, multiple, most, expected):
    assert levels(units, width, multiple, most) == expected


# --- the cost --------------------------------------------------------------------------------------


@given(st.data())
@settings(max_examples=60)
def test_a_sum_is_kept_up_to_date_over_any_moves(data):
    groups = data.draw(st.integers(1, 3))
    parts, units = data.draw(products(groups)), [data.draw(numbers) for _ in range(groups)]
    cost = SumCost(parts, units)
    assert cost.value() == direct(parts, units)
    for _ in range(data.draw(numbers)):
        group, count = data.draw(st.integers(0, groups - 1)), data.draw(numbers)
        moved = [count if each == group else units[each] for each in range(groups)]
        assert cost.after(group, count) == direct(parts, moved)
        assert cost.value() == direct(parts, units)
        cost.set(group, count)
        units = moved
        assert cost.value() == direct(parts, units)


@given(instances())
@settings(max_examples=60)
def test_the_least_is_that_of_all_combinations_and_leaves_the_cost_as_it_was(instance):
    ladders, _, parts = instance
    cost = SumCost(parts, [ladder.levels[0] for ladder in ladders])
    before = cost.value()
    combinations = itertools.product(*(ladder.levels for ladder in ladders))
    assert least(ladders, cost) == min(direct(parts, units) for units in combinations)
    assert cost.value() == before


# --- a ladder --------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 9), min_size=1, max_size=9, unique=True), st.data())
def test_the_units_with_the_lowest_scores_go_first(scores, data):
    ladder = ladder_of(scores)
    level = data.draw(st.integers(0, len(scores) - 1))
    best = sorted(range(len(scores)), key=lambda unit: -scores[unit])[: len(scores) - level]
    assert ladder.kept(level).tolist() == sorted(best)


@given(st.integers(2, 9), st.data())
def test_what_goes_on_the_way_and_what_stays_are_all_units(count, data):
    ladder = ladder_of(data.draw(st.permutations(range(count))), (count, *range(count - 1, 0, -2)))
    gone = np.concatenate([ladder.removed(level) for level in range(1, len(ladder.levels))])
    stays = ladder.kept(len(ladder.levels) - 1)
    assert sorted([*gone.tolist(), *stays.tolist()]) == list(range(count))


# --- spending --------------------------------------------------------------------------------------


@given(instances(), st.floats(0, 1))
@settings(max_examples=150)
def test_the_cost_ends_at_most_two_percent_above_the_target(instance, share):
    ladders, _, parts = instance
    at, value, target = spent(*instance, share)
    assert value == direct(parts, units_at(ladders, at))
    assert value <= 1.02 * target + 1e-9


@given(instances(), st.floats(0, 1))
@settings(max_examples=150)
def test_no_group_could_keep_more_under_the_target(instance, share):
    """Against every combination of levels that keeps at least as much everywhere."""
    ladders, _, parts = instance
    at, value, target = spent(*instance, share)
    more = itertools.product(*(range(level + 1) for level in at))
    costs = [direct(parts, units_at(ladders, levels)) for levels in more]
    assert not [each for each in costs if value < each <= target - 1e-9]
    if value < 0.98 * target - 1e-9:
        assert not [each for each in costs if value < each <= 1.02 * target - 1e-9]


@given(st.lists(st.lists(st.floats(0, 9), min_size=2, max_size=5), min_size=1, max_size=3), st.data())
@settings(max_examples=60)
def test_where_all_units_cost_the_same_the_target_is_met_exactly_and_the_cheapest_go(steps, data):
    """Against the lowest of all prices, for single units that cost one each."""
    ladders = [Ladder(tuple(range(len(each) + 1, 0, -1)), np.arange(len(each) + 1)) for each in steps]
    prices = [[0.0, *sorted(each)] for each in steps]
    whole, free = sum(len(each) + 1 for each in steps), sum(map(len, steps))
    gone = data.draw(st.integers(0, free))
    cost = SumCost(one_each(len(steps)), [ladder.levels[0] for ladder in ladders])
    at = spend(ladders, lambda group, level: prices[group][level], cost, whole - gone)
    assert sum(at) == gone
    paid = sum(sum(prices[group][: level + 1]) for group, level in enumerate(at))
    assert paid == pytest.approx(sum(sorted(itertools.chain(*steps))[:gone]))


def test_a_group_with_one_level_stays_whole():
    ladders = [Ladder((8,), np.arange(8)), ladder_of(range(8))]
    at, value, _ = spent(ladders, [[0.0], [0.0, *range(7)]], one_each(2), 0.5)
    assert at[0] == 0
    assert value == 8 + 8 - at[1]


def test_a_cheap_step_that_is_too_large_waits_for_smaller_ones():
    """100 + 100; the target of 150 is met by 50 small dear steps, not by the cheap large one."""
    ladders = [Ladder((100, 1), np.arange(100)), ladder_of(range(100))]
    cost = SumCost(one_each(2), [100, 100])
    assert spend(ladders, lambda group, level: float(group), cost, 150) == [0, 50]


def test_a_large_step_that_must_be_taken_gives_small_ones_back():
    """40 + 100 down to 130: the small group alone cannot, so the large one goes and the rest returns."""
    ladders = [Ladder((100, 60), np.arange(100)), ladder_of(range(20))]
    cost = SumCost(one_each(2), [100, 20])
    at = spend(ladders, lambda group, level: float(1 - group), cost, 79)
    assert at == [1, 1]
    assert cost.value() == 79


def test_the_dearest_units_come_back_first():
    """Two groups return after the large step; room is left for one of them only."""
    ladders = [Ladder((100, 60), np.arange(100)), Ladder((5, 1), np.arange(5)), Ladder((5, 1), np.arange(5))]
    cost = SumCost(one_each(3), [100, 5, 5])
    prices = [9.0, 1.0, 2.0]
    assert spend(ladders, lambda group, level: prices[group], cost, 67) == [1, 1, 0]


def test_where_steps_are_coarse_the_cost_may_end_two_percent_above():
    """Levels cost 100, 51 and 10; a target of 50 is met by 51, which is 2% above, not by 10."""
    ladders = [Ladder((100, 51, 10), np.arange(100))]
    cost = SumCost(one_each(1), [100])
    spend(ladders, lambda group, level: 1.0, cost, 50)
    assert cost.value() == 51


def test_where_steps_are_coarser_the_cost_ends_below():
    ladders = [Ladder((100, 52, 10), np.arange(100))]
    cost = SumCost(one_each(1), [100])
    spend(ladders, lambda group, level: 1.0, cost, 50)
    assert cost.value() == 10


# --- the price of a step ---------------------------------------------------------------------------

SCORES = [np.array([3.0, 1.0, 2.0, 6.0]), np.array([4.0, 4.0])]
LADDERS = [ladder_of(SCORES[0], (4, 2, 1)), ladder_of(SCORES[1])]


def test_uniform_asks_for_the_fraction_that_is_gone():
    price = price_by_fraction(LADDERS)
    assert [price(0, 1), price(0, 2), price(1, 1)] == [0.5, 0.75, 0.5]


def test_global_asks_for_the_mean_score_of_what_goes():
    price = price_by_score(LADDERS, SCORES)
    assert [price(0, 1), price(0, 2), price(1, 1)] == [1.5, 3.0, 4.0]


def test_by_share_asks_for_the_logarithm_of_the_share_for_what_is_saved():
    cost = SumCost(one_each(2), [4, 2])
    price = price_by_share(LADDERS, SCORES, cost)
    first = math.log(12 / 9) / 2
    assert price(0, 1) == pytest.approx(first)
    assert price(1, 1) == pytest.approx(math.log(8 / 4) / 1)
    cost.set(0, 2)
    assert price(0, 2) == pytest.approx(max(first, math.log(9 / 6) / 1))


def table(*rows):
    return pd.DataFrame(rows, columns=["path", "sparsity", "change"])


def wiring():
    """Groups d1 of 8 and d2 of 4 units."""
    return Wiring(models.dense_net())


WHOLE = [ladder_of(np.arange(8.0)), ladder_of(np.arange(4.0))]
MEASURED = table(("d1", 0.5, -0.1), ("d1", 0.75, -0.4), ("d2", 0.5, 0.02), ("d2", 0.75, -0.2))


@pytest.mark.parametrize(
    ("group", "fraction", "loss"),
    [(0, 0, 0), (0, 0.25, 0.05), (0, 0.5, 0.1), (0, 0.625, 0.25), (0, 0.75, 0.4), (0, 1, 0.7), (1, 0.5, 0)],
)
def test_a_table_is_read_as_straight_lines_that_go_on_and_never_rise(group, fraction, loss):
    read = read_sensitivity(wiring(), MEASURED, WHOLE)[group](fraction)
    assert read == pytest.approx(loss + 1e-3 * 0.4 * fraction**2)


def test_by_sensitivity_asks_for_the_loss_for_the_part_that_is_saved():
    cost = SumCost(one_each(2), [8, 4])
    price = price_by_sensitivity(wiring(), WHOLE, MEASURED, cost)
    grain = 1e-3 * 0.4 / 64
    assert price(0, 1) == pytest.approx((0.1 / 4 + grain) / (1 / 12))


def test_the_price_by_sensitivity_never_falls():
    falling = table(("d1", 0.25, -0.4), ("d1", 0.75, -0.5), ("d2", 0.5, -0.1))
    price = price_by_sensitivity(wiring(), WHOLE, falling, SumCost(one_each(2), [8, 4]))
    asked = [price(0, level) for level in range(1, 8)]
    assert asked == sorted(asked)


@pytest.mark.parametrize(
    ("received", "error", "message"),
    [
        (
            {"d1": 0.1},
            tfkit.ArgumentTypeError,
            r"what layer_sensi.*kind='channels'\).*Received: sens",
        ),
        (
            table().drop(columns="change"),
            tfkit.ArgumentTypeError,
            r"what layer_sensi.*Received: sens",
        ),
        (
            table(("d1", 0.5, -0.1)),
            tfkit.ArgumentError,
            r"every group.*Received: .*without d2.*Measure",
        ),
        (
            table(("d1", 0.5, 0.1), ("d2", 0.5, 0.3)),
            tfkit.ArgumentError,
            r"better when higher.*Received: .*changes by 0\.2 on average.*Let `evaluate` return an accuracy",
        ),
        (
            table(("d1", 0.5, math.nan), ("d2", 0.5, -0.3)),
            tfkit.ArgumentError,
            r"of a finite score.*Received: a table",
        ),
    ],
    ids=["dict", "columns", "group", "loss", "nan"],
)
def test_a_table_that_cannot_be_followed_is_refused(received, error, message):
    with pytest.raises(error, match=message):
        read_sensitivity(wiring(), received, WHOLE)


def test_a_group_that_loses_nothing_need_not_be_in_the_table():
    ladders = [WHOLE[0], Ladder((4,), np.arange(4))]
    read_sensitivity(wiring(), table(("d1", 0.5, -0.1)), ladders)


# --- how products follow from a model --------------------------------------------------------------


@given(st.lists(st.integers(1, 8), min_size=2, max_size=2))
@settings(max_examples=10, deadline=None)
def test_parameters_and_work_of_any_plan_are_those_of_a_model_of_these_widths(units):
    """d1 → d2 → head with 6 inputs: what the products say, and what Keras counts."""
    found = Wiring(models.dense_net((8, 8)))
    model = keras.Sequential([keras.Input((6,)), *map(layers.Dense, units), layers.Dense(2)])
    assert sum(product(units) for product in found.parameters) == model.count_params()
    a, b = units
    assert sum(product(units) for product in found.works) == 6 * a + a * b + b * 2
