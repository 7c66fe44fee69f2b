"""Compute on miss: rows that the store does not have, from a function that the operator registered.

A row that is damaged, or of a schema that nobody knows, is one that it does not have.

    def function(entities: Sequence[bytes]) -> Mapping[str, ArrayLike]: ...

It takes n entity ids and gives the view's columns, n values each, as `FeatureStore.put` takes them. An entity of which
all values are null is unknown. It runs in one of `threads` threads of this process, in batches, and

- for one entity at a time only once, whoever asks: others wait for what is on its way (single flight);
- within the time that its callers have; who cannot wait any longer is told nothing (`ROW_LOST`, so the view's
  `on_outage` says what he gets), and what comes late is kept all the same;
- its rows are written back with the view's ttl, unless a newer event was stored meanwhile, after the callers were
  answered. Their event time is that at which the function was called. Rows that could not be read give way to them,
  but not those that the view can read as the store has it now: this process has only not heard of its schema yet;
- what it does not know either is remembered for `unknown_s`, and not asked again until then;
- its failures are told to those who waited, as any outage is, and not remembered.

What a row reads like is decided by the packed form, so computed values are those that the next look-up gives.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penstock.features.columns import as_array, check_table
from penstock.features.entities import MAX_ENTITY
from penstock.features.errors import FeatureError
from penstock.features.plan import stored_view
from penstock.features.schema import FeatureView
from penstock.features.store import FeatureStore, FetchedRows, Lookup, Reader
from penstock.features.writes import readable_schemas
from penstock.kernels.joins import ROW_COMPUTED, ROW_LOST
from penstock.kernels.rows import ROW_ABSENT, ROW_CORRUPT, ROW_SCHEMA

MISSING = np.zeros(256, bool)  # by status
MISSING[[ROW_ABSENT, ROW_CORRUPT, ROW_SCHEMA]] = True
MAX_WAITING = 256  # calls of functions that wait for a thread
MAX_UNKNOWN = 100_000  # entities
LATE = "computing features did not end in time"
FULL = "too many computations of features wait already"

Function = Callable[[Sequence[bytes]], Mapping[str, ArrayLike]]
Key = tuple[tuple[str | int, ...], bytes]  # `FeatureView.read_as`, and an entity

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Entities since the start, but for `calls` and `failures` of functions, and `unwritten` batches."""

    calls: int = 0
    computed: int = 0
    unknown: int = 0
    shared: int = 0
    remembered: int = 0
    late: int = 0
    refused: int = 0
    failures: int = 0
    unwritten: int = 0


@dataclass(frozen=True, slots=True)
class _Task:
    """One call of a function; `rows` will be what it gave."""

    view: FeatureView
    entities: list[bytes]
    strange: list[bytes]  # those of which the store has a row of another schema
    rows: Future[FetchedRows]


