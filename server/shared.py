"""Answers that servers share through a Redis: asked for once a batch, by the worker, before features and the run.

- One round trip a batch, bounded by `timeout_s` and by a fifth of what its most hurried caller has left.
- What comes back is opened by `server/sealed.py`: it is that very version's answer to that very request, or a miss.
- What had to be run is written after its callers were answered, by the thread of an outbox.
- Its age counts by Redis' own clock, from before features were looked up; no server gives one older than its own
  `ttl_s`, whoever wrote it.
- Where Redis is away, slow, full or refuses us, serving goes on without it. One line says so and one that it works
  again; a breaker keeps it from being asked all the time (`features/values.py`).

Cost goal: 6 microseconds for each call and 50 for each batch beside the round trip; no I/O thread ever waits for Redis.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from time import monotonic_ns
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.features.errors import FeatureError, StoreMisconfigured
from penstock.features.values import MAX_REPLY
from penstock.kernels.batches import Batch
from penstock.server.outbox import Outbox
from penstock.server.sealed import Answer, name_of, seal, unseal

_log = logging.getLogger("penstock.server")

LARGEST = MAX_REPLY // 256 - 1024  # bytes of a key and its reply that are written, so that a look-up may be all hits
LEAST_S = 0.001  # with less time than this Redis is not asked
WRITE_S = 1.0  # callers do not wait for it, and the first write connects
PAUSE_NS = 1_000_000_000  # after a refusal that somebody must mend
CLOSE_S = 1.0
TELL_NS = 10_000_000_000


class Port(Protocol):
    """What is needed of `penstock.features.values.Values`."""

    def read(self, keys: Sequence[bytes], timeout_s: float) -> tuple[int, list[bytes | None]]: ...

    def write(self, values: dict[bytes, bytes], ttl_ms: int, timeout_s: float) -> None: ...

    def close(self) -> None: ...


@dataclass
class Counts:
    """What became of the shared cache's requests since the start.

    Attributes:
        hits, misses: requests that were asked for; of these misses so many were
        corrupt: values that were no answer to the request.
        unasked: requests that were not, as Redis failed or there was no time.
        failed_reads, failed_writes: round trips, those that a breaker kept from being tried among them.
        written, written_bytes: answers.
        unwritten: answers for which there was no room in the outbox, or that are too large.
        hit_ns, miss_ns: what their batches' round trips took, told to each request as Triton does.
    """

    hits: int = 0
    misses: int = 0
    corrupt: int = 0
    unasked: int = 0
    failed_reads: int = 0
    failed_writes: int = 0
    written: int = 0
    written_bytes: int = 0
    unwritten: int = 0
    hit_ns: int = 0
    miss_ns: int = 0


class Found(NamedTuple):
    """What a look-up gave, for each call of a batch; `clock_us` is Redis' time."""

    replies: list[bytes | None]
    made_ns: NDArray[np.int64]
    took_ns: int
    clock_us: int


