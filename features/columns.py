"""Columns on their way into a store: each array brought to its declared dtype without losing anything in silence.

NaN, and a masked element of a `numpy.ma` array, is null. A value that the dtype cannot hold (0.5 in an int64, 3e9 in
an int32, 1e300 in a float32, 2 in a bool) is refused with its place. float64 to float32 rounds, as everywhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.errors import InvalidData
from penstock.features.schema import Column, FeatureView

MAX_ENTITY = 1024  # bytes of one entity id


@dataclass(frozen=True, slots=True)
class Table:
    """Checked values of n entities: column j is [n] of the view's dtype, `nulls[j]` uint8 [n] (1 = null) or None."""

    entities: Sequence[bytes]
    values: list[NDArray[Any]]
    nulls: list[NDArray[np.uint8] | None]
    event_times: NDArray[np.int64]


def check_table(
    view: FeatureView,
    entities: Sequence[bytes],
    columns: Mapping[str, NDArray[Any]],
    event_times: NDArray[np.int64] | None,
) -> Table:
    """Everything `put` promises to check; raises `InvalidData` naming column and row."""
    rows = len(entities)
    for i, entity in enumerate(entities):
        if not 0 < len(entity) <= MAX_ENTITY:
            raise InvalidData(f"row {i}: an entity id of {len(entity)} bytes; it has 1 to {MAX_ENTITY}")
    different = set(columns) ^ set(view.column_names)
    if different:
        name = min(different)
        raise InvalidData(f"column {name!r} is {'missing' if name in view.column_names else 'not in the view'}")
    fitted = [fit(column, columns[column.name], rows) for column in view.columns]
    if event_times is None:
        event_times = np.full(rows, time.time_ns() // 1_000_000, np.int64)
    if event_times.shape != (rows,):
        raise InvalidData(f"event times are {event_times.shape}; there are {rows} entities")
    times = np.ascontiguousarray(event_times, np.int64)
    return Table(entities, [values for values, _ in fitted], [nulls for _, nulls in fitted], times)


def fit(
    column: Column, array: NDArray[Any], rows: int, *, first_row: int = 0
) -> tuple[NDArray[Any], NDArray[np.uint8] | None]:
    """One column as its own dtype, and which of its values are null; messages count rows from `first_row`."""
    data = np.ma.getdata(array)
    if data.shape != (rows,):
        raise InvalidData(f"column {column.name!r} has shape {data.shape}; there are {rows} entities")
    if data.dtype.kind not in "biuf":
        raise InvalidData(f"column {column.name!r} is {data.dtype}; it must be numeric to become {column.dtype}")
    null = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else np.zeros(rows, bool)
    if data.dtype.kind == "f":
        null = null | np.isnan(data)
    data = np.where(null, data.dtype.type(0), data) if null.any() else data
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ascontiguousarray(data.astype(column.dtype))
        lost = _lost(data, values)
    if lost.any():
        i = int(lost.argmax())
        raise InvalidData(f"column {column.name!r}, row {first_row + i}: {data[i]} does not fit {column.dtype}")
    return values, null.astype(np.uint8) if null.any() else None


def _lost(data: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the cast changed a value by more than rounding to a float."""
    if values.dtype.kind == "f":
        return np.asarray(np.isinf(values) & np.isfinite(data.astype(np.float64)))
    lost = np.asarray(values.astype(data.dtype) != data)
    if values.dtype.kind == "i" and data.dtype.kind == "f":  # a value past the end may saturate there and back
        limit = 2.0 ** (8 * values.dtype.itemsize - 1)
        lost |= (data >= limit) | (data < -limit)
    elif values.dtype.kind == "i":  # and an integer may wrap
        lost |= (values < 0) != (data < 0)
    return lost


def to_text(values: NDArray[Any]) -> list[bytes]:
    """Each value as the shortest decimal that reads back to it in its dtype (at most 9 or 17 digits)."""
    if values.dtype.kind == "f":
        form = b"%.9g" if values.dtype == np.float32 else b"%.17g"
        return [form % value for value in values.tolist()]
    return [b"%d" % value for value in values.tolist()]
