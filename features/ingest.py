"""Ingestion: a table into a store, batch by batch, checked on the way.

The table has the view's entity as a column (integers, or strings kept as they are written) and every column of the
view; others are left out. An empty field is null. An older event never replaces a newer one (features/writes.py), so
ingesting again is harmless; of rows with one entity and one time the later one stays. Rows whose time is over already
(`ttl_s` after their event) are not kept, and counted. What was written before a bad value was met stays written.

- *Pipelined*: while a thread writes a batch and Redis works on it, the next ones are read, checked and encoded. Three
  may wait, so memory is bounded by five batches. They are written in the table's order.
- *Resumable*: after each batch the store keeps a mark of how many rows it has acknowledged, in the same log as the
  rows. So the mark survives if and only if the rows before it do, whatever the store's durability; and where the mark
  is not what it was, acknowledged rows were lost, and the ingestion says so rather than go on. (On a cluster rows and
  mark may be on different nodes: there this holds for nodes that lose nothing.)
- *Patient*: while the store is away a batch is tried again for half a minute.

Messages count data rows from 1 and name the column and the value. Cost goal: 3 µs a row of 30 float32 columns from
Parquet, a local Redis on another core included.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from penstock.features.arrow import to_array, to_entities, to_times
from penstock.features.columns import fit, unknown_words
from penstock.features.errors import InvalidData, RowsLost, StoreUnavailable
from penstock.features.offline.recording import Recorded
from penstock.features.patience import delays
from penstock.features.schema import FeatureView
from penstock.features.store import FeatureStore, Write, Written
from penstock.features.tables import identity, load_pyarrow, read_batches

WAITING = 3  # encoded batches
PATIENCE_S = 30.0
Progress = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What an ingestion did.

    Attributes:
        view: its name.
        rows: read and acknowledged by this run.
        older: of these, left out because a newer event was stored.
        resumed: rows that an earlier run had done.
        over: of `rows`, not kept, for `ttl_s` after their event had passed.
        seconds: how long it took.
        unknown: by column how many words its vocabulary does not have.
    """

    view: str
    rows: int
    seconds: float
    older: int = 0
    resumed: int = 0
    over: int = 0
    unknown: Mapping[str, int] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Rows that were written."""
        return self.rows - self.older - self.over

    @property
    def rows_per_s(self) -> float:
        """Rows done each second, reading and checking included."""
        return self.rows / self.seconds if self.seconds else 0.0


def ingest(
    store: FeatureStore,
    view: FeatureView,
    source: Any,
    batch_rows: int = 50_000,
    progress: Progress | None = None,
    *,
    time_column: str | None = None,
    created_column: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    patience_s: float = PATIENCE_S,
) -> Report:
    """Write every row of a table; `progress(rows, fraction)` is called for each batch that was acknowledged.

    Args:
        store: where to.
        view: whose rows they are.
        source: path of a .parquet, .csv or Arrow file, folder or pattern of many, or Arrow data (see
            `tables.read_batches`).
        batch_rows: rows encoded and written at a time.
        progress: see above; rows of earlier runs are counted.
        time_column: holds event times: timestamps, ISO 8601 text, or integers in ms since 1970 (UTC); else it is now.
        created_column: holds the times from which rows were known, for a store that records them
            (features/offline/recording.py); else that is when they are written.
        overwrite: replace newer events, too.
        resume: go on where an earlier run for the same view and unchanged file was stopped, if there was one.
        patience_s: how long a store that is away is waited for.

    Raises:
        InvalidData: a table that does not fit.
        RowsLost: the store no longer has what it had acknowledged.
        StoreUnavailable: away for longer than `patience_s`; what else `store.put` raises.
    """
    if view.aggregates is not None:
        raise InvalidData(f"view {view.name!r} is aggregated from a stream (penstock features stream), not from tables")
    load_pyarrow()  # half a second the first time, and no part of the ingestion
    start = time.monotonic()
    columns = Columns(time_column, created_column)
    job = Job(store, job_name(view, source, columns), resume=resume)
    written = Written()
    unknown: Counter[str] = Counter()
    with in_turn() as (submit, stop):
        done: deque[tuple[Future[Written], int, float]] = deque()

        def settle(most: int) -> None:
            nonlocal written
            while len(done) > most:
                future, rows, fraction = done.popleft()
                written += future.result()
                job.rows += rows
                if progress is not None:
                    progress(job.rows, fraction)

        read = job.resumed
        for batch, fraction in read_batches(source, wanted(view, columns), batch_rows, skip=read):
            write = prepare(store, view, batch, columns, first=read + 1, overwrite=overwrite, unknown=unknown)
            read += batch.num_rows
            done.append((submit(persistently(job.marking(write, read), patience_s, stop)), batch.num_rows, fraction))
            settle(WAITING)
        settle(0)
    job.finish()
    rows, seconds = job.rows - job.resumed, time.monotonic() - start
    older = rows - written.kept - written.over
    return Report(view.name, rows, seconds, older, job.resumed, written.over, dict(unknown))


class Columns(NamedTuple):
    """Which columns of a table are not the view's own: times, each None where the table does not tell them."""

    time: str | None = None
    created: str | None = None


