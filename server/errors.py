"""The errors a caller of the server can meet, divided by who must act; each knows its gRPC status.

    PenstockError
    ├── BadConfig               the operator: a setting
    ├── TransportFailed         the operator: the server must be started again
    └── ServerError
        ├── the caller must mend the request
        │   ├── InvalidRequest      INVALID_ARGUMENT
        │   ├── UnknownModel        NOT_FOUND
        │   ├── UnknownService      NOT_FOUND, a health check of what is no model
        │   ├── UnknownEntity       NOT_FOUND, a view whose policy is to answer nothing then
        │   └── NotServed           UNIMPLEMENTED
        ├── the caller may try again, elsewhere or later
        │   └── FeaturesUnavailable UNAVAILABLE
        └── we must mend ourselves
            └── OurFault            INTERNAL, an opaque id; the detail is in the log only

Refusals of a lane (`kernels.lanes.Refused`) carry `status` and `message` alike: malformed or unfitting requests
INVALID_ARGUMENT, a full queue or a draining server UNAVAILABLE, what can never fit RESOURCE_EXHAUSTED, a deadline that
passed in the queue DEADLINE_EXCEEDED.
"""
# ruff: noqa: N818 - named after what they tell, as penstock/errors.py does

from __future__ import annotations

import logging
import secrets

from penstock.errors import PenstockError
from penstock.kernels.calls import Refused

_log = logging.getLogger("penstock.server")

RETRY_PUSHBACK_MS = "50"
"""What `grpc-retry-pushback-ms` tells a client after UNAVAILABLE."""


class BadConfig(PenstockError):
    """A setting that cannot be used."""


class TransportFailed(PenstockError):
    """What listens has ended without being asked to."""


class ServerError(PenstockError):
    """An error with a gRPC status."""

    status = 2

    @property
    def message(self) -> str:
        """The line for the caller."""
        return str(self)


class InvalidRequest(ServerError):
    """The request is wrong and will stay wrong."""

    status = 3


class UnknownModel(ServerError):
    """No such model or version is served."""

    status = 5


class UnknownService(ServerError):
    """Health is asked of what is neither the server nor a model."""

    status = 5


class UnknownEntity(ServerError):
    """The store has no features of an entity, and the view's policy is to answer nothing then."""

    status = 5


class NotServed(ServerError):
    """An RPC that Penstock leaves out, on purpose or until later."""

    status = 12


class FeaturesUnavailable(ServerError):
    """The feature store is down or slow, and the view's policy is to answer nothing then."""

    status = 14


class OurFault(ServerError):
    """A fault of ours. The caller learns an id, the log the rest."""

    status = 13

    @classmethod
    def logged(cls, what: str) -> OurFault:
        """Log the exception being handled under a new id."""
        fault = secrets.token_hex(6)
        _log.exception("error %s: %s", fault, what)
        return cls(f"internal error {fault}; the server's log has the detail")


def status_of(error: BaseException) -> ServerError | Refused:
    """What a caller is told about any exception."""
    if isinstance(error, ServerError | Refused):
        return error
    return OurFault.logged("a handler failed")