class Computing:
    """Computes what a store does not have, for views that say so. Safe to use from many threads.

    Args:
        store: written to, and looked up first.
        functions: by the names that views call them.
        reader: what is looked up instead of the store, such as `KnownSchemas` before it.
        store_s: time limit of the store alone.
        threads: how many functions may run at once.
        unknown_s: how long an entity that a function does not know is not asked for again.
        clock: seconds, of `time.monotonic`.
    """

    def __init__(
        self,
        store: FeatureStore,
        functions: Mapping[str, Function],
        *,
        reader: Reader | None = None,
        store_s: float,
        threads: int = 4,
        unknown_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._reader = reader or store
        self._functions = functions
        self._store_s = store_s
        self._unknown_s = unknown_s
        self._clock = clock
        self._tasks: queue.Queue[_Task] = queue.Queue(MAX_WAITING)
        self._flights: dict[Key, tuple[_Task, int]] = {}
        self._unknown: OrderedDict[Key, float] = OrderedDict()
        self._lock = threading.Lock()
        self._idle_threads = threads
        self._unkept: set[str] = set()  # views whose rows could not be written the last time
        self.counts = Counts()

    def fetch(self, lookups: Sequence[Lookup], timeout_s: float) -> list[FetchedRows]:
        """Rows from the store, and computed ones for those it cannot give (see `Reader.fetch`)."""
        deadline = time.monotonic() + timeout_s
        fetched = self._reader.fetch(lookups, min(timeout_s, self._store_s))
        return [
            self._filled(lookup, rows, deadline) if lookup.view.on_missing == "compute" else rows
            for lookup, rows in zip(lookups, fetched, strict=True)
        ]

    def _filled(self, lookup: Lookup, rows: FetchedRows, deadline: float) -> FetchedRows:
        absent = np.flatnonzero(MISSING[rows.status]).tolist()
        if not absent:
            return rows
        waiting, refused = self._join_flights(lookup, absent, rows.status)
        wait({task.rows for _, task, _ in waiting}, max(deadline - time.monotonic(), 0.0))
        troubles = [FULL] * bool(refused)
        rows.status[refused] = ROW_LOST
        troubles += filter(None, [_take(rows, i, task, place) for i, task, place in waiting])
        if LATE in troubles:
            with self._lock:
                self.counts.late += troubles.count(LATE)
        return FetchedRows(rows.values, rows.event_times, rows.status, troubles[0] if troubles else rows.trouble)

    def _join_flights(
        self, lookup: Lookup, absent: Sequence[int], status: NDArray[np.uint8]
    ) -> tuple[list[tuple[int, _Task, int]], list[int]]:
        """For each missing entity the call that will tell, begun now if none is on its way; those refused."""
        view = lookup.view
        name = view.read_as
        waiting: list[tuple[int, _Task, int]] = []
        task = _Task(view, [], [], Future())
        with self._lock:
            self._forget(self._clock())
            for i in absent:
                key = (name, lookup.entities[i])
                if not 0 < len(lookup.entities[i]) <= MAX_ENTITY:
                    continue  # no store takes such an id
                if key in self._unknown:
                    self.counts.remembered += 1
                    continue
                flight = self._flights.get(key)
                if flight is None:
                    flight = self._flights[key] = task, len(task.entities)
                    task.entities.append(lookup.entities[i])
                    if status[i] == ROW_SCHEMA:
                        task.strange.append(lookup.entities[i])
                else:
                    self.counts.shared += 1
                waiting.append((i, *flight))
            if not task.entities or self._begin(task):
                return waiting, []
            for entity in task.entities:
                del self._flights[name, entity]
            self.counts.refused += len(task.entities)
        return [one for one in waiting if one[1] is not task], [i for i, mine, _ in waiting if mine is task]

    def _begin(self, task: _Task) -> bool:
        """Give the call to a thread; False where too many wait."""
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            return False
        if self._idle_threads:  # they are begun as they are needed, and end with the process
            self._idle_threads -= 1
            threading.Thread(target=self._work, name="penstock-compute", daemon=True).start()
        return True

    def _forget(self, now: float) -> None:
        while self._unknown and (len(self._unknown) > MAX_UNKNOWN or next(iter(self._unknown.values())) <= now):
            self._unknown.popitem(last=False)

    # In a thread ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            task = self._tasks.get()
            columns: dict[str, NDArray[Any]] = {}
            try:
                now_ms = time.time_ns() // 1_000_000
                with self._lock:
                    self.counts.calls += 1
                made = self._functions[task.view.compute](list(task.entities))
                columns = {name: as_array(values) for name, values in made.items()}
                rows = _as_read(task, columns, now_ms)
            except BaseException as error:  # noqa: BLE001 -- it is not ours, and the thread goes on
                self._failed(task, error)
            else:
                self._land(task, rows, columns)
            with self._lock:
                for entity in task.entities:
                    del self._flights[task.view.read_as, entity]

    def _failed(self, task: _Task, error: BaseException) -> None:
        try:
            line = " ".join(str(error).split())[:300]
        except Exception:  # noqa: BLE001 -- not ours either
            line = "it cannot be told"
        trouble = f"function {task.view.compute!r} of view {task.view.name!r} failed: {type(error).__name__}: {line}"
        with self._lock:
            self.counts.failures += 1
        task.rows.set_result(FetchedRows.lost(Lookup(task.view, task.entities), trouble))

    def _land(self, task: _Task, rows: FetchedRows, columns: Mapping[str, NDArray[Any]]) -> None:
        """Answer who waits, remember what is unknown, and write the rest back."""
        known = np.flatnonzero(rows.status == ROW_COMPUTED)
        until = self._clock() + self._unknown_s
        with self._lock:
            for i in np.flatnonzero(rows.status == ROW_ABSENT):
                self._unknown[task.view.read_as, task.entities[i]] = until
            self.counts.computed += len(known)
            self.counts.unknown += len(task.entities) - len(known)
        task.rows.set_result(rows)
        if not len(known):
            return
        try:
            if task.strange:
                newer = self._of_newer_schema(task)
                known = np.array([i for i in known.tolist() if task.entities[i] not in newer], np.intp)
            some = {name: values[known] for name, values in columns.items()}
            self._store.prepare(task.view, [task.entities[i] for i in known], some, rows.event_times[known])()
        except Exception as error:  # noqa: BLE001 -- they are answered; the thread goes on, and nobody joins this call
            self._unwritten(task.view.name, error)
        else:
            self._unkept.discard(task.view.name)

    def _of_newer_schema(self, task: _Task) -> set[bytes]:
        """Entities whose row is one that the view reads as the store has it now; raises `FeatureError`."""
        view = task.view
        definition = self._store.definitions([view.name]).get(view.name)
        if definition is None:
            return set()
        readable = readable_schemas(stored_view(view.name, definition, self._store.name))
        rows = self._store.stored(view, task.strange)
        return {entity for entity, row in zip(task.strange, rows, strict=True) if row and row[4:8] in readable}

    def _unwritten(self, view: str, error: Exception) -> None:
        """Count it, and tell it once until it ends: else each look-up computes anew, and nobody knows why."""
        with self._lock:
            self.counts.unwritten += 1
            told = view in self._unkept
            self._unkept.add(view)
        if isinstance(error, FeatureError):
            level = logging.DEBUG if told else logging.WARNING
            log.log(level, "computed features of view %r are not kept, and computed again each time: %s", view, error)
        else:
            log.error("computed features of view %r are not kept: %r", view, error)


def _take(rows: FetchedRows, i: int, task: _Task, place: int) -> str:
    """Put what was computed into row i; why there is none, or nothing."""
    if not task.rows.done():
        rows.status[i] = ROW_LOST
        return LATE
    made = task.rows.result()
    rows.values[i], rows.event_times[i], rows.status[i] = (
        made.values[place],
        made.event_times[place],
        made.status[place],
    )
    return made.trouble


def _as_read(task: _Task, columns: Mapping[str, NDArray[Any]], now_ms: int) -> FetchedRows:
    """What the columns will read like; absent where all of a row is null. Raises `InvalidData`."""
    view, times = task.view, np.full(len(task.entities), now_ms, np.int64)
    table = check_table(view, task.entities, columns, times)
    keys = view.keys(task.entities)
    packed = view.row_layout.pack(keys, table.values, table.event_times, table.nulls)
    rows = FetchedRows.empty(Lookup(view, task.entities))
    view.row_layout.unpack(keys, packed, rows.values, rows.event_times, rows.status)
    unknown = np.logical_and.reduce([np.zeros(len(keys)) if null is None else null for null in table.nulls])
    rows.status[:] = np.where(unknown, ROW_ABSENT, ROW_COMPUTED)
    rows.event_times[unknown] = 0
    return rows
