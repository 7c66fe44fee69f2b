"""The grpcio transport: grpc.aio with identity serializers, so that bytes reach the same codec and lanes as any other.

Per call it makes one future and one ticket; answers come back through an eventfd once a batch. Everything it knows of
models is a routing table from (name, version) to what serves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version as installed_version
from time import monotonic_ns
from typing import Any, NoReturn, cast

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from penstock.kernels import wire
from penstock.kernels.lanes import DEADLINE_EXCEEDED, EventSink, Refused
from penstock.server.config import Config
from penstock.server.errors import RETRY_PUSHBACK_MS, BadConfig, InvalidRequest, status_of
from penstock.server.health import Health
from penstock.server.lifecycle import Models
from penstock.server.service import INFER, INFERENCE, PENSTOCK, Service
from penstock.server.transports.waves import Waves

MINIMUM = (1, 84)
"""Older grpcio buffers a whole message before it looks at the size limit."""
HEALTH = "grpc.health.v1.Health"
CODES = {code.value[0]: code for code in grpc.StatusCode}
LONGEST_S = 1e9
"""Thirty years: a grpc-timeout may say more than nanoseconds can."""
PUSHBACK = (("grpc-retry-pushback-ms", RETRY_PUSHBACK_MS),)

Context = grpc.aio.ServicerContext[bytes, bytes]
Unary = Callable[[bytes, Context], Awaitable[bytes]]


def check_version() -> None:
    """Refuse a grpcio that is too old to be safe.

    Raises:
        BadConfig: naming the version and what to install.
    """
    found = installed_version("grpcio")
    if tuple(int(part) for part in found.split(".")[:2]) < MINIMUM:
        raise BadConfig(f"grpcio {found} is too old: 1.84 or newer is needed (pip install -U grpcio)")


class AioTransport:
    """A grpc.aio server over lanes and the slow-lane table. Make and use it inside the event loop."""

    def __init__(self, models: Models, service: Service, health: Health, config: Config) -> None:
        self._models = models
        self._health = health
        self._limit = config.max_message_bytes
        self._default_deadline_s = config.default_deadline_s
        self._loop = asyncio.get_running_loop()
        self._sink = EventSink()
        self._waves = Waves(self._loop, self._sink)
        self._loop.add_reader(self._sink.fileno(), self._sink.drain)
        self._server = grpc.aio.server(options=_options(config))
        self._server.add_generic_rpc_handlers(tuple(self._handlers(service)))
        reflection.enable_server_reflection((INFERENCE, PENSTOCK, HEALTH, reflection.SERVICE_NAME), self._server)

    def _handlers(self, service: Service) -> list[grpc.GenericRpcHandler]:
        methods: dict[str, Any] = {path: _unary(self._slow(handler)) for path, handler in service.table.items()}
        methods[INFER] = _unary(self._infer)
        methods[f"/{HEALTH}/Check"] = _unary(self._check)
        methods[f"/{HEALTH}/Watch"] = grpc.unary_stream_rpc_method_handler(self._watch)
        grouped: dict[str, dict[str, Any]] = {}
        for path, handler in methods.items():
            name, method = path[1:].split("/")
            grouped.setdefault(name, {})[method] = handler
        return [grpc.method_handlers_generic_handler(name, table) for name, table in grouped.items()]

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that was bound.

        Raises:
            BadConfig: the address cannot be bound.
        """
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise BadConfig(f"grpc: {address} cannot be listened on; is another server there?") from error
        await self._server.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Close the listener, let calls in flight finish for `grace_s`, then end what is left."""
        await self._server.stop(grace_s)
        self._loop.remove_reader(self._sink.fileno())

    async def _infer(self, body: bytes, context: Context) -> bytes:
        """ModelInfer: into the lane, and wait for the answer."""
        told = cast("float | None", context.time_remaining())  # the stubs forget None
        remaining = self._default_deadline_s if told is None else min(told, LONGEST_S)
        future = self._loop.create_future()
        try:
            served = self._models.route(wire.peek(body))
            ticket = served.lane.submit(body, self._sink, future, monotonic_ns() + int(remaining * 1e9), wake=False)
            self._waves.submitted(served)
        except wire.WireError as error:
            await _abort(context, InvalidRequest(str(error)))
        except Exception as error:  # noqa: BLE001
            await _abort(context, error)
        # gRPC itself ends a call at its own deadline; the default one is ours to keep, whatever the lane is busy with
        expiry = self._loop.call_later(remaining, _expire, future) if told is None else None
        try:
            answer: bytes = await future
        except asyncio.CancelledError:
            ticket.cancel()
            raise
        except Exception as error:  # noqa: BLE001
            await _abort(context, error)
        finally:
            if expiry is not None:
                expiry.cancel()
        if len(answer) > self._limit:
            message = f"the answer has {len(answer)} bytes, the limit is {self._limit}: ask for fewer rows or outputs"
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, message)
        return answer

    def _slow(self, handler: Callable[[bytes], bytes]) -> Unary:
        """A slow-lane handler, run in a thread so that it never holds up the loop."""

        async def answer(body: bytes, context: Context) -> bytes:
            try:
                return await asyncio.to_thread(handler, body)
            except Exception as error:  # noqa: BLE001
                await _abort(context, error)

        return answer

    async def _check(self, body: bytes, context: Context) -> bytes:
        """Health Check: NOT_FOUND for a name that is no model."""
        status = self._health.status(await _service_name(body, context))
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return _health_answer(status)

    async def _watch(self, body: bytes, context: Context) -> AsyncIterator[bytes]:
        """Health Watch: the status now and after every change; the stream ends when the server drains."""
        service = await _service_name(body, context)
        changed = asyncio.Event()

        def tell() -> None:
            self._loop.call_soon_threadsafe(changed.set)

        self._health.listen(tell)
        try:
            last = None
            while True:
                changed.clear()
                draining = self._health.draining  # read before the status, so that the last one told is NOT_SERVING
                status = self._health.status(service)
                if status != last:
                    last = status
                    yield _health_answer(status)
                if draining:
                    return
                await changed.wait()
        finally:
            self._health.forget(tell)


def _unary(handler: Unary) -> grpc.RpcMethodHandler[Any, Any]:
    return grpc.unary_unary_rpc_method_handler(handler)  # no serializers: bytes in, bytes out


def _expire(future: asyncio.Future[bytes]) -> None:
    """End a call that sent no deadline of its own; the lane drops it when it comes to it."""
    if not future.done():
        future.set_exception(Refused(DEADLINE_EXCEEDED, "no answer within the server's default deadline"))


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End a call with the status of an error."""
    told = status_of(error)
    trailing = PUSHBACK if told.status == grpc.StatusCode.UNAVAILABLE.value[0] else ()
    await context.abort(CODES[told.status], told.message, trailing)


async def _service_name(body: bytes, context: Context) -> str:
    try:
        return health_pb2.HealthCheckRequest.FromString(body).service
    except Exception:  # noqa: BLE001
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a well-formed HealthCheckRequest")


def _health_answer(status: int) -> bytes:
    return health_pb2.HealthCheckResponse(status=status).SerializeToString()


def _options(config: Config) -> list[tuple[str, Any]]:
    """Limits of the connection layer; what each is for: docs/architecture.md."""
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_concurrent_streams", config.max_streams),
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.max_metadata_size", 16384),
        ("grpc.absolute_max_metadata_size", 16384),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.so_reuseport", 0),
        ("grpc.enable_channelz", 0),
    ]
