"""Few files of history made of many: a consumer that keeps history publishes up to 2,880 a day.

Of each day the files that are alike in their columns and not large already become one, sorted by entity and time. Of
rows alike in entity and both times, which a repeated write leaves, it has the one that counts, the one written last.
No answer changes, and no row of history is lost:

- The new file is whole, on disk and seen before the old ones go. A reader finds every row, or some twice.
- A reader that meanwhile had listed an old file does not find it, and lists anew (`asof.found_in`).
- Killed in between, old and new stay beside each other, until the next compaction makes one of them.

Cost: a million rows of 10 columns in 2,880 files take 3 s; the memory and the scratch folder of the join (`asof`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.features.errors import InvalidData
from penstock.features.offline.asof import answers
from penstock.features.offline.changing import FILES, Progress, changing, read_file
from penstock.features.offline.parts import Parts, sync, writing
from penstock.features.offline.store import CREATED, EVENT, MAX_HELD, WRITTEN, OfflineStore
from penstock.features.offline.tables import arrow, identifier, quoted

LARGE = 128 << 20  # bytes; more gains a reader nothing, and is written anew for each late row


@dataclass(frozen=True)
class Compaction:
    """What became of the history of one view.

    Attributes:
        view: its name.
        files: how many there were.
        merged: of these, the ones that were merged.
        into: how many those became.
        rows: of the files that were merged.
        dropped: of these, the ones that another one stood for.
        bytes: of the files that were merged.
        bytes_after: of the files they became; 0 of a dry run, as is `dropped`.
    """

    view: str
    files: int
    merged: int
    into: int
    rows: int
    dropped: int
    bytes: int
    bytes_after: int


@dataclass(frozen=True)
class _Group:
    """Files of one day, alike in their columns."""

    files: Sequence[Path]
    schema: Any
    rows: int

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def compact(
    store: OfflineStore,
    name: str,
    *,
    dry_run: bool = False,
    progress: Progress = lambda _files, _fraction: None,
) -> Compaction:
    """Merge the small files of a view's history, while others read and write it.

    Args:
        store: the history.
        name: of the view.
        dry_run: say what would be merged, and change nothing.
        progress: called as (files done, fraction of all).

    Raises:
        InvalidData: there is no history of the view, or a file cannot be read; what was merged before stays.
        HistoryUnwritable: the disk does not take it; likewise.
        FeatureError: DuckDB is not installed.
    """
    with changing(store, name) as folder:
        if not folder.is_dir():
            has = f"; it has {', '.join(names)}" if (names := store.names()) else ""
            raise InvalidData(f"there is no history of view {name[:100]!r} in {store.root}{has}")
        groups = _groups(listed := sorted(folder.glob(FILES)))
        merged, rows = sum(len(group.files) for group in groups), sum(group.rows for group in groups)
        before = sum(group.bytes for group in groups)
        dropped = after = done = 0
        for group in [] if dry_run else groups:
            file, kept = _merge(folder, group)
            dropped, after, done = dropped + group.rows - kept, after + file.stat().st_size, done + len(group.files)
            progress(done, done / merged)
    return Compaction(name, len(listed), merged, len(groups), rows, dropped, before, after)


def _groups(files: Sequence[Path]) -> list[_Group]:
    """What is to be merged with what: of one day and the same columns, at least two, and none that is large."""
    alike: dict[tuple[str, bytes], list[tuple[Path, Any, int]]] = defaultdict(list)
    for file in files:
        if file.stat().st_size < LARGE:
            schema, rows = read_file(file, lambda source: (source.schema_arrow, source.metadata.num_rows))
            schema = schema.remove_metadata()
            alike[file.parent.name, schema.serialize().to_pybytes()].append((file, schema, rows))
    pieces = [some for members in alike.values() for some in _in_turn(members) if len(some) > 1]
    return [_Group([file for file, _, _ in some], some[0][1], sum(rows for _, _, rows in some)) for some in pieces]


def _in_turn(members: Sequence[tuple[Path, Any, int]]) -> list[list[tuple[Path, Any, int]]]:
    """In pieces of about `LARGE`, oldest first."""
    pieces: list[list[tuple[Path, Any, int]]] = [[]]
    size = 0
    for member in members:
        if size >= LARGE:
            pieces.append([])
            size = 0
        pieces[-1].append(member)
        size += member[0].stat().st_size
    return pieces


def _merge(folder: Path, group: _Group) -> tuple[Path, int]:
    """One file in the place of a group; it, and how many rows it has."""
    day = int(np.datetime64(group.files[0].parent.name.removeprefix("date="), "D").astype(np.int64))
    parts = Parts(folder)
    try:
        rows = 0
        for table in _chunks(group):
            parts.write(day, table)
            rows += table.num_rows
        [file] = parts.commit()
    finally:
        parts.discard()
    with writing(folder):
        for old in group.files:
            old.unlink()
        sync(file.parent)
    return file, rows


def _chunks(group: _Group) -> Any:
    """The rows that count, sorted, as tables of the files' own columns; one of none where there are none."""
    entity, *_ = names = group.schema.names
    statement = f"""
        SELECT {", ".join(map(identifier, names))}
        FROM read_parquet([{", ".join(map(quoted, group.files))}], hive_partitioning = false)
        QUALIFY row_number() OVER (
            PARTITION BY {identifier(entity)}, {EVENT}, {CREATED} ORDER BY {WRITTEN} DESC) = 1
        ORDER BY {identifier(entity)}, {EVENT}, {CREATED}"""  # noqa: S608 -- names are quoted
    pa, held, size = arrow(), [group.schema.empty_table()], 0
    for batch in answers(statement):
        held.append(pa.Table.from_batches([batch]).cast(group.schema))
        size += held[-1].nbytes
        if size >= MAX_HELD:
            yield pa.concat_tables(held).combine_chunks()
            held, size = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()
