"""What a consumer of a stream has written, kept as history while it runs: saved at once, published by and by.

A Parquet file for each batch would be thousands of files a day. So rows first go to a *spool*, an Arrow stream beside
the days of the view, `.spool-*.arrows`; `save` has it on disk, and only then are entries acknowledged. Every so often,
and at the end, what was put is published as Parquet (features/offline/store.py) and the spool is emptied. The spool of
one that was killed is published by the next who opens the history; a lock tells it from that of one who runs. Rows may
be published twice then, which changes no answer.

Cost: 1.1 µs a row of 10 columns, and an fsync a batch.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from penstock.features.offline.parts import writing
from penstock.features.offline.store import OfflineStore, Writer, check_names
from penstock.features.offline.tables import LAST_MS, arrow
from penstock.features.schema import FeatureView

EVERY_S = 30.0
MOST_ROWS = 100_000
SPOOL = ".spool-*.arrows"


class History:
    """The history of one view, written as rows come; used as a context manager, by one thread.

    Args:
        offline: where it is.
        view: whose rows they are.
        every_s: how often rows are published, at the latest.
        most_rows: how many are held back, at most.
        clock: seconds, for `every_s`.

    Attributes:
        rows: saved so far.

    Raises:
        InvalidView: the view cannot be kept offline.
        HistoryUnwritable: the folder cannot be written to; likewise all methods.
        FeatureError: pyarrow is not installed.
    """

    def __init__(
        self,
        offline: OfflineStore,
        view: FeatureView,
        every_s: float = EVERY_S,
        most_rows: int = MOST_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_names(view)
        self.rows = 0
        self._offline, self._view, self._folder = offline, view, offline.root / view.name
        self._every_s, self._most_rows, self._clock = every_s, most_rows, clock
        self._published_at = clock()
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            publish_abandoned(offline, view)
            self._spool = Spool(self._folder)
        self._writer = Writer(self._folder, view)

    def put(
        self, entities: Sequence[bytes], columns: Mapping[str, NDArray[Any]], event_times: NDArray[np.int64]
    ) -> None:
        """Take rows, known from now on; those with event times before 1970 or after 9999 are no history."""
        within = np.flatnonzero((event_times >= 0) & (event_times <= LAST_MS))
        if len(within) < len(entities):
            entities = [entities[i] for i in within.tolist()]
            columns, event_times = {name: values[within] for name, values in columns.items()}, event_times[within]
        if entities:
            with writing(self._folder):
                table = self._writer.table(entities, columns, event_times)
                self._spool.add(table)
                self._writer.hold(table)

    def save(self) -> None:
        """Have on disk what was put, and publish it where it is time."""
        with writing(self._folder):
            self.rows += self._spool.sync()
            if self._writer.rows >= self._most_rows or self._clock() >= self._published_at + self._every_s:
                self._publish()

    def _publish(self) -> None:
        self._published_at = self._clock()
        if not self._writer.rows:
            return
        writer, self._writer = self._writer, Writer(self._folder, self._view)
        try:
            writer.commit()
        finally:
            writer.discard()
        self._spool.empty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Publish what was put, also after an error: the store has acknowledged it."""
        try:
            with writing(self._folder):
                self.rows += self._spool.sync()
                self._publish()
        finally:
            self._spool.close()


class Spool:
    """Rows in the order in which they came, in a file that is ours as long as it is open."""

    def __init__(self, folder: Path) -> None:
        self._path, self._file = _new_spool(folder)
        self._stream: Any = None
        self._rows = self._unsaved = 0

    def add(self, table: Any) -> None:
        """Append rows."""
        if self._stream is None:
            self._stream = arrow().ipc.new_stream(self._file, table.schema)
        self._stream.write_table(table)
        self._rows += table.num_rows
        self._unsaved += table.num_rows

    def sync(self) -> int:
        """Have them on disk; how many there were."""
        saved, self._unsaved = self._unsaved, 0
        if saved:
            self._file.flush()
            os.fsync(self._file.fileno())
        return saved

    def empty(self) -> None:
        """Forget all rows."""
        self._stream, self._rows = None, 0
        self._file.seek(0)
        self._file.truncate()

    def close(self) -> None:
        """Take the file away, or leave it to others if it has rows."""
        self._stream = None
        if not self._rows:
            self._path.unlink(missing_ok=True)
        with suppress(OSError):  # what a full disk did not take was not acknowledged
            self._file.close()


def _new_spool(folder: Path) -> tuple[Path, IO[bytes]]:
    """A file that is ours: one who opens the history may have taken it for abandoned before it was locked."""
    while True:
        path = folder / SPOOL.replace("*", f"{time.time_ns():020d}-{secrets.token_hex(4)}")
        file = path.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return path, file
        file.close()


def publish_abandoned(offline: OfflineStore, view: FeatureView) -> None:
    """Publish what consumers of the view have saved that are no more, and leave the spools of those that run."""
    for spool in sorted((offline.root / view.name).glob(SPOOL)):
        _recover(spool, offline, view)


def _recover(path: Path, offline: OfflineStore, view: FeatureView) -> None:
    """Publish the spool of a process that is no more; leave that of one that runs."""
    with suppress(FileNotFoundError), path.open("rb") as file:  # somebody else may be faster
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        with offline.writer(view) as writer:
            for table in _whole_batches(file):
                writer.hold(table)
        path.unlink(missing_ok=True)


def _whole_batches(file: IO[bytes]) -> Iterator[Any]:
    """Batches up to the first that was not written to its end; what follows was not acknowledged."""
    pa = arrow()
    with suppress(pa.ArrowInvalid, OSError, EOFError), pa.ipc.open_stream(file) as stream:
        for batch in stream:
            yield pa.Table.from_batches([batch])
