"""Counts of what was served in each period of a fixed length: see the head of windows.pyx."""

from typing import Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Counted: TypeAlias = tuple[float, int, NDArray[np.int64], bool]
"""Start of the window in seconds, rows, counts as `drift.bin_counts` lays them out, and whether it is complete."""

@final
class Windows:
    """Counts batches into bins, window by window. Safe from many threads.

    Args:
        edges: float32 `[total]`, ascending in each column (not checked here: `monitoring.Profile` does).
        offsets: int32 `[k + 1]`, from 0 to `total`, never falling.
        window_s: length of a window in seconds, above 0.
        now: when the first window starts, in seconds on the caller's clock.

    Raises:
        ValueError: a window without length, or offsets that do not fit.
    """

    @property
    def window_s(self) -> float:
        """Length of a window in seconds."""
    @property
    def columns(self) -> int:
        """Columns of a batch."""
    def __new__(cls, edges: NDArray[np.float32], offsets: NDArray[np.int32], window_s: float, now: float) -> Self: ...
    def add(self, x: NDArray[np.float32], now: float) -> None:
        """Count a batch, float32 `[n, k]` C-contiguous, NaN for missing.

        A `now` before the current window counts into it.

        Raises:
            ValueError: another type or number of columns; nothing was counted.
        """

    def current(self, now: float) -> Counted:
        """What the current window has counted so far."""
    def last(self, now: float) -> Counted:
        """The last complete window that saw rows; before there is one, the current window."""
    def read(self, now: float, complete: bool) -> Counted:
        """`last` where `complete`, else `current`."""