def wanted(view: FeatureView, columns: Columns) -> list[str]:
    """The columns of a table that matter."""
    return list(dict.fromkeys([*view.entity_keys, *view.column_names, *filter(None, columns)]))


def prepare(
    store: FeatureStore,
    view: FeatureView,
    batch: Any,
    columns: Columns,
    *,
    first: int,
    overwrite: bool,
    unknown: Counter[str],
) -> Write:
    """One record batch, checked and encoded, its unknown words counted; messages count rows from `first`."""
    entities = to_entities([batch.column(key) for key in view.entity_keys], view.entity_keys, first)
    arrays = {column.name: to_array(batch.column(column.name), column, first) for column in view.columns}
    for column in view.columns:
        fitted = fit(column, arrays[column.name], len(entities), first_row=first)  # the store cannot tell rows of it
        if words := unknown_words(column, *fitted):
            unknown[column.name] += words
    times, created = (to_times(batch.column(name), name, first) if name else None for name in columns)
    if created is None:
        return store.prepare(view, entities, arrays, times, overwrite=overwrite)
    if not isinstance(store, Recorded):
        raise InvalidData("created times are for the history of features: say where that is (recording, or --offline)")
    return store.prepare(view, entities, arrays, times, created, overwrite=overwrite)


# Order, patience, marks ---------------------------------------------------------------------------------------------


@contextmanager
def in_turn() -> Iterator[tuple[Callable[[Write], Future[Written]], threading.Event]]:
    """A function that runs writes one after the other in a thread, and an event that ends the waiting of these.

    After a write has failed no later one is run, for a mark must not pass rows that are not written. If the block is
    left by an exception, those not yet begun are dropped; the one that runs is waited for in either case.
    """
    stop = threading.Event()

    def run(write: Write) -> Written:
        if stop.is_set():
            raise StoreUnavailable("stopped")
        try:
            return write()
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(1, thread_name_prefix="penstock-ingest") as executor:
        try:
            yield lambda write: executor.submit(run, write), stop
        except BaseException as error:
            if not isinstance(error, InvalidData):  # the rows before a bad value are written
                stop.set()
            raise


def persistently(write: Write, patience_s: float, stop: threading.Event) -> Write:
    """The same write, tried again while the store is away."""

    def run() -> Written:
        until = time.monotonic() + patience_s
        for delay in delays():
            try:
                return write()
            except StoreUnavailable:
                if time.monotonic() + delay > until or stop.wait(delay):
                    raise
        raise AssertionError("delays never end")

    return run


def job_name(view: FeatureView, source: Any, columns: Columns) -> str:
    """What marks are kept under: view and file, as they are now. Data in memory cannot be known again."""
    what = identity(Path(source)) if isinstance(source, str | Path) else secrets.token_hex(12)
    return ":".join([view.name, f"{view.schema_id:08x}", columns.time or "", *filter(None, columns[1:]), what])


class Job:
    """How far an ingestion has come.

    Attributes:
        resumed: rows that an earlier run had done when this one began.
        rows: rows that are acknowledged, those included.
    """

    def __init__(self, store: FeatureStore, name: str, *, resume: bool) -> None:
        self._store, self._name = store, name
        self._run = secrets.token_hex(4)  # two runs of one job would each go on from the other's mark
        rows, _, _ = ((store.marked(name) if resume else None) or b"0").partition(b" ")
        self.rows = self.resumed = int(rows) if rows.isdigit() else 0
        self._mark = b"%d %s" % (self.rows, self._run.encode())
        store.mark(name, self._mark)

    def marking(self, write: Write, rows: int) -> Write:
        """`write`, and after it the mark that `rows` are done; raises `RowsLost` where the last mark is gone."""
        new = b"%d %s" % (rows, self._run.encode())

        def run() -> Written:
            written = write()
            before = self._store.mark(self._name, new)
            if before not in (self._mark, new):  # the new one, where the answer to it was lost
                self._store.mark(self._name, before)  # else to resume would be to pass over the rows that are lost
                raise RowsLost(
                    "the store no longer has the mark of this ingestion: it was restarted and lost rows that it had "
                    "acknowledged, or the same file is ingested twice at once; run it again with --resume"
                )
            self._mark = new
            return written

        return run

    def finish(self) -> None:
        """Forget the job: it is done."""
        self._store.mark(self._name, None)
