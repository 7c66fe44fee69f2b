"""Drift statistics: equal to scipy's on the same bins, and sensible at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from penstock.monitoring import DriftCounter, Profile, compare, smoothed


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def drift_of(reference, current):
    """The drift of one column."""
    profile = Profile.of(np.asarray(reference, np.float32).reshape(-1, 1), ["x"])
    return compare(profile, window_of(profile, np.asarray(current, np.float32).reshape(-1, 1)))[0]


def window_of(profile, matrix):
    counter = DriftCounter(profile, window_s=60, now=0)
    counter.add(matrix, now=1)
    return counter.last(now=1)


def test_the_same_rows_have_no_drift(rng):
    values = rng.standard_normal(500)
    drift = drift_of(values, values)
    assert (drift.ks, drift.ks_pvalue, drift.kl, drift.psi) == (0, 1, 0, 0)


def test_each_statistic_equals_its_formula_on_the_bins(rng):
    reference, current = rng.standard_normal(2000), rng.standard_normal(700) + 0.2
    profile = Profile.of(reference.astype(np.float32).reshape(-1, 1), ["x"])
    window = window_of(profile, current.astype(np.float32).reshape(-1, 1))
    drift = compare(profile, window)[0]

    before, after = profile.counts[:-1], window.counts[:-1]
    ks = np.abs(np.cumsum(before) / 2000 - np.cumsum(after) / 700).max()
    r, c = (before + 0.5) / (2000 + 10), (after + 0.5) / (700 + 10)
    assert drift.ks == pytest.approx(ks, abs=1e-12)
    assert drift.ks_pvalue == pytest.approx(special.kolmogorov(ks * np.sqrt(2000 * 700 / 2700)), rel=1e-12)
    assert drift.kl == pytest.approx(special.rel_entr(c, r).sum(), abs=1e-12)
    assert drift.psi == pytest.approx(((c - r) * np.log(c / r)).sum(), abs=1e-12)


def test_the_p_value_on_bins_is_never_below_that_of_the_values(rng):
    for shift in (0, 0.02, 0.1, 0.5):
        reference = rng.standard_normal(3000).astype(np.float32)
        current = (rng.standard_normal(3000) + shift).astype(np.float32)
        on_values = stats.ks_2samp(reference, current, method="asymp").pvalue
        assert drift_of(reference, current).ks_pvalue >= on_values * (1 - 1e-9)


def test_the_shifted_column_stands_out_among_the_others(rng):
    reference = rng.standard_normal((5000, 4)).astype(np.float32)
    current = rng.standard_normal((1000, 4)).astype(np.float32)
    current[:, 2] += 1
    profile = Profile.of(reference, ["a", "b", "c", "d"])
    drifts = {drift.name: drift for drift in compare(profile, window_of(profile, current))}
    assert drifts["c"].ks_pvalue < 1e-12
    assert drifts["c"].psi > 0.2
    assert all(drifts[name].ks_pvalue > 1e-3 and drifts[name].psi < 0.1 for name in "abd")


def test_a_constant_that_moves_either_way_is_seen():
    for moved in (4, 6):
        drift = drift_of([5.0] * 100, [moved] * 100)
        assert drift.ks == 1
        assert np.isfinite([drift.kl, drift.psi]).all()


def test_shares_never_seen_before_are_smoothed_by_half_a_row_a_bin():
    assert smoothed(np.array([0, 3], dtype=np.int64)).tolist() == [0.125, 0.875]


def test_missing_values_are_shares_of_rows_and_leave_the_distances_alone(rng):
    values = rng.standard_normal(300)
    drift = drift_of(np.append(values, [np.nan] * 100), np.append(values, [np.nan] * 300))
    assert (drift.missing_reference, drift.missing_current, drift.rows) == (0.25, 0.5, 600)
    assert (drift.ks, drift.psi) == (0, 0)


@pytest.mark.parametrize(
    ("reference", "current"), [([np.nan] * 5, [1.0]), ([1.0, 2.0], [np.nan]), ([1.0, 2.0], []), ([np.nan], [np.nan])]
)
def test_a_side_without_values_has_no_distance(reference, current):
    drift = drift_of(reference, current)
    assert np.isnan([drift.ks, drift.ks_pvalue, drift.kl, drift.psi]).all()
    assert np.isnan(drift.missing_current) == (not current)


def test_a_window_over_other_bins_is_refused():
    profile = Profile.of(np.zeros((2, 1), np.float32), ["x"])
    other = Profile.of(np.arange(2, dtype=np.float32).reshape(-1, 1), ["x"])
    with pytest.raises(ValueError, match="not of this profile"):
        compare(profile, window_of(other, np.zeros((1, 1), np.float32)))
