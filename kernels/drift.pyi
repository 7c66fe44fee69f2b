"""Drift: counting a batch into fixed bins, and the distances between two samples or two sets of counts."""

import numpy as np
from numpy.typing import NDArray

def bin_counts(
    x: NDArray[np.float32],
    edges: NDArray[np.float32],
    offsets: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> None:
    """Add a batch to the counters of its columns.

    Column `j` has the ascending edges `e = edges[offsets[j]:offsets[j + 1]]`, `m` of them, and `m + 2` counters from
    `offsets[j] + 2 * j`: bins `(-inf, e[0]]`, `(e[0], e[1]]`, ..., `(e[m-1], inf)`, then NaN.

    Args:
        x: float32 `[n, k]`, C-contiguous; any values.
        edges: float32 `[total]`, ascending in each column (not checked here: `monitoring.Profile` does).
        offsets: int32 `[k + 1]`, from 0 to `total`, never falling.
        counts: int64 `[total + 2 * k]`, added to. Two threads must not add to the same counters at once.

    Raises:
        ValueError: a shape or dtype does not fit.
    """

def ks_2samp(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Smirnov's two-sample test, two-sided: the largest distance of the empirical CDFs and its p-value.

    Equal to `scipy.stats.ks_2samp` (method "auto"). The p-value is exact while both samples hold at most 10,000 values
    (J. L. Hodges, "The significance probability of the Smirnov two-sample test", Arkiv foer Matematik 3 (1958) 469-486;
    equal sizes by the series of Gnedenko and Korolyuk (1951) in O(sqrt(n)), others by counting lattice paths in
    O(n m D)), else `ks_asymptotic`. Infinities are ordinary values. Where rounding takes scipy's exact sum above 1 it
    warns and answers with the asymptote; here the p-value then is 1, which is true to rounding.

    Args:
        a: float64 `[n]`, contiguous, 1 to 2**31 - 1 values.
        b: float64 `[m]`, likewise.

    Raises:
        ValueError: a sample is empty, too large, holds NaN or has another dtype.
    """

def ks_asymptotic(distance: float, n: int, m: int) -> float:
    """The p-value of Smirnov's distance between large samples of `n` and `m` values, as `scipy.stats.ks_2samp` has it.

    Kolmogorov's one-sample distribution at the size `n m / (n + m)`, rounded half to even. Imports scipy.stats, and
    takes tens of milliseconds at sizes around 100,000.

    Raises:
        ValueError: a sample is empty.
    """

def ks_limit(distance: float, n: int, m: int) -> float:
    """The limit of that p-value for large samples: `scipy.special.kolmogorov(distance * sqrt(n m / (n + m)))`.

    Smirnov (1939). Slightly larger than `ks_asymptotic`, the more so the smaller the samples; under a microsecond.

    Raises:
        ValueError: a sample is empty.
    """

def ks_counts(reference: NDArray[np.int64], current: NDArray[np.int64]) -> float:
    """The largest distance of two CDFs at the borders of common bins; int64 `[b]` counts each.

    Never more than the distance of the values themselves, since borders are some of the places where they are compared.

    Raises:
        ValueError: lengths differ, a count is negative, or a side has no counts at all.
    """

def kl_divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence of `p` from `q` in nats: the sum of `scipy.special.rel_entr(p, q)`.

    Shares are float64 `[b]`, used as given: not normalised, not smoothed. Infinite where `q` is 0 and `p` is not.

    Raises:
        ValueError: lengths differ.
    """

def psi(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Population stability index of two sets of shares, float64 `[b]`: the sum of `(q - p) ln(q / p)`.

    Symmetric; equal to KL(p, q) + KL(q, p). A bin that is 0 on both sides adds nothing; on one
    side it makes the sum infinite, so smooth first.

    Raises:
        ValueError: lengths differ.
    """
