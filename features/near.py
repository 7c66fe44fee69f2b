"""The near cache: rows of hot entities, kept in this process for a short while.

Rows are kept by view and entity as they were fetched, decoded, absent ones too, so that nobody asks for them again.
They leave by age only, when their time is over, or when there is no room, the oldest first: nothing here hears of a
write, so a row may be `max_age_s` behind the store, and not more. That is the price, and why it is off unless the
operator says how long. What a view says of freshness holds for rows from here as well.

Rows come in groups, one for each batch that had misses, and a group leaves as a whole, so that nothing is looked at one
by one but the keys of a batch. Bytes are reckoned with Python's own overhead. Cost goal: 15 µs for a batch of 64 hits
of 30 columns.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.features.columns import now_ms
from penstock.features.errors import StoreUnavailable
from penstock.features.schema import FeatureView
from penstock.features.store import FetchedRows, Lookup, Reader
from penstock.kernels.joins import ROW_CACHED, ROW_COMPUTED
from penstock.kernels.rows import ROW_ABSENT, ROW_OK

KEPT = np.zeros(256, bool)  # by status
KEPT[[ROW_OK, ROW_ABSENT, ROW_COMPUTED]] = True
AS_KEPT = np.arange(256, dtype=np.uint8)  # the status of a row once it comes from here
AS_KEPT[[ROW_OK, ROW_COMPUTED]] = ROW_CACHED
OVERHEAD = 160  # bytes of an entry beside entity and row: two objects, a place in the table and in its group
TAIL = 3  # float32 behind the values of a row: the event time in two, the status in one
FOREVER_MS = 1 << 62


@dataclass(slots=True)
class Counts:
    """What was asked and kept since the start, in rows."""

    hits: int = 0
    misses: int = 0
    evicted: int = 0
    expired: int = 0


@dataclass(slots=True)
class _Group:
    until: float
    rows: dict[bytes, bytes]
    entities: list[bytes]
    size: int


class NearCache:
    """Keeps rows before a reader. Safe to use from many threads.

    Args:
        reader: where other rows come from.
        size: bytes that all rows may take.
        max_age_s: how long a row is kept.
        clock: seconds, of `time.monotonic`.
        today: ms since 1970, by which the time of rows is told.
    """

    def __init__(
        self,
        reader: Reader,
        size: int,
        max_age_s: float,
        clock: Callable[[], float] = time.monotonic,
        today: Callable[[], int] = now_ms,
    ) -> None:
        self._reader = reader
        self._limit = size
        self._max_age_s = max_age_s
        self._clock = clock
        self._today = today
        self._rows: dict[tuple[str | int, ...], dict[bytes, bytes]] = {}
        self._groups: deque[_Group] = deque()
        self._lock = threading.Lock()
        self.bytes = 0
        self.counts = Counts()

    def fetch(self, lookups: Sequence[Lookup], timeout_s: float) -> list[FetchedRows]:
        """Rows from here, and all others from the reader in one go (see `Reader.fetch`)."""
        asked = self._clock()  # a row's age counts from before it is fetched
        with self._lock:
            self._leave(asked)
            tables = [self._rows.setdefault(lookup.view.read_as, {}) for lookup in lookups]
            found = [[*map(table.get, lookup.entities)] for table, lookup in zip(tables, lookups, strict=True)]
            missed = sum(rows.count(None) for rows in found)
            self.counts.misses += missed
            self.counts.hits += sum(map(len, found)) - missed
        if not missed:
            return [_unpacked(lookup, rows) for lookup, rows in zip(lookups, found, strict=True)]
        wanting = [[i for i, row in enumerate(rows) if row is None] for rows in found]
        return self._completed(lookups, tables, found, wanting, asked, timeout_s)

    def _completed(
        self,
        lookups: Sequence[Lookup],
        tables: Sequence[dict[bytes, bytes]],
        found: Sequence[list[bytes | None]],
        wanting: Sequence[list[int]],
        asked: float,
        timeout_s: float,
    ) -> list[FetchedRows]:
        """The rows found and those fetched, in order; if nobody answers for these, they are lost and the others not."""
        places = [k for k, rows in enumerate(wanting) if rows]
        smaller = [Lookup(lookups[k].view, [lookups[k].entities[i] for i in wanting[k]]) for k in places]
        try:
            fetched = self._reader.fetch(smaller, timeout_s)
        except StoreUnavailable as error:
            if sum(map(len, wanting)) == sum(map(len, found)):
                raise
            fetched = [FetchedRows.lost(lookup, str(error)) for lookup in smaller]
        answers = dict(zip(places, fetched, strict=True))
        for k, rows in answers.items():
            self._keep(tables[k], lookups[k].view, [lookups[k].entities[i] for i in wanting[k]], rows, asked)
        return [
            _merged(lookup, found[k], wanting[k], answers[k]) if k in answers else _unpacked(lookup, found[k])
            for k, lookup in enumerate(lookups)
        ]

    def _keep(
        self, table: dict[bytes, bytes], view: FeatureView, entities: list[bytes], rows: FetchedRows, asked: float
    ) -> None:
        keep = KEPT[rows.status]
        packed = _packed(rows)
        if not keep.all():
            entities = [entity for entity, kept in zip(entities, keep, strict=True) if kept]
            packed = [row for row, kept in zip(packed, keep, strict=True) if kept]
        size = len(entities) * (OVERHEAD + 4 * (view.width + TAIL)) + sum(map(len, entities))
        if not entities or size > self._limit:
            return
        until = min(asked + self._max_age_s, self._clock() + self._left_s(view, rows.event_times[keep]))
        group = _Group(until, table, entities, size)
        with self._lock:
            if group.until <= self._clock():
                return
            while self.bytes + size > self._limit:
                self.counts.evicted += self._drop()
            table.update(zip(entities, packed, strict=True))
            self._insert(group)
            self.bytes += size

    def _left_s(self, view: FeatureView, event_times: NDArray[np.int64]) -> float:
        """Seconds to the end of the first of these rows that ends. Some a store may keep for longer (see writes.py)."""
        if view.layout == "hash":
            return math.inf
        left = event_times[event_times != 0] + (view.lives_ms - self._today())
        return float(left[left >= 0].min(initial=FOREVER_MS)) / 1000

    def _insert(self, group: _Group) -> None:
        """Behind those that leave before it: who waited for a computation comes later than others that asked later."""
        place = len(self._groups)
        while place and self._groups[place - 1].until > group.until:
            place -= 1
        self._groups.insert(place, group)

    def _leave(self, now: float) -> None:
        """Let go of what is too old."""
        while self._groups and self._groups[0].until <= now:
            self.counts.expired += self._drop()

    def _drop(self) -> int:
        group = self._groups.popleft()
        self.bytes -= group.size
        for entity in group.entities:
            group.rows.pop(entity, None)  # two batches may have brought it at once
        return len(group.entities)


def _packed(rows: FetchedRows) -> list[bytes]:
    """Each row as bytes, with the status it will have."""
    n, width = rows.values.shape
    table = np.empty((n, width + TAIL), np.float32)
    table[:, :width] = rows.values
    table[:, width : width + 2] = rows.event_times.view(np.float32).reshape(n, 2)
    table[:, width + 2] = AS_KEPT[rows.status]
    raw, size = table.tobytes(), 4 * (width + TAIL)
    return [raw[i : i + size] for i in range(0, n * size, size)]


def _unpacked(lookup: Lookup, rows: Sequence[bytes | None]) -> FetchedRows:
    """What `_packed` made, for rows of which none is None."""
    width = lookup.view.width
    table = np.frombuffer(b"".join(rows), np.float32).reshape(len(rows), width + TAIL)  # type: ignore[arg-type]
    times = np.ascontiguousarray(table[:, width : width + 2]).view(np.int64).reshape(len(rows))
    return FetchedRows(np.ascontiguousarray(table[:, :width]), times, table[:, width + 2].astype(np.uint8))


def _merged(lookup: Lookup, found: list[bytes | None], wanting: list[int], fetched: FetchedRows) -> FetchedRows:
    """Rows from here, with those that were fetched in the places `wanting`."""
    if len(wanting) == len(found):
        return fetched
    nothing = bytes(4 * (lookup.view.width + TAIL))
    whole = _unpacked(lookup, [nothing if row is None else row for row in found])
    whole.values[wanting] = fetched.values
    whole.event_times[wanting] = fetched.event_times
    whole.status[wanting] = fetched.status
    return FetchedRows(whole.values, whole.event_times, whole.status, fetched.trouble)
