"""What `kernels.windows` must equal: the same rules in numpy, for one thread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.reference.drift import bin_counts

Counted = tuple[float, int, NDArray[np.int64], bool]


class Windows:
    """Counts batches into bins, window by window."""

    def __init__(self, edges: NDArray[np.float32], offsets: NDArray[np.int32], window_s: float, now: float) -> None:
        if not window_s > 0:
            raise ValueError(f"a window lasts more than 0 seconds, not {window_s:g}")
        if offsets[0] != 0 or offsets[-1] != len(edges) or (np.diff(offsets) < 0).any():
            raise ValueError(f"offsets must run from 0 to {len(edges)} and never fall")
        self.window_s = window_s
        self.columns = len(offsets) - 1
        self._edges, self._offsets = edges, offsets
        self._start, self._rows = now, 0
        self._counts = np.zeros(len(edges) + 2 * self.columns, np.int64)
        self._last: Counted | None = None

    def add(self, x: NDArray[np.float32], now: float) -> None:
        """Count a batch."""
        if x.dtype != np.float32 or x.shape[1] != self.columns:
            raise ValueError(f"{self.columns} columns of float32 are counted")
        self._rotate(now)
        bin_counts(x, self._edges, self._offsets, self._counts)
        self._rows += len(x)

    def current(self, now: float) -> Counted:
        """What the current window has counted so far."""
        self._rotate(now)
        return self._start, self._rows, self._counts.copy(), False

    def last(self, now: float) -> Counted:
        """The last complete window that saw rows; before there is one, the current window."""
        self._rotate(now)
        return self._last or self.current(now)

    def _rotate(self, now: float) -> None:
        """Close the current window if `now` lies beyond its end; periods nobody served in are passed over."""
        passed = (now - self._start) // self.window_s
        if not passed >= 1:
            return
        if self._rows:
            self._last = (self._start, self._rows, self._counts, True)
            self._counts = np.zeros_like(self._counts)
            self._rows = 0
        self._start += passed * self.window_s
