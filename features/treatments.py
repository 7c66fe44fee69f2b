"""What a view says is done with a row, by the row's status: one table, for serving and for the offline join alike."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.features.schema import FeatureView
from penstock.kernels.joins import (
    FILL_DEFAULTS,
    N_STATUSES,
    ROW_CACHED,
    ROW_COMPUTED,
    ROW_LOST,
    ROW_STALE,
    TAKE_VALUES,
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
