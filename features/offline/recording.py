"""Writing both sides: what an online store has acknowledged is kept offline, too.

    with recording(store, OfflineStore("penstock-offline"), view) as both:
        ingest(both, view, "rows.parquet", time_column="computed_at")

History appears at the end of the block, also of one that fails: it holds the rows that the online store took by then.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from penstock.features.offline.store import OfflineStore, Writer
from penstock.features.offline.tables import check_times
from penstock.features.schema import FeatureView
from penstock.features.store import FeatureStore, Write, Written


@contextmanager
def recording(store: FeatureStore, offline: OfflineStore | None, view: FeatureView) -> Iterator[FeatureStore]:
    """The store, with every row of the view that is put into it kept offline; as it is where `offline` is None.

    Rows are known from the moment of their writing, whatever their event times; what the store leaves out, for it has a
    newer event or the row's time is over, is history all the same. Writes come from one thread at a time.

    Raises:
        InvalidView: the view cannot be kept offline.
    """
    if offline is None:
        yield store
        return
    writer = Writer(offline.root / view.name, view)
    try:
        yield cast("FeatureStore", _Recorded(store, writer))
    finally:
        try:
            writer.commit()
        finally:
            writer.discard()


class _Recorded:
    """A store whose acknowledged rows are added to a writer; in all else the store itself."""

    def __init__(self, store: FeatureStore, writer: Writer) -> None:
        self._store, self._writer = store, writer

    put, put_table = FeatureStore.put, FeatureStore.put_table  # both are made of `prepare`

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def prepare(
        self,
        view: FeatureView,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64] | None = None,
        *,
        overwrite: bool = False,
    ) -> Write:
        """See `FeatureStore.prepare`; rows are recorded once they are written."""
        now = time.time_ns() // 1_000_000
        times = np.full(len(entities), now, np.int64) if event_times is None else event_times
        check_times(times, "event times")
        write = self._store.prepare(view, entities, columns, times, overwrite=overwrite)

        def both() -> Written:
            written = write()
            self._writer.put(entities, columns, times)
            return written

        return both
