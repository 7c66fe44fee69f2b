"""A Redis stream into a store: one consumer of a group, at-least-once, and by event time as if exactly once.

A step takes entries, writes their rows (the newest event wins, features/writes.py), puts what is no row on the
dead-letter stream, and only then acknowledges. So nothing is lost that was delivered, and what is delivered again
changes nothing: it is as old as it was. Where rows are kept as history, too, that is on disk by then. Entries come from
three places:

- *our own pending ones*, delivered and not acknowledged: first of all, and after every failure;
- *those of consumers that are gone*, pending for a minute: claimed a few times a minute (XAUTOCLAIM);
- *new ones* (XREADGROUP), waited for half a second at a time.

While either Redis is away it is tried again, ever less often, without end. A group that is gone with its Redis' memory
is made anew from the stream's beginning. Any number of consumers may share a group.

Cost: 24 µs an entry of 30 columns, a quarter of it Redis': some 40,000 entries a second and consumer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import hiredis
import numpy as np
from numpy.typing import NDArray

from penstock.features.commands import pack
from penstock.features.dead_letters import buried
from penstock.features.entries import Entry, Form, Id, Rows, decode, id_of
from penstock.features.errors import StoreUnavailable
from penstock.features.patience import delays
from penstock.features.schema import FeatureView
from penstock.features.store import FeatureStore

BLOCK_S = 0.5
MAX_REPLY = 1 << 28  # bytes of one batch of entries

log = logging.getLogger(__name__)


class Redis(Protocol):
    """What is needed of the Redis that has the stream; a `RedisStore` is one."""

    name: str

    def request(
        self, *commands: bytes, timeout_s: float = ..., limit: int = ..., tolerate: Callable[[Any], bool] = ...
    ) -> list[Any]: ...

    def write(self, *commands: bytes) -> list[Any]: ...


@dataclass(frozen=True, slots=True)
class Settings:
    """How a stream is read.

    Attributes:
        stream: its key.
        group: the consumer group, made if it is not there.
        consumer: our name in it, the same after a restart if pending entries are to be taken up at once.
        dead: the dead-letter stream.
        time_field: holds event times; else they are those of the entries' ids.
        start: where a new group begins: `0`, the oldest entry, or `$`, what comes from now on.
        batch: entries taken at a time.
        claim_after_s: how long an entry is pending before another consumer takes it. More than a batch ever takes.
        dead_entries: how many it keeps, about.
    """

    stream: str
    group: str
    consumer: str
    dead: str
    time_field: str | None = None
    start: str = "0"
    batch: int = 1000
    claim_after_s: float = 60.0
    dead_entries: int = 10_000


@dataclass(slots=True)
class Counts:
    """What became of the entries, ready to be exported as counters.

    Attributes:
        read: delivered to us, again or for the first time.
        batches: taken at a time, that had any.
        retried: of those read, delivered to us before: what a failure or an earlier life left pending.
        claimed: of those read, taken from other consumers.
        written: rows written; of aggregates, events counted.
        older: rows left out because a newer event was stored; of aggregates, events that came too late.
        over: rows not kept, for `ttl_s` after their event had passed.
        repeated: of aggregates, events that were counted before.
        rejected: put on the dead-letter stream.
        trimmed: gone from the stream before they could be read again.
        failures: steps that failed because a Redis was away.
        recorded: rows kept as history, those of windows that moved on included.
        newest_ms: the newest event time there was, ms since 1970; 0 before the first.
        unknown: by column how many words its vocabulary does not have.
    """

    read: int = 0
    batches: int = 0
    retried: int = 0
    claimed: int = 0
    written: int = 0
    older: int = 0
    over: int = 0
    repeated: int = 0
    rejected: int = 0
    trimmed: int = 0
    failures: int = 0
    recorded: int = 0
    newest_ms: int = 0
    unknown: dict[str, int] = field(default_factory=dict)

    def take_in(self, rows: Rows) -> None:
        """Count what can be told of rows before they are written."""
        self.newest_ms = max(self.newest_ms, int(rows.event_times.max()))
        for column, words in rows.unknown.items():
            self.unknown[column] = self.unknown.get(column, 0) + words


class Lag(NamedTuple):
    """How far the group is behind: entries not delivered (None: this Redis cannot say), not acknowledged, and ms."""

    entries: int | None
    pending: int
    behind_ms: int


class Writer(Protocol):
    """What entries are given to."""

    def write(self, entries: Sequence[Entry], floor: Id, counts: Counts) -> list[tuple[Entry, str]]:
        """Write them, count what became of them, and give back what cannot be written, with reasons.

        `floor`: entries with smaller ids are acknowledged, so they will not be delivered again.
        """
        ...

    def rest(self) -> None:
        """Do what is due from time to time, whether entries come or not."""
        ...


class History(Protocol):
    """Where rows are kept as they were, beside the store (features/offline/history.py)."""

    rows: int

    def put(
        self, entities: Sequence[bytes], columns: Mapping[str, NDArray[Any]], event_times: NDArray[np.int64]
    ) -> None:
        """Take rows that the store has acknowledged, known from now on."""
        ...

    def save(self) -> None:
        """Have on disk what was put; raises `FeatureError`."""
        ...


class RowWriter:
    """Entries are rows of the view, which `history` keeps, too."""

    def __init__(
        self, store: FeatureStore, view: FeatureView, time_field: str | None, history: History | None = None
    ) -> None:
        self._store, self._view, self._history = store, view, history
        self._form = Form(view.entity_keys, view.columns, time_field)

    def write(self, entries: Sequence[Entry], floor: Id, counts: Counts) -> list[tuple[Entry, str]]:  # noqa: ARG002
        """See `Writer`."""
        decoded = decode(self._form, entries, time.time_ns() // 1_000_000)
        for rows in decoded.rows:
            written = self._store.prepare(self._view, rows.entities, rows.columns, rows.event_times)()
            counts.written += written.kept
            counts.over += written.over
            counts.older += len(rows.entities) - written.kept - written.over
            counts.take_in(rows)
            if self._history is not None:
                self._history.put(rows.entities, rows.columns, rows.event_times)
        return decoded.rejected

    def rest(self) -> None:
        """Nothing is due."""


class Consumer:
    """One consumer of a group, to be run by one thread.

    Args:
        source: the Redis that has the stream.
        writer: what entries are given to.
        settings: how the stream is read.
        history: what the writer puts rows into; saved before entries are acknowledged.

    Attributes:
        counts: what became of the entries so far.
        settings: as given.
    """

    def __init__(self, source: Redis, writer: Writer, settings: Settings, history: History | None = None) -> None:
        self.counts, self.settings = Counts(), settings
        self._source, self._writer, self._history = source, writer, history
        self._group = (settings.stream, settings.group)
        self._recovering: str | None = "0"  # after which of our own pending entries to go on, if at all
        self._start = settings.start  # of the group, if it is not there
        self._claim_at = 0.0
        self._claim_from = "0-0"
        self._batch = settings.batch  # fewer after failures, for a reply may have been too large

    def run(self, stop: threading.Event, *, once: bool = False, told: Callable[[], None] = lambda: None) -> None:
        """Consume until `stop` is set, or with `once` until nothing is left; `told` is called after each step.

        Raises `StoreMisconfigured` where a Redis refuses us, and `FeatureError` where history cannot be written; that a
        Redis is away is waited out.
        """
        waits: Iterator[float] | None = None  # where the last step failed
        while not stop.is_set():
            try:
                self._writer.rest()
                self._save()
                idle = not self.step(block_s=0 if once else BLOCK_S)
            except StoreUnavailable as error:
                if waits is None:
                    waits = delays()
                    log.warning("%s; trying until it is back", error)
                self.counts.failures += 1
                self._recovering = "0"
                self._batch = max(1, self._batch // 2)
                stop.wait(next(waits))
                continue
            if waits is not None:
                waits = None
                log.warning("consuming %s again", self.settings.stream)
            told()
            if once and idle:
                return

    def step(self, block_s: float = BLOCK_S) -> int:
        """Take some entries, write and acknowledge them; how many there were. Waits for new ones up to `block_s`."""
        entries = self._own_pending() or self._claimed() or self._new(block_s)
        if not entries:
            return 0
        self.counts.read += len(entries)
        self.counts.batches += 1
        whole = [entry for entry in entries if entry.fields]
        self.counts.trimmed += len(entries) - len(whole)
        self._bury(self._writer.write(whole, self._floor(), self.counts))
        self._save()
        self._ask(pack(b"XACK", *self._group, *[entry.id for entry in entries]))
        self._batch = min(2 * self._batch, self.settings.batch)
        return len(entries)

    def _save(self) -> None:
        if self._history is not None:
            self._history.save()
            self.counts.recorded = self._history.rows

    def leave(self) -> None:
        """Be no longer known to the group, unless entries of ours are still pending: these are for others to claim."""
        if not self._ask(pack(b"XPENDING", *self._group, b"-", b"+", b"1", self.settings.consumer)):
            self._ask(pack(b"XGROUP", b"DELCONSUMER", *self._group, self.settings.consumer))

    def lag(self, timeout_s: float = 5.0) -> Lag:
        """How far the group is behind; may be asked by any thread. Raises `StoreUnavailable`."""
        stream = self.settings.stream
        commands = [pack(b"XINFO", about, stream) for about in (b"GROUPS", b"STREAM")]
        groups, about = self._source.request(*commands, timeout_s=timeout_s, tolerate=_is_no_group)
        if isinstance(groups, hiredis.ReplyError) or isinstance(about, hiredis.ReplyError):
            return Lag(None, 0, 0)
        found = next((g for g in map(_as_dict, groups) if g[b"name"] == self.settings.group.encode()), None)
        if found is None:
            return Lag(None, 0, 0)
        last, delivered = (
            id_of(value)[0] for value in (_as_dict(about)[b"last-generated-id"], found[b"last-delivered-id"])
        )
        return Lag(found.get(b"lag"), found[b"pending"], max(last - delivered, 0) if delivered else 0)

    # Where entries come from ------------------------------------------------------------------------------------------

    def _own_pending(self) -> list[Entry]:
        if self._recovering is None:
            return []
        entries = self._read(self._recovering)
        self._recovering = entries[-1].id.decode() if entries else None
        self.counts.retried += len(entries)
        return entries

    def _claimed(self) -> list[Entry]:
        now = time.monotonic()
        if now < self._claim_at:
            return []
        settings = self.settings
        idle, count = str(int(settings.claim_after_s * 1000)), str(self._batch)
        words = (*self._group, settings.consumer, idle, self._claim_from, b"COUNT", count)
        reply = self._ask(pack(b"XAUTOCLAIM", *words))
        if reply is None:
            return []
        self._claim_from = reply[0].decode()
        if self._claim_from == "0-0":
            self._claim_at = now + settings.claim_after_s / 4
        entries = [_entry(item) for item in reply[1] if item is not None]
        if len(entries) < len(reply[1]):
            self._recovering = "0"  # Redis 6 makes trimmed ones ours without saying which they are
        self.counts.claimed += len(entries)
        return entries

    def _new(self, block_s: float) -> list[Entry]:
        return self._read(">", block_s)

    def _read(self, after: str, block_s: float = 0.0) -> list[Entry]:
        settings = self.settings
        block: tuple[bytes | str, ...] = (b"BLOCK", str(int(block_s * 1000))) if block_s else ()
        words = (b"GROUP", settings.group, settings.consumer, b"COUNT", str(self._batch), *block)
        reply = self._ask(pack(b"XREADGROUP", *words, b"STREAMS", settings.stream, after), wait_s=block_s)
        return [_entry(item) for item in reply[0][1]] if reply else []

    def _floor(self) -> Id:
        """The smallest id that is not acknowledged: all below were written, by whomever."""
        reply = self._ask(pack(b"XPENDING", *self._group))
        return id_of(reply[1]) if reply and reply[1] else (0, 0)

    # Redis ------------------------------------------------------------------------------------------------------------

    def _bury(self, rejected: Sequence[tuple[Entry, str]]) -> None:
        settings = self.settings
        commands = []
        for entry, reason in rejected:
            words = buried(entry, reason, settings.stream)
            commands.append(pack(b"XADD", settings.dead, b"MAXLEN", b"~", str(settings.dead_entries), b"*", *words))
        if commands:
            self._source.write(*commands)
            self.counts.rejected += len(commands)

    def _ask(self, command: bytes, wait_s: float = 0.0) -> Any:
        """The reply; None where the group had to be made first."""
        reply = self._source.request(command, timeout_s=5.0 + wait_s, limit=MAX_REPLY, tolerate=_is_no_group)[0]
        if not isinstance(reply, hiredis.ReplyError):
            self._start = "0"
            return reply
        stream = self.settings.stream
        create = pack(b"XGROUP", b"CREATE", *self._group, self._start, b"MKSTREAM")
        is_there, _ = self._source.request(pack(b"EXISTS", stream), create, tolerate=_is_busy_group)
        if not is_there:
            where = self._source.name
            log.warning("there was no stream %r in %s; it is made, empty: is its name right?", stream, where)
        return None


def _is_no_group(reply: Any) -> bool:
    return str(reply).startswith(("NOGROUP", "ERR no such key"))


def _is_busy_group(reply: Any) -> bool:
    return str(reply).startswith("BUSYGROUP")


def _entry(item: Any) -> Entry:
    """An entry as Redis sends it; one that was trimmed meanwhile has no fields."""
    words = item[1] or []
    return Entry(item[0], dict(zip(words[::2], words[1::2], strict=True)))


def _as_dict(words: Sequence[Any]) -> dict[bytes, Any]:
    return dict(zip(words[::2], words[1::2], strict=True))
