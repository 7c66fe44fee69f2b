"""Schedules have exactly the rate that was asked for, and Poisson arrivals are Poisson."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.arrivals import MANY, schedule


@given(st.floats(0.1, 500_000), st.sampled_from(["constant", "poisson"]))
def test_a_schedule_has_its_rate_and_ascends_within_its_period(rate, arrivals):
    offsets, period = schedule(arrivals, rate, 1)
    assert len(offsets) / period * 1e9 == pytest.approx(rate, rel=1e-6)
    assert (np.diff(offsets) >= 0).all()
    assert 0 <= offsets[0] <= offsets[-1] < period
    assert len(offsets) <= MANY


@given(st.floats(1, 100_000))
def test_constant_arrivals_are_even_over_the_end_of_the_period_too(rate):
    offsets, period = schedule("constant", rate, 1)
    gaps = np.diff(np.append(offsets, period + offsets[0]))
    assert gaps.max() - gaps.min() <= 1


def test_poisson_gaps_are_exponential():
    from scipy import stats

    offsets, _ = schedule("poisson", 20_000, 3)
    assert stats.kstest(np.diff(offsets) / 50_000, "expon").pvalue > 0.01
    counts = np.histogram(offsets, bins=10_000)[0]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.06)  # a Poisson count's variance is its mean


def test_a_seed_gives_one_schedule():
    first, again, other = (schedule("poisson", 1000, seed).offsets for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
