"""The queue of one served version and its batch former."""

from collections.abc import Sequence
from typing import Any, final

from penstock.kernels.batches import Batch
from penstock.kernels.cache import Cache
from penstock.kernels.calls import EventSink, Future, Ticket
from penstock.kernels.engines import Engine
from penstock.kernels.ledger import Ledger
from penstock.kernels.wire import Plan

INLINE_NS: int
"""How long, in nanoseconds, a transport's own thread may run models before it looks at its connections again."""

@final
class Lane:
    """The queue of one served version.

    Args:
        plan: what the version takes and gives.
        max_batch_rows: rows a worker takes at once. A call with more rows runs alone.
        max_queue_rows: bound of the rows that may wait.
        max_queue_bytes: bound of the request bytes that may wait.
        max_queue_delay_us: how long a batch that is not full waits for company; 0 means never. It waits no longer than
            its calls' deadlines leave time for, by what runs took so far where `foresee` is on.
        workers: how many threads take batches at once.
        foresee: whether calls that could not be answered in time are refused, by what runs took so far.
        cache: where answers are kept and looked up, of the same plan; None: nowhere.
    """

    def __new__(
        cls,
        plan: Plan,
        *,
        max_batch_rows: int = 256,
        max_queue_rows: int = 65536,
        max_queue_bytes: int = ...,
        max_queue_delay_us: int = 0,
        workers: int = 1,
        foresee: bool = False,
        cache: Cache | None = None,
    ) -> Lane: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def ledger(self) -> Ledger:
        """What was counted."""
    @property
    def cache(self) -> Cache | None: ...
    @property
    def engine(self) -> Engine | None:
        """What runs batches in the thread that queued them; None where only workers run any."""
    @property
    def always_inline(self) -> bool:
        """Whether the engine is used whatever it costs."""
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
        future: Future,
        deadline_ns: int = 0,
        now_ns: int = 0,
        wake: bool = True,
    ) -> Ticket:
        """Offer one ModelInferRequest; `future` is resolved by the sink's loop.

        Raises:
            Refused: malformed or not fitting (INVALID_ARGUMENT), queue full or draining (UNAVAILABLE), larger than
                the queue (RESOURCE_EXHAUSTED), or not to be answered in time (DEADLINE_EXCEEDED). The future is left
                alone.
        """
    def wake(self) -> None:
        """Tell an idle worker that calls were submitted with `wake` off."""
    def take(self, *, block: bool = True, now_ns: int = 0) -> Batch | None:
        """The next batch, waiting for one without the GIL; None once the lane is drained and empty."""
    def use(self, engine: Engine, *, always: bool = False) -> None:
        """Let threads that queue calls have them run by an engine, where nothing older waits. Before any call comes.

        Args:
            engine: of the same plan and ledger.
            always: whatever it costs; else where that fits the time such a thread has (`INLINE_NS`).
        """
    def run_now(self, budget_ns: int = ...) -> int:
        """Run what was submitted with `wake` off, where it is to be run inline, and deliver it.

        It is what an I/O thread does at the end of a pass. Returns what is left of the budget.
        """
    def drain(self) -> None:
        """Refuse new calls from now on; workers finish what is queued, then `take` gives None."""
    def snapshot(self) -> dict[str, Any]:
        """Counters since the start, durations in nanoseconds."""

def decide_share(max_batch_rows: int, queued_rows: int, idle: int) -> int:
    """How many rows a worker takes of those queued, where `idle` others wait for some."""

def decide_overlapped(fixed_ns: int, row_ns: int, queued_rows: int, most: int) -> int:
    """How many of `most` rows a worker takes, so that it need not wait for callers."""

def decide_rows_within(fixed_ns: int, row_ns: int, most: int, budget: int) -> int:
    """How many rows a run has at most where its first call came with `budget` nanoseconds, for tests."""

def decide_too_late(
    fixed_ns: int,
    row_ns: int,
    max_batch_rows: int,
    workers: int,
    running: Sequence[int],
    queued_rows: int,
    rows: int,
    deadline: int,
    now: int,
) -> int:
    """0 where a call can be answered in time, else in how many nanoseconds, for tests; `running` are ends of runs."""
