"""Statistics: how far a window's counts are from the reference's, column by column.

All are taken over the bins of present values; missing ones are told apart, as shares of rows. With counts `r` of the
reference and `c` of the window over `b` bins:

- KS: the largest difference of the two CDFs at the bins' edges, never more than the distance of the values themselves.
  Its p-value is Smirnov's two-sample asymptotic (the limit for large samples) at the full sample sizes. On binned data
  that is conservative: it comes out larger than the values themselves would give, and false alarms are rarer than the
  level stated.
- KL and PSI take logarithms of shares, so an empty bin would make them infinite. Half a row is therefore added to each
  bin of either side before shares are taken: `(count + 1/2) / (rows + b/2)`, the expected share under Jeffreys' prior.
  Nothing else is smoothed, and KS is not.
- KL is the divergence of the window from the reference, sum of c ln(c / r), in nats; PSI the sum of (c - r) ln(c / r).

Under no drift PSI is about (b - 1)(1/n + 1/m), so a fixed limit such as 0.2 says nothing on a few hundred rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import nan

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.drift import kl_divergence, ks_counts, ks_limit, psi
from penstock.monitoring.profile import Profile
from penstock.monitoring.windows import Window

ADDED_TO_EACH_BIN = 0.5


@dataclass(frozen=True)
class FeatureDrift:
    """One column's distances; NaN for all four where either side has no present value."""

    name: str
    rows: int  # of the window, missing values included
    ks: float  # 0 to 1
    ks_pvalue: float
    kl: float  # nats
    psi: float
    missing_reference: float  # share of rows, NaN without rows
    missing_current: float


def compare(profile: Profile, window: Window) -> list[FeatureDrift]:
    """The drift of every column, in the profile's order.

    Raises:
        ValueError: the window was counted over the bins of another profile.
    """
    if window.counts.shape != profile.counts.shape:
        raise ValueError(f"a window of {len(window.counts)} counters is not of this profile's {len(profile.counts)}")
    before, after = (profile.layout.split(counts) for counts in (profile.counts, window.counts))
    return [compare_column(*column) for column in zip(profile.names, before, after, strict=True)]


def compare_column(name: str, reference: NDArray[np.int64], current: NDArray[np.int64]) -> FeatureDrift:
    """The drift of one column from its counters, the last of which is the missing values'."""
    distances = compare_bins(reference[:-1], current[:-1])
    return FeatureDrift(name, int(current.sum()), *distances, missing_share(reference), missing_share(current))


def compare_bins(reference: NDArray[np.int64], current: NDArray[np.int64]) -> tuple[float, float, float, float]:
    """KS, its p-value, KL and PSI of two sets of counts over the same bins."""
    n, m = int(reference.sum()), int(current.sum())
    if n == 0 or m == 0:
        return nan, nan, nan, nan
    ks = ks_counts(reference, current)
    before, after = smoothed(reference), smoothed(current)
    return ks, ks_limit(ks, n, m), kl_divergence(after, before), psi(before, after)


def smoothed(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Shares that sum to 1, none of them 0: half a row is added to each bin."""
    added = counts + ADDED_TO_EACH_BIN
    shares: NDArray[np.float64] = added / added.sum()
    return shares


def missing_share(counters: NDArray[np.int64]) -> float:
    """The share of rows without a value."""
    rows = int(counters.sum())
    return int(counters[-1]) / rows if rows else nan
