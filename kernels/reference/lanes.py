"""What `kernels.lanes` must decide: a queue and its batches as plain data, with no clock, thread, body or answer.

`admit`, `is_expired`, `due`, `fits` and `hold` are pure functions of the state and of `now`; `Lane` carries them out on
rows and bytes alone. Times are nanoseconds. Of what waits, a call that cannot join its predecessors ends a batch; calls
behind it are not looked at, so that nobody is overtaken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any

SPARE = 10
"""One part in so many of a call's time is left for what nobody foretells."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one lane."""

    max_batch_rows: int = 256
    max_queue_rows: int = 65536
    max_queue_bytes: int = 1 << 28
    delay_ns: int = 0


@dataclass(eq=False)
class Call:
    """One admitted call; `shape` is what must be equal within a batch, None where it shares a batch with nobody."""

    rows: int
    size: int
    arrived: int
    deadline: int = 0
    shape: Any = ()
    cancelled: bool = False


@dataclass
class Taken:
    """What one `take` gives: the batch in order, and what was dropped on the way, with why."""

    calls: list[Call]
    dropped: list[tuple[Call, str]]

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        return sum(call.rows for call in self.calls)


# ---- Decisions ------------------------------------------------------------------------------------------------------


def admit(limits: Limits, queued_rows: int, queued_bytes: int, rows: int, size: int, *, draining: bool) -> str:
    """ADMIT, or why not: DRAINING, NEVER_FITS (larger than the whole queue), QUEUE_FULL."""
    if draining:
        return "DRAINING"
    if rows > limits.max_queue_rows or size > limits.max_queue_bytes:
        return "NEVER_FITS"
    if queued_rows + rows > limits.max_queue_rows or queued_bytes + size > limits.max_queue_bytes:
        return "QUEUE_FULL"
    return "ADMIT"


def is_expired(deadline: int, now: int) -> bool:
    """Whether a deadline has passed; 0 is none."""
    return deadline != 0 and now >= deadline


def fits(limits: Limits, batch_rows: int, rows: int) -> bool:
    """Whether a call joins a batch of `batch_rows`; the first always does, so that a large call runs alone."""
    return batch_rows == 0 or batch_rows + rows <= limits.max_batch_rows


def due(call: Call) -> float:
    """When the run of a call that waits for company is to end: with a fifth of its time left."""
    return call.deadline - 2 * int((call.deadline - call.arrived) / SPARE) if call.deadline else inf


def hold(limits: Limits, queued_rows: int, oldest: int, latest: float, now: int, *, draining: bool) -> float:
    """How long an idle worker still waits for company of a call that arrived at `oldest`, until `latest` at most."""
    if limits.delay_ns == 0 or draining or queued_rows >= limits.max_batch_rows:
        return 0
    return max(0, min(oldest + limits.delay_ns, latest) - now)


def run_ns(fixed_ns: int, row_ns: int, rows: int) -> int:
    """How long a run lasts by the learnt line."""
    return fixed_ns + row_ns * rows


def rows_within(fixed_ns: int, row_ns: int, most: int, budget: int) -> int:
    """Rows of a run at most, so that it takes half of what its first call came with; 0 is no deadline."""
    if budget <= 0 or not (fixed_ns or row_ns):
        return most
    return max([rows for rows in range(1, most + 1) if run_ns(fixed_ns, row_ns, rows) <= budget // 2], default=1)


def finish(
    fixed_ns: int, row_ns: int, most: int, workers: int, running: list[int], queued: int, rows: int, now: int
) -> float:
    """In how many nanoseconds a call that joins the queue now is answered, what comes after it not overtaking it."""
    waits = float(max(0, sum(end - now for end in running)))
    left = queued + (rows if rows < most else 0)  # a call of a whole run or more runs alone
    while left > most or (rows >= most and left >= most):
        waits += run_ns(fixed_ns, row_ns, most)
        left -= most
    own = left if rows < most else left + rows
    if waits > 0 and own < most:
        own = min(2 * own, most)  # as many come while it waits
    return waits / workers + run_ns(fixed_ns, row_ns, own)


def too_late(
    fixed_ns: int,
    row_ns: int,
    most: int,
    workers: int,
    running: list[int],
    queued: int,
    rows: int,
    deadline: int,
    now: int,
) -> float:
    """0 where a call can be answered in time, else when it would be; an idle lane takes anything."""
    if deadline == 0 or not (fixed_ns or row_ns) or not (queued or running):
        return 0
    most = rows_within(fixed_ns, row_ns, most, deadline - now)
    answered = finish(fixed_ns, row_ns, most, workers, running, queued, rows, now)
    return answered if now + answered > deadline else 0


# ---- The queue ------------------------------------------------------------------------------------------------------


@dataclass
class Lane:
    """The queue of one served version."""

    limits: Limits
    queue: list[Call] = field(default_factory=list)
    draining: bool = False

    @property
    def rows(self) -> int:
        """Rows waiting; a call counts until it is taken or dropped."""
        return sum(call.rows for call in self.queue)

    @property
    def bytes(self) -> int:
        """Bytes waiting."""
        return sum(call.size for call in self.queue)

    def submit(self, now: int, rows: int, size: int, deadline: int = 0, shape: Any = ()) -> Call | str:
        """The call, admitted, or why it is not."""
        decision = admit(self.limits, self.rows, self.bytes, rows, size, draining=self.draining)
        if decision != "ADMIT":
            return decision
        call = Call(rows, size, now, deadline, shape)
        self.queue.append(call)
        return call

    def cancel(self, call: Call) -> None:
        """Nobody waits for this call; it is dropped when it would be taken."""
        call.cancelled = True

    def drain(self) -> None:
        """Admit nothing more."""
        self.draining = True

    def take(self, now: int) -> Taken:
        """What a worker that does not wait gets; no calls where nothing is to be taken yet."""
        taken = Taken([], [])
        while not taken.calls and self.queue and self._hold(now) == 0:
            self._form(now, taken)
        return taken

    def _hold(self, now: int) -> float:
        latest = min(due(call) for call in self.queue)
        return hold(self.limits, self.rows, self.queue[0].arrived, latest, now, draining=self.draining)

    def _form(self, now: int, taken: Taken) -> None:
        """Move calls off the queue until one does not join."""
        while self.queue:
            call = self.queue[0]
            if call.cancelled or is_expired(call.deadline, now):
                taken.dropped.append((call, "cancelled" if call.cancelled else "expired"))
            elif not fits(self.limits, taken.rows, call.rows) or not self._joins(taken.calls, call):
                return
            else:
                taken.calls.append(call)
            self.queue.pop(0)

    @staticmethod
    def _joins(calls: list[Call], call: Call) -> bool:
        """Whether shapes let a call share the batch."""
        return not calls or (call.shape is not None and calls[0].shape == call.shape)
