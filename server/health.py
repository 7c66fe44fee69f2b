"""Health as grpc.health.v1 means it: a status for each service name, and who wants to hear of changes.

"" is the server, a model's name is that model. Plain state with listeners, and its two messages; Check stands in
`server/service.py`, Watch in `server/streams.py`. Changes may come from any thread.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any, cast

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from penstock.server.errors import InvalidRequest

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3

Listener = Callable[[], None]


class Health:
    """Statuses by service name."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._models: set[str] = set()
        self._ready = False
        self._listeners: set[Listener] = set()
        self.draining = False

    def status(self, service: str) -> int:
        """SERVING or NOT_SERVING; SERVICE_UNKNOWN for a name that is no model."""
        if service and service not in self._models:
            return SERVICE_UNKNOWN
        return SERVING if self._ready and not self.draining else NOT_SERVING

    @property
    def ready(self) -> bool:
        """Whether the server answers calls."""
        return self.status("") == SERVING

    def set_models(self, names: set[str]) -> None:
        """The models that answer; the server is ready from the first time this is told."""
        with self._lock:
            self._models = set(names)
            self._ready = True
        self._tell()

    def drain(self) -> None:
        """NOT_SERVING from now on, for everything; watchers end after hearing so."""
        self.draining = True
        self._tell()

    def listen(self, listener: Listener) -> None:
        """Call `listener` after every change, from whatever thread made it."""
        with self._lock:
            self._listeners.add(listener)

    def forget(self, listener: Listener) -> None:
        """Undo `listen`."""
        with self._lock:
            self._listeners.discard(listener)

    def _tell(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            listener()


def requested_service(body: bytes) -> str:
    """The name in a HealthCheckRequest.

    Raises:
        InvalidRequest: the body is none.
    """
    try:
        return health_pb2.HealthCheckRequest.FromString(body).service
    except DecodeError as error:
        raise InvalidRequest("not a well-formed HealthCheckRequest") from error


def told_status(status: int) -> bytes:
    """The HealthCheckResponse of a status."""
    return health_pb2.HealthCheckResponse(status=cast("Any", status)).SerializeToString()
