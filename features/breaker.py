"""Circuit breaker: when a store is sick, stop asking it, and find out soon that it is well again.

Pure decisions: every method takes `now` (seconds of a monotonic clock), so tests need no clock.

    closed --5 failures in a row, or half of >= 20 calls within 1 s--> open --one probe every 500 ms--> closed

Probes come a quarter earlier or later by chance, so that the servers of a fleet do not come all at once.

Each admitted call carries the generation it was admitted in; a result of an earlier generation changes nothing, so a
straggler that was sent before the breaker opened cannot close it. Not thread-safe: the store holds a lock around it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

CONSECUTIVE = 5  # failures in a row that open it
WINDOW_S = 1.0
WINDOW_CALLS = 20  # fewer calls in a window say nothing about a rate
PROBE_S = 0.5  # while open, one call is let through this often
SPREAD = 0.25  # of that, to either side


class Breaker:
    """Admits calls and learns from their results."""

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance  # in [0, 1)
        self.opened = 0
        self._generation = 1
        self._in_a_row = 0
        self._window = 0.0
        self._calls = 0
        self._failures = 0
        self._probe_at: float | None = None  # None while closed

    @property
    def is_open(self) -> bool:
        """Whether calls are refused, but for the probes."""
        return self._probe_at is not None

    def admit(self, now: float) -> int | None:
        """The generation to report the result under, or None: do not call."""
        if self._probe_at is not None:
            if now < self._probe_at:
                return None
            self._probe_at = self._next_probe(now)
            self._generation += 1
        return self._generation

    def record(self, generation: int, now: float, *, ok: bool) -> None:
        """The result of an admitted call."""
        if generation != self._generation:
            return
        if self._probe_at is not None:
            if ok:
                self._close(now)
            return
        self._count(now, ok=ok)
        if self._in_a_row >= CONSECUTIVE or (self._calls >= WINDOW_CALLS and 2 * self._failures >= self._calls):
            self._generation += 1
            self._probe_at = self._next_probe(now)
            self.opened += 1

    def _next_probe(self, now: float) -> float:
        return now + PROBE_S * (1 - SPREAD + 2 * SPREAD * self._chance())

    def _count(self, now: float, *, ok: bool) -> None:
        if now - self._window >= WINDOW_S:
            self._window, self._calls, self._failures = now, 0, 0
        self._calls += 1
        self._failures += not ok
        self._in_a_row = 0 if ok else self._in_a_row + 1

    def _close(self, now: float) -> None:
        self._probe_at = None
        self._in_a_row = 0
        self._window, self._calls, self._failures = now, 0, 0
