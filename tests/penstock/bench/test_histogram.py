"""Percentiles are within 0.4 % of the exact ones, and histograms add up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.histogram import BUCKETS, EDGES, MIDDLES, RELATIVE_ERROR, Histogram

DURATIONS = st.lists(st.integers(0, 2**39) | st.integers(0, 5000), min_size=1, max_size=200)
PERCENTS = st.lists(st.sampled_from([0, 1, 25, 50, 90, 95, 99, 99.9, 99.99, 100]), min_size=1)


@given(DURATIONS, PERCENTS)
def test_a_percentile_is_as_near_the_exact_one_as_is_said(durations, percents):
    got = Histogram.of(durations).percentiles(percents)
    exact = np.percentile(durations, percents, method="inverted_cdf")
    assert np.allclose(got, exact, rtol=RELATIVE_ERROR, atol=0)


def test_percentiles_of_a_known_distribution():
    values = np.random.default_rng(7).lognormal(12, 1.5, 200_000)
    got = Histogram.of(values.astype(np.int64)).percentiles([50, 99, 99.99])
    assert got == pytest.approx(np.quantile(values, [0.5, 0.99, 0.9999]), rel=0.005)


@given(DURATIONS, DURATIONS)
def test_a_difference_of_readings_is_what_happened_between(before, after):
    first = Histogram.of(before)
    both = first + Histogram.of(after)
    assert np.array_equal((both - first).counts, Histogram.of(after).counts)
    assert both.total == len(before) + len(after)


def test_every_bucket_is_narrow_and_follows_the_one_before():
    widths = np.diff(EDGES)
    assert len(widths) == BUCKETS
    assert (widths > 0).all()
    assert (widths[EDGES[:-1] >= 256] / EDGES[:-1][EDGES[:-1] >= 256] <= 1 / 128).all()
    assert (EDGES[:-1] <= MIDDLES).all()
    assert (EDGES[1:] > MIDDLES).all()


def test_nothing_has_no_percentile_and_what_is_too_long_is_the_longest():
    assert np.isnan(Histogram().percentile(50))
    assert np.isnan(Histogram().share_within(5))
    assert Histogram.of([2**50]).maximum == pytest.approx(2**40, rel=0.01)
    assert Histogram.of([-5]).maximum == 0


def test_the_share_within_a_time():
    assert Histogram.of([10, 20, 30, 10**9]).share_within(1e6) == 0.75
