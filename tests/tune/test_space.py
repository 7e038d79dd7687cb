import math

import keras_tuner
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tfkit
from tfkit import SearchSpace

LOGARITHMIC = ("learning_rate", "weight_decay")


def entry(name, value):
    """The one keras-tuner hyperparameter of a space with one entry."""
    (hyperparameter,) = SearchSpace(**{name: value}).hyperparameters().space
    return hyperparameter


def drawn(name, value, seeds=100):
    hyperparameter = entry(name, value)
    return [hyperparameter.random_sample(seed) for seed in range(seeds)]


class TestRanges:
    @pytest.mark.parametrize("name", LOGARITHMIC)
    @given(low=st.floats(1e-8, 1e-2), ratio=st.floats(1.01, 1e4), part=st.floats(0.0, 1.0))
    @settings(deadline=None, max_examples=50)
    def test_rate_and_decay_are_logarithmic(self, name, low, ratio, part):
        hyperparameter = entry(name, (low, low * ratio))
        assert hyperparameter.prob_to_value(part) == pytest.approx(low * ratio**part)

    @pytest.mark.parametrize("name", LOGARITHMIC)
    def test_rate_and_decay_are_logarithmic_between_whole_numbers(self, name):
        assert entry(name, (1, 100)).prob_to_value(0.5) == pytest.approx(10.0)

    @given(low=st.floats(-100, 100), width=st.floats(0.01, 100), part=st.floats(0.0, 1.0))
    @settings(deadline=None, max_examples=50)
    def test_any_other_name_is_linear(self, low, width, part):
        hyperparameter = entry("dropout", (low, low + width))
        assert hyperparameter.prob_to_value(part) == pytest.approx(low + part * width, abs=1e-9)

    def test_one_whole_end_is_not_enough_for_whole_numbers(self):
        assert entry("dropout", (0, 0.5)).prob_to_value(0.5) == pytest.approx(0.25)

    def test_whole_ends_give_every_whole_number_between_and_both_ends(self):
        values = drawn("units", (3, 6))
        assert set(values) == {3, 4, 5, 6}
        assert {type(value) for value in values} == {int}

    @given(low=st.floats(1e-8, 1e-2), ratio=st.floats(1.01, 1e4), seed=st.integers(0, 2**31 - 1))
    @settings(deadline=None, max_examples=50)
    def test_draws_stay_between_the_ends(self, low, ratio, seed):
        value = entry("learning_rate", (low, low * ratio)).random_sample(seed)
        assert low * (1 - 1e-9) <= value <= low * ratio * (1 + 1e-9)

    def test_numpy_whole_ends_give_whole_numbers(self):
        assert set(drawn("units", (np.int64(3), np.int64(5)))) == {3, 4, 5}


class TestChoices:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("learning_rate", [1e-3, 1e-2, 1e-1]),
            ("weight_decay", [0.0, 1e-4]),
            ("units", [8, 16, 64]),
            ("activation", ["relu", "tanh", "gelu"]),
            ("bias", [True, False]),
        ],
    )
    def test_draws_are_the_values_and_all_of_them(self, name, values):
        assert set(drawn(name, values)) == set(values)

    def test_a_list_of_two_numbers_is_no_range(self):
        assert set(drawn("units", [3, 6])) == {3, 6}

    def test_a_weight_decay_may_hold_a_whole_zero(self):
        assert set(drawn("weight_decay", [0, 1e-4])) == {0, 1e-4}

    def test_rates_may_come_from_numpy(self):
        rates = list(np.logspace(-3, -1, 3))
        assert sorted(set(drawn("learning_rate", rates))) == pytest.approx([1e-3, 1e-2, 1e-1])

    @pytest.mark.parametrize("values", [[(1, 2), (3, 4)], [None, "l2"], ["relu", 3]])
    def test_values_that_the_engine_cannot_hold_are_refused_at_construction(self, values):
        with pytest.raises((tfkit.ArgumentError, tfkit.ArgumentTypeError), match=r"Received: kind=\["):
            SearchSpace(kind=values)


