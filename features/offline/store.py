"""The offline store: a folder of Parquet, every row that a view ever had.

    <root>/<view>/date=2026-01-31/part-<when written>-<random>.parquet

A file holds rows whose event time lies on that day (UTC), with the columns

    <entity>       binary: the id's bytes, as in the online store; several keys are one column, k1|k2
    <columns>      the view's, each with its own dtype (categories as words, vectors as lists of float32); NaN is null
    event_time     int64, ms since 1970: when the values were true
    created_time   int64, ms since 1970: when they were known, which is what a back-fill must not lie about
    written        int64, rising: of two rows alike in all of these the later one counts

No row is ever changed (but by erasing.py): a correction is a row more, with a later created time. A reader sees all
of a file or none (features/offline/parts.py); a write that spans several days becomes visible day by day. Writing the
same rows twice changes no answer.

Cost: about a microsecond a row of 10 columns. A writer holds about `MAX_HELD` bytes of rows back, whatever their days.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.arrow import to_array
from penstock.features.columns import fit
from penstock.features.errors import HistoryUnwritable, InvalidData, InvalidView
from penstock.features.offline.kinds import to_arrow
from penstock.features.offline.parts import Parts, sweep
from penstock.features.offline.tables import DAY_MS, arrow, as_table, check_times, column_of, ids_of, to_ms
from penstock.features.schema import NAME, FeatureView

EVENT, CREATED, WRITTEN = "event_time", "created_time", "written"
MAX_HELD = 64 << 20  # bytes
SLICE = 1 << 16
_DAY = re.compile(r"date=(\d{4}-\d{2}-\d{2})")


class OfflineStore:
    """The history of features, in a folder that any number of processes may read and write.

    Args:
        root: the folder; made at the first write.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def write(self, view: FeatureView, table: Any, *, time: str = EVENT, created: str | None = None) -> int:
        """Add the rows of a table; the number written.

        Args:
            view: whose rows they are; the table has its keys and all of its columns, others are left out.
            table: Arrow data, a frame of pandas or polars, or a dict of arrays.
            time: the column with the event times: timestamps, ISO 8601 text, or integers in ms since 1970 (UTC).
            created: the column with the times from which the rows were known; now, if None.

        Raises:
            InvalidData: a column is missing, or a value does not fit. Then nothing was written.
            HistoryUnwritable: the disk does not take it. Then a part of the days may have been written.
            InvalidView: the view has a column that has another meaning here.
        """
        rows = as_table(table)
        with self.writer(view) as out:
            for start in range(0, rows.num_rows, SLICE):
                out.add(rows.slice(start, SLICE), time=time, created=created)
        return out.rows

    @contextmanager
    def writer(self, view: FeatureView) -> Iterator[Writer]:
        """Many tables of one view in few files; all appear at the end of the block, none where it fails."""
        writer = Writer(self.root / view.name, view)
        try:
            yield writer
            writer.commit()
        finally:
            writer.discard()

    def has(self, name: str) -> bool:
        """Whether anything was ever published of the view of that name."""
        return next((self.root / name).glob("date=*"), None) is not None

    def names(self) -> list[str]:
        """Of which views anything was ever published."""
        names = {day.parent.name for day in self.root.glob("*/date=*")}
        return sorted(filter(NAME.fullmatch, names))  # a view being erased has another

    def files(self, view: FeatureView, first_ms: int, last_ms: int) -> list[Path]:
        """The files that may hold rows of these event times, oldest day first.

        Raises:
            InvalidData: the store has no history of the view.
        """
        folder = self.root / view.name
        if not folder.is_dir():
            raise InvalidData(
                f"{folder} does not exist: there is no history of view {view.name!r}; write one with "
                "OfflineStore.write, or penstock features ingest --offline"
            )
        first, last = (str(np.datetime64(ms // DAY_MS, "D")) for ms in (first_ms, last_ms))
        days = sorted(day for day in folder.iterdir() if (m := _DAY.fullmatch(day.name)) and first <= m[1] <= last)
        return [file for day in days for file in sorted(day.glob("part-*.parquet"))]


class Writer:
    """Collects rows by day and writes them to files not yet visible; made by `OfflineStore.writer`.

    Attributes:
        rows: added so far.
        uncommitted: of these, not yet to be seen.
    """

    def __init__(self, folder: Path, view: FeatureView) -> None:
        check_names(view)
        sweep(folder)
        self._folder = folder
        self._view = view
        self._started = time.time_ns()
        self._held: dict[int, list[Any]] = {}
        self._bytes: dict[int, int] = {}
        self._parts = Parts(folder)
        self._trouble: HistoryUnwritable | None = None
        self.rows = self.uncommitted = 0

    def add(self, table: Any, *, time: str = EVENT, created: str | None = None) -> None:
        """Add a table (see `OfflineStore.write`)."""
        rows, what = as_table(table), f"the rows of view {self._view.name!r}"
        columns = {}
        for column in self._view.columns:
            array = column_of(rows, column.name, what)
            columns[column.name] = to_array(array, column, self.rows + 1)
        times = to_ms(column_of(rows, time, what), time)
        known = None if created is None else to_ms(column_of(rows, created, what), created)
        self._add(ids_of(rows, self._view.entity_keys, what), columns, times, known)

    def put(
        self,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64],
        created_times: NDArray[np.int64] | None = None,
    ) -> None:
        """Add rows as `FeatureStore.prepare` takes them, known from now on if nothing else is said."""
        self.hold(self.table(entities, columns, event_times, created_times))

    def table(
        self,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64],
        created_times: NDArray[np.int64] | None = None,
    ) -> Any:
        """Such rows as they stand in a file."""
        check_times(event_times, "event times")
        known = (
            np.full(len(entities), time.time_ns() // 1_000_000, np.int64) if created_times is None else created_times
        )
        return self._table(arrow().array(entities, arrow().large_binary()), columns, event_times, known)

    def hold(self, table: Any) -> None:
        """Add rows that stand in it as in a file."""
        self.rows += table.num_rows
        self.uncommitted += table.num_rows
        self._hold(table, table.column(EVENT).to_numpy() // DAY_MS)

    def _add(
        self,
        ids: Any,
        columns: Mapping[str, NDArray[Any]],
        times: NDArray[np.int64],
        created: NDArray[np.int64] | None,
    ) -> None:
        known = np.full(len(ids), self._started // 1_000_000, np.int64) if created is None else created
        self.hold(self._table(ids, columns, times, known))

    def _table(
        self, ids: Any, columns: Mapping[str, NDArray[Any]], times: NDArray[np.int64], known: NDArray[np.int64]
    ) -> Any:
        pa, rows = arrow(), len(ids)
        arrays = [ids]
        for column in self._view.columns:
            values, nulls = fit(column, columns[column.name], rows, first_row=self.rows + 1)
            arrays.append(to_arrow(column, values, nulls, columns[column.name]))
        arrays += [pa.array(times), pa.array(known), pa.array(self._started + self.rows + np.arange(rows))]
        names = [self._view.entity_name, *self._view.column_names, EVENT, CREATED, WRITTEN]
        return pa.table(arrays, names=names)

    def _hold(self, table: Any, days: NDArray[np.int64]) -> None:
        """Keep each day's rows until there are many."""
        for day in np.unique(days).tolist():
            part = table if (same := days == day).all() else table.filter(arrow().array(same))
            self._held.setdefault(day, []).append(part)
            self._bytes[day] = self._bytes.get(day, 0) + part.nbytes
        while sum(self._bytes.values()) > MAX_HELD:
            self._flush(max(self._bytes, key=self._bytes.__getitem__))

    def _flush(self, day: int) -> None:
        del self._bytes[day]
        table = arrow().concat_tables(self._held.pop(day)).combine_chunks()
        with self._for_good():
            self._parts.write(day, table)

    def commit(self) -> None:
        """Let be seen what was added so far; rows that are added later go to files of their own."""
        with self._for_good():
            for day in sorted(self._held):
                self._flush(day)
            self._parts.commit()
        self._parts, self.uncommitted = Parts(self._folder), 0

    def discard(self) -> None:
        """Take away what was not committed."""
        self._held.clear()
        self._bytes.clear()
        self._parts.discard()

    @contextmanager
    def _for_good(self) -> Iterator[None]:
        """Once the disk has refused something, nothing is committed any more: rows would be missing among others."""
        if self._trouble is not None:
            raise self._trouble
        try:
            yield
        except HistoryUnwritable as error:
            self._trouble = error
            raise


def check_names(view: FeatureView) -> None:
    """`InvalidView` where columns of the view cannot stand beside each other in a file."""
    taken = {name: f"{name!r}, which is kept beside every row" for name in (EVENT, CREATED, WRITTEN)}
    for name in (view.entity_name, *view.column_names):
        if (other := taken.get(name.lower())) is not None:
            raise InvalidView(f"view {view.name!r} cannot be kept offline: its column {name!r} clashes with {other}")
        taken[name.lower()] = f"{name!r}, as case does not count in tables"
