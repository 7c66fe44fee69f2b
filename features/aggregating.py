"""Aggregates of a stream into rows: states kept beside the rows, both changed at once, and looked at again when due.

Beside an entity's row its state is kept (features/buckets.py), under `fs:{<entity>}:<view>:state`. For each batch the
states of its entities are read, changed here, and written with their rows by a script, each only if nobody has written
it meanwhile; else it is read again. So any number of consumers may work side by side, Redis computes nothing, and
serving reads a row like any other: nothing is merged when it is read.

A value changes without events, too, when a bucket leaves its window. When that will be next stands for each entity in
the sorted set `fs:due:<view>`; every consumer looks there once a second and writes rows anew that are due, as long as
it has time. So a row is late by a second more than its windows' steps, while one consumer runs and keeps up. The time
is noted before the state is written; where a consumer dies between the two, the entity is looked at in vain.

A state that another declaration wrote is carried over as far as both have it (features/buckets.py), so consumers with a
former and a new one may run side by side for a while: what both have goes on, what only the new one has begins when the
last of the former is gone.

On a cluster an entity's state and row share a slot, by the braces in their keys, and a call of the script has one
entity's; the calls go to all masters at the same time. The sorted set is one master's, and without that one no state
is written. An id that begins with a closing brace has no slot of its own; its events are dead letters there.

Rows and states are kept as long as the longest window; `ttl_s` of the view is not used. The row's event time is when
it was last merged. A history gets each row as it is written, whether for events or for windows that have moved on.

No more states are read at a time than a reply has room for. Where the declaration lets them be large, by many fields or
`distinct` values, or a reply has failed, Redis is asked first how large they are, a round trip more. An entity that has
had too many entries while one before them waited to be acknowledged (`State.is_full`) is refused: its entries are dead
letters, and the others of the batch go on.

Cost: 120 µs an event where each in a batch is another entity's, for 18 columns over three windows, half of it waiting
for Redis; 36 µs where each entity has ten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.features.aggregates import Aggregates, as_columns
from penstock.features.buckets import IDENTITY, MAX_TAKEN, Event, State, Taken, largest
from penstock.features.columns import check_table
from penstock.features.commands import pack
from penstock.features.entries import FIRST_ID, Entry, Form, Id, Rows, counted_id, decode
from penstock.features.errors import StoreMisconfigured, StoreUnavailable
from penstock.features.records import Damaged
from penstock.features.redis import RedisStore
from penstock.features.schema import Column, FeatureView
from penstock.features.store import FeatureStore
from penstock.features.streams import Counts, History, RowWriter, Writer

PAIRS_A_CALL = 16
ENTITIES_A_WRITE = 256
MAX_REPLY = 1 << 28  # bytes of the states that are read at once, half of it for what others add meanwhile
DUE_A_LOOK = 1000
LOOK_S = 1.0

log = logging.getLogger(__name__)

# KEYS: state and row, in turn. ARGV: ttl in s, then for each pair how the stored state begins, the new state and the
# new row. Returns the pairs, counted from 0, whose stored state begins otherwise: they are left as they are.
SWAP = b"""
local call, refused = redis.call, {}
for pair = 0, #KEYS / 2 - 1 do
  local state, at = KEYS[2 * pair + 1], 3 * pair + 2
  if call('GETRANGE', state, 0, 15) ~= ARGV[at] then
    refused[#refused + 1] = pair
  else
    call('SET', state, ARGV[at + 1], 'EX', ARGV[1])
    call('SET', KEYS[2 * pair + 2], ARGV[at + 2], 'EX', ARGV[1])
  end
end
return refused"""

# KEYS: a sorted set. ARGV: a score, then members. Removes those that do not score higher.
FORGET = b"""
for at = 2, #ARGV do
  local score = redis.call('ZSCORE', KEYS[1], ARGV[at])
  if score and tonumber(score) <= tonumber(ARGV[1]) then redis.call('ZREM', KEYS[1], ARGV[at]) end
end"""


class AggregateWriter:
    """Entries are events of an aggregated view; `clock` gives ms since 1970, `history` keeps the rows."""

    def __init__(
        self,
        store: RedisStore,
        view: FeatureView,
        time_field: str | None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        history: History | None = None,
    ) -> None:
        if view.aggregates is None:
            raise ValueError(f"view {view.name!r} has no aggregates")
        self._store, self._view, self._of, self._clock = store, view, view.aggregates, clock
        self._history = history
        columns = [Column(name=name, dtype="float64") for name in self._of.numeric]
        self._form = Form(view.entity_keys, columns, time_field)
        self._due = b"fs:due:" + view.name.encode()
        dtypes = dict(zip(view.column_names, view.dtypes, strict=True))
        self._dtypes = {name: dtypes[name] for name in self._of.columns}
        self._look_at = 0
        self._wary = ENTITIES_A_WRITE * largest(self._of) > MAX_REPLY // 2

    def write(self, entries: Sequence[Entry], floor: Id, counts: Counts) -> list[tuple[Entry, str]]:
        """See `streams.Writer`."""
        now_ms = self._clock()
        decoded = decode(self._form, entries, now_ms)
        rejected = list(decoded.rejected)
        events: dict[bytes, list[Event]] = {}
        for rows in decoded.rows:
            counts.take_in(rows)
            for entry, entity, event in zip(rows.entries, rows.entities, events_of(self._of, rows), strict=True):
                if self._store.is_sharded and entity.startswith(b"}"):
                    rejected.append((entry, "on a cluster the id of an aggregated entity does not begin with '}'"))
                else:
                    events.setdefault(entity, []).append(event)
        if any(FIRST_ID in entry.fields for entry in entries):
            floor = (0, 0)  # of the stream of dead letters, which says nothing of the stream's own entries

        full: dict[bytes, set[Id]] = {}  # with the ids that their states had before, which count already

        def take(entity: bytes, state: State) -> Taken:
            own = events.get(entity, ())
            before = {event.id for event in own if state.has(event.id)}
            taken = state.take(own, floor, now_ms)
            full.pop(entity, None)
            if state.is_full:
                full[entity] = before
            return taken

        for taken in self._change(list(events), take, now_ms):
            counts.written += taken.counted
            counts.older += taken.late
            counts.repeated += taken.repeated
        wait = f"more than {MAX_TAKEN:,} entries of its entity wait for one before them to be acknowledged"
        for rows in decoded.rows:
            pairs = [(full.get(entity), entry) for entity, entry in zip(rows.entities, rows.entries, strict=True)]
            rejected += [(e, wait) for before, e in pairs if before is not None and counted_id(e) not in before]
        return rejected

    def rest(self) -> None:
        """Write rows anew whose windows have moved on."""
        now_ms = self._clock()
        if now_ms < self._look_at:
            return
        words = (b"-inf", str(now_ms), b"LIMIT", b"0", str(DUE_A_LOOK))
        due = self._store.request(pack(b"ZRANGEBYSCORE", self._due, *words))[0]
        if len(due) < DUE_A_LOOK:
            self._look_at = now_ms + int(LOOK_S * 1000)
        if due:
            list(self._change(due, lambda _, state: state.take((), (0, 0), now_ms), now_ms, begin=False))
            self._store.write(pack(b"EVAL", FORGET, b"1", self._due, str(now_ms), *due))

    # States -----------------------------------------------------------------------------------------------------------

    def _change(
        self, entities: Sequence[bytes], change: Callable[[bytes, State], Taken], now_ms: int, *, begin: bool = True
    ) -> Iterator[Taken]:
        """Change states and write them with their rows, and give what `change` said of each.

        Entities that have no state get one, or are left out unless `begin`; those whose state is full stay as they are.
        """
        for part in self._parts(entities):
            left = part
            while left:
                stored = self._stored(left)
                versions = [
                    Version(entity, (data or b"")[:IDENTITY], self._read(entity, data))
                    for entity, data in zip(left, stored, strict=True)
                    if begin or data is not None
                ]
                told = [(version, change(version.entity, version.state)) for version in versions]
                told = [(version, taken) for version, taken in told if not version.state.is_full]
                versions = [version for version, _ in told]
                columns = self._columns(versions, now_ms)
                refused = self._swap(versions, columns, now_ms) if versions else set()
                self._record(versions, columns, refused, now_ms)
                yield from (taken for version, taken in told if version.entity not in refused)
                left = [entity for entity in left if entity in refused]

    def _parts(self, entities: Sequence[bytes]) -> Iterator[list[bytes]]:
        """The entities, as many at a time as can be read and written at once."""
        for start in range(0, len(entities), ENTITIES_A_WRITE):
            some = list(entities[start : start + ENTITIES_A_WRITE])
            if not self._wary:
                yield some
                continue
            part: list[bytes] = []
            held = 0
            sizes = self._store.request(*[pack(b"STRLEN", self._state_key(entity)) for entity in some])
            for entity, size in zip(some, sizes, strict=True):
                if part and held + size > MAX_REPLY // 2:
                    yield part
                    part, held = [], 0
                part.append(entity)
                held += size
            yield part

    def _stored(self, entities: Sequence[bytes]) -> list[Any]:
        """The states of entities, None where there is none."""
        try:
            return self._store.values([self._state_key(entity) for entity in entities], MAX_REPLY)
        except StoreUnavailable:  # perhaps they are larger than this declaration has them
            self._wary = True
            raise

    def _state_key(self, entity: bytes) -> bytes:
        return self._view.key(entity) + b":state"

    def _read(self, entity: bytes, data: bytes | None) -> State:
        if data is None:
            return State(self._of)
        try:
            return State.decode(self._of, self._state_key(entity), data)
        except Damaged:
            log.warning("a state of view %r is damaged, or of another release: begun anew", self._view.name)
            return State(self._of)

    def _swap(self, versions: Sequence[Version], columns: Mapping[str, NDArray[Any]], now_ms: int) -> set[bytes]:
        """Note when they are due, then write states and rows; the entities whose state somebody else has written."""
        due = [(str(at), v.entity) for v in versions if (at := v.state.changes_at(now_ms)) is not None]
        if due:  # in a round trip of its own: masters of a cluster heed no order among themselves
            self._store.write(pack(b"ZADD", self._due, *(word for pair in due for word in pair)))
        changed = list(zip(versions, self._rows(versions, columns, now_ms), strict=True))
        pairs = 1 if self._store.is_sharded else PAIRS_A_CALL
        commands = []
        for start in range(0, len(changed), pairs):
            keys: list[bytes] = []
            words = [b"%d" % self._of.keep_s]
            for version, row in changed[start : start + pairs]:
                key = self._state_key(version.entity)
                keys += (key, self._view.key(version.entity))
                words += (version.before, version.state.encode(key), row)
            commands.append(pack(b"EVAL", SWAP, str(len(keys)), *keys, *words))
        replies = self._store.write(*commands)
        return {versions[pairs * call + pair].entity for call, refused in enumerate(replies) for pair in refused}

    def _columns(self, versions: Sequence[Version], now_ms: int) -> dict[str, NDArray[Any]]:
        """The states' values by column."""
        values = np.array([version.state.values(now_ms) for version in versions], np.float64)
        return as_columns(self._dtypes, values.reshape(len(versions), len(self._dtypes)))

    def _rows(self, versions: Sequence[Version], columns: Mapping[str, NDArray[Any]], now_ms: int) -> list[bytes]:
        """The same as packed rows."""
        entities = [version.entity for version in versions]
        table = check_table(self._view, entities, columns, np.full(len(versions), now_ms, np.int64))
        keys = self._view.keys(entities)
        return self._view.row_layout.pack(keys, table.values, table.event_times, table.nulls)

    def _record(
        self, versions: Sequence[Version], columns: Mapping[str, NDArray[Any]], refused: set[bytes], now_ms: int
    ) -> None:
        """Keep what was written as history."""
        written = [i for i, version in enumerate(versions) if version.entity not in refused]
        if self._history is not None and written:
            rows = {name: values[written] for name, values in columns.items()}
            self._history.put([versions[i].entity for i in written], rows, np.full(len(written), now_ms, np.int64))


def writer_for(
    store: FeatureStore, view: FeatureView, time_field: str | None, history: History | None = None
) -> Writer:
    """What writes a stream into this view: its entries are rows, or events of which it is an aggregate."""
    if view.aggregates is None:
        return RowWriter(store, view, time_field, history)
    if not isinstance(store, RedisStore):
        raise StoreMisconfigured("aggregates are kept in Redis, not in memory")
    return AggregateWriter(store, view, time_field, history=history)


class Version(NamedTuple):
    """A state to be written: how the one that it replaces begins, and what it has become."""

    entity: bytes
    before: bytes
    state: State


def events_of(of: Aggregates, rows: Rows) -> Iterator[Event]:
    """What of each entry counts."""
    numbers: list[list[float | None]] = []
    for name in of.counted:
        if name in of.numeric:
            numbers.append(rows.columns[name].tolist())  # None where masked
        else:
            numbers.append([1.0 if not name or e.fields.get(name.encode()) else None for e in rows.entries])
    values = [[entry.fields.get(name.encode()) or None for entry in rows.entries] for name in of.told_apart]
    for i, (entry, time_ms) in enumerate(zip(rows.entries, rows.event_times.tolist(), strict=True)):
        yield Event(counted_id(entry), time_ms, tuple(c[i] for c in numbers), tuple(c[i] for c in values))
