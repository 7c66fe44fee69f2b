"""Compressed messages of gRPC, which the native transport leaves to Python: gzip and deflate, never beyond a limit.

Inflating stops at the limit, so a message of a few kilobytes cannot become gigabytes.
"""

from __future__ import annotations

import zlib

from penstock.kernels.calls import INTERNAL, RESOURCE_EXHAUSTED, Refused

WINDOW_BITS = {"gzip": 31, "deflate": 15}
WORTHWHILE = 1024
"""Bytes from which on an answer is compressed, where its request was."""


def inflate(message: bytes, encoding: str, limit: int) -> bytes:
    """The message as it was before it was compressed with `encoding`.

    Raises:
        Refused: INTERNAL where it is not well-formed, as gRPC has it; RESOURCE_EXHAUSTED beyond `limit` bytes.
    """
    machine = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        inflated = machine.decompress(message, limit + 1)
    except zlib.error as error:
        raise Refused(INTERNAL, f"the message is not well-formed {encoding}") from error
    if len(inflated) > limit:
        raise Refused(RESOURCE_EXHAUSTED, f"the message has more than {limit} bytes once it is decompressed")
    if not machine.eof:
        raise Refused(INTERNAL, f"the message is not well-formed {encoding}: it ends too soon")
    return inflated


def deflate(message: bytes, encoding: str) -> bytes:
    """The message compressed, fast rather than small."""
    machine = zlib.compressobj(level=1, wbits=WINDOW_BITS[encoding])
    return machine.compress(message) + machine.flush()
