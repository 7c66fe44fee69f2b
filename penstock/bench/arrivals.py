"""When requests of an open loop are due: offsets within a period that is repeated.

Constant arrivals are evenly spaced. Poisson arrivals are a Poisson process given how many there are in a period: so
many points, uniform and sorted. The rate is thus exact, and the period is long: at least ten seconds, or a million
requests.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

LONG_S, MANY = 10.0, 1_000_000
SECOND = 1_000_000_000


class Schedule(NamedTuple):
    """`offsets` ascend within [0, period_ns), in ns."""

    offsets: npt.NDArray[np.int64]
    period_ns: int


def schedule(arrivals: str, rate: float, seed: int) -> Schedule:
    """The schedule of so many requests a second, "constant" or "poisson"."""
    count = max(1, min(round(rate * LONG_S), MANY))
    period = round(count / rate * SECOND)
    if arrivals == "constant":
        return Schedule(np.arange(count, dtype=np.int64) * period // count, period)
    drawn = np.random.default_rng(seed).uniform(0, period, count)
    return Schedule(np.sort(drawn.astype(np.int64)), period)
