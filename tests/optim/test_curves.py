import math
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfkit
from tfkit import curves

schedules = keras.optimizers.schedules

RATES = st.floats(1e-6, 10.0)
FINALS = st.one_of(st.just(0.0), RATES)
LENGTHS = st.integers(1, 5_000)
BOUNDARIES = st.lists(st.integers(1, 5_000), min_size=1, max_size=5, unique=True).map(sorted)
FRACTIONS = st.floats(0.01, 0.99)

#: Curves that end: how to draw one, and the step of its end.
ENDING = {
    "constant": st.builds(lambda rate: (curves.constant(rate), 0), FINALS),
    "linear": st.builds(lambda a, b, n: (curves.linear(a, b, n), n), FINALS, FINALS, LENGTHS),
    "polynomial": st.builds(
        lambda a, b, n, power: (curves.polynomial(a, b, n, power=power), n),
        FINALS,
        FINALS,
        LENGTHS,
        st.floats(0.1, 5.0),
    ),
    "step": st.builds(
        lambda a, factor, marks: (curves.step(a, factor, marks), marks[-1]), RATES, FRACTIONS, BOUNDARIES
    ),
    "cosine": st.builds(lambda a, n, b: (curves.cosine(a, n, final=b), n), RATES, LENGTHS, FINALS),
    "one_cycle": st.builds(
        lambda peak, n, share: (curves.one_cycle(peak, n, warmup_fraction=share), n),
        RATES,
        st.integers(2, 5_000),
        FRACTIONS,
    ),
    "warmup": st.builds(
        lambda peak, rise, n, start: (curves.warmup(curves.cosine(peak, n), rise, start=start), rise + n),
        RATES,
        st.integers(0, 1_000),
        LENGTHS,
        FINALS,
    ),
    "join": st.builds(
        lambda a, b, n, mark: (curves.join([curves.constant(a), curves.linear(a, b, n)], [mark]), mark + n),
        RATES,
        FINALS,
        LENGTHS,
        LENGTHS,
    ),
}

#: Curves without an end.
ENDLESS = {
    "exponential": st.builds(
        lambda a, rate, n, stairs: curves.exponential(a, rate, n, staircase=stairs),
        RATES,
        FRACTIONS,
        LENGTHS,
        st.booleans(),
    ),
    "step every n": st.builds(curves.step, RATES, FRACTIONS, LENGTHS),
    "cosine_restarts": st.builds(
        lambda a, n, t_mul, m_mul, b: curves.cosine_restarts(a, n, t_mul=t_mul, m_mul=m_mul, final=b),
        RATES,
        LENGTHS,
        st.floats(1.0, 3.0),
        FRACTIONS,
        FINALS,
    ),
    "inverse_sqrt": st.builds(curves.inverse_sqrt, RATES, LENGTHS),
}
EVERY = {**{name: drawn.map(lambda pair: pair[0]) for name, drawn in ENDING.items()}, **ENDLESS}
CLOSE = {"rtol": 2e-4, "atol": 1e-5}  # Keras computes in float32


def values(curve, steps):
    return np.array([curve(int(step)) for step in steps])


