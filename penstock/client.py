"""Clients of any Open Inference Protocol server over gRPC, numpy in and numpy out.

`Client` blocks and may be shared by threads; `AsyncClient` lives in one event loop. Both know how Penstock takes
entity ids and overrides. What a model takes is asked once per model and version, and asked again after a request was
refused (NOT_FOUND or INVALID_ARGUMENT), here or by the server, since the model may have changed. Calls that fail as
UNAVAILABLE are tried up to three times within their timeout, by gRPC itself. Every failed call raises a
`penstock.errors.RpcError`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
import numpy.typing as npt

from penstock import answers
from penstock._requests import Ask, EntityIds, Inputs, Model
from penstock.answers import (
    ModelConfig,
    ModelDrift,
    ModelMetadata,
    ModelState,
    ModelStatistics,
    Parameter,
    Prediction,
    ServerMetadata,
)
from penstock.errors import DeadlineExceeded, InvalidRequest, NotFound, RpcError, Unavailable, rpc_error
from penstock.proto import inference_pb2 as pb
from penstock.proto import penstock_pb2 as admin

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_SERVICE = "/inference.GRPCInferenceService/"
_RETRY = {
    "maxAttempts": 3,
    "initialBackoff": "0.02s",
    "maxBackoff": "0.5s",
    "backoffMultiplier": 4,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRY}]})),
)
# Each call: the path, and the class of its answer. Requests are handed over as messages or, for inference, as bytes.
_NAMES = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer", "ModelConfig")
_CALLS: dict[str, tuple[str, Any]] = {
    name: (_SERVICE + name, getattr(pb, f"{name}Response")) for name in (*_NAMES, "ModelStatistics", "RepositoryIndex")
}
_CALLS["DriftStatus"] = ("/penstock.Penstock/DriftStatus", admin.DriftStatusResponse)


@dataclass(frozen=True, slots=True)
class Tls:
    """How to trust the server, and how to be known to it. All in PEM.

    Attributes:
        roots: certificates to trust; None for the system's.
        certificate: the client's own, for mutual TLS, with its `key`.
        server_name: the name expected in the server's certificate, if not that of the address.
    """

    roots: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None
    server_name: str = ""


_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:")


def _channel(module: Any, address: str, tls: Tls | bool) -> Any:
    """A channel of `grpc` or `grpc.aio`; gRPC itself would wrap a port that is too large and connect elsewhere."""
    host, _, port = address.rpartition(":")
    plain = not address.startswith(_SCHEMES)
    if plain and not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidRequest("INVALID_ARGUMENT", f"address {address!r} is not HOST:PORT")
    if not tls:
        return module.insecure_channel(address, options=OPTIONS)
    tls = tls if isinstance(tls, Tls) else Tls()
    credentials = grpc.ssl_channel_credentials(tls.roots, tls.key, tls.certificate)
    options = [*OPTIONS, *([("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else [])]
    return module.secure_channel(address, credentials, options=options)


def _serialize(request: Any) -> bytes:
    data: bytes = request if isinstance(request, bytes) else request.SerializeToString()
    return data


def _stubs(channel: Any) -> dict[str, Any]:
    serializers = {name: None if name == "ModelInfer" else _serialize for name in _CALLS}
    return {
        name: channel.unary_unary(path, request_serializer=serializers[name], response_deserializer=answer.FromString)
        for name, (path, answer) in _CALLS.items()
    }


def _raised(error: grpc.RpcError, address: str) -> RpcError:
    """Our error for gRPC's; its message names the address where the call may not have reached it."""
    details = error.details() or ""
    where = f" (server {address})" if error.code() in _UNREACHED else ""
    return rpc_error(error.code().name, details + where)


_UNREACHED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class _Base:
    """What both clients share: the channel, its stubs, and what is known of models."""

    def __init__(self, module: Any, address: str, timeout: float, tls: Tls | bool) -> None:
        self.address = address
        self.timeout = timeout
        self._models: dict[tuple[str, str], Model] = {}
        self._channel = _channel(module, address, tls)
        self._stubs = _stubs(self._channel)
        self._infer = self._stubs["ModelInfer"]

    def _learn(self, model: str, version: str, metadata: Any, config: Any) -> Model:
        known = Model(ModelMetadata.from_proto(metadata), ModelConfig.from_proto(config))
        self._models[model, version] = known
        return known

    def _until(self, timeout: float | None) -> float:
        """When a call is to be over, on the clock of `monotonic`."""
        return monotonic() + (self.timeout if timeout is None else timeout)

    def _body(self, known: Model, ask: Ask) -> bytes:
        """The request; where it does not fit what is known of the model, that is forgotten, for it may be old."""
        try:
            return known.request(ask)
        except InvalidRequest:
            self._forget(ask)
            raise

    def _failed(self, error: grpc.RpcError, ask: Ask) -> RpcError:
        raised = _raised(error, self.address)
        if isinstance(raised, NotFound | InvalidRequest):
            self._forget(ask)
        return raised

    def _forget(self, ask: Ask) -> None:
        self._models.pop((ask.model, ask.version), None)


