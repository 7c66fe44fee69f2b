"""Writing both sides: what an online store has acknowledged is kept offline, too.

    with recording(store, OfflineStore("penstock-offline"), view) as both:
        ingest(both, view, "rows.parquet", time_column="computed_at")

History becomes visible at the end of the block, also of one that fails, and every half minute while rows are ingested:
it holds the rows that the online store took by then. The mark from which an ingestion is resumed moves only with it.
So whoever is killed, and wherever the disk is full, `resume` repeats what history lacks, and rows that it has twice
change no answer.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from penstock.features.errors import FeatureError
from penstock.features.offline.store import OfflineStore, Writer
from penstock.features.offline.tables import check_times
from penstock.features.schema import FeatureView
from penstock.features.store import FeatureStore, Write, Written

EVERY_S = 30.0  # between commits, each of which makes a file for every day it has rows of


@contextmanager
def recording(
    store: FeatureStore, offline: OfflineStore | None, view: FeatureView, *, every_s: float = EVERY_S
) -> Iterator[FeatureStore]:
    """The store, with every row of the view that is put into it kept offline; as it is where `offline` is None.

    Rows are known from the moment of their writing, whatever their event times; what the store leaves out, for it has a
    newer event or the row's time is over, is history all the same. Writes come from one thread at a time.

    Raises:
        InvalidView: the view cannot be kept offline.
        HistoryUnwritable: the disk does not take the rows; from `put`, an ingestion, or the end of the block.
    """
    if offline is None:
        yield store
        return
    both = Recorded(store, offline, view, every_s=every_s)
    try:
        yield cast("FeatureStore", both)
    finally:
        both.close()


class Recorded:
    """A store whose acknowledged rows are added to a history; in all else the store itself. Made by `recording`.

    Marks of ingestions are kept apart from those of ingestions that record elsewhere or nowhere, for what these have
    done is not in this history.
    """

    def __init__(
        self,
        store: FeatureStore,
        offline: OfflineStore,
        view: FeatureView,
        *,
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._writer = Writer(offline.root / view.name, view)
        self._every_s, self._clock = every_s, clock
        self._committed = clock()
        self._of = hashlib.sha256(str(offline.root.resolve()).encode()).hexdigest()[:12]
        self._job = ""
        self._kept: bytes | None = None  # the mark in the store: of rows that are in the history
        self._told: bytes | None = None  # the latest one that we were to keep

    put, put_table = FeatureStore.put, FeatureStore.put_table  # both are made of `prepare`

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def prepare(
        self,
        view: FeatureView,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64] | None = None,
        created_times: NDArray[np.int64] | None = None,
        *,
        overwrite: bool = False,
    ) -> Write:
        """See `FeatureStore.prepare`; rows are recorded once they are written, as known from `created_times` or now."""
        now = time.time_ns() // 1_000_000
        times = np.full(len(entities), now, np.int64) if event_times is None else event_times
        check_times(times, "event times")
        if created_times is not None:
            check_times(created_times, "created times")
        write = self._store.prepare(view, entities, columns, times, overwrite=overwrite)

        def both() -> Written:
            written = write()
            self._writer.put(entities, columns, times, created_times)
            return written

        return both

    def mark(self, job: str, new: bytes | None) -> bytes | None:
        """See `FeatureStore.mark`; a mark that is ahead of the history is held back, and the one before renewed."""
        name = self._name(job)
        if job == self._job and new is not None and self._writer.uncommitted and not self._is_due():
            before = self._store.mark(name, self._kept)
            if before not in (self._kept, new):  # rows are lost: no mark passes them
                self._store.mark(name, before)
                self._kept = self._told = before
                return before
            told, self._told = self._told, new
            return told
        self._commit()
        before = self._store.mark(name, new)
        told = self._told if job == self._job and before == self._kept else before
        self._job, self._kept, self._told = job if new is not None else "", new, new
        return told

    def marked(self, job: str) -> bytes | None:
        """See `FeatureStore.marked`."""
        return self._store.marked(self._name(job))

    def close(self) -> None:
        """Commit what is left, and have the mark say so."""
        try:
            self._commit()
            if self._told != self._kept:
                with suppress(FeatureError):  # the store is away: more is repeated than need be
                    self._store.mark(self._name(self._job), self._told)
        finally:
            self._writer.discard()

    def _name(self, job: str) -> str:
        return f"{job}:{self._of}"

    def _is_due(self) -> bool:
        return self._clock() - self._committed >= self._every_s

    def _commit(self) -> None:
        self._writer.commit()
        self._committed = self._clock()
