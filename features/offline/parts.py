"""Files of history while they are written: whole and on disk before anybody sees them, swept away if left behind.

Of one commit each day has one file, all of the same name. Until then it has a dot in front and no reader looks at it:

    <view>/.part-<when>-<random>.parquet.lock               held (flock) by the process that writes
    <view>/date=2026-01-31/.part-<when>-<random>.parquet    one for each day, renamed once all of them are synced

A lock ends with its process, whatever ends that. So what has a lock file that nobody holds was left by one that was
killed, and the next writer of the view takes it away. Where a file system has no such locks, nothing is swept.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from penstock.features.errors import HistoryUnwritable
from penstock.features.offline.tables import arrow

LEFT_S = 60.0  # a lock file is made a moment before it is locked


class Parts:
    """The files of one commit; raises `HistoryUnwritable` where the disk does not take them.

    Args:
        folder: of the view.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"part-{time.time_ns():020d}-{secrets.token_hex(4)}.parquet"
        self._files: dict[int, tuple[Path, Any]] = {}
        self._lock: IO[bytes] | None = None

    def write(self, day: int, table: Any) -> None:
        """Add rows of one day, counted since 1970."""
        from pyarrow import parquet

        with writing(self._folder):
            if self._lock is None:
                self._lock = _locked(self._folder / f".{self._name}.lock")
            if day not in self._files:
                staged = self._folder / f"date={np.datetime64(day, 'D')}" / f".{self._name}"
                staged.parent.mkdir(exist_ok=True)
                self._files[day] = staged, parquet.ParquetWriter(staged, table.schema)
            self._files[day][1].write_table(table)

    def commit(self) -> list[Path]:
        """Let every file be seen, once all of them are on disk; these."""
        seen = []
        with writing(self._folder):
            for staged, file in self._files.values():
                file.close()
                sync(staged)
            for staged, _ in self._files.values():
                seen.append(staged.rename(staged.with_name(self._name)))
                sync(staged.parent)
            self._files.clear()
        self.discard()
        return seen

    def discard(self) -> None:
        """Take away what was not committed; it cannot be written to any more."""
        for _, file in self._files.values():
            with suppress(OSError):
                file.close()
        self._files.clear()
        if self._lock is not None:
            _clear(self._folder, self._name)
            self._lock.close()
            self._lock = None


def sweep(folder: Path) -> None:
    """Take away what processes left in a view's folder that were killed while they wrote."""
    for lock in folder.glob(".part-*.parquet.lock"):
        with suppress(OSError), lock.open("r+b") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime >= LEFT_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _clear(folder, lock.name[1:].removesuffix(".lock"))


def _locked(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("xb")
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _clear(folder: Path, name: str) -> None:
    """Remove the staged files of one commit, and its lock file last."""
    with suppress(OSError):
        for staged in folder.glob(f"date=*/.{name}"):
            staged.unlink()
        (folder / f".{name}.lock").unlink()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """`HistoryUnwritable`, in one line, where the file system does not do what the block asks for."""
    try:
        yield
    except (OSError, arrow().ArrowException) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        raise HistoryUnwritable(f"the history in {folder} cannot be written: {reason}") from error


def sync(path: Path) -> None:
    """Have the file, or the names in the folder, on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
