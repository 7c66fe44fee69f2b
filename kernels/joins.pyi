"""Fetched rows into a batch: see the head of joins.pyx, and `reference/joins.py` for the same in numpy."""

import numpy as np
from numpy.typing import NDArray

ROW_STALE: int
"""Older than the view's `max_age_s`; goes on from the statuses of `kernels.rows`."""
ROW_LOST: int
"""Nobody answered for this row: store away, or too late."""
ROW_CACHED: int
"""As ROW_OK, out of this process's near cache."""
ROW_COMPUTED: int
"""As ROW_OK, computed a moment ago, for the store had no row."""
N_STATUSES: int

SOURCE_NONE: int
SOURCE_REQUEST: int
SOURCE_STORE: int
SOURCE_CACHE: int
SOURCE_DEFAULT: int
SOURCE_MISSING: int
SOURCE_STALE: int
SOURCE_COMPUTED: int
N_SOURCES: int

FILL_DEFAULTS: int
"""Of a treatment: where there is no value, the column's default is put; otherwise NaN."""
TAKE_VALUES: int
"""Of a treatment: the row's values are used."""

def observe(
    status: NDArray[np.uint8],
    event_times: NDArray[np.int64],
    now_ms: int,
    max_age_ms: int,
    statuses: NDArray[np.int64],
    bounds_ms: NDArray[np.int64],
    ages: NDArray[np.int64],
) -> None:
    """Mark the rows that are too old, and count rows by status and age. The GIL is held.

    Args:
        status: (u,) of fetched rows; those with values that may be older than `max_age_ms` become ROW_STALE.
        event_times: (u,) milliseconds since 1970, 0 where not known: nobody can tell that such a row is not stale. One
            from the future has age 0.
        now_ms: milliseconds since 1970.
        max_age_ms: negative: nothing is stale.
        statuses: (N_STATUSES,) to which the rows are added, after marking.
        bounds_ms: (b,) ascending upper bounds of ages.
        ages: (b + 2,) to which the rows are added: at or under each bound (and above the one before), above all of
            them; the last is the sum of ages in milliseconds.

    Raises:
        ValueError: shapes that do not fit, or a status that is none.
    """

def scatter(
    values: NDArray[np.float32],
    status: NDArray[np.uint8],
    row_of: NDArray[np.int32],
    columns: NDArray[np.int32],
    defaults: NDArray[np.float32],
    treatments: NDArray[np.uint8],
    out: NDArray[np.float32],
    source: NDArray[np.uint8],
    counts: NDArray[np.int64],
) -> int:
    """Put the unique rows of one view into the columns of a batch that the caller did not send.

    Args:
        values: (u, v) decoded rows, NaN for null.
        status: (u,) of each row.
        row_of: (n,) which of the u rows belongs to a batch row, negative where no entity was sent.
        columns: (v,) distinct, which column of `out` each of the view's columns is.
        defaults: (v,) NaN where a column has none.
        treatments: (N_STATUSES,) for each status TAKE_VALUES, FILL_DEFAULTS, both or neither (0).
        out: (n, k) the batch; written except where `source` is SOURCE_REQUEST.
        source: (n, k) where each value came from; any of the others but SOURCE_NONE is written.
        counts: (v, N_SOURCES) to which the n values of each column are added by source.

    Returns:
        How many values are SOURCE_MISSING now (NaN).

    Raises:
        ValueError: shapes that do not fit, or an index outside its array.
    """
