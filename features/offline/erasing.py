"""Taking entities, or a whole view, out of a history: the one way in which its rows are ever changed.

A file that holds one of the entities is written anew without their rows beside its place, and renamed over it once it
is whole and on disk: a reader sees the one or the other. Whoever erases holds a lock on the view's folder, so that two
at once do not bring back each other's rows (features/offline/changing.py). What one who was killed has left, under
names that begin with `.erasing-`, no reader looks at, and the next one takes away. What consumers have saved and not
published (features/offline/history.py) is published first where they are no more; one that runs does so later.

Cost: every file's ids are read, and what holds one of the entities is read and written in full.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.features.errors import InvalidData
from penstock.features.offline.changing import FILES, STAGED, Progress, changing, read_file
from penstock.features.offline.history import publish_abandoned
from penstock.features.offline.parts import sync
from penstock.features.offline.store import OfflineStore
from penstock.features.offline.tables import arrow
from penstock.features.schema import FeatureView

OURS = re.compile(r"(\.|\.erasing-)?part-.*\.parquet")


def erase(
    store: OfflineStore,
    view: FeatureView,
    entities: Sequence[bytes],
    *,
    dry_run: bool = False,
    progress: Progress = lambda _files, _fraction: None,
) -> int:
    """Take the rows of some entities out of a view's history; the number of rows.

    Args:
        store: the history.
        view: whose rows; files that name their entity otherwise are of another one, and left alone.
        entities: ids as they are stored (`penstock.features.entity_key`).
        dry_run: count the rows, and change nothing.
        progress: called as (files done, fraction of all).

    Raises:
        InvalidData: there is no history at all in that folder, or a file cannot be read.
    """
    rows = 0
    if not dry_run:
        publish_abandoned(store, view)
    with changing(store, view.name) as folder:
        files = sorted(folder.glob(FILES))
        for done, file in enumerate(files, start=1):
            rows += _without(file, view.entity_name, entities, dry_run=dry_run)
            progress(done, done / len(files))
    return rows


def erase_view(store: OfflineStore, name: str, *, dry_run: bool = False) -> int:
    """Take away all history of a view; the number of rows.

    Raises:
        InvalidData: as `erase`, or its folder holds what is no history, and stays as it is.
    """
    with changing(store, name) as folder:
        _require_ours(folder)
        files = folder.glob(FILES)
        rows = sum(read_file(file, lambda source: source.metadata.num_rows) for file in files)
        if not dry_run:
            gone = folder.with_name(STAGED + name)
            shutil.rmtree(gone, ignore_errors=True)
            if folder.is_dir():
                folder.rename(gone)  # at once for readers
                shutil.rmtree(gone)
    return int(rows)


def _require_ours(folder: Path) -> None:
    """Refuse a folder that happens to be called as the view, or has somebody's files in it."""
    days = list(folder.iterdir()) if folder.is_dir() else []
    held = [file for day in days if day.is_dir() and day.match("date=*") for file in day.iterdir()]
    strange = [day for day in days if not (day.is_dir() and day.match("date=*"))]
    strange += [file for file in held if not OURS.fullmatch(file.name)]
    if strange:
        raise InvalidData(f"{min(strange)} is no history of a view; move it away, or the history is not deleted")


def _without(file: Path, entity: str, entities: Sequence[bytes], *, dry_run: bool) -> int:
    """Write a file anew without the rows of some entities, if it has any; how many it has."""
    found: int = read_file(file, lambda source: _count(source, entity, entities))
    if found and not dry_run:
        staged = file.with_name(STAGED + file.name)
        try:
            read_file(file, lambda source: _copy(source, staged, entity, entities))
            sync(staged)
            staged.replace(file)
            sync(file.parent)
        finally:
            staged.unlink(missing_ok=True)
    return found


def _count(source: Any, entity: str, entities: Sequence[bytes]) -> int:
    if entity not in source.schema_arrow.names:
        return 0
    batches = source.iter_batches(columns=[entity])
    return sum(int(_of(batch.column(0), entities).true_count) for batch in batches)


def _copy(source: Any, staged: Path, entity: str, entities: Sequence[bytes]) -> None:
    """All other rows, as they are; a file of none where there are no others, for readers who have listed it."""
    import pyarrow.compute as pc
    from pyarrow import parquet

    with parquet.ParquetWriter(staged, source.schema_arrow) as out:
        for group in range(source.num_row_groups):
            table = source.read_row_group(group).combine_chunks()
            of = [_of(chunk, entities) for chunk in table.column(entity).chunks]
            out.write_table(table.filter(pc.invert(arrow().chunked_array(of, arrow().bool_()))))


def _of(ids: Any, entities: Sequence[bytes]) -> Any:
    """Which ids are those of the entities: an Arrow array of bool."""
    import pyarrow.compute as pc

    return pc.is_in(ids, value_set=arrow().array(entities, ids.type))
