"""The search finds the highest rate that holds, by as few probes as its precision needs, however noisy they are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.search import LEAST, MOST, Search

PRECISIONS = st.sampled_from([0.01, 0.05, 0.2])
RATES = st.floats(2.0, 5_000_000.0)


def latency(rate, capacity):
    """Of a queue with one server: it grows without bound towards its capacity."""
    return 1 / (capacity - rate) if rate < capacity else math.inf


def searched(start, precision, holds):
    """The end of a search, and the rates it tried."""
    search, tried = Search(start, precision), []
    while (rate := search.rate) is not None:
        tried.append(rate)
        assert len(tried) < 200, "it does not end"
        assert search.held < rate < search.missed or rate in {LEAST, MOST}
        search = search.after(held=holds(rate))
    return search, tried


@given(st.floats(0.5, 10_000_000.0), PRECISIONS, RATES)
def test_the_rate_found_holds_and_one_a_little_higher_does_not(start, precision, capacity):
    search, tried = searched(start, precision, lambda rate: rate <= capacity)
    assert search.held <= capacity < search.missed
    assert search.missed <= search.held * (1 + precision)
    steps = abs(math.log(start / capacity)) / math.log(1.5) + math.log2(1 / precision)
    assert len(tried) <= 2 * steps + 6


@given(st.floats(0.5, 10_000_000.0), PRECISIONS, RATES, st.floats(1.0, 4.0), st.data())
def test_noise_of_a_factor_moves_the_limit_by_that_factor_at_most(start, precision, capacity, factor, data):
    """What is found is true of the limit times the factor, or over it, whatever noise there is within."""
    limit = 20 / capacity  # which holds up to 95 % of the capacity
    noise = st.floats(1 / factor, factor)
    search, _ = searched(start, precision, lambda rate: latency(rate, capacity) * data.draw(noise) <= limit)
    if search.held:
        assert latency(search.held, capacity) <= limit * factor * 1.000001
    if math.isfinite(search.missed):
        assert latency(search.missed, capacity) >= limit / factor * 0.999999
    assert search.missed <= max(search.held * (1 + precision), LEAST)


@given(st.floats(100.0, 1_000_000.0), PRECISIONS, RATES, st.integers(0, 30))
def test_one_accident_of_the_machine_changes_nothing(start, precision, capacity, when):
    """A stall makes one probe miss that would hold: the rate is tried once more."""
    probes = iter(range(1000))
    search, _ = searched(start, precision, lambda rate: rate <= capacity and next(probes) != when)
    assert search.held <= capacity < search.missed
    assert search.missed <= search.held * (1 + precision)


def test_a_miss_by_far_is_not_tried_again():
    search = Search(100).after(held=False, by_far=True)
    assert (search.missed, search.rate) == (100, 50)
    assert Search(100).after(held=False).rate == 100


def test_where_nothing_holds_or_everything_does_the_search_ends():
    assert searched(1000, 0.05, lambda _: False)[0].held == 0
    search, _ = searched(1000, 0.05, lambda _: True)
    assert (search.held, search.missed) == (MOST, math.inf)


def test_a_search_that_is_over_takes_no_more():
    search, _ = searched(100, 0.05, lambda rate: rate < 300)
    with pytest.raises(ValueError, match="is over"):
        search.after(held=True)
