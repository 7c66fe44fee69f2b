"""Windows: counts of what was served in each period of a fixed length.

Time is whatever the caller passes as `now`, in seconds: nothing here reads a clock, so nothing waits in a test. Windows
follow one another from the moment the counter was made; one is filled, and the last complete one that saw any rows is
kept: its `start` and `end` tell how old it is. A `now` before the current window (a clock set back) counts into the
current one. Counting itself is `kernels.windows`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.windows import Windows
from penstock.monitoring.profile import Profile

if TYPE_CHECKING:
    from penstock.kernels.windows import Counted


@dataclass(frozen=True, eq=False)
class Window:
    """Counts of one period `[start, end)`, over the bins of one profile."""

    start: float  # seconds, on the caller's clock
    end: float
    rows: int
    counts: NDArray[np.int64]  # read-only, laid out as Profile.counts
    complete: bool  # False: rows may still be added to this period

    def __add__(self, other: Window) -> Window:
        """Both together, exactly: of two workers, or of two periods. Complete if both are.

        Raises:
            ValueError: they were counted over different bins.
        """
        if self.counts.shape != other.counts.shape:
            raise ValueError(f"windows of {len(self.counts)} and {len(other.counts)} counters cannot be added")
        start, end = min(self.start, other.start), max(self.end, other.end)
        counts = read_only(self.counts + other.counts)
        return Window(start, end, self.rows + other.rows, counts, self.complete and other.complete)


class DriftCounter:
    """Counts batches into the bins of a reference, window by window; safe from many threads.

    Args:
        reference: the profile whose bins are counted.
        window_s: length of a window in seconds, above 0.
        now: when the first window starts.
    """

    def __init__(self, reference: Profile, window_s: float, now: float) -> None:
        self.reference = reference
        self.windows = Windows(reference.layout.edges, reference.layout.offsets, window_s, now)

    def add(self, matrix: NDArray[np.float32], now: float) -> None:
        """Count a batch, float32 `[n, k]` C-contiguous, NaN for missing.

        Raises:
            ValueError: the matrix is not of that kind or has another number of columns; nothing was counted.
        """
        self.windows.add(matrix, now)

    def last(self, now: float) -> Window:
        """The last complete window that saw rows; before there is one, the current window."""
        return self._window(self.windows.last(now))

    def current(self, now: float) -> Window:
        """What the current window has counted so far."""
        return self._window(self.windows.current(now))

    def _window(self, counted: Counted) -> Window:
        start, rows, counts, complete = counted
        return Window(start, start + self.windows.window_s, rows, read_only(counts), complete)


def read_only(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same array, which nobody may write to through it."""
    counts.flags.writeable = False
    return counts
