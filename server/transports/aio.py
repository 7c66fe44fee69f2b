"""The grpcio transport: grpc.aio with identity serializers, so that bytes reach the same codec and lanes as any other.

It knows what is gRPC's and nothing of models: calls come from `server/infer.py` and the two tables of
`server/service.py`, errors leave as statuses. grpcio decompresses requests by itself and does not tell that it did, so
answers are never compressed here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, nullcontext, suppress
from dataclasses import replace
from importlib.metadata import version as installed_version
from typing import Any, NoReturn, cast
from urllib.parse import unquote

import grpc

from penstock.server.address import Address
from penstock.server.caller import Caller, Handler, StreamHandler
from penstock.server.certificates import Certificates, Pems, Renewal
from penstock.server.config import Config
from penstock.server.details import trailing_of
from penstock.server.errors import BadConfig, status_of
from penstock.server.infer import Inference
from penstock.server.service import INFER, Service

_log = logging.getLogger("penstock.server")

MINIMUM = (1, 84)
"""Older grpcio buffers a whole message before it looks at the size limit."""
WATCH_S = 1.0
CODES = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext[bytes, bytes]
Unary = Callable[[bytes, Context], Awaitable[bytes]]
Stream = Callable[[AsyncIterator[bytes], Context], Awaitable[None]]


def check_version() -> None:
    """Refuse a grpcio that is too old to be safe.

    Raises:
        BadConfig: naming the version and what to install.
    """
    found = installed_version("grpcio")
    if tuple(int(part) for part in found.split(".")[:2]) < MINIMUM:
        raise BadConfig(f"grpcio {found} is too old: 1.84 or newer is needed (pip install -U grpcio)")


class AioTransport:
    """A grpc.aio server over lanes and the slow-lane tables. Make and use it inside the event loop.

    Raises:
        BadConfig: the files of TLS cannot be used.
    """

    def __init__(self, inference: Inference, service: Service, config: Config) -> None:
        self._inference = inference
        self.failed = asyncio.Event()
        self._stopping = False
        self._watching: asyncio.Task[None] | None = None
        certificates = config.certificates()
        self._credentials = _credentials(certificates) if certificates else None
        self._server = grpc.aio.server(options=_options(config))
        self._server.add_generic_rpc_handlers(tuple(self._handlers(service)))

    def _handlers(self, service: Service) -> list[grpc.GenericRpcHandler]:
        # no serializers: bytes in, bytes out
        methods: dict[str, Any] = {INFER: grpc.unary_unary_rpc_method_handler(self._infer)}
        methods |= {p: grpc.unary_unary_rpc_method_handler(_slow(handler)) for p, handler in service.table.items()}
        methods |= {p: grpc.stream_stream_rpc_method_handler(_stream(h)) for p, h in service.streams.items()}
        grouped: dict[str, dict[str, Any]] = {}
        for path, handler in methods.items():
            name, method = path[1:].split("/")
            grouped.setdefault(name, {})[method] = handler
        return [grpc.method_handlers_generic_handler(name, table) for name, table in grouped.items()]

    async def start(self, address: Address) -> Address:
        """Listen; the address with the port that was bound.

        Raises:
            BadConfig: it cannot be listened on.
        """
        if address.path:
            address.claim()  # gRPC would take the socket from another server
        try:
            bound = self._bind(str(address))
        except RuntimeError as error:
            raise BadConfig(f"grpc: {address} cannot be listened on; is another server there?") from error
        address.protect()
        await self._server.start()
        bound_address = address if address.path else replace(address, port=bound)
        self._watching = asyncio.create_task(self._watch(bound_address))
        return bound_address

    def _bind(self, address: str) -> int:
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials)

    async def _watch(self, address: Address) -> None:
        """What grpcio cannot decode, a path that is not UTF-8 for one, ends its server, and nobody is told."""
        while not self._stopping:
            await asyncio.sleep(WATCH_S)
            try:
                _, caller = await (
                    asyncio.open_unix_connection(address.path)
                    if address.path
                    else asyncio.open_connection(address.host, address.port)
                )
                caller.close()
            except (ConnectionRefusedError, FileNotFoundError):
                _log.error("grpcio does not listen on %s any more", address)
                self.failed.set()
                return
            except OSError:  # no descriptor left, say: that tells nothing of the server
                continue

    async def stop(self, grace_s: float) -> None:
        """Close the listener, let calls in flight finish for `grace_s`, then end what is left."""
        self._stopping = True
        if self._watching is not None:
            self._watching.cancel()
        with suppress(Exception) if self.failed.is_set() else nullcontext():  # what ended it is raised once more
            await self._server.stop(grace_s)  # which removes a unix socket's file, too

    def snapshot(self) -> dict[str, int]:
        """Nothing: grpcio does not tell what its connections do."""
        return {}

    async def _infer(self, body: bytes, context: Context) -> bytes:
        try:
            return await self._inference.answer(body, _remaining_s(context))
        except Exception as error:  # noqa: BLE001
            await _abort(context, error)


def _slow(handler: Handler) -> Unary:
    """A slow-lane handler, run in a thread so that it never holds up the loop."""

    async def answer(body: bytes, context: Context) -> bytes:
        try:
            return await asyncio.to_thread(handler, body, _caller(context))
        except Exception as error:  # noqa: BLE001
            await _abort(context, error)

    return answer


def _stream(handler: StreamHandler) -> Stream:
    """A stream, closed as soon as its caller is gone."""

    async def answer(bodies: AsyncIterator[bytes], context: Context) -> None:
        try:
            async with aclosing(handler(bodies, _caller(context))) as answers:
                async for message in answers:
                    await context.write(message)
        except Exception as error:  # noqa: BLE001
            await _abort(context, error)

    return answer


def _caller(context: Context) -> Caller:
    metadata = tuple((key, value) for key, value in context.invocation_metadata() or ())
    return Caller(metadata, unquote(context.peer()), _remaining_s(context))


def _remaining_s(context: Context) -> float | None:
    return cast("float | None", context.time_remaining())  # the stubs forget None


async def _abort(context: Context, error: Exception) -> NoReturn:
    """End a call with the status of an error."""
    told = status_of(error)
    await context.abort(CODES[told.status], told.message, trailing_of(told))


def _credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """TLS 1.2 or newer; every new connection gets what the files hold then."""
    renewal = Renewal(certificates)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        pems = renewal.changed()
        return _configuration(pems) if pems else None

    return grpc.dynamic_ssl_server_credentials(
        _configuration(renewal.current),
        cast("Callable[[], grpc.ServerCertificateConfiguration]", fetch),  # the stubs forget that None means no change
        require_client_authentication=certificates.client_ca is not None,
    )


def _configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(pems.key, pems.certificate)], pems.client_ca)


def _options(config: Config) -> list[tuple[str, Any]]:
    """Limits of the connection layer; what each is for: docs/architecture.md."""
    return [
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_concurrent_streams", config.max_streams),
        ("grpc.max_allowed_incoming_connections", config.max_connections),
        ("grpc.max_metadata_size", config.max_header_bytes),
        ("grpc.absolute_max_metadata_size", config.max_header_bytes),
        ("grpc.keepalive_time_ms", _ms(config.keepalive_s)),
        ("grpc.keepalive_timeout_ms", _ms(config.keepalive_timeout_s)),
        ("grpc.http2.min_ping_interval_without_data_ms", 30_000),
        ("grpc.server_handshake_timeout_ms", _ms(config.handshake_timeout_s)),
        ("grpc.max_connection_idle_ms", _ms(config.idle_timeout_s)),
        ("grpc.max_connection_age_ms", _ms(config.max_connection_age_s)),
        ("grpc.max_connection_age_grace_ms", _ms(config.max_connection_age_grace_s)),
        ("grpc.so_reuseport", 0),
        ("grpc.enable_channelz", 0),
    ]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
