"""The point-in-time join: to each label the features that serving would have given the model at the label's time.

What is looked up is `rows_as_of`; what becomes of it (nulls, defaults, float32) is done by the kernel that serving
itself uses, so that the two cannot come apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.errors import InvalidData, InvalidView
from penstock.features.offline.asof import rows_as_of
from penstock.features.offline.store import EVENT, OfflineStore
from penstock.features.offline.tables import arrow, as_table, column_of, to_ids, to_ms
from penstock.features.schema import FeatureView
from penstock.features.store import FetchedRows
from penstock.kernels.rows import scatter

FOLDER = "penstock-offline"


def join(
    entity_frame: Any,
    views: FeatureView | Sequence[FeatureView],
    store: OfflineStore | Path | str = FOLDER,
    *,
    time: str = EVENT,
    as_of_created: bool = True,
    prefix: bool = False,
) -> Any:
    """The frame's rows, in their order, with the columns of the views as of each row's time.

    Args:
        entity_frame: labels: an Arrow table, a pandas frame or a dict of arrays, with the views' entities.
        views: one view or several.
        store: the history, or its folder.
        time: the frame's column with the times: timestamps, ISO 8601 text, or integers in ms since 1970 (UTC).
        as_of_created: leave out what was not known yet at that time; False for a history without created times.
        prefix: call the new columns VIEW__COLUMN.

    Returns:
        An Arrow table: the frame's columns, then float32 columns without nulls; NaN where the model would see NaN.

    Raises:
        InvalidData: a column is missing, taken twice or no id or time; no history of a view; or an entity without a
            row in a view whose `on_missing` is `error`.
        FeatureError: DuckDB or pyarrow is not installed.
    """
    views = [views] if isinstance(views, FeatureView) else list(views)
    store = store if isinstance(store, OfflineStore) else OfflineStore(store)
    frame, what = as_table(entity_frame), "the entity frame"
    names = _names(frame, views, prefix=prefix)
    times = to_ms(column_of(frame, time, what), time)
    for view, called in zip(views, names, strict=True):
        ids = to_ids(column_of(frame, view.entity, what), view.entity)
        rows = rows_as_of(store, view, ids, times, as_of_created=as_of_created)
        values, _ = as_served(view, rows)
        _refuse_missing(view, values, ids)
        for place, name in enumerate(called):
            frame = frame.append_column(name, arrow().array(np.ascontiguousarray(values[:, place])))
    return frame


def as_served(view: FeatureView, rows: FetchedRows) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """What the model would see of each row, float32 [n, k], and where each value came from, uint8 [n, k]."""
    n, k = rows.values.shape
    values, sources = np.empty((n, k), np.float32), np.zeros((n, k), np.uint8)
    if n:
        every, places = np.arange(n, dtype=np.int32), np.arange(k, dtype=np.int32)
        use_defaults = view.on_missing == "default"
        scatter(rows.values, rows.status, every, places, view.defaults, use_defaults, values, sources)
    return values, sources


def _names(frame: Any, views: Sequence[FeatureView], *, prefix: bool) -> list[list[str]]:
    """What each view's columns are called in the answer, each name once."""
    if len({view.name for view in views}) < len(views):
        raise InvalidView("a view is joined once; two of those given have the same name")
    names = [[f"{view.name}__{name}" if prefix else name for name in view.column_names] for view in views]
    taken = dict.fromkeys(frame.column_names, "the entity frame")
    for view, called in zip(views, names, strict=True):
        for name in called:
            if name in taken:
                raise InvalidData(
                    f"column {name!r} is both in {taken[name]} and in view {view.name!r}: join with prefix=True"
                )
            taken[name] = f"view {view.name!r}"
    return names


def _refuse_missing(view: FeatureView, values: NDArray[np.float32], ids: Any) -> None:
    """As serving refuses a call for an entity without a full row, where the view says `error`."""
    if view.on_missing != "error":
        return
    lacking = np.isnan(values).any(axis=1)
    if lacking.any():
        row = int(lacking.argmax())
        entity = ids[row].as_py().decode("utf-8", "backslashreplace")[:100]
        raise InvalidData(
            f"row {row + 1}: view {view.name!r} has no features of {view.entity} {entity!r} at that time, nor for "
            f"{int(lacking.sum()) - 1} more rows, and says on_missing: error; leave these rows out, or join with a "
            "view that says nan"
        )
