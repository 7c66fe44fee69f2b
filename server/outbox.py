"""An outbox: what is to be written somewhere slow, and the thread that writes it, so that no worker waits.

Bounded in bytes: what does not fit is not taken. What waits is written together, up to `MOST_AT_ONCE` bytes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import Generic, TypeVar

_log = logging.getLogger("penstock.server")

MOST_WAITING = 16 << 20
MOST_AT_ONCE = 4 << 20
Item = TypeVar("Item")


class Outbox(Generic[Item]):
    """Hands items to a function, in a thread of its own that starts with the first of them.

    Args:
        write: takes a list of items, never an empty one; what it raises is logged.
        name: of the thread.
    """

    def __init__(self, write: Callable[[list[Item]], None], name: str) -> None:
        self._write = write
        self._changed = Condition()
        self._waiting: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._closed = False
        self._thread = Thread(target=self._run, name=name, daemon=True)
        self._started = False

    def put(self, items: Sequence[tuple[Item, int]]) -> int:
        """Take items, each with its size in bytes; how many were taken, in order."""
        taken = 0
        with self._changed:
            for item, size in items:
                if self._closed or self._bytes + size > MOST_WAITING:
                    break
                self._waiting.append((item, size))
                self._bytes += size
                taken += 1
            if taken and not self._started:
                self._thread.start()  # raises where there are no more threads, and is tried again then
                self._started = True
            self._changed.notify()
        return taken

    def close(self, timeout_s: float) -> None:
        """Take nothing more, and wait for so long until what waits is written."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._started:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while items := self._next():
            try:
                self._write(items)
            except Exception:  # noqa: BLE001 -- the next ones may well be written
                _log.exception("what was to be written is lost")

    def _next(self) -> list[Item]:
        """What is to be written next; nothing once it is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            items: list[Item] = []
            taken = 0
            while self._waiting and (not items or taken + self._waiting[0][1] <= MOST_AT_ONCE):
                item, size = self._waiting.popleft()
                items.append(item)
                taken += size
            self._bytes -= taken
            return items