class TestSpace:
    def test_every_entry_is_read_by_its_name(self):
        hp = SearchSpace(
            learning_rate=(1e-3, 1e-1), weight_decay=[0.0], units=(2, 4), activation=["relu"]
        ).hyperparameters()
        assert [1e-3 <= hp.get("learning_rate") <= 1e-1, hp.get("weight_decay")] == [True, 0.0]
        assert [2 <= hp.get("units") <= 4, hp.get("activation")] == [True, "relu"]

    def test_gives_keras_tuners_own_kind(self):
        hp = SearchSpace(units=(2, 4)).hyperparameters()
        assert isinstance(hp, keras_tuner.HyperParameters)

    def test_gives_new_hyperparameters_at_every_call(self):
        space = SearchSpace(units=(2, 4))
        space.hyperparameters().Int("depth", 1, 2)
        assert [each.name for each in space.hyperparameters().space] == ["units"]

    def test_its_repr_makes_an_equal_space(self):
        space = SearchSpace(learning_rate=(1e-3, 1e-1), weight_decay=[0.0, 1e-4], kind=["a", "b"])
        assert eval(repr(space)).entries == space.entries

    def test_leaves_out_what_was_not_given(self):
        assert list(SearchSpace(weight_decay=[0.0, 0.1]).entries) == ["weight_decay"]


class TestRefusals:
    def test_an_empty_space(self):
        rule = r"at least one hyperparameter\. Received: an empty space\. Write SearchSpace\(learning_rate="
        with pytest.raises(tfkit.ArgumentError, match=rule):
            SearchSpace()

    @pytest.mark.parametrize(
        "value", [0.1, "0.1", (0.1,), (0.1, 0.2, 0.3), (0.1, "0.2"), (True, False), {0.1, 0.2}]
    )
    def test_an_entry_that_is_neither_range_nor_list(self, value):
        rule = r"must be a range \(low, high\) or a list of values to choose from\. Received: learning_rate="
        with pytest.raises(tfkit.ArgumentTypeError, match=rule):
            SearchSpace(learning_rate=value)

    @pytest.mark.parametrize("value", [(0.1, math.inf), (math.nan, 0.1)])
    def test_a_range_without_finite_ends(self, value):
        with pytest.raises((tfkit.ArgumentError, tfkit.ArgumentTypeError), match=r"Received: dropout=\("):
            SearchSpace(dropout=value)

    @pytest.mark.parametrize("value", [(0.2, 0.1), (0.1, 0.1)])
    def test_a_range_that_is_reversed_or_empty(self, value):
        rule = rf"A range must run from low to high\. Received: dropout=\({value[0]}, {value[1]}\)"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            SearchSpace(dropout=value)

    @pytest.mark.parametrize("name", LOGARITHMIC)
    @pytest.mark.parametrize("low", [0, -0.1])
    def test_a_logarithmic_range_that_is_not_positive(self, name, low):
        rule = rf"`{name}` is searched on a logarithmic scale.*Received: {name}=\({low}, 0\.1\)\. Use a list"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            SearchSpace(**{name: (low, 0.1)})

    def test_a_choice_of_nothing(self):
        rule = r"A choice must hold at least one value\. Received: units=\[\]"
        with pytest.raises(tfkit.ArgumentError, match=rule):
            SearchSpace(units=[])

    @pytest.mark.parametrize("name", LOGARITHMIC)
    @pytest.mark.parametrize("bad", [-0.1, "0.1", math.nan, None, True])
    def test_a_choice_of_what_is_no_rate(self, name, bad):
        rule = rf"`{name}` must be at least 0\. Received: {name}=\["
        with pytest.raises(tfkit.ArgumentError, match=rule):
            SearchSpace(**{name: [0.1, bad]})

    @pytest.mark.parametrize("name", ["trial", "status", "score", "best_epoch", "epochs", "seconds", "error"])
    def test_a_name_that_the_table_of_trials_uses_itself(self, name):
        with pytest.raises(tfkit.ArgumentError, match=rf"Received: .*{name}"):
            SearchSpace(**{name: (1, 5)})
