"""What a batch takes by its rows, measured while a version is loaded, and the size from which more rows gain nothing.

Sizes are powers of two up to the largest batch. They are measured in turn, round after round, so that a machine that
changes its speed changes it for all, and each gets the median of its rounds. Sizes whose two first runs would not fit
what is left of the budget are left out; the first size is always measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median_low

ROUNDS = 21
FIRST = 3
"""Runs of the first size that are always made: one alone may have met a stall."""
NEAR_PEAK = 0.98
"""A size this near to the most rows a second is as good: the smaller the batch, the sooner its calls are answered."""


@dataclass(frozen=True)
class Curve:
    """Nanoseconds of a batch by its rows.

    Attributes:
        rows: the sizes measured, ascending; none where nothing could be measured.
        ns: what a batch of each took.
        whole: whether every size that was wanted was measured.
        reason: why nothing was measured.
    """

    rows: tuple[int, ...] = ()
    ns: tuple[int, ...] = ()
    whole: bool = True
    reason: str = ""

    def cap(self, most: int) -> int:
        """The smallest size within 2 % of the most rows a second, at most `most`.

        It is `most` where the curve does not tell: nothing was measured, or rows a second still grew at the last size
        and more sizes were wanted.
        """
        rates = [rows / max(ns, 1) for rows, ns in zip(self.rows, self.ns, strict=True) if rows <= most]
        if not rates:
            return most
        best = next(i for i, rate in enumerate(rates) if rate >= NEAR_PEAK * max(rates))
        if best == len(rates) - 1 and not self.whole:
            return most
        return self.rows[best]


def sizes_to(most: int) -> list[int]:
    """1, 2, 4 … and `most`."""
    return [*(1 << i for i in range(most.bit_length()) if 1 << i < most), most]


def measure(run: Callable[[int], int], sizes: Sequence[int], budget_ns: int) -> Curve:
    """Measure each size.

    Args:
        run: runs a batch of so many rows and gives the nanoseconds it took.
        sizes: ascending.
        budget_ns: of all runs together.
    """
    taken: dict[int, list[int]] = {}
    left, row_ns = budget_ns, 0
    for size in sizes:
        if taken and 2 * size * row_ns > left:
            break
        left -= run(size)  # the first run of a size allocates what the others use
        taken[size] = [run(size) for _ in range(1 if taken else FIRST)]
        left -= sum(taken[size])
        row_ns = min(taken[size]) // size
    for _ in range(ROUNDS - 1):
        for size, times in taken.items():
            if times[0] > left:
                continue
            times.append(run(size))
            left -= times[-1]
    return Curve(tuple(taken), tuple(map(median_low, taken.values())), whole=len(taken) == len(sizes))
