"""An answer as it lies in a cache that servers share: sealed, so that whatever else comes back is not taken for it.

    byte 0       format
    4, 8         bytes of the key, bytes of the reply, uint32
    12           when what it was made of was read, microseconds of Redis' clock, uint64
    20           seal: 16 bytes of BLAKE2b over all else, keyed with the identity of the version
    36           key, then reply

Little-endian. An identity stands for all that an answer depends on beside its request: the format, the release of
Penstock, the model, the version and its content, where features come from, and where functions are. So a value of
another version or of another meaning is refused as one with a flipped bit is, and the key is compared in full besides.
The seal is no proof of who wrote a value: whoever can write to that Redis can give answers, as with features.

About 1.6 microseconds to seal or to open a value of 300 bytes, most of it BLAKE2b, and 1 for a name.
"""

from __future__ import annotations

from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

FORMAT = 1
_HEAD = Struct("<BxxxIIQ")
_SEAL_BYTES = 16
HEADER_BYTES = _HEAD.size + _SEAL_BYTES


class Answer(NamedTuple):
    """An answer that may be given again.

    Attributes:
        key: what makes its request the one it is.
        reply: a ModelInferResponse without id.
        made_us: when what it was made of was read, microseconds of Redis' clock.
    """

    key: bytes
    reply: bytes
    made_us: int


def identity_of(*parts: str) -> bytes:
    """32 bytes that are those of these parts and of the present format only."""
    return blake2b("\0".join((str(FORMAT), *parts)).encode(), digest_size=32, person=b"identity").digest()


def name_of(key: bytes, identity: bytes) -> bytes:
    """32 hexadecimal digits to find the answer to a request by."""
    return blake2b(key, digest_size=16, key=identity, person=b"name").hexdigest().encode()


def seal(answer: Answer, identity: bytes) -> bytes:
    """The value to be stored."""
    head = _HEAD.pack(FORMAT, len(answer.key), len(answer.reply), answer.made_us)
    rest = answer.key + answer.reply
    return head + _seal(head, rest, identity) + rest


def unseal(value: bytes, key: bytes, identity: bytes) -> Answer | None:
    """The answer that a value holds; None where it is none to this very request of this very version."""
    if len(value) < HEADER_BYTES:
        return None
    form, key_bytes, reply_bytes, made_us = _HEAD.unpack_from(value)
    if form != FORMAT or len(value) != HEADER_BYTES + key_bytes + reply_bytes:
        return None
    rest = value[HEADER_BYTES:]
    if value[_HEAD.size : HEADER_BYTES] != _seal(value[: _HEAD.size], rest, identity) or rest[:key_bytes] != key:
        return None
    return Answer(key, rest[key_bytes:], made_us)


def _seal(head: bytes, rest: bytes, identity: bytes) -> bytes:
    made = blake2b(head, digest_size=_SEAL_BYTES, key=identity, person=b"seal")
    made.update(rest)
    return made.digest()
