"""What goes with an error beside its line: when to try again, and google.rpc.Status, gRPC's richer error model.

`grpc-status-details-bin` is what clients of every language know how to read (grpcio-status and the like): RetryInfo
where trying again may help, BadRequest where the request must be mended. Written by hand, since registering
google.rpc's messages a second time would clash with the package that has them. Field numbers: google/rpc/status.proto
and error_details.proto.
"""

from __future__ import annotations

from penstock.kernels.calls import INVALID_ARGUMENT, UNAVAILABLE, Refused
from penstock.server.errors import RETRY_PUSHBACK_MS, ServerError

LONGEST = 500
"""Characters of a message that are said again in the details: metadata has its limits."""

Trailing = tuple[tuple[str, str | bytes], ...]


def trailing_of(told: ServerError | Refused) -> Trailing:
    """Trailing metadata of an error; values are bytes where the key ends with `-bin`."""
    message = told.message[:LONGEST].encode()
    if told.status == UNAVAILABLE:
        nanos = int(RETRY_PUSHBACK_MS) * 1_000_000
        details = _status(told.status, message, "RetryInfo", _part(1, _number(2, nanos)))
        return (("grpc-retry-pushback-ms", RETRY_PUSHBACK_MS), ("grpc-status-details-bin", details))
    if told.status == INVALID_ARGUMENT:
        details = _status(told.status, message, "BadRequest", _part(1, _part(2, message)))
        return (("grpc-status-details-bin", details),)
    return ()


def _status(code: int, message: bytes, kind: str, detail: bytes) -> bytes:
    """A google.rpc.Status with one detail."""
    packed = _part(1, f"type.googleapis.com/google.rpc.{kind}".encode()) + _part(2, detail)
    return _number(1, code) + _part(2, message) + _part(3, packed)


def _part(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
