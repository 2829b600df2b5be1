"""The schedule of datasets: exact shares, evenly spread, from any position."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inflate3d.data.stream.mixture import MAX_CYCLE, Mixture, tempered
from inflate3d.errors import InputError

WEIGHTS = st.dictionaries(st.text("abcdef", min_size=1, max_size=2), st.integers(1, 30), min_size=1, max_size=6)


def test_the_reference_recipe_is_two_to_one_to_one():
    mixture = Mixture({"k400": 2, "liver": 1, "organ": 1})
    assert [mixture.at(m)[0] for m in range(8)] == ["k400", "liver", "organ", "k400"] * 2
    assert mixture.shares == {"k400": 0.5, "liver": 0.25, "organ": 0.25}


@given(WEIGHTS)
@settings(max_examples=60, deadline=None)
def test_each_turn_counts_the_turns_before_it(weights):
    mixture, seen = Mixture(weights), Counter()
    for m in range(3 * mixture.cycle):
        name, number = mixture.at(m)
        assert number == seen[name]
        seen[name] += 1
    assert {name: seen[name] / (3 * mixture.cycle) for name in weights} == pytest.approx(mixture.shares)


@given(WEIGHTS)
@settings(max_examples=60, deadline=None)
def test_turns_are_spread_evenly(weights):
    mixture, seen = Mixture(weights), Counter()
    for m in range(mixture.cycle):
        seen[mixture.at(m)[0]] += 1
        for name, share in mixture.shares.items():
            assert abs(seen[name] - share * (m + 1)) <= len(weights)


def test_fractions_mean_what_is_written():
    assert Mixture({"a": 0.7, "b": 0.2, "c": 0.1}).counts == [7, 2, 1]
    assert Mixture({"a": 0.1, "b": 0.1}).cycle == 2


def test_odd_weights_are_rounded_to_a_cycle_of_bounded_length():
    mixture = Mixture({"a": 3.14159265, "b": 2.71828182, "c": 1e-9})
    assert mixture.cycle <= MAX_CYCLE + 3
    assert mixture.shares["a"] == pytest.approx(3.14159265 / 5.85987447, abs=2 / MAX_CYCLE)
    assert mixture.counts[2] == 1


def test_position_far_ahead_costs_nothing():
    assert Mixture({"a": 2, "b": 1}).at(3 * 10**15) == ("a", 2 * 10**15)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_no_share_is_refused(weight):
    with pytest.raises(InputError, match=r"data.datasets.liver.weight is .*set it to null"):
        Mixture({"k400": 1, "liver": weight})


def test_no_dataset_is_refused():
    with pytest.raises(InputError, match="name at least one"):
        Mixture({})


def test_a_temperature_weighs_datasets_by_a_power_of_their_size():
    sizes = {"large": 900.0, "small": 100.0}
    explicit = {"large": 1.0, "small": 1.0}
    assert Mixture(tempered(explicit, sizes, 1)).counts == [9, 1]
    assert Mixture(tempered(explicit, sizes, 2)).counts == [3, 1]
    assert Mixture(tempered(explicit, sizes, float("inf"))).counts == [1, 1]
    assert Mixture(tempered({"large": 1.0, "small": 3.0}, sizes, 2)).counts == [1, 1]
    assert tempered(explicit, sizes, None) == explicit


@given(st.floats(0.01, 1e6), st.floats(1, 1e12), st.floats(1, 1e12))
@settings(max_examples=60, deadline=None)
def test_any_temperature_gives_a_schedule_with_every_dataset(temperature, a, b):
    mixture = Mixture({n: max(w, 1e-12) for n, w in tempered({"a": 1, "b": 1}, {"a": a, "b": b}, temperature).items()})
    assert min(mixture.counts) >= 1


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), True, "2"])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(InputError, match=r"data.temperature is .*expected a number above 0, or null"):
        tempered({"a": 1.0}, {"a": 1.0}, temperature)
