"""One Redis server as we deal with it: its links, its breaker, and what its failures mean.

A request is begun and then finished (`Flight`), so that requests to several servers are on their way together. No
retries, but for an idle connection that turns out to be dead: whatever is asked here can be sent twice without harm, so
it is sent again on a new one, within the same deadline.

- A failure or a late answer becomes `StoreUnavailable`; after some of them the breaker refuses at once.
- Refusals (password, ACL, TLS) become `StoreMisconfigured`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import hiredis

from penstock.features.breaker import Breaker
from penstock.features.errors import FeatureError, StoreMisconfigured, StoreUnavailable
from penstock.features.links import Link, Links, OutOfStep, seconds_to

# Error replies that pass with time, or once somebody else is the master.
BUSY = (
    "LOADING",
    "MASTERDOWN",
    "READONLY",
    "OOM",
    "BUSY",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MISCONF",
    "NOREPLICAS",
    "NOSCRIPT",
    "UNBLOCKED",
    "ERR WAIT cannot be used with replica",
)
NOT_MASTER = ("READONLY", "MASTERDOWN", "UNBLOCKED")
WRAPPED = "ERR Error running script"


def words_of(reply: hiredis.ReplyError) -> str:
    """What an error reply says; before Redis 7 what a command in a script was told stands behind where that was."""
    text = str(reply)
    return text.rpartition(": -")[2] if text.startswith(WRAPPED) else text


@dataclass(frozen=True, slots=True)
class Name:
    """What errors call a store: "the feature store at host:6379"; never with its password."""

    what: str
    where: str

    def __str__(self) -> str:
        return f"{self.what} at {self.where}"

    def unavailable(self, error: Exception | str) -> StoreUnavailable:
        """An outage, with its reason."""
        late = isinstance(error, TimeoutError)
        reason = "it did not answer in time" if late else str(error).rstrip(".") or type(error).__name__
        return StoreUnavailable(f"{self} is unavailable: {reason}")

    def misconfigured(self, reason: object) -> StoreMisconfigured:
        """A refusal that somebody must mend."""
        return StoreMisconfigured(f"{self} refuses us: {reason}")

    def refusal(self, text: str) -> FeatureError:
        """An error reply as an error: some pass with time, others need somebody."""
        return self.unavailable(text) if text.startswith(BUSY) else self.misconfigured(text)


class Ask(NamedTuple):
    """What is asked of one server.

    Attributes:
        request: commands as RESP, which may be sent twice without harm.
        n_replies: how many there will be.
        deadline: of `time.monotonic`, for all of it.
        limit: bytes of all replies together.
        tolerate: error replies that stay among the replies; any other is raised.
        guarded: goes through the breaker.
        fair: had as much time that lateness says something about the store.
        replicas: that must have what was written by then; asked of the server behind the commands (WAIT).
    """

    request: bytes
    n_replies: int
    deadline: float
    limit: int
    tolerate: Callable[[Any], bool] = lambda _: False
    guarded: bool = False
    fair: bool = True
    replicas: int = 0

    def waiting(self) -> Ask:
        """The same with the command that waits for replicas behind the others, four fifths of the time that is left."""
        left_ms = max(int((self.deadline - time.monotonic()) * 800), 1)
        request = self.request + hiredis.pack_command((b"WAIT", b"%d" % self.replicas, b"%d" % left_ms))  # type: ignore[arg-type]  # as in `commands.pack`
        return self._replace(request=request, n_replies=self.n_replies + 1)


class Node:
    """One server. Safe to use from many threads.

    Args:
        name: for errors.
        connect: makes a link, or raises a `FeatureError`.
    """

    def __init__(self, name: Name, connect: Callable[[], Link]) -> None:
        self.name = name
        self.links = Links(connect)
        self.breaker = Breaker()
        self._lock = threading.Lock()

    def ask(self, ask: Ask) -> list[Any]:
        """The replies; raises `StoreUnavailable` or `StoreMisconfigured`."""
        return self.begin(ask).finish()

    def begin(self, ask: Ask) -> Flight:
        """Send the request; raises nothing that `Flight.finish` will not raise."""
        return Flight(self, ask)

    def admit(self) -> int | None:
        """What `record` wants to know of a guarded request; None: do not ask."""
        with self._lock:
            return self.breaker.admit(time.monotonic())

    def record(self, generation: int, *, ok: bool) -> None:
        """The result of a guarded request."""
        with self._lock:
            self.breaker.record(generation, time.monotonic(), ok=ok)

    def close(self) -> None:
        """Close every connection."""
        self.links.close()


class Flight:
    """A request on its way to one server."""

    __slots__ = ("_ask", "_error", "_generation", "_link", "_node", "_opening")

    def __init__(self, node: Node, ask: Ask) -> None:
        self._node, self._ask = node, ask.waiting() if ask.replicas else ask
        self._link: Link | None = None
        self._opening: Future[Link] | None = None
        self._error: Exception | None = None
        self._generation: int | None = None
        if ask.guarded and (generation := node.admit()) is None:
            self._error = StoreUnavailable(f"{node.name} failed a moment ago and is not asked again yet")
            return
        self._generation = generation if ask.guarded else None
        try:
            seconds_to(ask.deadline)  # who has no time left shall not spoil a link
            self._link = node.links.take()
            if self._link is None:
                self._opening = node.links.begin(ask.deadline)
            else:
                self._send()
        except OSError as error:
            self._error = error

    def finish(self) -> list[Any]:
        """The replies; raises `StoreUnavailable` or `StoreMisconfigured`."""
        well: bool | None = None
        try:
            replies = self._replies()
            well = True
        except StoreMisconfigured:
            well = True  # it answers, and at once
            raise
        except StoreUnavailable as error:
            # A caller in a hurry must not close the store to everybody else.
            well = None if isinstance(error.__cause__, TimeoutError) and not self._ask.fair else False
            raise
        finally:
            if well is not None and self._generation is not None:
                self._node.record(self._generation, ok=well)
        return replies

    def _replies(self) -> list[Any]:
        try:
            if self._error is not None:
                raise self._error
            if self._opening is not None:
                self._take_opened()
            replies = self._receive()
        except (OSError, OutOfStep) as error:
            raise self._node.name.unavailable(error) from error
        assert self._link is not None
        held = replies.pop() if self._ask.replicas else None
        refused = ""
        for reply in replies:
            if type(reply) is hiredis.ReplyError and not self._ask.tolerate(reply):
                refused = words_of(reply)
                break
        if refused.startswith(NOT_MASTER):  # a new connection may find the master
            self._link.close()
            self._node.links.drop_idle()
        else:
            self._node.links.give(self._link)
        if refused:
            raise self._node.name.refusal(refused)
        if held is not None:
            self._require_held(replies, held)
        return replies

    def _require_held(self, replies: Sequence[Any], held: Any) -> None:
        """Raise where something was written that too few replicas have; `held` is what WAIT said."""
        if all(type(reply) is hiredis.ReplyError for reply in replies):
            return  # nothing was written: another server has the keys
        if type(held) is hiredis.ReplyError:
            raise self._node.name.refusal(str(held))
        if held < self._ask.replicas:
            told = f"{held} of {self._ask.replicas} replicas have what was written"
            raise self._node.name.unavailable(told)

    def _send(self) -> None:
        assert self._link is not None
        try:
            self._link.send(self._ask.request, self._ask.deadline)
        except TimeoutError:
            raise
        except OSError:
            self._open_again()

    def _receive(self) -> list[Any]:
        ask = self._ask
        assert self._link is not None
        try:
            return self._link.receive(ask.n_replies, ask.deadline, ask.limit)
        except TimeoutError:
            raise
        except OSError:
            if not self._link.used:
                raise
        self._open_again()
        self._take_opened()
        return self._link.receive(ask.n_replies, ask.deadline, ask.limit)

    def _open_again(self) -> None:
        """A link that was idle is dead, and so are then the others: begin a new one."""
        self._node.links.drop_idle()
        self._opening = self._node.links.begin(self._ask.deadline)

    def _take_opened(self) -> None:
        """Wait for the link that was begun, and send."""
        assert self._opening is not None
        self._link = self._node.links.opened_by(self._opening, self._ask.deadline)
        self._link.send(self._ask.request, self._ask.deadline)
