"""What the bytes of a state are made of (features/buckets.py): which windows and fields it has, and checked reading."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

COUNT = struct.Struct("<I")
COUNTS = struct.Struct("<HHH")


class Damaged(Exception):  # noqa: N818 -- the state of bytes, caught at once
    """Bytes that are no state, or not one of this declaration and key."""


class Layout(NamedTuple):
    """What a state has: windows in ms, and hashes of the fields that are in buckets and of those told apart."""

    windows: tuple[int, ...]
    counted: tuple[int, ...]
    told_apart: tuple[int, ...]

    @classmethod
    def of(cls, windows: Iterable[int], counted: Iterable[tuple[str, bool]], told_apart: Iterable[str]) -> Layout:
        """Of `counted` each field's name, and whether its numbers are kept: if only its presence is, it is another."""
        kinds = [(b"number " if numeric else b"presence ") + name.encode() for name, numeric in counted]
        return cls(tuple(windows), tuple(map(hash_of, kinds)), tuple(hash_of(name.encode()) for name in told_apart))

    def encode(self) -> bytes:
        """As bytes: 6, and 8 for each window and field."""
        words = [*self.windows, *self.counted, *self.told_apart]
        return COUNTS.pack(*map(len, self)) + struct.pack(f"<{len(words)}Q", *words)


@lru_cache(maxsize=64)
def decode_layout(data: bytes) -> Layout:
    """The layout of these bytes; raises `Damaged`."""
    reader = Reader(data)
    ((windows, counted, told_apart),) = reader.take(COUNTS, 1)
    words = [word for (word,) in reader.take(struct.Struct("<Q"), windows + counted + told_apart)]
    if reader.left:
        raise Damaged
    fields = words[windows:]
    return Layout(tuple(words[:windows]), tuple(fields[:counted]), tuple(fields[counted:]))


@dataclass(slots=True)
class Reader:
    """Takes records from bytes, and never more than there are."""

    data: bytes
    at: int = 0

    @property
    def left(self) -> int:
        """Bytes not yet taken."""
        return len(self.data) - self.at

    def raw(self, size: int) -> bytes:
        """So many bytes; raises `Damaged`."""
        if size > self.left:
            raise Damaged
        self.at += size
        return self.data[self.at - size : self.at]

    def take(self, record: struct.Struct, count: int) -> list[tuple[Any, ...]]:
        """So many records; raises `Damaged`."""
        return list(record.iter_unpack(self.raw(record.size * count)))

    def counted(self, record: struct.Struct) -> list[tuple[Any, ...]]:
        """As many records as the number before them says."""
        return self.take(record, self.take(COUNT, 1)[0][0])


def hash_of(value: bytes) -> int:
    """64 bits of it: of 1,000 different values two are taken for one with a chance of 3e-14."""
    return int.from_bytes(blake2b(value, digest_size=8).digest(), "little")
