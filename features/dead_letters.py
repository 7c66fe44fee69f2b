"""Dead letters: entries of a stream that could not be written, on a stream of their own, and how they come back.

A dead letter has the fields of its entry, and beside them why it was put there and where it came from. Once the reason
is mended (the view, or the fields) they are consumed like any stream, under any group. Such an entry is as old as it
was when it first came, and an aggregate counts it once, however often it comes back: by its first id.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from penstock.features.commands import pack
from penstock.features.entries import FIRST_ID, Entry

MAX_REPLY = 1 << 28  # bytes of those that are listed: entries may be large
REASON, STREAM = b"penstock:reason", b"penstock:stream"


class Redis(Protocol):
    """What is needed of the Redis that has them."""

    def request(self, *commands: bytes, limit: int = ...) -> list[Any]: ...


class DeadLetter(NamedTuple):
    """One entry that could not be written.

    Attributes:
        id: on the stream of dead letters; its ms are when it was put there.
        stream, first_id: where it first came, and under which id.
        reason: why it could not be written.
        fields: its own.
    """

    id: str
    stream: str
    first_id: str
    reason: str
    fields: dict[str, str]


def buried(entry: Entry, reason: str, stream: str) -> list[bytes | str]:
    """The fields of a dead letter, names and values in turn; one that fails again keeps where it first came from."""
    about = {REASON: reason.encode(), STREAM: stream.encode(), FIRST_ID: entry.id} | entry.fields
    about[REASON] = reason.encode()
    return [word for pair in about.items() for word in pair]


def dead_letters(source: Redis, name: str, limit: int) -> list[DeadLetter]:
    """The last of them, the newest first; raises `StoreUnavailable` or `StoreMisconfigured`."""
    found = source.request(pack(b"XREVRANGE", name, b"+", b"-", b"COUNT", str(limit)), limit=MAX_REPLY)[0]
    return [_letter(id_, dict(zip(words[::2], words[1::2], strict=True))) for id_, words in found]


def _letter(id_: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    texts = {name: _text(value) for name, value in fields.items()}
    stream, first_id, reason = (texts.pop(name, "") for name in (STREAM, FIRST_ID, REASON))
    return DeadLetter(_text(id_), stream, first_id, reason, {_text(name): value for name, value in texts.items()})


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
