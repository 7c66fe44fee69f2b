"""Links: connections that answer within a deadline or are thrown away.

What redis-py does well, making a connection (TLS, ACL, unix sockets), is left to it (`features/redis.py`). Sending a
request and reading its replies is done here on the connected socket with hiredis, because redis-py bounds each `recv`,
not the whole call: a store that drips one byte a second is then never late.

The rule that keeps entities apart: a link whose exchange did not end exactly (timeout, cut, interrupt, a byte too many)
is closed and never used again, so nobody reads a reply to somebody else's request.

Connecting, which may hang in DNS where no timeout reaches, is done by a thread; who waits for it waits until his own
deadline, and a link that comes too late is kept for the next caller. How often it is done is bounded by a `Pace`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, Protocol

import hiredis

from penstock.features.pace import Pace

READ_SIZE = 1 << 16
MAX_CONNECTING = 8  # threads that connect at once
MAX_IDLE = 64
PENDING = object()  # hiredis' answer when it needs more bytes


class OutOfStep(Exception):  # noqa: N818
    """The peer does not speak as agreed: too many bytes, replies nobody asked for, or not RESP."""


class Connection(Protocol):
    """What is needed of redis-py's connections."""

    def disconnect(self) -> None: ...


class Link:
    """One connected socket and the parser of its replies. Used by one thread at a time."""

    def __init__(self, connection: Connection, connected: socket.socket) -> None:
        self._connection = connection
        self._socket = connected
        self._reader = hiredis.Reader(protocolError=OutOfStep, notEnoughData=PENDING)
        self._buffer = bytearray(READ_SIZE)
        self.used = False

    def exchange(self, request: bytes, count: int, deadline: float, limit: int) -> list[Any]:
        """Send `request` and read its `count` replies, all of them before `deadline` (of `time.monotonic`).

        Error replies come as `hiredis.ReplyError` values. Raises TimeoutError, OSError, or `OutOfStep` for more than
        `limit` bytes; after an exception the link is closed.
        """
        self.send(request, deadline)
        return self.receive(count, deadline, limit)

    def send(self, request: bytes, deadline: float) -> None:
        """The first half of `exchange`, for requests that are on their way to several servers together."""
        try:
            self._socket.settimeout(seconds_to(deadline))
            self._socket.sendall(request)
        except BaseException:
            self.close()
            raise

    def receive(self, count: int, deadline: float, limit: int) -> list[Any]:
        """The second half."""
        try:
            replies = self._receive(count, deadline, limit)
        except BaseException:
            self.close()
            raise
        self.used = True
        return replies

    def _receive(self, count: int, deadline: float, limit: int) -> list[Any]:
        reader, buffer, connected = self._reader, self._buffer, self._socket
        replies: list[Any] = []
        while len(replies) < count:
            reply = reader.gets()
            if reply is not PENDING:
                replies.append(reply)
                continue
            connected.settimeout(max(deadline - time.monotonic(), 0.0))  # late, but what has come already is taken
            try:
                size = connected.recv_into(buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                raise TimeoutError from None
            limit -= size
            if size == 0:
                raise ConnectionResetError("it closed the connection")
            if limit < 0:
                raise OutOfStep("its reply is larger than anything that was asked for")
            reader.feed(buffer, 0, size)  # type: ignore[arg-type]  # any buffer will do
        if reader.has_data():
            raise OutOfStep("it sent a reply that nobody asked for")
        return replies

    def close(self) -> None:
        """Close the socket; the link is of no more use."""
        with contextlib.suppress(Exception):
            self._connection.disconnect()


def seconds_to(deadline: float) -> float:
    """Seconds left; TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class Links:
    """Idle links, newest first, and the making of new ones. Safe from many threads and after a fork."""

    def __init__(self, connect: Callable[[], Link]) -> None:
        self._connect = connect
        self._closed = False
        self.opened = 0
        self.forget()
        FORKED.add(self)

    def forget(self) -> None:
        """Start anew without closing anything: after a fork, for a child must not talk on its parent's sockets."""
        self._idle: list[Link] = []
        self._pace = Pace()
        self._pacing = threading.Lock()
        self._connecting = threading.BoundedSemaphore(MAX_CONNECTING)

    def take(self) -> Link | None:
        """An idle link, if there is one."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def open(self, deadline: float) -> Link:
        """A new link; TimeoutError, ConnectionError where they keep breaking, or what `connect` raised."""
        return self.opened_by(self.begin(deadline), deadline)

    def begin(self, deadline: float) -> Future[Link]:
        """Begin to open a link; `opened_by` waits for it."""
        with self._pacing:
            wait_s = self._pace.wait_s(time.monotonic(), deadline)
        if wait_s is None:
            raise ConnectionError("its connections keep breaking, and no more are opened just now")
        if not self._connecting.acquire(timeout=seconds_to(deadline)):
            raise TimeoutError
        self.opened += 1
        future: Future[Link] = Future()
        threading.Thread(target=self._make, args=(future, wait_s), name="penstock-connect", daemon=True).start()
        return future

    def opened_by(self, future: Future[Link], deadline: float) -> Link:
        """The link that was begun; who comes too late leaves it to the next."""
        if not wait((future,), max(deadline - time.monotonic(), 0)).done:
            future.add_done_callback(self._keep)
            raise TimeoutError
        return future.result()

    def _make(self, future: Future[Link], wait_s: float) -> None:
        connecting = self._connecting
        try:
            if wait_s:
                time.sleep(wait_s)
            future.set_result(self._connect())
        except BaseException as error:  # noqa: BLE001 -- it is raised by who waits for the future
            future.set_exception(error)
        finally:
            connecting.release()

    def _keep(self, future: Future[Link]) -> None:
        if future.exception() is None:
            self.give(future.result())

    def give(self, link: Link) -> None:
        """Take back a link whose exchange ended well."""
        if self._closed or len(self._idle) >= MAX_IDLE:
            link.close()
        else:
            self._idle.append(link)

    def drop_idle(self) -> None:
        """Close every idle link: one of them was found dead, so the server was away."""
        while self._idle:
            with contextlib.suppress(IndexError):
                self._idle.pop().close()

    def close(self) -> None:
        """Close idle links now, and those in use when they come back."""
        self._closed = True
        self.drop_idle()


FORKED: weakref.WeakSet[Links] = weakref.WeakSet()


def _forget_all() -> None:
    for links in list(FORKED):
        links.forget()


os.register_at_fork(after_in_child=_forget_all)
