"""The native transport: I/O threads of `kernels/http2.pyx`, and the slow lane on the event loop.

Inference that fits its model goes from an I/O thread into a lane and back, and nothing here hears of it. What comes
here through one eventfd is every other RPC, and inference that is compressed, or needs words because it fits no model.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from threading import Thread
from time import monotonic_ns

from penstock.errors import PenstockError
from penstock.kernels import exchanges
from penstock.kernels.exchanges import Rpc
from penstock.kernels.http2 import Http2
from penstock.kernels.tls import TlsContext
from penstock.server.address import Address
from penstock.server.caller import Caller
from penstock.server.certificates import Certificates, Renewal
from penstock.server.config import Config
from penstock.server.details import trailing_of
from penstock.server.errors import BadConfig, InvalidRequest, status_of
from penstock.server.infer import Inference
from penstock.server.lifecycle import Models, Routes
from penstock.server.service import INFER, Service
from penstock.server.transports.compression import WORTHWHILE, deflate, inflate

_log = logging.getLogger("penstock.server")

BACKLOG = 4096
INFLATIONS = 2
"""Compressed messages that are inflated, and large ones that are answered, at once."""
LARGE = 1 << 20
RENEWAL_S = 1.0
LIMITS = (
    "max_message_bytes",
    "max_header_bytes",
    "max_streams",
    "max_connections",
    "max_in_flight_bytes",
    "default_deadline_s",
    "handshake_timeout_s",
    "header_timeout_s",
    "body_timeout_s",
    "idle_timeout_s",
    "keepalive_s",
    "keepalive_timeout_s",
    "max_connection_age_s",
    "max_connection_age_grace_s",
    "max_resets_per_s",
    "max_pings_per_s",
    "max_settings_per_s",
    "max_empty_frames_per_s",
)


class NativeTransport:
    """A gRPC server on libnghttp2 over lanes and the slow-lane tables. Make and use it inside the event loop.

    Raises:
        BadConfig: the files of TLS cannot be used.
    """

    def __init__(self, models: Models, inference: Inference, service: Service, config: Config) -> None:
        self._inference = inference
        self._service = service
        self._limit = config.max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._drained = asyncio.Event()
        self.failed = asyncio.Event()
        self._address = Address()
        self._file: tuple[int, int] | None = None
        self._inflating = asyncio.Semaphore(INFLATIONS)
        self._renewing: asyncio.TimerHandle | None = None
        count = io_threads(config)
        self.http2 = Http2(
            threads=count,
            infer=INFER.encode(),
            unary=[path.encode() for path in service.table],
            streams=[path.encode() for path in service.streams],
            **{name: getattr(config, name) for name in LIMITS},
        )
        certificates = config.certificates()
        if certificates is not None:
            self._use_tls(certificates, Renewal(certificates))
        self._loop.add_reader(self.http2.fileno(), self._drain_events)
        models.follow(self._use_routes)
        self._threads = [
            Thread(target=self.http2.run, args=(index,), name=f"io {index}", daemon=True) for index in range(count)
        ]

    def _use_routes(self, routes: Routes) -> None:
        self.http2.set_routes({key: served.lane for key, served in routes.items()})

    def _use_tls(self, certificates: Certificates, renewal: Renewal) -> None:
        """Use what the files hold now, and look at them again from time to time."""
        self.http2.set_tls(_context(certificates))

        def look() -> None:
            try:
                if renewal.changed():
                    self.http2.set_tls(_context(certificates))
            except PenstockError as error:
                _log.warning("%s; the certificate in use goes on", error)
            self._renewing = self._loop.call_later(RENEWAL_S, look)

        self._renewing = self._loop.call_later(RENEWAL_S, look)

    async def start(self, address: Address) -> Address:
        """Listen; the address with the port that was bound.

        Raises:
            BadConfig: it cannot be listened on.
        """
        listener = _listen(address)
        bound = address if address.path else replace(address, port=listener.getsockname()[1])
        self.http2.listen(listener.detach())
        self._address, self._file = address, address.identity()
        for thread in self._threads:
            thread.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Close the listener, let calls in flight finish for `grace_s`, then end what is left."""
        if self._renewing is not None:
            self._renewing.cancel()
        running = [thread for thread in self._threads if thread.ident is not None]
        if running and grace_s > 0:
            self.http2.drain()
            try:
                await asyncio.wait_for(self._drained.wait(), grace_s)
            except TimeoutError:
                _log.warning("some connections did not end in time")
        self.http2.stop()
        for thread in running:
            await asyncio.to_thread(thread.join)
        self._loop.remove_reader(self.http2.fileno())
        self._drain_events()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._address.release(self._file)

    def snapshot(self) -> dict[str, int]:
        """Gauges and counters since the start."""
        return self.http2.snapshot()

    def _drain_events(self) -> None:
        """Take what the I/O threads have for us."""
        for kind, rpc, compressed, message in self.http2.events():
            if rpc is None:
                self._drained.set()
            elif kind == exchanges.BEGAN_EVENT:
                self._begin(rpc, compressed, message)
            elif kind == exchanges.CLOSED_EVENT:
                if rpc.task is not None:
                    rpc.task.cancel()  # nothing happens to one that is done
                rpc.task = rpc.conversation = None  # or they would keep each other alive
            elif rpc.conversation is not None:
                rpc.conversation.told(kind, compressed, message)

    def _begin(self, rpc: Rpc, compressed: bool, message: bytes) -> None:
        if rpc.streaming:
            rpc.conversation = Conversation(rpc, self._limit)
            work = self._stream(rpc, rpc.conversation)
        else:
            work = self._unary(rpc, compressed, message)
        rpc.task = task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _unary(self, rpc: Rpc, compressed: bool, message: bytes) -> None:
        """One message for one."""
        try:
            if compressed:
                await self._compressed(rpc, message)
            else:
                rpc.send(await self._answer(rpc, message))
            rpc.finish()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            _fail(rpc, error)

    async def _answer(self, rpc: Rpc, body: bytes) -> bytes:
        if rpc.path == INFER:
            return await self._inference.answer(body, _remaining_s(rpc))
        return await asyncio.to_thread(self._service.table[rpc.path], body, _caller(rpc))

    async def _compressed(self, rpc: Rpc, message: bytes) -> None:
        """The same for a message that may be a thousand times larger than it came: large ones wait for each other."""
        async with self._inflating:
            body = await asyncio.to_thread(inflate, message, rpc.encoding, self._limit)
            answer = await self._answer(rpc, body) if len(body) > LARGE else None
        if answer is None:
            answer = await self._answer(rpc, body)
        if len(answer) > WORTHWHILE and rpc.accepts(rpc.encoding):
            rpc.send(await asyncio.to_thread(deflate, answer, rpc.encoding), rpc.encoding)
        else:
            rpc.send(answer)

    async def _stream(self, rpc: Rpc, conversation: Conversation) -> None:
        """Messages both ways, closed as soon as the caller is gone."""
        try:
            answers = self._service.streams[rpc.path](conversation.bodies(), _caller(rpc))
            async with aclosing(answers):
                async for message in answers:
                    await conversation.send(message)
            rpc.finish()
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            _fail(rpc, error)


