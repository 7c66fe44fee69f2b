"""What is remembered of one entity's events, so that aggregates over sliding windows can be told.

Pure: no clock, no input or output.

For each window of length W there are *tumbling buckets* of W/60, each with the number of events and, for each field,
how many had it, their sum, least and most. The window's value at `now` merges the buckets from that of `now - W` to
that of `now`: every event of the last W, and of up to W/60 before. For `distinct` each value's hash is kept with the
time it was seen last, which serves every window; beyond `max_distinct` the value seen longest ago is forgotten.

*No event counts twice.* Each has the id of its stream entry. A state has a floor, and the ids from the floor on that it
has taken; the floor follows the oldest entry of the group that is not acknowledged. So an id below the floor, or among
those taken, was counted before, whichever consumer is handed it, and however late.

*Late events* go into the buckets of their time, or are dropped if they are older than allowed. An event that is ahead
of the clock counts as of now. Non-finite numbers count as missing.

*A state is bounded.* Buckets and `distinct` values by the declaration, and ids by `MAX_TAKEN`: whoever writes refuses
what would take more (`is_full`). The largest that can be declared has some 45 MB.

*A state says what it has*: its windows and fields stand in it (`Layout`). So it can be read under another declaration:
what both have is carried over, what only one has begins empty or is left out; ids are kept, so nothing counts twice.

As bytes (little-endian): `<BBHIQI` format, flags, reserved, size of the layout, version, CRC-32 of key and all but this
field; layout; floor and ids (u64 ms, u64 number); buckets of each window; hashes and times of each `distinct` field.
The version is drawn anew for each writing, so that the first 16 bytes tell any two apart. Format 1 had the digest of
the declaration in place of the layout, and is read under that one only.
"""

from __future__ import annotations

import math
import random
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from penstock.features.aggregates import STEPS, Aggregates
from penstock.features.entries import Id
from penstock.features.records import COUNT, Damaged, Layout, Reader, decode_layout, hash_of

FORMAT = 2
HEAD = struct.Struct("<BBHIQI")
IDENTITY = 16  # bytes of the head that no two writings share
ID = struct.Struct("<QQ")
SIGHT = struct.Struct("<QQ")  # hash of a value, ms when it was seen last
CELL = "Iddd"  # number, sum, least, most
MAX_TAKEN = 1 << 18  # ids: entries of one entity that are counted and, or one before them, not acknowledged


class Event(NamedTuple):
    """One event of an entity.

    Attributes:
        id: of its entry.
        time_ms: when it happened.
        numbers: for each of `Aggregates.counted` its value (1.0 where only its presence counts), or None.
        values: for each of `Aggregates.told_apart` its bytes, or None.
    """

    id: Id
    time_ms: int
    numbers: tuple[float | None, ...]
    values: tuple[bytes | None, ...]


@dataclass(slots=True)
class Cell:
    """Of one field in one bucket."""

    number: int = 0
    total: float = 0.0
    least: float = math.inf
    most: float = -math.inf

    def add(self, number: int, total: float, least: float, most: float) -> None:
        self.number += number
        self.total += total
        self.least = min(self.least, least)
        self.most = max(self.most, most)

    def value(self, function: str) -> float:
        """Any function but `distinct`."""
        if function == "count":
            return float(self.number)
        if function == "sum":
            return self.total
        found = {"mean": self.total / (self.number or 1), "min": self.least, "max": self.most}[function]
        return found if self.number else math.nan


@dataclass(slots=True)
class Taken:
    """What became of events: counted, counted before, too late."""

    counted: int = 0
    repeated: int = 0
    late: int = 0


