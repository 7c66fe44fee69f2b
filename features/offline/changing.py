"""What those share who change a history's files: one of them at a time, and what the killed have left goes first.

Writers add files of their own and need none of this. Readers are never kept waiting.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.features.errors import InvalidData
from penstock.features.offline.parts import sweep
from penstock.features.offline.store import OfflineStore
from penstock.features.offline.tables import arrow
from penstock.features.schema import NAME

FILES = "date=*/part-*.parquet"
STAGED = ".erasing-"  # before the name of a file that is being written anew
Progress = Callable[[int, float], None]  # called as (files done, fraction of all)


@contextmanager
def changing(store: OfflineStore, name: str) -> Iterator[Path]:
    """The view's folder, which may not be there; held by a lock on it for the length of the block.

    Raises:
        InvalidData: it is no name of a view, or there is no history at all in the store's folder.
    """
    if not NAME.fullmatch(name):
        raise InvalidData(f"{name[:100]!r} is no name of a view: there is no history of it")
    if not store.root.is_dir():
        raise InvalidData(f"there is no history in {store.root}: no such folder")
    folder = store.root / name
    if not folder.is_dir():
        yield folder
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        sweep(folder)
        for left in folder.glob(f"date=*/{STAGED}*"):
            left.unlink()
        yield folder
    finally:
        os.close(number)


def read_file(file: Path, read: Callable[[Any], Any]) -> Any:
    """What `read` makes of an open `pyarrow.parquet.ParquetFile`; `InvalidData` names one that cannot be read."""
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as source:
            return read(source)
    except (OSError, arrow().ArrowException) as error:
        raise InvalidData(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
