"""What a handler learns of a call beside its bytes, and the shapes of handlers.

Transports make a `Caller` from what came on the wire, so that handlers are the same functions on each of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, and how long there is.

    Attributes:
        metadata: keys in lower case, in the order sent; values are bytes where the key ends with `-bin`. What gRPC
            itself reads (`grpc-timeout`, `te`, `content-type` and the like) is not among them.
        peer: such as ipv4:127.0.0.1:4711, ipv6:[::1]:4711 or unix:.
        remaining_s: seconds until the caller's deadline; None where there is none.
    """

    metadata: tuple[tuple[str, str | bytes], ...] = ()
    peer: str = ""
    remaining_s: float | None = None


Handler = Callable[[bytes, Caller], bytes]
"""A unary call: run in a thread, so it may block. What it raises becomes a status (`server/errors.py`)."""

StreamHandler = Callable[[AsyncIterator[bytes], Caller], AsyncGenerator[bytes, None]]
"""A stream: an async generator function, run on the event loop. The transport closes it when the caller is gone."""
