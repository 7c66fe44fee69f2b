"""Which rate to try next, when the highest one that holds is looked for: a value without a clock or a server.

Rates grow by half until one misses, or halve until one holds; then the middle of what held and what missed is tried
until both are within `precision` of each other. Latency is noisy, and a false miss would end far too low: a rate misses
only once it has missed twice in a row, unless it missed by far. A rate that held once has held. So where measured
latency is within a factor f of the true one, the rate found has a true latency of at most f times the limit, and one
that is `precision` higher has at least the f-th part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Self

LEAST, MOST = 1.0, 10_000_000.0  # requests a second
GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Search:
    """How far the search has come; rates are requests a second.

    Attributes:
        start: the rate to try first.
        precision: how close to what held the lowest rate that missed must be, as a share.
        held: the highest rate that held; 0 while there is none.
        missed: the lowest that missed; infinite while there is none.
        doubted: one that missed once and is tried again; 0 where there is none.
    """

    start: float
    precision: float = 0.05
    held: float = 0.0
    missed: float = math.inf
    doubted: float = 0.0

    @property
    def rate(self) -> float | None:
        """The rate to try now; None where the search is over."""
        if self.doubted:
            return self.doubted
        if self.missed <= self.held * (1 + self.precision) or self.held >= MOST or self.missed <= LEAST:
            return None
        if self.held and math.isfinite(self.missed):
            return math.sqrt(self.held * self.missed)
        if self.held:
            return min(self.held * GROWTH, MOST)
        if math.isfinite(self.missed):
            return max(self.missed / 2, LEAST)
        return min(max(self.start, LEAST), MOST)

    def after(self, *, held: bool, by_far: bool = False) -> Self:
        """What to do once `rate` held or missed; `by_far` where there is no doubt that it misses."""
        tried = self.rate
        if tried is None:
            raise ValueError("the search is over")
        if held:
            return replace(self, held=tried, doubted=0.0)
        if self.doubted or by_far:
            return replace(self, missed=tried, doubted=0.0)
        return replace(self, doubted=tried)
