"""The root of every error that somebody outside Penstock can mend, and the errors a remote call may end with.

A message names what was wrong and what to do about it; the command line prints it as one line and exits with 1, the
server turns it into a status. Anything that is not a `PenstockError` is a fault of our own.

    PenstockError
    ├── ProtocolError          the other side sent what the protocol does not allow
    └── RpcError               a call ended with a gRPC status other than OK
        ├── InvalidRequest     INVALID_ARGUMENT, OUT_OF_RANGE, FAILED_PRECONDITION: mend the request
        ├── NotFound           NOT_FOUND: no such model or version
        ├── Unavailable        UNAVAILABLE: not reachable, starting, draining or full; try later
        ├── DeadlineExceeded   DEADLINE_EXCEEDED: no answer within the timeout
        ├── ResourceExhausted  RESOURCE_EXHAUSTED: message too large, or limits reached
        ├── AccessDenied       UNAUTHENTICATED, PERMISSION_DENIED
        ├── Unimplemented      UNIMPLEMENTED: the server does not offer this
        ├── Cancelled          CANCELLED, ABORTED
        └── Internal           INTERNAL, UNKNOWN, DATA_LOSS: the server's fault
"""
# ruff: noqa: N818 - named after the gRPC statuses they stand for

from __future__ import annotations


class PenstockError(Exception):
    """Something the caller, operator or publisher can mend."""


class ProtocolError(PenstockError):
    """The other side sent what the protocol does not allow."""


class RpcError(PenstockError):
    """A call that ended with a status other than OK.

    Attributes:
        code: name of the gRPC status, such as "NOT_FOUND".
        details: the server's message, or the client's where the call never left.
    """

    def __init__(self, code: str, details: str) -> None:
        super().__init__(code, details)
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return f"{self.code}: {self.details}"


class InvalidRequest(RpcError):
    """The request can never succeed as it is: a wrong name, shape, datatype or value."""


class NotFound(RpcError):
    """The server has no such model, version or alias."""


class Unavailable(RpcError):
    """The server cannot be reached, is starting or draining, or its queue is full. Trying again may help."""


class DeadlineExceeded(RpcError):
    """No answer came within the timeout."""


class ResourceExhausted(RpcError):
    """A message was too large, or a limit of the server was reached."""


class AccessDenied(RpcError):
    """The caller is not known, or may not do this."""


class Unimplemented(RpcError):
    """The server does not offer this call."""


class Cancelled(RpcError):
    """The call was given up before it ended."""


class Internal(RpcError):
    """A fault of the server; its log has more under the id in the message."""


_BY_CODE: dict[str, type[RpcError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "OUT_OF_RANGE": InvalidRequest,
    "FAILED_PRECONDITION": InvalidRequest,
    "NOT_FOUND": NotFound,
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
    "UNIMPLEMENTED": Unimplemented,
    "CANCELLED": Cancelled,
    "ABORTED": Cancelled,
    "INTERNAL": Internal,
    "UNKNOWN": Internal,
    "DATA_LOSS": Internal,
}


def rpc_error(code: str, details: str) -> RpcError:
    """The error of a gRPC status by its name; statuses without a class of their own are plain `RpcError`."""
    return _BY_CODE.get(code, RpcError)(code, details)
