"""What `kernels.drift` must equal: clear numpy, and whole numbers where the kernel uses floats.

`ks_2samp` counts every lattice path with Python's integers, so its p-value is exact, and slow (n * m additions of
long numbers): for samples of a few hundred.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

EXACT_UP_TO = 10_000


def bin_counts(
    x: NDArray[np.float32], edges: NDArray[np.float32], offsets: NDArray[np.int32], counts: NDArray[np.int64]
) -> None:
    """Add a batch to the counters of its columns: bins closed on the right, then NaN."""
    for j, (first, last) in enumerate(pairwise(offsets)):
        missing = np.isnan(x[:, j])
        bins = np.searchsorted(edges[first:last], x[~missing, j], side="left")
        counters = counts[first + 2 * j : last + 2 * j + 2]
        counters[:-1] += np.bincount(bins, minlength=last - first + 1)
        counters[-1] += missing.sum()


def ks_2samp(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Smirnov's distance and its two-sided p-value."""
    if len(a) == 0 or len(b) == 0 or np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("samples must hold at least one value and no NaN")
    distance = ks_distance(a, b)
    if max(len(a), len(b)) > EXACT_UP_TO:
        return float(distance), ks_asymptotic(float(distance), len(a), len(b))
    return float(distance), float(ks_exact(distance, len(a), len(b)))


def ks_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> Fraction:
    """The largest difference of the empirical CDFs, at any value of either sample."""
    places = np.unique(np.concatenate([a, b]))
    below_a = np.searchsorted(np.sort(a), places, side="right")
    below_b = np.searchsorted(np.sort(b), places, side="right")
    gaps = below_a.astype(np.int64) * len(b) - below_b.astype(np.int64) * len(a)
    return Fraction(int(np.abs(gaps).max()), len(a) * len(b))


def ks_exact(distance: Fraction, n: int, m: int) -> Fraction:
    """1 - the share of lattice paths from (0, 0) to (n, m) with |i/n - j/m| < distance throughout (Hodges 1958)."""
    if distance == 0:
        return Fraction(1)
    border = int(distance * n * m)
    paths = [0] * (m + 1)
    for i in range(n + 1):
        for j in range(m + 1):
            left = paths[j - 1] if j else int(i == 0)
            up = paths[j] if i else 0
            paths[j] = left + up if abs(i * m - j * n) < border else 0
    return 1 - Fraction(paths[m], comb(n + m, n))


def ks_asymptotic(distance: float, n: int, m: int) -> float:
    """Kolmogorov's one-sample distribution at the size n m / (n + m), rounded half to even."""
    from scipy.stats import kstwo

    return float(np.clip(kstwo.sf(distance, np.round(n * m / (n + m))), 0, 1))


def ks_limit(distance: float, n: int, m: int) -> float:
    """Kolmogorov's limiting distribution, by the series 2 sum (-1)^(k-1) exp(-2 k^2 x^2)."""
    x = distance * np.sqrt(n * m / (n + m))
    if x < 0.04:  # the series needs ever more terms, and the answer is 1
        return 1.0
    k = np.arange(1, 200)
    return float(np.clip(2 * np.sum((-1.0) ** (k - 1) * np.exp(-2 * (k * x) ** 2)), 0, 1))


def ks_counts(reference: NDArray[np.int64], current: NDArray[np.int64]) -> float:
    """The largest distance of the CDFs at the borders of the bins."""
    difference = np.cumsum(reference) / reference.sum() - np.cumsum(current) / current.sum()
    return float(np.abs(difference).max())


def kl_divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """The sum of p ln(p / q), with 0 ln 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where((p > 0) & (q > 0), p * (np.log(p) - np.log(q)), np.inf)
    terms[(p == 0) & (q >= 0)] = 0
    terms[np.isnan(p) | np.isnan(q)] = np.nan
    return float(terms.sum())


def psi(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """The sum of (q - p) ln(q / p); a bin empty on both sides adds nothing."""
    seen = (p != 0) | (q != 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(((q - p) * np.log(q / p))[seen].sum())


__all__ = ["bin_counts", "kl_divergence", "ks_2samp", "ks_asymptotic", "ks_counts", "ks_limit", "psi"]