@dataclass(slots=True)
class State:
    """What is remembered of one entity: for each window its buckets by number, for each `distinct` field its sights."""

    of: Aggregates
    floor: Id = (0, 0)
    taken: set[Id] = field(default_factory=set)
    buckets: list[dict[int, list[Cell]]] = field(default_factory=list)
    seen: list[dict[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buckets = self.buckets or [{} for _ in self.of.windows]
        self.seen = self.seen or [{} for _ in self.of.told_apart]

    # Events in, values out --------------------------------------------------------------------------------------------

    def take(self, events: Iterable[Event], floor: Id, now_ms: int) -> Taken:
        """Count events. `floor`: no entry with a smaller id will ever be delivered for the first time, or again."""
        told = Taken()
        for event in events:
            if self.has(event.id):
                told.repeated += 1
                continue
            self.taken.add(event.id)
            if self.count(event, now_ms):
                told.counted += 1
            else:
                told.late += 1
        if floor > self.floor:
            self.floor = floor
            self.taken = {one for one in self.taken if one >= floor}
        self.forget(now_ms)
        return told

    def has(self, identifier: Id) -> bool:
        """Whether the event of this id was taken before."""
        return identifier < self.floor or identifier in self.taken

    @property
    def is_full(self) -> bool:
        """Whether it remembers more ids than a state may have."""
        return len(self.taken) > MAX_TAKEN

    def count(self, event: Event, now_ms: int) -> bool:
        """Count an event that comes now, whatever its id; False if it comes too late."""
        if now_ms - event.time_ms > self.of.late_ms:
            return False
        time_ms = min(event.time_ms, now_ms)
        for window, buckets in zip(self.of.windows, self.buckets, strict=True):
            cells = buckets.setdefault(time_ms // (window // STEPS), [])
            if not cells:
                cells += [Cell() for _ in self.of.counted]
            for cell, number in zip(cells, event.numbers, strict=True):
                if number is not None and math.isfinite(number):
                    cell.add(1, number, number, number)
        for seen, value in zip(self.seen, event.values, strict=True):
            if value is not None:
                key = hash_of(value)
                seen[key] = max(seen.get(key, 0), time_ms)
        return True

    def forget(self, now_ms: int) -> None:
        """Drop what no window has any more."""
        for window, buckets in zip(self.of.windows, self.buckets, strict=True):
            for number in [number for number in buckets if number < first_bucket(window, now_ms)]:
                del buckets[number]
        longest = self.of.windows[-1]
        oldest = first_bucket(longest, now_ms) * (longest // STEPS)
        for i, seen in enumerate(self.seen):
            if len(seen) > self.of.max_distinct or any(time < oldest for time in seen.values()):
                kept = sorted(seen.items(), key=lambda sight: -sight[1])[: self.of.max_distinct]
                self.seen[i] = {key: time for key, time in kept if time >= oldest}

    def values(self, now_ms: int) -> list[float]:
        """The view's columns in the declaration's order; NaN for the mean, least or most of nothing."""
        merged = [
            self._merged(first_bucket(window, now_ms), buckets)
            for window, buckets in zip(self.of.windows, self.buckets, strict=True)
        ]
        return [
            merged[window][at].value(function)
            if function != "distinct"
            else self._distinct(self.seen[at], self.of.windows[window], now_ms)
            for function, window, at in self.of.plan
        ]

    def _merged(self, first: int, buckets: dict[int, list[Cell]]) -> list[Cell]:
        """Each field's cell over the buckets from `first` on, the oldest first: a sum has one order, however stored."""
        whole = [Cell() for _ in self.of.counted]
        for number in sorted(buckets):
            if number >= first:
                for total, cell in zip(whole, buckets[number], strict=True):
                    total.add(cell.number, cell.total, cell.least, cell.most)
        return whole

    @staticmethod
    def _distinct(seen: dict[int, int], window: int, now_ms: int) -> float:
        step, first = window // STEPS, first_bucket(window, now_ms)
        return float(sum(time // step >= first for time in seen.values()))

    def changes_at(self, now_ms: int) -> int | None:
        """When a value will be another one without any event, in ms since 1970; None if never: nothing is left."""
        return min(self._leaving(now_ms), default=None)

    def _leaving(self, now_ms: int) -> Iterator[int]:
        """When the oldest of what each window has leaves it."""
        for window, buckets in zip(self.of.windows, self.buckets, strict=True):
            step, first = window // STEPS, first_bucket(window, now_ms)
            held = [number for number in buckets if number >= first]
            held += [time // step for seen in self.seen for time in seen.values() if time // step >= first]
            if held:
                yield (min(held) + 1) * step + window

    # Bytes ------------------------------------------------------------------------------------------------------------

    def encode(self, key: bytes) -> bytes:
        """As it is stored under `key`."""
        layout = self.of.layout.encode()
        parts = [
            layout,
            ID.pack(*self.floor),
            COUNT.pack(len(self.taken)),
            *(ID.pack(*one) for one in sorted(self.taken)),
        ]
        bucket = _bucket_of(len(self.of.counted))
        for buckets in self.buckets:
            parts.append(COUNT.pack(len(buckets)))
            for number, cells in sorted(buckets.items()):
                words = [word for cell in cells for word in (cell.number, cell.total, cell.least, cell.most)]
                parts.append(bucket.pack(number, *words))
        for seen in self.seen:
            parts += [COUNT.pack(len(seen)), *(SIGHT.pack(*sight) for sight in sorted(seen.items()))]
        body = b"".join(parts)
        start = HEAD.pack(FORMAT, 0, 0, len(layout), random.getrandbits(64), 0)[:IDENTITY]
        return start + COUNT.pack(zlib.crc32(key + start + body)) + body

    @classmethod
    def decode(cls, of: Aggregates, key: bytes, data: bytes) -> State:
        """The state that was stored under `key`, as far as this declaration has it; raises `Damaged`."""
        if len(data) < HEAD.size:
            raise Damaged
        form, flags, reserved, about, _, crc = HEAD.unpack_from(data)
        if (flags, reserved) != (0, 0) or crc != zlib.crc32(key + data[:IDENTITY] + data[HEAD.size :]):
            raise Damaged
        reader = Reader(data, HEAD.size)
        if form == FORMAT:
            found = decode_layout(reader.raw(about))
        elif (form, about) == (1, of.digest):
            found = of.layout
        else:
            raise Damaged
        (floor,) = reader.take(ID, 1)
        state = cls(of, (floor[0], floor[1]), {(ms, number) for ms, number in reader.counted(ID)})
        state._fill(found, reader)
        if reader.left:
            raise Damaged
        return state

    def _fill(self, found: Layout, reader: Reader) -> None:
        """Take what a state of that layout has in common with this one."""
        own, bucket = self.of.layout, _bucket_of(len(found.counted))
        places = [4 * found.counted.index(name) if name in found.counted else None for name in own.counted]
        for window in found.windows:
            kept = self.buckets[own.windows.index(window)] if window in own.windows else {}
            for number, *words in reader.counted(bucket):
                kept[number] = [Cell() if at is None else Cell(*words[at : at + 4]) for at in places]
        for name in found.told_apart:
            sights = reader.counted(SIGHT)
            if name in own.told_apart:
                self.seen[own.told_apart.index(name)] |= dict(sights)


def largest(of: Aggregates) -> int:
    """Bytes that buckets and `distinct` values of a state take at most; ids come on top."""
    buckets = len(of.windows) * (STEPS + 1) * _bucket_of(len(of.counted)).size
    return buckets + len(of.told_apart) * of.max_distinct * SIGHT.size


def first_bucket(window: int, now_ms: int) -> int:
    """The oldest bucket that a window has at a time."""
    return (now_ms - window) // (window // STEPS)


@lru_cache(maxsize=64)
def _bucket_of(fields: int) -> struct.Struct:
    return struct.Struct("<q" + CELL * fields)
