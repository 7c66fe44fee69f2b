"""What a view says is done with a row, by the row's status: one table, for serving, and for what is compared with it.

`as_served` is what becomes of rows outside a server: in the offline join, in the check, and in `Features.matrix`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.features.schema import FeatureView
from penstock.kernels.joins import (
    FILL_DEFAULTS,
    N_SOURCES,
    N_STATUSES,
    ROW_CACHED,
    ROW_COMPUTED,
    ROW_LOST,
    ROW_STALE,
    SOURCE_MISSING,
    TAKE_VALUES,
    scatter,
)
from penstock.kernels.rows import ROW_OK


def treatments(view: FeatureView) -> NDArray[np.uint8]:
    """uint8 [N_STATUSES]: what the view says is done with a row, by its status."""
    missing = FILL_DEFAULTS if view.on_missing in {"default", "compute"} else 0
    by_status = np.full(N_STATUSES, missing, np.uint8)
    by_status[[ROW_OK, ROW_CACHED, ROW_COMPUTED]] = TAKE_VALUES | missing
    by_status[ROW_STALE] = {"use": TAKE_VALUES | missing, "default": FILL_DEFAULTS}.get(view.on_stale, 0)
    by_status[ROW_LOST] = FILL_DEFAULTS if view.on_outage == "default" else 0
    return by_status


class Served(NamedTuple):
    """What a model would see of n rows of a view that gives k numbers.

    Attributes:
        values: float32 [n, k].
        sources: uint8 [n, k], where each came from, as `penstock.kernels.joins` numbers them.
        status: uint8 [n], as it was but for `ROW_STALE`.
    """

    values: NDArray[np.float32]
    sources: NDArray[np.uint8]
    status: NDArray[np.uint8]


def as_served(
    view: FeatureView,
    values: NDArray[np.float32],
    event_times: NDArray[np.int64],
    status: NDArray[np.uint8],
    times: NDArray[np.int64] | int,
) -> Served:
    """Rows as `FetchedRows` has them, looked up at these times (ms since 1970), by the kernel that serving uses.

    What `compute` would have computed is missing.
    """
    n, k = values.shape
    out, sources, status = np.empty((n, k), np.float32), np.zeros((n, k), np.uint8), status.copy()
    if view.max_age_s is not None:
        aged = times - event_times > int(view.max_age_s * 1000)
        status[(status == ROW_OK) & aged] = ROW_STALE
    if n:
        every, places = np.arange(n, dtype=np.int32), np.arange(k, dtype=np.int32)
        counts = np.zeros((k, N_SOURCES), np.int64)
        scatter(values, status, every, places, view.defaults, treatments(view), out, sources, counts)
    return Served(out, sources, status)


def refused(view: FeatureView, served: Served) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """The policies by which serving would refuse calls for some of the rows, each with a mask of these [n]."""
    stale = served.status == ROW_STALE
    lacking = (served.sources == SOURCE_MISSING).any(axis=1) & ~stale
    for policy, wrong in (("on_missing", lacking), ("on_stale", stale)):
        if getattr(view, policy) == "error" and wrong.any():
            yield policy, wrong
