"""What `kernels.lanes` must decide: a queue and its batches as plain data, with no clock, thread, body or answer.

`admit`, `is_expired`, `fits` and `hold` are pure functions of the state and of `now`; `Lane` carries them out on rows
and bytes alone. Times are nanoseconds. Of what waits, a call that cannot join its predecessors ends a batch; calls
behind it are not looked at, so that nobody is overtaken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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


def hold(limits: Limits, queued_rows: int, oldest: int, now: int, *, draining: bool) -> int:
    """How long an idle worker still waits for company of a call that arrived at `oldest`; 0: not at all."""
    if limits.delay_ns == 0 or draining or queued_rows >= limits.max_batch_rows:
        return 0
    return max(0, oldest + limits.delay_ns - now)


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

    def _hold(self, now: int) -> int:
        return hold(self.limits, self.rows, self.queue[0].arrived, now, draining=self.draining)

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