class TestEveryCurve:
    @pytest.mark.parametrize("name", EVERY)
    @given(data=st.data())
    @settings(deadline=None, max_examples=40)
    def test_values_are_finite_and_non_negative(self, name, data):
        curve = data.draw(EVERY[name])
        rate = curve(data.draw(st.one_of(st.integers(0, 20_000), st.floats(0, 20_000))))
        assert math.isfinite(rate)
        assert rate >= 0

    @pytest.mark.parametrize("name", ENDING)
    @given(data=st.data(), later=st.integers(0, 10**9))
    @settings(deadline=None, max_examples=40)
    def test_holds_its_last_value_beyond_its_end(self, name, data, later):
        curve, end = data.draw(ENDING[name])
        assert curve(end + later) == curve(end)

    @pytest.mark.parametrize("name", EVERY)
    @given(data=st.data(), step=st.integers(0, 20_000))
    @settings(deadline=None, max_examples=20)
    def test_depends_on_the_step_alone(self, name, data, step):
        curve = data.draw(EVERY[name])
        first = curve(step)
        values(curve, [step + 7, 0, step + 1])
        assert curve(step) == first

    @pytest.mark.parametrize("name", EVERY)
    @given(data=st.data(), step=st.integers(0, 20_000))
    @settings(deadline=None, max_examples=20)
    def test_takes_numpy_steps(self, name, data, step):
        curve = data.draw(EVERY[name])
        assert curve(np.int64(step)) == pytest.approx(curve(step))

    def test_every_public_curve_is_covered(self):
        assert set(curves.__all__) <= {*ENDING, *ENDLESS}

    def test_need_neither_keras_nor_tensorflow(self):
        code = (
            "import sys, tfkit; assert tfkit.curves.warmup(tfkit.curves.cosine(1.0, 8), 2)(2) == 1.0;"
            "assert not {'keras', 'tensorflow', 'pandas'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestAgainstKeras:
    @given(peak=RATES, steps=LENGTHS, alpha=st.floats(0.0, 1.0))
    @settings(deadline=None, max_examples=30)
    def test_cosine_is_cosine_decay(self, peak, steps, alpha):
        at = np.linspace(0, 2 * steps, 50).astype(int)
        expected = schedules.CosineDecay(peak, steps, alpha=alpha)(at)
        np.testing.assert_allclose(
            values(curves.cosine(peak, steps, final=alpha * peak), at), expected, **CLOSE
        )

    @given(start=RATES, final=FINALS, steps=LENGTHS, power=st.floats(0.5, 4.0))
    @settings(deadline=None, max_examples=30)
    def test_polynomial_is_polynomial_decay(self, start, final, steps, power):
        at = np.linspace(0, 2 * steps, 50).astype(int)
        expected = schedules.PolynomialDecay(start, steps, final, power=power)(at)
        # near the end a power below 1 magnifies float32's error in 1 - t / steps
        np.testing.assert_allclose(
            values(curves.polynomial(start, final, steps, power=power), at), expected, rtol=2e-3, atol=1e-5
        )

    @given(start=RATES, final=FINALS, steps=LENGTHS)
    @settings(deadline=None, max_examples=30)
    def test_linear_is_polynomial_decay_of_power_one(self, start, final, steps):
        at = np.linspace(0, 2 * steps, 50).astype(int)
        expected = schedules.PolynomialDecay(start, steps, final, power=1.0)(at)
        np.testing.assert_allclose(values(curves.linear(start, final, steps), at), expected, **CLOSE)

    @given(start=RATES, rate=st.floats(0.1, 0.99), steps=LENGTHS)
    @settings(deadline=None, max_examples=30)
    def test_exponential_is_exponential_decay(self, start, rate, steps):
        at = np.linspace(0, 3 * steps, 50).astype(int)
        expected = schedules.ExponentialDecay(start, steps, rate)(at)
        np.testing.assert_allclose(values(curves.exponential(start, rate, steps), at), expected, **CLOSE)

    @given(start=RATES, rate=st.floats(0.1, 0.99), steps=st.integers(1, 500), cycle=st.integers(0, 5))
    @settings(deadline=None, max_examples=30)
    def test_exponential_staircase_is_exponential_decay_staircase(self, start, rate, steps, cycle):
        at = np.array([cycle * steps + steps // 2])  # float32 may round the very edge of a stair
        expected = schedules.ExponentialDecay(start, steps, rate, staircase=True)(at)
        mine = curves.exponential(start, rate, steps, staircase=True)
        np.testing.assert_allclose(values(mine, at), expected, **CLOSE)

    @given(
        peak=RATES,
        steps=st.integers(20, 500),
        t_mul=st.sampled_from([1.0, 1.5, 2.0, 3.0]),
        m_mul=st.floats(0.3, 1.0),
        cycle=st.integers(0, 3),
        part=st.floats(0.1, 0.9),
    )
    @settings(deadline=None, max_examples=40)
    def test_cosine_restarts_is_cosine_decay_restarts(self, peak, steps, t_mul, m_mul, cycle, part):
        start = sum(steps * t_mul**n for n in range(cycle))
        at = int(start + part * steps * t_mul**cycle)
        expected = schedules.CosineDecayRestarts(peak, steps, t_mul=t_mul, m_mul=m_mul)(at)
        mine = curves.cosine_restarts(peak, steps, t_mul=t_mul, m_mul=m_mul)
        np.testing.assert_allclose(mine(at), expected, rtol=2e-3, atol=1e-4 * peak)

    def test_cosine_restarts_ends_each_cycle_at_keras_alpha_for_a_constant_peak(self):
        at = np.arange(1, 30, 3)
        expected = schedules.CosineDecayRestarts(0.5, 10, t_mul=2.0, m_mul=1.0, alpha=0.2)(at)
        np.testing.assert_allclose(values(curves.cosine_restarts(0.5, 10, final=0.1), at), expected, **CLOSE)

    @given(start=RATES, factor=FRACTIONS, marks=BOUNDARIES)
    @settings(deadline=None, max_examples=30)
    def test_step_is_piecewise_constant_decay(self, start, factor, marks):
        levels = [start * factor**n for n in range(len(marks) + 1)]
        # Keras keeps the old value at the boundary itself, a step of tfkit has been reached there
        theirs = schedules.PiecewiseConstantDecay([mark - 1 for mark in marks], levels)
        for at in {0, *marks, *(mark - 1 for mark in marks), marks[-1] + 100}:
            np.testing.assert_allclose(curves.step(start, factor, marks)(at), theirs(at), **CLOSE)

    @given(peak=RATES, rise=st.integers(1, 100), steps=LENGTHS, start=FINALS)
    @settings(deadline=None, max_examples=30)
    def test_warmup_of_cosine_is_cosine_decay_with_warmup(self, peak, rise, steps, start):
        theirs = schedules.CosineDecay(start, steps, warmup_target=peak, warmup_steps=rise)
        mine = curves.warmup(curves.cosine(peak, steps), rise, start=start)
        for at in (0, rise // 2, rise, rise + steps // 2, rise + steps, rise + 2 * steps):
            np.testing.assert_allclose(mine(at), theirs(at), **CLOSE)


class TestClosedForms:
    @pytest.mark.parametrize("step", [0, 1, 10**9])
    def test_constant_never_changes(self, step):
        assert curves.constant(0.25)(step) == 0.25

    @pytest.mark.parametrize(("step", "rate"), [(0, 2.0), (1, 1.5), (2, 1.0), (4, 0.0), (5, 0.0)])
    def test_linear_boundary_values(self, step, rate):
        assert curves.linear(2.0, 0.0, 4)(step) == rate

    def test_linear_may_rise(self):
        np.testing.assert_allclose(values(curves.linear(0.0, 1.0, 4), range(6)), [0, 0.25, 0.5, 0.75, 1, 1])

    @pytest.mark.parametrize(("step", "rate"), [(0, 1.0), (25, 0.5625), (50, 0.25), (100, 0.0)])
    def test_polynomial_of_power_two(self, step, rate):
        assert curves.polynomial(1.0, 0.0, 100, power=2)(step) == pytest.approx(rate)

    @pytest.mark.parametrize(("step", "rate"), [(0, 1.0), (5, 0.5), (10, 0.25), (20, 0.0625)])
    def test_exponential_multiplies_by_its_rate_over_each_length(self, step, rate):
        assert curves.exponential(1.0, 0.25, 10)(step) == pytest.approx(rate)

    @pytest.mark.parametrize(("step", "rate"), [(0, 1.0), (9, 1.0), (10, 0.25), (19, 0.25), (20, 0.0625)])
    def test_exponential_staircase_falls_at_multiples_only(self, step, rate):
        assert curves.exponential(1.0, 0.25, 10, staircase=True)(step) == pytest.approx(rate)

    @pytest.mark.parametrize(("step", "rate"), [(9, 1.0), (10, 0.5), (19, 0.5), (20, 0.25), (99, 0.25)])
    def test_step_falls_where_a_boundary_is_reached(self, step, rate):
        assert curves.step(1.0, 0.5, [10, 20])(step) == rate

    @given(at=st.integers(0, 10_000), every=st.integers(1, 500))
    def test_step_with_a_number_falls_every_so_many_steps(self, at, every):
        assert curves.step(1.0, 0.9, every)(at) == pytest.approx(0.9 ** (at // every))

    @pytest.mark.parametrize(
        ("step", "rate"), [(0, 0.9), (25, 0.1 + 0.4 * (1 + 0.5**0.5)), (50, 0.5), (100, 0.1)]
    )
    def test_cosine_boundary_values(self, step, rate):
        assert curves.cosine(0.9, 100, final=0.1)(step) == pytest.approx(rate)

    @pytest.mark.parametrize(("step", "rate"), [(0, 1.0), (5, 0.5), (10, 0.5), (20, 0.25), (30, 0.25)])
    def test_cosine_restarts_double_in_length_and_scale_their_peak(self, step, rate):
        assert curves.cosine_restarts(1.0, 10, m_mul=0.5)(step) == pytest.approx(rate)

    @pytest.mark.parametrize("step", range(0, 60, 7))
    def test_cosine_restarts_of_equal_length_are_periodic(self, step):
        curve = curves.cosine_restarts(1.0, 10, t_mul=1.0)
        assert curve(step + 10) == pytest.approx(curve(step))

    @given(peak=RATES, steps=st.integers(2, 5_000), share=FRACTIONS, at=st.floats(0.0, 1.5))
    def test_one_cycle_is_two_half_cosines(self, peak, steps, share, at):
        step, rise, first = at * steps, share * steps, peak / 25
        last = first / 1e4
        if step < rise:
            expected = first + (peak - first) * (1 - np.cos(np.pi * step / rise)) / 2
        else:
            fraction = min((step - rise) / (steps - rise), 1.0)
            expected = last + (peak - last) * (1 + np.cos(np.pi * fraction)) / 2
        curve = curves.one_cycle(peak, steps, warmup_fraction=share)
        assert curve(step) == pytest.approx(expected, rel=1e-6, abs=1e-12)

    @pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (3, 1.0), (10, 0.02)])
    def test_one_cycle_divisors_give_its_first_and_last_rate(self, step, rate):
        curve = curves.one_cycle(1.0, 10, warmup_fraction=0.3, start_divisor=10, final_divisor=5)
        assert curve(step) == pytest.approx(rate)

    @given(peak=RATES, timescale=LENGTHS, at=st.integers(0, 10**6))
    def test_inverse_sqrt_formula(self, peak, timescale, at):
        expected = peak / np.sqrt(1 + at / timescale)
        assert curves.inverse_sqrt(peak, timescale)(at) == pytest.approx(expected)


class TestWarmup:
    @given(peak=RATES, steps=st.integers(1, 500), start=FINALS, part=st.floats(0.0, 0.999))
    def test_rises_in_a_straight_line_to_the_first_value_of_the_curve(self, peak, steps, start, part):
        step = int(part * steps)
        curve = curves.warmup(curves.cosine(peak, 100), steps, start=start)
        assert curve(step) == pytest.approx(start + (peak - start) * step / steps)

    @given(peak=RATES, steps=st.integers(0, 500), at=st.integers(0, 1_000))
    def test_counts_the_inner_curve_from_zero_at_its_own_start(self, peak, steps, at):
        inner = curves.linear(peak, 0.0, 700)
        assert curves.warmup(inner, steps)(steps + at) == inner(at)

    def test_of_no_steps_changes_nothing(self):
        inner = curves.linear(1.0, 0.0, 10)
        np.testing.assert_array_equal(values(curves.warmup(inner, 0), range(12)), values(inner, range(12)))

    def test_asks_the_inner_curve_for_no_step_below_zero(self):
        asked = []

        def inner(step):
            asked.append(step)
            return 1.0

        values(curves.warmup(inner, 5), range(10))
        assert set(asked) == {0, 1, 2, 3, 4}

    def test_of_a_warmup_rises_twice(self):
        curve = curves.warmup(curves.warmup(curves.constant(1.0), 2, start=0.5), 2)
        np.testing.assert_allclose(values(curve, range(6)), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0])


class TestJoin:
    @given(
        marks=BOUNDARIES,
        starts=st.lists(RATES, min_size=6, max_size=6),
        at=st.integers(0, 6_000),
    )
    def test_counts_each_curve_from_zero_at_its_own_start(self, marks, starts, at):
        parts = [curves.linear(start, 0.0, 3_000) for start in starts[: len(marks) + 1]]
        place = sum(mark <= at for mark in marks)
        begin = [0, *marks][place]
        assert curves.join(parts, marks)(at) == parts[place](at - begin)

    def test_of_one_curve_is_that_curve(self):
        inner = curves.cosine(1.0, 10)
        np.testing.assert_array_equal(values(curves.join([inner], []), range(12)), values(inner, range(12)))

    def test_of_joins_counts_from_zero_at_every_depth(self):
        ramp = curves.linear(0.0, 1.0, 10)
        inner = curves.join([curves.constant(0.5), ramp], [3])
        np.testing.assert_allclose(
            values(curves.join([curves.constant(2.0), inner], [4]), range(9)),
            [2, 2, 2, 2, 0.5, 0.5, 0.5, 0.0, 0.1],
        )

    def test_holds_a_curve_that_ends_before_the_next_begins(self):
        curve = curves.join([curves.linear(1.0, 0.5, 2), curves.constant(0.1)], [5])
        np.testing.assert_allclose(values(curve, range(6)), [1.0, 0.75, 0.5, 0.5, 0.5, 0.1])


NOT_A_RATE = r"`{0}` must be a learning rate of at least 0\. Received: {0}=-0\.1"
NOT_A_NUMBER = r"`{0}` must be a finite number\. Received: {0}="
NOT_A_COUNT = r"`{0}` must be a whole number of steps, at least {1}\. Received: {0}="
NOT_POSITIVE = r"`{0}` must be above 0\. Received: {0}="
ONE = curves.constant(1.0)


class TestRefusals:
    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: curves.constant(-0.1), "rate"),
            (lambda: curves.linear(-0.1, 0.0, 5), "start"),
            (lambda: curves.linear(0.1, -0.1, 5), "final"),
            (lambda: curves.polynomial(-0.1, 0.0, 5), "start"),
            (lambda: curves.polynomial(0.1, -0.1, 5), "final"),
            (lambda: curves.exponential(-0.1, 0.5, 5), "start"),
            (lambda: curves.step(-0.1, 0.5, 5), "start"),
            (lambda: curves.cosine(-0.1, 5), "peak"),
            (lambda: curves.cosine(0.1, 5, final=-0.1), "final"),
            (lambda: curves.cosine_restarts(-0.1, 5), "peak"),
            (lambda: curves.cosine_restarts(0.1, 5, final=-0.1), "final"),
            (lambda: curves.one_cycle(-0.1, 5), "peak"),
            (lambda: curves.inverse_sqrt(-0.1), "peak"),
            (lambda: curves.warmup(ONE, 5, start=-0.1), "start"),
        ],
    )
    def test_a_negative_rate(self, make, name):
        with pytest.raises(tfkit.ArgumentError, match=NOT_A_RATE.format(name)):
            make()

    @pytest.mark.parametrize("rate", [math.nan, math.inf, -math.inf, "0.1", None, True, [0.1]])
    def test_a_rate_that_is_no_finite_number(self, rate):
        with pytest.raises(tfkit.ArgumentError, match=NOT_A_NUMBER.format("rate")):
            curves.constant(rate)

    @pytest.mark.parametrize(
        ("make", "name", "least"),
        [
            (lambda n: curves.linear(0.1, 0.0, n), "steps", 1),
            (lambda n: curves.polynomial(0.1, 0.0, n), "steps", 1),
            (lambda n: curves.exponential(0.1, 0.5, n), "steps", 1),
            (lambda n: curves.step(0.1, 0.5, n), "boundaries", 1),
            (lambda n: curves.cosine(0.1, n), "steps", 1),
            (lambda n: curves.cosine_restarts(0.1, n), "steps", 1),
            (lambda n: curves.one_cycle(0.1, n), "steps", 2),
            (lambda n: curves.inverse_sqrt(0.1, n), "timescale", 1),
            (lambda n: curves.warmup(ONE, n), "steps", 0),
            (lambda n: curves.join([ONE, ONE], [n]), "boundaries", 1),
        ],
    )
    @pytest.mark.parametrize("excess", [-1, 0.5])
    def test_a_length_too_short_or_broken(self, make, name, least, excess):
        with pytest.raises(tfkit.ArgumentError, match=NOT_A_COUNT.format(name, least)):
            make(least + excess)

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda v: curves.polynomial(0.1, 0.0, 5, power=v), "power"),
            (lambda v: curves.exponential(0.1, v, 5), "decay_rate"),
            (lambda v: curves.step(0.1, v, 5), "factor"),
            (lambda v: curves.cosine_restarts(0.1, 5, t_mul=v), "t_mul"),
            (lambda v: curves.cosine_restarts(0.1, 5, m_mul=v), "m_mul"),
            (lambda v: curves.one_cycle(0.1, 5, start_divisor=v), "start_divisor"),
            (lambda v: curves.one_cycle(0.1, 5, final_divisor=v), "final_divisor"),
        ],
    )
    @pytest.mark.parametrize("value", [0, -2.0])
    def test_a_factor_that_is_not_positive(self, make, name, value):
        with pytest.raises(tfkit.ArgumentError, match=NOT_POSITIVE.format(name)):
            make(value)

    def test_cycles_that_grow_shorter(self):
        with pytest.raises(tfkit.ArgumentError, match=r"`t_mul` must be at least 1\. Received: t_mul=0\.5"):
            curves.cosine_restarts(0.1, 5, t_mul=0.5)

    @pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
    def test_a_share_outside_its_range(self, share):
        rule = r"`warmup_fraction` must lie between 0 and 1, both excluded\. Received: warmup_fraction="
        with pytest.raises(tfkit.ArgumentError, match=rule):
            curves.one_cycle(0.1, 10, warmup_fraction=share)

    @pytest.mark.parametrize("marks", [[5, 5], [5, 3]])
    def test_boundaries_that_do_not_increase(self, marks):
        rule = r"`boundaries` must increase\. Received: boundaries=\[5, "
        with pytest.raises(tfkit.ArgumentError, match=rule):
            curves.step(0.1, 0.5, marks)

    @pytest.mark.parametrize(("count", "marks"), [(0, []), (1, [3]), (3, [3])])
    def test_boundaries_that_do_not_fit_the_curves(self, count, marks):
        rule = rf"must hold one step fewer than there are curves\. Received: {count} curves and boundaries="
        with pytest.raises(tfkit.ArgumentError, match=rule):
            curves.join([ONE] * count, marks)

    @pytest.mark.parametrize(
        ("make", "name"),
        [(lambda: curves.warmup(0.1, 5), "curve"), (lambda: curves.join([ONE, 0.1], [3]), "curves")],
    )
    def test_a_number_where_a_curve_belongs(self, make, name):
        rule = rf"`{name}` must be a function .*Received: {name}=0\.1\. Use tfkit\.curves\.constant\(rate\)"
        with pytest.raises(tfkit.ArgumentTypeError, match=rule):
            make()

    def test_is_a_value_error_to_code_that_does_not_know_tfkit(self):
        with pytest.raises(ValueError, match="Received"):
            curves.constant(-1)
