"""The slow lane: every RPC but ModelInfer, as ordinary functions from bytes to bytes in two tables.

Transports look a method up by its full path and call it in a thread; what it raises becomes a status. Streams stand in
a table of their own (`server/streams.py`) and run on the event loop.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError, Message

from penstock.proto import inference_pb2 as pb
from penstock.proto import penstock_pb2 as penstock_pb
from penstock.server import messages
from penstock.server.caller import Caller, Handler
from penstock.server.config import Config
from penstock.server.errors import InvalidRequest, NotServed, UnknownService
from penstock.server.health import SERVICE_UNKNOWN, Health, requested_service, told_status
from penstock.server.infer import Inference
from penstock.server.lifecycle import Models
from penstock.server.streams import Streams
from penstock.server.version import Served

INFERENCE = "inference.GRPCInferenceService"
PENSTOCK = "penstock.Penstock"
INFER = f"/{INFERENCE}/ModelInfer"
CHECK = "/grpc.health.v1.Health/Check"
EXTENSIONS = ("model_configuration", "binary_tensor_data", "parameters", "statistics", "model_repository")


class Service:
    """Answers about the server and its models. Make it inside the event loop.

    Attributes:
        table: full method path to handler, for unary calls.
        streams: full method path to handler, for streams.
    """

    def __init__(self, models: Models, health: Health, config: Config, version: str, inference: Inference) -> None:
        self._models = models
        self._health = health
        self._config = config
        self._version = version
        self._streams = Streams(health, inference, config.max_message_bytes)
        self.streams = self._streams.table
        self.table: dict[str, Handler] = {CHECK: self._check}
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
            if method.name not in {"ModelInfer", "ModelStreamInfer"}:
                self._add(INFERENCE, method)
        for method in penstock_pb.DESCRIPTOR.services_by_name["Penstock"].methods:
            self._add(PENSTOCK, method)

    def close(self) -> None:
        """End the streams once what was read from them is answered. Call it in the event loop."""
        self._streams.close()

    def _check(self, body: bytes, _: Caller) -> bytes:
        """Health Check: NOT_FOUND for a name that is no model."""
        service = requested_service(body)
        status = self._health.status(service)
        if status == SERVICE_UNKNOWN:
            raise UnknownService("unknown service")
        return told_status(status)

    def _add(self, service: str, method: Any) -> None:
        """Put the handler called like the method into the table, behind decoding and encoding."""
        request_type = getattr(penstock_pb if service == PENSTOCK else pb, method.input_type.name)
        answer = getattr(self, method.name, None)
        path = f"/{service}/{method.name}"

        def handler(body: bytes, _: Caller) -> bytes:
            if answer is None:
                raise NotServed(f"{method.name} is not served by Penstock")
            try:
                request = request_type.FromString(body)
            except DecodeError as error:
                raise InvalidRequest(f"the request is not a well-formed {method.input_type.name}") from error
            response: Message = answer(request)
            return response.SerializeToString()

        self.table[path] = handler

    def ServerLive(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:  # noqa: N802
        """The process answers."""
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:  # noqa: N802
        """Every model was looked at once, and the server is not draining."""
        return pb.ServerReadyResponse(ready=self._health.ready)

    def ModelReady(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:  # noqa: N802
        """Whether a version answers; an unknown one is NOT_FOUND."""
        self._models.find(request.name, request.version)
        return pb.ModelReadyResponse(ready=self._health.ready)

    def ServerMetadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:  # noqa: N802
        """Name, version and extensions."""
        return pb.ServerMetadataResponse(name="penstock", version=self._version, extensions=EXTENSIONS)

    def ModelMetadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:  # noqa: N802
        """Inputs and outputs of a version."""
        served = self._models.find(request.name, request.version)
        versions = [str(other.version) for other in self._models.of(request.name)]
        return messages.metadata(served, versions)

    def ModelConfig(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:  # noqa: N802
        """How a version is served."""
        return messages.model_config(self._models.find(request.name, request.version), self._config)

    def ModelStatistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:  # noqa: N802
        """Counters since each version was loaded."""
        if request.name and request.version:
            found = [self._models.find(request.name, request.version)]
        else:
            found = self._every(request.name)
        return pb.ModelStatisticsResponse(model_stats=[messages.statistics(served, self._config) for served in found])

    def _every(self, name: str) -> list[Served]:
        """Every served version of a model, or of all where the name is empty; an unknown one is NOT_FOUND."""
        return self._models.of(name) or ([self._models.find(name)] if name else [])

    def RepositoryIndex(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:  # noqa: N802
        """Every version that is served or should be, and why it is not."""
        answer = pb.RepositoryIndexResponse()
        for (name, version), state in sorted(self._models.states.items()):
            if not request.ready or state.state == "READY":
                answer.models.add(name=name, version=str(version), state=state.state, reason=state.reason)
        return answer

    def DriftStatus(self, request: penstock_pb.DriftStatusRequest) -> penstock_pb.DriftStatusResponse:  # noqa: N802
        """How far the last window has moved from the reference."""
        if request.version:
            found = [self._models.find(request.model_name, request.version)]
        else:
            found = self._every(request.model_name)
        answer = penstock_pb.DriftStatusResponse()
        for served in found:
            if served.pipeline.watch is not None:
                drift = served.pipeline.watch.drift(current=request.current)
                answer.models.append(messages.model_drift(served, drift))
        return answer
