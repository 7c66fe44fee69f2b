"""Windows: counts of what was served in each period of a fixed length.

Time is whatever the caller passes as `now`, in seconds: nothing here reads a clock, so nothing waits in a test. Windows
follow one another from the moment the counter was made; one is filled, and the last complete one that saw any rows is
kept: its `start` and `end` tell how old it is. A `now` before the current window (a clock set back) counts into the
current one. One lock guards a counter: an `add` holds it for the few microseconds of counting.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.drift import bin_counts
from penstock.monitoring.profile import Profile

LARGE = 65_536
"""Values whose counting is worth an array of its own."""


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
        if not window_s > 0:
            raise ValueError(f"a window lasts more than 0 seconds, not {window_s}")
        self.reference = reference
        self.window_s = window_s
        self._lock = Lock()
        self._start = now
        self._rows = 0
        self._counts = reference.layout.counters()
        self._last: Window | None = None

    def add(self, matrix: NDArray[np.float32], now: float) -> None:
        """Count a batch, float32 `[n, k]` C-contiguous, NaN for missing.

        Raises:
            ValueError: the matrix is not of that kind or has another number of columns; nothing was counted.
        """
        layout = self.reference.layout
        if matrix.size > LARGE:  # counted apart, so that nobody waits for the lock meanwhile
            counts = layout.counters()
            bin_counts(matrix, layout.edges, layout.offsets, counts)
        with self._lock:
            self._rotate(now)
            if matrix.size > LARGE:
                self._counts += counts
            else:
                bin_counts(matrix, layout.edges, layout.offsets, self._counts)
            self._rows += len(matrix)

    def last(self, now: float) -> Window:
        """The last complete window that saw rows; before there is one, the current window."""
        with self._lock:
            self._rotate(now)
            return self._last or self._snapshot(complete=False)

    def current(self, now: float) -> Window:
        """What the current window has counted so far."""
        with self._lock:
            self._rotate(now)
            return self._snapshot(complete=False)

    def _rotate(self, now: float) -> None:
        """Close the current window if `now` lies beyond its end; periods nobody served in are passed over."""
        passed = (now - self._start) // self.window_s
        if not passed >= 1:
            return
        if self._rows:
            self._last = self._snapshot(complete=True)
            self._counts[:] = 0
            self._rows = 0
        self._start += passed * self.window_s

    def _snapshot(self, *, complete: bool) -> Window:
        counts = read_only(self._counts.copy())
        return Window(self._start, self._start + self.window_s, self._rows, counts, complete)


def read_only(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same array, which nobody may write to through it."""
    counts.flags.writeable = False
    return counts
