"""Pace: how often something may be done, as a decision without a clock; here, how often connections are opened.

A store that comes back after an outage is met by every worker of every server at once, and one that resets connections
as fast as they are made would be asked for nothing else. So `BURST` connections may be opened at once, and after them
`PER_S` a second, spread by chance, by each process to each server. This is the generic cell rate algorithm of ITU-T
I.371: one number, the time at which the next would be due if all had come evenly. Not thread-safe: who uses it locks.
"""

from __future__ import annotations

import random
from collections.abc import Callable

BURST = 32
PER_S = 16.0
SPREAD = 0.5  # who must wait waits up to so much longer, by chance


class Pace:
    """Says when the next one may be done; `chance` gives numbers in [0, 1)."""

    def __init__(self, per_s: float = PER_S, burst: int = BURST, chance: Callable[[], float] = random.random) -> None:
        self._every = 1 / per_s
        self._ahead = (burst - 1) * self._every
        self._due = 0.0
        self._chance = chance

    def wait_s(self, now: float, latest: float) -> float | None:
        """Seconds to wait for the next one, which is then taken; None where that would be later than `latest`."""
        due = max(self._due, now)
        wait = max(due - self._ahead - now, 0.0)
        wait *= 1 + SPREAD * self._chance()
        if now + wait > latest:
            return None
        self._due = due + self._every
        return wait
