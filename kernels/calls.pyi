"""Calls in flight and the sinks they are delivered to."""

from typing import Any, Protocol, final

CANCELLED: int
INVALID_ARGUMENT: int
DEADLINE_EXCEEDED: int
RESOURCE_EXHAUSTED: int
INTERNAL: int
UNAVAILABLE: int

class Future(Protocol):
    """What a sink resolves: `asyncio.Future`, `concurrent.futures.Future` and their like."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: Any, /) -> None: ...

class Refused(Exception):  # noqa: N818
    """A call that gets no answer from the model: a gRPC status code and the line for the caller."""

    status: int
    message: str
    def __init__(self, status: int, message: str) -> None: ...

@final
class Ticket:
    """What the submitter of a call holds: a way to cancel it. Used by the submitting thread only."""

    def cancel(self) -> None:
        """Nobody waits for the answer any more. A call still queued is never run."""

@final
class EventSink:
    """Answers for one event loop: workers add finished calls without the GIL and raise an eventfd; the loop drains."""

    def fileno(self) -> int:
        """The descriptor that turns readable when there is something to drain."""
    def drain(self) -> None:
        """Give every finished call its answer. Call it in the loop's thread when `fileno` is readable.

        A future that raises (its loop was closed, say) keeps no other from its answer; the error is raised at the end.
        """