class Shared:
    """The shared answers of one version. Used by its workers.

    Args:
        values: the Redis.
        prefix: of its keys.
        identity: see `identity_of`.
        ttl_ns: how old an answer may be.
        timeout_s: bound of one look-up.
        name: of the version, for its thread.
    """

    def __init__(
        self, values: Port, *, prefix: bytes, identity: bytes, ttl_ns: int, timeout_s: float, name: str
    ) -> None:
        self._values = values
        self._prefix = prefix
        self._identity = identity
        self._ttl_ns = ttl_ns
        self._timeout_s = timeout_s
        self._outbox: Outbox[Answer] = Outbox(self._write, f"cache {name}")
        self._health = Health()
        self._asleep_until_ns = 0
        self._lock = Lock()
        self.counts = Counts()

    def run(self, batch: Batch, run: Callable[[Batch], None]) -> None:
        """Answer the calls of a batch that were answered before, have the rest run, and their answers written."""
        found = self._look_up(batch)
        if found is None:
            run(batch)
            return
        if batch.recall(found.replies, found.made_ns, found.took_ns):
            run(batch)
        if batch.copies:
            answers = [Answer(key, reply, found.clock_us) for key, reply in batch.copies]
            sized = [(answer, len(answer.key) + len(answer.reply)) for answer in answers]
            taken = self._outbox.put([(answer, size) for answer, size in sized if size <= LARGEST])
            self._count(unwritten=len(answers) - taken)

    def close(self) -> None:
        """Write what waits, if that is soon done, and close every connection."""
        self._outbox.close(CLOSE_S)
        self._values.close()

    # Reading ----------------------------------------------------------------------------------------------------------

    def _look_up(self, batch: Batch) -> Found | None:
        """What Redis has for a batch; None where it was not asked or did not answer."""
        keys = batch.keys()
        asked = [at for at, key in enumerate(keys) if key is not None]
        if not asked:
            return None
        started = monotonic_ns()
        timeout_s = self._budget_s(batch, started)
        if timeout_s < LEAST_S or started < self._asleep_until_ns:
            self._count(unasked=len(asked))
            return None
        try:
            clock_us, values = self._values.read([self._name(keys[at] or b"") for at in asked], timeout_s)
        except FeatureError as error:
            self._failed("read", error)
            self._count(unasked=len(asked), failed_reads=1)
            return None
        self._health.well("read")
        replies: list[bytes | None] = [None] * len(keys)
        made_ns = np.full(len(keys), started)
        hits = corrupt = 0
        for at, value in zip(asked, values, strict=True):
            if value is None:
                continue
            answer = unseal(value, keys[at] or b"", self._identity)
            if answer is None:
                corrupt += 1
            elif 0 <= (age_ns := 1000 * (clock_us - answer.made_us)) < self._ttl_ns:
                replies[at] = answer.reply
                made_ns[at] -= age_ns
                hits += 1
        took, misses = monotonic_ns() - started, len(asked) - hits
        self._count(hits=hits, misses=misses, corrupt=corrupt, hit_ns=hits * took, miss_ns=misses * took)
        return Found(replies, made_ns, took, clock_us)

    def _budget_s(self, batch: Batch, now_ns: int) -> float:
        """Seconds a look-up may take: the most hurried caller decides, since doing without costs nobody an answer."""
        if batch.deadline_ns == 0:
            return self._timeout_s
        return min(self._timeout_s, 0.2e-9 * (batch.deadline_ns - now_ns))

    def _name(self, key: bytes) -> bytes:
        return self._prefix + name_of(key, self._identity)

    # Writing ----------------------------------------------------------------------------------------------------------

    def _write(self, answers: list[Answer]) -> None:
        """What the outbox does."""
        values = {self._name(answer.key): seal(answer, self._identity) for answer in answers}
        try:
            self._values.write(values, max(self._ttl_ns // 1_000_000, 1), WRITE_S)
        except FeatureError as error:
            self._failed("write", error)
            self._count(failed_writes=1)
            return
        self._health.well("write")
        self._count(written=len(values), written_bytes=sum(map(len, values.values())))

    # What is told -----------------------------------------------------------------------------------------------------

    def _failed(self, what: str, error: FeatureError) -> None:
        self._health.failed(what, str(error))
        if what == "read" and isinstance(error, StoreMisconfigured):
            self._asleep_until_ns = monotonic_ns() + PAUSE_NS

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, n in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + n)


class Health:
    """Says once that sharing fails, and once that all of it works again.

    At most once in `TELL_NS`, for a Redis that is late now and then would fill the log.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._failing: set[str] = set()
        self._told = False
        self._quiet_until_ns = 0

    def failed(self, what: str, reason: str) -> None:
        """Reading or writing failed."""
        with self._lock:
            self._failing.add(what)
            if self._told or monotonic_ns() < self._quiet_until_ns:
                return
            self._told, self._quiet_until_ns = True, monotonic_ns() + TELL_NS
        _log.warning("%s; answers are not shared until it works again", reason)

    def well(self, what: str) -> None:
        """Reading or writing went well."""
        if not self._failing:
            return
        with self._lock:
            self._failing.discard(what)
            if self._failing or not self._told:
                return
            self._told = False
        _log.warning("the shared cache works again")