class Conversation:
    """What a stream's client sent and has not been read yet, and whether what we sent has left."""

    def __init__(self, rpc: Rpc, limit: int) -> None:
        self._rpc = rpc
        self._limit = limit
        self._received: asyncio.Queue[tuple[bool, bytes] | None] = asyncio.Queue()
        self._written = asyncio.Event()

    def told(self, kind: int, compressed: bool, message: bytes) -> None:
        """An event of the stream."""
        if kind == exchanges.MESSAGE_EVENT:
            self._received.put_nowait((compressed, message))
        elif kind == exchanges.ENDED_EVENT:
            self._received.put_nowait(None)
        else:
            self._written.set()

    async def bodies(self) -> AsyncIterator[bytes]:
        """Every message of the client. Only as they are read here may it send more."""
        while (received := await self._received.get()) is not None:
            compressed, message = received
            self._rpc.consumed(len(message))
            yield await asyncio.to_thread(inflate, message, self._rpc.encoding, self._limit) if compressed else message

    async def send(self, message: bytes) -> None:
        """Send a message, and wait until it has left."""
        self._written.clear()
        self._rpc.send(message)
        await self._written.wait()


def io_threads(config: Config) -> int:
    """How many I/O threads serve: one is enough for four cores, since models need the others."""
    cores = len(os.sched_getaffinity(0))
    return config.io_threads or max(1, cores // 4)


def _listen(address: Address) -> socket.socket:
    """A listening socket.

    Raises:
        BadConfig: it cannot be listened on.
    """
    try:
        if address.path:
            address.claim()
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(address.path)
            address.protect()
            listener.listen(BACKLOG)
        else:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            listener = socket.create_server((address.host, address.port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise BadConfig(f"grpc: {address} cannot be listened on: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _context(certificates: Certificates) -> TlsContext:
    ca = str(certificates.client_ca) if certificates.client_ca is not None else ""
    return TlsContext(str(certificates.certificate), str(certificates.key), ca)


def _remaining_s(rpc: Rpc) -> float | None:
    return (rpc.deadline_ns - monotonic_ns()) / 1e9 if rpc.deadline_ns else None


def _caller(rpc: Rpc) -> Caller:
    return Caller(tuple(_entry(name, value) for name, value in rpc.metadata), rpc.peer, _remaining_s(rpc))


def _entry(name: bytes, value: bytes) -> tuple[str, str | bytes]:
    """A key and its value as handlers know them."""
    key = name.decode("ascii", "replace")
    if key.endswith("-bin"):
        try:
            return key, base64.b64decode(value + b"=" * (-len(value) % 4))
        except ValueError as error:
            raise InvalidRequest(f"metadata {key!r} is not base64") from error
    return key, value.decode("utf-8", "replace")


def _fail(rpc: Rpc, error: BaseException) -> None:
    """End an RPC with the status of an error; a cancellation that was not ours is a fault like any other."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
    told = status_of(error)
    rpc.finish(told.status, told.message, [_pair(key, value) for key, value in trailing_of(told)])


def _pair(key: str, value: str | bytes) -> tuple[bytes, bytes]:
    """Metadata as it goes over the wire: binary values as base64 without padding."""
    if isinstance(value, str):
        return key.encode(), value.encode()
    return key.encode(), base64.b64encode(value).rstrip(b"=")
