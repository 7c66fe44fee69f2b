"""History back into an online store: of each entity the newest row that is within its ttl, as of now.

For a Redis that was lost, is new, or was filled by somebody else. What is newer there stays, as in every ingestion, so
to restore is harmless, whatever the store holds and however often; one that was stopped is begun again.

A value that a file has in a former dtype becomes what the view says now, and null where that cannot hold it, as
`FeatureStore.get` reads former rows. Memory: that of the join (`asof`), and some batches.
"""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from typing import Any

from penstock.features.columns import AHEAD_MS
from penstock.features.errors import InvalidData
from penstock.features.ingest import PATIENCE_S, WAITING, Progress, Report, in_turn, persistently
from penstock.features.offline.asof import found_in
from penstock.features.offline.forms import Files
from penstock.features.offline.kinds import as_declared
from penstock.features.offline.store import CREATED, EVENT, WRITTEN, OfflineStore, check_names
from penstock.features.schema import FeatureView
from penstock.features.store import FeatureStore, Write, Written


def restore(
    store: FeatureStore,
    view: FeatureView,
    offline: OfflineStore,
    *,
    now_ms: int | None = None,
    progress: Progress | None = None,
    patience_s: float = PATIENCE_S,
) -> Report:
    """Write the newest row of each entity; `progress(rows, fraction)` is called for each batch, the fraction about.

    Args:
        store: where to.
        view: whose rows they are.
        offline: the history.
        now_ms: as of this time, ms since 1970; the present if None.
        progress: see above.
        patience_s: how long a store that is away is waited for.

    Raises:
        InvalidData: no history of the view, a file that cannot be read as rows of it, or an aggregated view.
        StoreUnavailable: away for longer than `patience_s`; what else `store.put` raises.
        FeatureError: DuckDB is not installed.
    """
    if view.aggregates is not None:
        raise InvalidData(
            f"view {view.name!r} is aggregated: the state of its windows is not in the history of its rows"
        )
    check_names(view)
    start, rows, written = time.monotonic(), 0, Written()
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    first, last = max(now_ms - view.lives_ms, 0), now_ms + AHEAD_MS  # which no store refuses
    known = f"{EVENT} BETWEEN {first} AND {last} AND {CREATED} <= {now_ms}"
    of = offline, view, view.columns, (first, last)
    entities = sum(counted.column(0)[0].as_py() for _, counted in found_in(*of, lambda history: _count(history, known)))
    with in_turn() as (submit, stop):
        done: deque[tuple[Future[Written], int]] = deque()

        def settle(most: int) -> None:
            nonlocal rows, written
            while len(done) > most:
                future, count = done.popleft()
                written += future.result()
                rows += count
                if progress is not None:
                    progress(rows, min(rows / max(entities, 1), 1.0))

        for history, batch in found_in(*of, lambda history: _newest(history, known)):
            write = _prepare(store, history, batch)
            done.append((submit(persistently(write, patience_s, stop)), batch.num_rows))
            settle(WAITING)
        settle(0)
    older = rows - written.kept - written.over
    return Report(view.name, rows, time.monotonic() - start, older, over=written.over)


def _count(history: Files, known: str) -> str:
    """About how many entities there are, as one statement."""
    return f"SELECT approx_count_distinct(id) FROM ({history.table}) WHERE {known}"  # noqa: S608 -- numbers of ours


def _newest(history: Files, known: str) -> str:
    """Of each entity the newest row, as one statement."""
    return f"""
        SELECT id, {EVENT}{history.names} FROM ({history.table}) WHERE {known}
        QUALIFY row_number() OVER (PARTITION BY id ORDER BY {EVENT} DESC, {CREATED} DESC, {WRITTEN} DESC) = 1"""  # noqa: S608 -- names are quoted, the rest are numbers of ours


def _prepare(store: FeatureStore, history: Files, batch: Any) -> Write:
    """Rows of a batch, checked and encoded."""
    view, n = history.view, batch.num_rows
    forms = list(zip(history.forms, batch.columns[2:], strict=True))
    columns = {}
    for column in view.columns:
        arrays = [array for form, array in forms if form.column.name == column.name]
        columns[column.name] = as_declared(column, arrays, n)
    return store.prepare(view, batch.column(0).to_pylist(), columns, batch.column(1).to_numpy())
