"""What `kernels.http2` must understand of gRPC's grammar over HTTP/2, and when its timers and limits take effect.

Source: the "gRPC over HTTP2" document of the gRPC project. Pure functions; times are nanoseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_NS = 10**18
"""Thirty years; a longer timeout counts as this."""
UNITS = {
    "H": 3_600_000_000_000,
    "M": 60_000_000_000,
    "S": 1_000_000_000,
    "m": 1_000_000,
    "u": 1_000,
    "n": 1,
}
ENCODINGS = ("identity", "gzip", "deflate")


def decide_timeout(text: bytes) -> int | None:
    """Nanoseconds of a grpc-timeout: one to eight digits and a unit; None for anything else."""
    found = re.fullmatch(rb"([0-9]{1,8})([HMSmun])", text)
    return min(int(found[1]) * UNITS[found[2].decode()], LONGEST_NS) if found else None


def decide_message(text: bytes) -> bytes:
    """A status message as grpc-message carries it: all but printable ASCII, and the percent sign, as %XX."""
    return b"".join(b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in text)


def decide_content_type(text: bytes) -> bool:
    """Whether a content-type is application/grpc, with a +format or ;parameters or not."""
    return re.fullmatch(rb"application/grpc([+;].*)?", text, re.DOTALL) is not None


def decide_encodings(text: bytes) -> int:
    """The known encodings of a list with commas, a bit for each: its place in ENCODINGS."""
    names = {name.decode("latin-1") for name in re.split(rb"[ ,]+", text)}
    return sum(1 << ENCODINGS.index(name) for name in names & set(ENCODINGS))


def decide_prefix(size: int, compressed: bool) -> tuple[bytes, int]:
    """The prefix of a message: a flag and its size, big-endian; and the size that is read from it."""
    return bytes([compressed]) + size.to_bytes(4), size


def decide_allowed(rate: float, times: Sequence[int]) -> list[bool]:
    """Which events are within `rate` a second: a bucket that holds ten seconds' worth and is full at first.

    What is not allowed is counted all the same; a peer that goes beyond is sent away.
    """
    spent, before, allowed = 0.0, 0, []
    for now in times:
        spent = max(spent - (now - before) * 1e-9 * rate, 0.0) + 1
        before = now
        allowed.append(spent <= 10 * rate)
    return allowed
