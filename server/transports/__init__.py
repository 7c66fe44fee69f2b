"""What turns connections into bodies and answers. `app.py` chooses one and knows it as a `Transport`."""

from __future__ import annotations

import asyncio
from typing import Protocol

from penstock.server.address import Address


class Transport(Protocol):
    """A listener over lanes and the slow-lane tables, made and used inside the event loop.

    Attributes:
        failed: set when it has stopped listening without being asked to.
    """

    failed: asyncio.Event

    async def start(self, address: Address) -> Address:
        """Listen; the address with the port that was bound.

        Raises:
            BadConfig: it cannot be listened on.
        """

    async def stop(self, grace_s: float) -> None:
        """Close the listener, let calls in flight finish for so long, then end what is left."""

    def snapshot(self) -> dict[str, int]:
        """Gauges and counters since the start, named as by `Http2.snapshot`; empty where none are kept.

        May be called from any thread.
        """
