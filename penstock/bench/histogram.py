"""Durations counted in buckets, as an HDR histogram does: any percentile to within 0.4 %, in 35 kB, mergeable exactly.

Each power of two has 128 buckets, so none is wider than 1/128 of its lower edge; a percentile is the middle of the
bucket it falls into. Below 256 ns buckets are single nanoseconds; what takes longer than 18 minutes counts as that
long. `kernels/_samples.pxd` puts durations into the same buckets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

FINE_BITS, LONGEST_BITS = 7, 40
BUCKETS = ((LONGEST_BITS - FINE_BITS - 1) << FINE_BITS) + (2 << FINE_BITS)
RELATIVE_ERROR = 0.5 / 2**FINE_BITS
"""At most so far is a percentile from the true one."""

Counts = npt.NDArray[np.uint64]


def _edges() -> npt.NDArray[np.int64]:
    """The lower edge of each bucket, and the upper one of the last."""
    index = np.arange(BUCKETS + 1, dtype=np.int64)
    shift = np.maximum((index >> FINE_BITS) - 1, 0)
    edges: npt.NDArray[np.int64] = (index - (shift << FINE_BITS)) << shift
    return edges


EDGES = _edges()
MIDDLES = (EDGES[:-1] + EDGES[1:] - 1) / 2


def empty() -> Counts:
    """Counters of nothing."""
    return np.zeros(BUCKETS, np.uint64)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many durations fell into each bucket; see EDGES, in ns."""

    counts: Counts = field(default_factory=empty)

    @classmethod
    def of(cls, durations: Iterable[int] | npt.NDArray[Any]) -> Self:
        """Count durations in ns; negative ones are none at all."""
        values = np.clip(np.asarray(durations, np.int64), 0, EDGES[-1] - 1)
        buckets = np.searchsorted(EDGES, values, side="right") - 1
        return cls(np.bincount(buckets, minlength=BUCKETS).astype(np.uint64))

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def maximum(self) -> float:
        """The longest, in ns; NaN where there is none."""
        return self.percentile(100.0)

    def percentile(self, percent: float) -> float:
        """The duration in ns that `percent` of all do not exceed (nearest rank); NaN where there is none."""
        return self.percentiles([percent])[0]

    def percentiles(self, percents: Iterable[float]) -> list[float]:
        """Several at once; see `percentile`."""
        running = np.cumsum(self.counts)
        total = int(running[-1])
        if not total:
            return [float("nan") for _ in percents]
        ranks = [min(max(int(np.ceil(percent / 100 * total - 1e-6)), 1), total) for percent in percents]
        return [float(value) for value in MIDDLES[np.searchsorted(running, np.array(ranks, np.uint64))]]

    def share_within(self, ns: float) -> float:
        """The share of durations up to `ns`, by the middle of their bucket; NaN where there are none."""
        return float(self.counts[ns >= MIDDLES].sum()) / self.total if self.total else float("nan")

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(self.counts + other.counts)

    def __sub__(self, earlier: Histogram) -> Histogram:
        """What was counted since; `earlier` is a reading of the same counters."""
        return Histogram(self.counts - earlier.counts)
