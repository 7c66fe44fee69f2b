"""What `kernels.joins` must equal, in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROW_OK, ROW_ABSENT, ROW_CORRUPT, ROW_SCHEMA, ROW_STALE, ROW_LOST, ROW_CACHED, ROW_COMPUTED = range(8)
N_STATUSES = 8
SOURCE_NONE, SOURCE_REQUEST, SOURCE_STORE, SOURCE_CACHE = range(4)
SOURCE_DEFAULT, SOURCE_MISSING, SOURCE_STALE, SOURCE_COMPUTED = range(4, 8)
N_SOURCES = 8
FILL_DEFAULTS, TAKE_VALUES = 1, 2

WITH_VALUES = (ROW_OK, ROW_CACHED, ROW_COMPUTED)
FOUND = {ROW_STALE: SOURCE_STALE, ROW_CACHED: SOURCE_CACHE, ROW_COMPUTED: SOURCE_COMPUTED}


def observe(
    status: NDArray[np.uint8],
    event_times: NDArray[np.int64],
    now_ms: int,
    max_age_ms: int,
    statuses: NDArray[np.int64],
    bounds_ms: NDArray[np.int64],
    ages: NDArray[np.int64],
) -> None:
    """Rows too old, or of an unknown age, become stale; rows are counted by status and age."""
    fits = event_times.shape == status.shape and statuses.shape == (N_STATUSES,)
    if not fits or ages.shape != (len(bounds_ms) + 2,) or (status >= N_STATUSES).any():
        raise ValueError("shapes or statuses do not fit")
    aged = np.isin(status, WITH_VALUES) & (event_times != 0)
    unknown = np.isin(status, WITH_VALUES) & (event_times == 0)
    age = [max(now_ms - max(int(time), 0), 0) for time in event_times[aged]]
    np.add.at(ages, np.searchsorted(bounds_ms, np.array(age, np.int64)), 1)
    ages[-1] += sum(age)
    if max_age_ms >= 0:
        status[unknown] = ROW_STALE
        status[np.flatnonzero(aged)[np.array(age, np.int64) > max_age_ms]] = ROW_STALE
    np.add.at(statuses, status, 1)


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
    """The view's values in the columns that the caller did not send; how many are missing."""
    n, (u, v) = len(out), values.shape
    fits = source.shape == out.shape and row_of.shape == (n,) and status.shape == (u,)
    if not fits or columns.shape != (v,) or defaults.shape != (v,) or treatments.shape != (N_STATUSES,):
        raise ValueError("shapes do not fit")
    if counts.shape != (v, N_SOURCES) or (status >= N_STATUSES).any():
        raise ValueError("counts or statuses do not fit")
    if (row_of >= u).any() or (columns < 0).any() or (columns >= out.shape[1]).any():
        raise ValueError("an index is outside its array")
    missing = 0
    for i, row in enumerate(row_of):
        known = int(status[row]) if row >= 0 else ROW_ABSENT
        for c, j in enumerate(columns):
            if source[i, j] != SOURCE_REQUEST:
                stored = values[row, c] if row >= 0 and treatments[known] & TAKE_VALUES else np.float32(np.nan)
                default = defaults[c] if treatments[known] & FILL_DEFAULTS else np.float32(np.nan)
                out[i, j] = default if np.isnan(stored) else stored
                other = SOURCE_MISSING if np.isnan(default) else SOURCE_DEFAULT
                source[i, j] = other if np.isnan(stored) else FOUND.get(known, SOURCE_STORE)
                missing += int(source[i, j] == SOURCE_MISSING)
            counts[c, source[i, j]] += 1
    return missing
