"""ModelInfer on an event loop: a body goes into its lane, the answer comes back through one eventfd for each batch.

Per call it makes one future and one ticket. Used by the grpcio transport for every call, by the native one for what its
own threads do not take, and by streamed inference.
"""

from __future__ import annotations

import asyncio
from time import monotonic_ns

from penstock.kernels import wire
from penstock.kernels.calls import DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, EventSink, Refused
from penstock.server.config import Config
from penstock.server.errors import InvalidRequest
from penstock.server.lifecycle import Models
from penstock.server.transports.waves import Waves

LONGEST_S = 1e9
"""Thirty years: a grpc-timeout may say more than nanoseconds can."""


class Inference:
    """Answers inference calls in one event loop. Used in that loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, models: Models, config: Config) -> None:
        self._models = models
        self._limit = config.max_message_bytes
        self._default_deadline_s = config.default_deadline_s
        self._loop = loop
        self._sink = EventSink()
        self._waves = Waves(loop, self._sink)
        loop.add_reader(self._sink.fileno(), self._sink.drain)

    def close(self) -> None:
        """Take no answers any more."""
        self._loop.remove_reader(self._sink.fileno())

    async def answer(self, body: bytes, remaining_s: float | None) -> bytes:
        """The ModelInferResponse to one ModelInferRequest. Cancelled, it takes the call back out of the queue.

        Args:
            body: the request.
            remaining_s: seconds until the caller's deadline, at which the transport ends the call by cancelling this;
                None puts the default deadline in its place, which is kept here.

        Raises:
            ServerError, Refused: with a status and a line for the caller.
        """
        remaining = self._default_deadline_s if remaining_s is None else min(max(remaining_s, 0.0), LONGEST_S)
        future: asyncio.Future[bytes] = self._loop.create_future()
        try:
            served = self._models.route(wire.peek(body))
        except wire.WireError as error:
            raise InvalidRequest(str(error)) from error
        ticket = served.lane.submit(body, self._sink, future, monotonic_ns() + int(remaining * 1e9), wake=False)
        self._waves.submitted(served)
        expiry = self._loop.call_later(remaining, _expire, future) if remaining_s is None else None
        try:
            answer = await future
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        finally:
            if expiry is not None:
                expiry.cancel()
        if len(answer) > self._limit:
            raise Refused(
                RESOURCE_EXHAUSTED,
                f"the answer has {len(answer)} bytes, the limit is {self._limit}: ask for fewer rows or outputs",
            )
        return answer


def _expire(future: asyncio.Future[bytes]) -> None:
    """End a call that sent no deadline of its own; the lane drops it when it comes to it."""
    if not future.done():
        future.set_exception(Refused(DEADLINE_EXCEEDED, "no answer within the server's default deadline"))
