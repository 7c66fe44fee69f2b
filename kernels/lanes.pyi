"""The queue of one served version and its batch former."""

import sys
from collections.abc import Mapping
from typing import Any, Protocol, final

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.wire import Plan

CANCELLED: int
INVALID_ARGUMENT: int
DEADLINE_EXCEEDED: int
RESOURCE_EXHAUSTED: int
INTERNAL: int
UNAVAILABLE: int

class _Future(Protocol):
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

@final
class Memory:
    """Aligned memory that numpy arrays can lie in."""

    def __new__(cls, size: int) -> Memory: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
        def __release_buffer__(self, buffer: memoryview, /) -> None: ...

    @property
    def size(self) -> int: ...

@final
class Lane:
    """The queue of one served version.

    Args:
        plan: what the version takes and gives.
        max_batch_rows: rows a worker takes at once. A call with more rows runs alone.
        max_queue_rows: bound of the rows that may wait.
        max_queue_bytes: bound of the request bytes that may wait.
        max_queue_delay_us: how long a batch that is not full waits for company; 0 means never.
    """

    def __new__(
        cls,
        plan: Plan,
        *,
        max_batch_rows: int = 256,
        max_queue_rows: int = 65536,
        max_queue_bytes: int = ...,
        max_queue_delay_us: int = 0,
    ) -> Lane: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def queued_rows(self) -> int:
        """Rows waiting to be taken."""
    @property
    def queued_bytes(self) -> int:
        """Bytes of the requests waiting to be taken."""
    def submit(
        self,
        body: bytes,
        sink: EventSink,
        future: _Future,
        deadline_ns: int = 0,
        now_ns: int = 0,
        wake: bool = True,
    ) -> Ticket:
        """Offer one ModelInferRequest; `future` is resolved by the sink's loop.

        Raises:
            Refused: malformed or not fitting (INVALID_ARGUMENT), queue full or draining (UNAVAILABLE), or larger than
                the queue (RESOURCE_EXHAUSTED). The future is left alone.
        """
    def wake(self) -> None:
        """Tell an idle worker that calls were submitted with `wake` off."""
    def take(self, *, block: bool = True, now_ns: int = 0) -> Batch | None:
        """The next batch, waiting for one without the GIL; None once the lane is drained and empty."""
    def drain(self) -> None:
        """Refuse new calls from now on; workers finish what is queued, then `take` gives None."""
    def snapshot(self) -> dict[str, Any]:
        """Counters since the start, durations in nanoseconds."""

@final
class Batch:
    """The rows of many calls, to be run at once and answered: `complete`, `fail` or `split` is called once."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: batches come from `Lane.take`."""

    @property
    def lane(self) -> Lane: ...
    @property
    def rows(self) -> int: ...
    @property
    def taken_ns(self) -> int: ...
    @property
    def inputs(self) -> dict[str, Any]: ...
    @property
    def matrix(self) -> NDArray[np.float32] | None: ...
    @property
    def source(self) -> NDArray[np.uint8] | None: ...
    @property
    def entities(self) -> list[bytes | None] | None: ...
    @property
    def deadline_ns(self) -> int:
        """The earliest deadline of its calls, CLOCK_MONOTONIC; 0 where none has one."""
    @property
    def latest_deadline_ns(self) -> int:
        """The latest deadline of its calls, CLOCK_MONOTONIC; 0 where one of them has none."""
    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor input in this batch; what BYTES inputs, which come as lists, are to be folded into.

        Raises:
            ValueError: the plan has no such input.
        """
    def spans(self) -> list[tuple[int, int]]:
        """(first row, rows) of every call, in order."""
    def open_rows(self) -> NDArray[np.int64] | None:
        """Rows of the calls that were not refused; None where that is all of them."""
    def wants(self, output: int) -> bool:
        """Whether any caller wants output number `output` of the plan."""
    def unique_entities(self) -> tuple[list[bytes], NDArray[np.int32]]:
        """The ids that must be looked up, each once, and which of them each row belongs to (-1: none)."""
    def complete(self, outputs: Mapping[str, Any], lookup_ns: int = 0, compute_ns: int = 0) -> None:
        """Answer every call from the outputs of the run.

        Raises:
            ValueError: an output is missing or not what the plan promises: nothing was answered. Or all was answered
                before.
        """
    def refuse(self, row: int, status: int, message: str) -> None:
        """Give the call that row belongs to a status instead of an answer; the others of the batch go on."""
    def fail(self, status: int, message: str) -> None:
        """Give every call of the batch a status instead of an answer."""
    def split(self) -> list[Batch]:
        """One batch for each call, over the same memory; this one is empty afterwards."""

def bucket_bounds() -> list[float]:
    """Upper bound of each histogram bucket in seconds; the last one is infinity."""

def decide_bucket(ns: int) -> int:
    """The histogram bucket of a duration in nanoseconds."""

def decide_share(max_batch_rows: int, queued_rows: int, idle: int) -> int:
    """How many rows a worker takes of those queued, where `idle` others wait for some."""