class Client(_Base):
    """A blocking client, safe to share between threads.

    Args:
        address: HOST:PORT, or another gRPC target such as unix:/path.
        timeout: seconds a call may take, retries included, unless the call says otherwise.
        tls: True for TLS with the system's roots, or a `Tls`.
    """

    def __init__(self, address: str, *, timeout: float = 10.0, tls: Tls | bool = False) -> None:
        super().__init__(grpc, address, timeout, tls)

    def predict(
        self,
        model: str,
        inputs: Inputs | None = None,
        *,
        entity_ids: EntityIds | None = None,
        overrides: Mapping[str, npt.ArrayLike] | None = None,
        outputs: Iterable[str] | None = None,
        version: str = "",
        timeout: float | None = None,
        request_id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
    ) -> Prediction:
        """One inference.

        Args:
            model: its name.
            inputs: arrays by input name, or one array for a model that takes one matrix or has one input. Numbers are
                converted to the input's datatype where nothing but float precision can be lost.
            entity_ids: n ids whose features the server looks up. Where an id has several keys a tuple each, or a
                mapping with n values by each key's name.
            overrides: n values by column name, used instead of what is looked up.
            outputs: names of the outputs wanted; none means all.
            version: a number or an alias; empty leaves the choice to the server.
            timeout: seconds, asking about a model not known yet included; None for the client's.
            request_id: echoed in the answer.
            parameters: of the request, such as {"timing": True}.

        Raises:
            RpcError: the call failed; see `penstock.errors`.
            ProtocolError: the answer is not what the protocol allows.
        """
        ask = Ask(model, inputs, entity_ids, overrides, outputs, version, request_id, parameters)
        until = self._until(timeout)
        known = self._models.get((model, version)) or self._ask(model, version, until)
        body = self._body(known, ask)
        try:
            answer = self._infer(body, timeout=until - monotonic())
        except grpc.RpcError as error:
            raise self._failed(error, ask) from None
        return Prediction.from_proto(answer)

    def live(self) -> bool:
        """Whether the server answers; False if it cannot be reached."""
        return self._reached("ServerLive", pb.ServerLiveRequest(), "live")

    def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server, or one model, takes requests; False if the server cannot be reached.

        Raises:
            NotFound: there is no such model.
        """
        if model:
            return self._reached("ModelReady", pb.ModelReadyRequest(name=model, version=version), "ready")
        return self._reached("ServerReady", pb.ServerReadyRequest(), "ready")

    def server_metadata(self) -> ServerMetadata:
        """Name, version and extensions of the server."""
        return ServerMetadata.from_proto(self._call("ServerMetadata", pb.ServerMetadataRequest()))

    def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Versions and tensors of a model."""
        return ModelMetadata.from_proto(
            self._call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version))
        )

    def config(self, model: str, version: str = "") -> ModelConfig:
        """How a model is served."""
        return ModelConfig.from_proto(self._call("ModelConfig", pb.ModelConfigRequest(name=model, version=version)))

    def statistics(self, model: str = "", version: str = "") -> tuple[ModelStatistics, ...]:
        """Counts and durations of one model or of all, one for each version."""
        request = pb.ModelStatisticsRequest(name=model, version=version)
        return answers.statistics_from_proto(self._call("ModelStatistics", request))

    def models(self) -> tuple[ModelState, ...]:
        """Every version the server's registry holds, and its state."""
        return answers.states_from_proto(self._call("RepositoryIndex", pb.RepositoryIndexRequest()))

    def drift(self, model: str = "", version: str = "", *, current: bool = False) -> tuple[ModelDrift, ...]:
        """Drift of the last complete window, or of the `current` one, for each version that carries a reference."""
        request = admin.DriftStatusRequest(model_name=model, version=version, current=current)
        return answers.drifts_from_proto(self._call("DriftStatus", request))

    def close(self) -> None:
        """Give up the connection; calls in flight are cancelled."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, name: str, request: Any, until: float | None = None) -> Any:
        try:
            return self._stubs[name](request, timeout=self.timeout if until is None else until - monotonic())
        except grpc.RpcError as error:
            raise _raised(error, self.address) from None

    def _reached(self, name: str, request: Any, field: str) -> bool:
        try:
            return bool(getattr(self._call(name, request), field))
        except (Unavailable, DeadlineExceeded):
            return False

    def _ask(self, model: str, version: str, until: float) -> Model:
        metadata = self._call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version), until)
        config = self._call("ModelConfig", pb.ModelConfigRequest(name=model, version=version), until)
        return self._learn(model, version, metadata, config)


class AsyncClient(_Base):
    """The same for asyncio: made and used inside one running event loop. See `Client` for arguments and errors."""

    def __init__(self, address: str, *, timeout: float = 10.0, tls: Tls | bool = False) -> None:
        super().__init__(grpc.aio, address, timeout, tls)

    async def predict(
        self,
        model: str,
        inputs: Inputs | None = None,
        *,
        entity_ids: EntityIds | None = None,
        overrides: Mapping[str, npt.ArrayLike] | None = None,
        outputs: Iterable[str] | None = None,
        version: str = "",
        timeout: float | None = None,  # noqa: ASYNC109 - it becomes the call's deadline, which the server sees too
        request_id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
    ) -> Prediction:
        """One inference; see `Client.predict`."""
        ask = Ask(model, inputs, entity_ids, overrides, outputs, version, request_id, parameters)
        until = self._until(timeout)
        known = self._models.get((model, version)) or await self._ask(model, version, until)
        body = self._body(known, ask)
        try:
            answer = await self._infer(body, timeout=until - monotonic())
        except grpc.RpcError as error:
            raise self._failed(error, ask) from None
        return Prediction.from_proto(answer)

    async def live(self) -> bool:
        """Whether the server answers; False if it cannot be reached."""
        return await self._reached("ServerLive", pb.ServerLiveRequest(), "live")

    async def ready(self, model: str = "", version: str = "") -> bool:
        """Whether the server, or one model, takes requests; see `Client.ready`."""
        if model:
            return await self._reached("ModelReady", pb.ModelReadyRequest(name=model, version=version), "ready")
        return await self._reached("ServerReady", pb.ServerReadyRequest(), "ready")

    async def server_metadata(self) -> ServerMetadata:
        """Name, version and extensions of the server."""
        return ServerMetadata.from_proto(await self._call("ServerMetadata", pb.ServerMetadataRequest()))

    async def metadata(self, model: str, version: str = "") -> ModelMetadata:
        """Versions and tensors of a model."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        return ModelMetadata.from_proto(await self._call("ModelMetadata", request))

    async def config(self, model: str, version: str = "") -> ModelConfig:
        """How a model is served."""
        request = pb.ModelConfigRequest(name=model, version=version)
        return ModelConfig.from_proto(await self._call("ModelConfig", request))

    async def statistics(self, model: str = "", version: str = "") -> tuple[ModelStatistics, ...]:
        """Counts and durations of one model or of all, one for each version."""
        request = pb.ModelStatisticsRequest(name=model, version=version)
        return answers.statistics_from_proto(await self._call("ModelStatistics", request))

    async def models(self) -> tuple[ModelState, ...]:
        """Every version the server's registry holds, and its state."""
        return answers.states_from_proto(await self._call("RepositoryIndex", pb.RepositoryIndexRequest()))

    async def drift(self, model: str = "", version: str = "", *, current: bool = False) -> tuple[ModelDrift, ...]:
        """Drift of the last complete window, or of the `current` one; see `Client.drift`."""
        request = admin.DriftStatusRequest(model_name=model, version=version, current=current)
        return answers.drifts_from_proto(await self._call("DriftStatus", request))

    async def close(self) -> None:
        """Give up the connection; calls in flight are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, name: str, request: Any, until: float | None = None) -> Any:
        try:
            return await self._stubs[name](request, timeout=self.timeout if until is None else until - monotonic())
        except grpc.RpcError as error:
            raise _raised(error, self.address) from None

    async def _reached(self, name: str, request: Any, field: str) -> bool:
        try:
            return bool(getattr(await self._call(name, request), field))
        except (Unavailable, DeadlineExceeded):
            return False

    async def _ask(self, model: str, version: str, until: float) -> Model:
        metadata = await self._call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version), until)
        config = await self._call("ModelConfig", pb.ModelConfigRequest(name=model, version=version), until)
        return self._learn(model, version, metadata, config)
