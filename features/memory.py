"""A feature store in a dictionary, for tests and for trying things out: the same rows, keys and rules as on Redis.

`memory://` is a new store each time; `memory://name` is the same one for everybody in this process.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penstock.features.columns import Table, check_table, now_ms, to_text
from penstock.features.evolution import unpack
from penstock.features.hashes import decode_hashes
from penstock.features.schema import FeatureView
from penstock.features.store import FeatureStore, FetchedRows, Lookup, Write, Written
from penstock.features.writes import readable_schemas

MARKS = b"fs:ingest:"


class MemoryStore(FeatureStore):
    """Rows in this process; `clock` gives ms since 1970. A row is there to the last ms of its time."""

    _named: ClassVar[dict[str, MemoryStore]] = {}

    def __init__(self, clock: Callable[[], int] = now_ms) -> None:
        self._clock = clock
        self._rows: dict[bytes, tuple[int, bytes]] = {}
        self._hashes: dict[bytes, tuple[int, dict[bytes, bytes]]] = {}
        self._views: dict[str, bytes] = {}
        self.name = "memory://"
        self._marks: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @classmethod
    def named(cls, name: str) -> MemoryStore:
        """The store of that name, or a new one for the empty name."""
        return cls._named.setdefault(name, cls()) if name else cls()

    def fetch(self, lookups: Sequence[Lookup], timeout_s: float) -> list[FetchedRows]:  # noqa: ARG002 -- never waits
        """All rows of all lookups (see `FeatureStore.fetch`)."""
        with self._lock:
            return [self._fetch(lookup, self._clock()) for lookup in lookups]

    def _fetch(self, lookup: Lookup, now: int) -> FetchedRows:
        answer = FetchedRows.empty(lookup)
        view = lookup.view
        keys = view.keys(lookup.entities)
        if view.layout == "row":
            unpack(view, keys, self._rows_at(keys, now), answer.values, answer.event_times, answer.status)
        else:
            found = self._hashes_at(view, keys, now)
            decode_hashes(view, found, answer.values, answer.event_times, answer.status)
        return answer

    def _rows_at(self, keys: Sequence[bytes], now: int) -> list[bytes | None]:
        found = [self._rows.get(key) for key in keys]
        return [held[1] if held and held[0] >= now else None for held in found]

    def _hashes_at(self, view: FeatureView, keys: Sequence[bytes], now: int) -> list[list[bytes | None]]:
        found = [self._hashes.get(key, (now, {})) for key in keys]
        return [[held.get(field) if until >= now else None for field in view.read_fields] for until, held in found]

    def prepare(
        self,
        view: FeatureView,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64] | None = None,
        *,
        overwrite: bool = False,
    ) -> Write:
        """Check rows now, to be written when the result is called (see `FeatureStore.prepare`)."""
        table = check_table(view, entities, columns, event_times)
        return lambda: self._put(view, table, overwrite=overwrite)

    def _put(self, view: FeatureView, table: Table, *, overwrite: bool) -> Written:
        keys = view.keys(table.entities)
        rows: Sequence[bytes] = []
        if view.layout == "row":
            rows = view.row_layout.pack(keys, table.values, table.event_times, table.nulls)
        texts = [to_text(values) for values in table.values] if view.layout == "hash" else []
        kept = over = 0
        with self._lock:
            now = self._clock()
            for i, key in enumerate(keys):
                time_ms = int(table.event_times[i])
                if not overwrite and self._newer(view, key, time_ms, now):
                    continue
                if not rows:
                    self._put_hash(view, key, now + view.ttl_s * 1000, table, texts, i, time_ms)
                elif time_ms + view.lives_ms >= now:
                    self._rows[key] = (time_ms + view.lives_ms, rows[i])
                else:
                    self._rows.pop(key, None)
                    over += 1
                    continue
                kept += 1
        return Written(kept, over)

    def _newer(self, view: FeatureView, key: bytes, time_ms: int, now: int) -> bool:
        """Whether a newer event is stored that this view can read."""
        if view.layout == "row":
            until, row = self._rows.get(key, (now, b""))
            readable = len(row) >= 16 and row[4:8] in readable_schemas(view)
            return until >= now and readable and int.from_bytes(row[8:16], "little", signed=True) > time_ms
        until, held = self._hashes.get(key, (now, {}))
        return until >= now and int(held.get(view.stamp, time_ms)) > time_ms

    def _put_hash(
        self, view: FeatureView, key: bytes, until: int, table: Table, texts: list[list[bytes]], i: int, time_ms: int
    ) -> None:
        held = dict(self._hashes.get(key, (until, {}))[1]) | {view.stamp: b"%d" % time_ms}
        for field, text, nulls in zip(view.fields, texts, table.nulls, strict=True):
            if nulls is not None and nulls[i]:
                held.pop(field, None)
            else:
                held[field] = text[i]
        self._hashes[key] = (until, held)

    def mark(self, job: str, new: bytes | None) -> bytes | None:
        """Remember how far a job has come (see `FeatureStore.mark`)."""
        with self._lock:
            old = self._marks.pop(job, None)
            if new is not None:
                self._marks[job] = new
            return old if new is not None else None

    def marked(self, job: str) -> bytes | None:
        """The mark of a job."""
        with self._lock:
            return self._marks.get(job)

    def stored(self, view: FeatureView, entities: Sequence[bytes]) -> list[Any]:
        """What is kept of entities (see `FeatureStore.stored`)."""
        keys, now = view.keys(entities), self._clock()
        with self._lock:
            return [*self._rows_at(keys, now)] if view.layout == "row" else [*self._hashes_at(view, keys, now)]

    def definitions(self, names: Sequence[str] | None = None, *, timeout_s: float = 0) -> dict[str, bytes]:  # noqa: ARG002
        """The definitions under these names, or all (see `FeatureStore.definitions`)."""
        with self._lock:
            wanted = self._views if names is None else names
            return {name: self._views[name] for name in wanted if name in self._views}

    def swap(self, expected: Mapping[str, bytes | None], new: Mapping[str, bytes | None]) -> bool:
        """Compare and set, under the lock (see `FeatureStore.swap`)."""
        with self._lock:
            if any(self._views.get(name) != old for name, old in expected.items()):
                return False
            for name, text in new.items():
                if text is None:
                    self._views.pop(name, None)
                else:
                    self._views[name] = text
            return True

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Some keys, and where to go on (see `FeatureStore.scan`)."""
        now = self._clock()
        with self._lock:
            held: list[tuple[bytes, float]] = [(MARKS + job.encode(), math.inf) for job in self._marks]
            held += [(key, until) for kind in (self._rows, self._hashes) for key, (until, _) in kind.items()]
        end = cursor or len(held)  # from the last on: to take away what was seen moves nothing that was not
        start = max(end - count, 0)
        return start, [key for key, until in held[start:end] if until >= now]

    def unlink(self, keys: Sequence[bytes]) -> int:
        """Take away keys (see `FeatureStore.unlink`)."""
        now, gone = self._clock(), 0
        with self._lock:
            for key in keys:
                held = self._rows.pop(key, None) or self._hashes.pop(key, None)
                mark = self._marks.pop(key.removeprefix(MARKS).decode("utf-8", "replace"), None)
                gone += (held is not None and held[0] >= now) or mark is not None
        return gone

    def drop_fields(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> int:
        """Take away fields (see `FeatureStore.drop_fields`)."""
        dropped = 0
        with self._lock:
            for key in keys:
                until, held = self._hashes.pop(key, (0, {}))
                left = {field: text for field, text in held.items() if field not in fields}
                dropped += len(left) < len(held)
                if left:
                    self._hashes[key] = (until, left)
        return dropped

    def size(self) -> int:
        """How many keys it has."""
        return len(self._rows) + len(self._hashes) + len(self._marks)

    def ping(self) -> None:
        """Return: it always answers."""

    def close(self) -> None:
        """Nothing to give back; a named store keeps its rows."""
