"""A training set as a file: labels from one table, joined point in time, written whole or not at all.

Labels and answer are in memory, the history is not (see `asof`).
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.features.errors import FeatureError, InvalidData
from penstock.features.offline.joining import joined
from penstock.features.offline.store import EVENT, OfflineStore
from penstock.features.offline.windows import Events
from penstock.features.schema import FeatureView
from penstock.features.tables import load_pyarrow, read_table

Progress = Callable[[int, float], None]


@dataclass(frozen=True)
class Summary:
    """What a join of files did.

    Attributes:
        labels: rows of the training set.
        features: columns that were joined to them.
        found: by view, for how many labels it had a row.
        out: the file.
        seconds: how long it took.
    """

    labels: int
    features: int
    found: dict[str, int]
    out: str
    seconds: float


def join_file(
    labels: Path,
    views: Sequence[FeatureView],
    store: OfflineStore,
    out: Path,
    *,
    time_column: str = EVENT,
    keys: Mapping[str, str] | None = None,
    as_of_created: bool = True,
    prefix: bool = False,
    words: bool = False,
    events: Mapping[str, Path] | None = None,
    event_time: str = EVENT,
    event_created: str | None = None,
    progress: Progress = lambda *_: None,
) -> Summary:
    """`join` from a table on disk into a Parquet file, which is there in full or as it was before.

    Args:
        labels: a table as `tables.read_batches` takes it.
        views: what to join.
        store: the history.
        out: ends in .parquet; what was there is replaced.
        time_column: the labels' column with their times; the other options are those of `join`.
        keys: see `join`.
        as_of_created: see `join`.
        prefix: see `join`.
        words: see `join`.
        events: by the names of aggregated views tables of the events of which they are made.
        event_time: the events' column with the times at which they happened.
        event_created: their column with the times at which they came; when they happened, if None.
        progress: is told the rows looked up, and which part of all this is.

    Raises:
        InvalidData: as `join` does, or labels that cannot be read, or `out` is no name for the answer.
        FeatureError: the file cannot be written; DuckDB or pyarrow is not installed.
    """
    start, keys, looked_up = time.monotonic(), keys or {}, 0
    _check(out, labels)
    frame = read_table(labels, [keys.get(key, key) for view in views for key in view.entity_keys])
    most = max(frame.num_rows * len(views), 1)
    by_name = {view.name: view for view in views}
    replayed = {
        name: Events(read_table(path, by_name[name].entity_keys if name in by_name else ()), event_time, event_created)
        for name, path in (events or {}).items()
    }

    def told(rows: int) -> None:
        nonlocal looked_up
        looked_up += rows
        progress(looked_up, looked_up / most)

    with _naming(labels):
        found = joined(
            frame,
            views,
            store,
            time=time_column,
            keys=keys,
            as_of_created=as_of_created,
            prefix=prefix,
            words=words,
            events=replayed,
            told=told,
        )
    write_whole(found.table, out)
    features = found.table.num_columns - frame.num_columns
    return Summary(frame.num_rows, features, found.found, str(out), time.monotonic() - start)


def _check(out: Path, labels: Path) -> None:
    """What is wrong with the file to be written is told before the work is done."""
    if out.suffix.lower() not in {".parquet", ".pq"}:
        raise InvalidData(f"{out}: a training set is Parquet: its name ends in .parquet")
    if out.is_dir() or not out.parent.is_dir():
        raise InvalidData(f"{out}: {'is a folder' if out.is_dir() else f'there is no folder {out.parent}'}")
    if out.exists() and labels.exists() and out.samefile(labels):
        raise InvalidData(f"{out} has the labels: say another file for the training set")


@contextmanager
def _naming(labels: Path) -> Iterator[None]:
    """Complaints about the entity frame name the file."""
    try:
        yield
    except InvalidData as error:
        raise InvalidData(str(error).replace("the entity frame", str(labels), 1)) from error


def write_whole(table: Any, out: Path) -> None:
    """A Parquet file that is there in full and on disk, or as it was before; `FeatureError` where it cannot be."""
    pa = load_pyarrow()
    from pyarrow import parquet

    staged = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        with staged.open("xb") as file:
            parquet.write_table(table, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        staged.replace(out)
    except (OSError, pa.ArrowException) as error:
        reason = (isinstance(error, OSError) and error.errno and os.strerror(error.errno)) or " ".join(
            str(error).split()
        )
        raise FeatureError(f"{out}: cannot be written: {reason}") from error
    finally:
        staged.unlink(missing_ok=True)
