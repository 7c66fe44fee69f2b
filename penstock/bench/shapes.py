"""What a level of load is: how much of it, and how long it is measured."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from penstock.bench.arrivals import schedule

QUANTUM_NS = 100_000
LEAST_WINDOWS = 5  # of a duration
MANY_CORES = 4


@dataclass(frozen=True, slots=True)
class Timing:
    """How long to measure; seconds.

    Attributes:
        warmup_s: before anything counts.
        window_s: of one window.
        duration_s: of all of it; None until it is stable.
        most_windows: then, at most.
        drain_s: to wait for late answers after the end.
    """

    warmup_s: float = 1.0
    window_s: float = 2.0
    duration_s: float | None = None
    most_windows: int = 10
    drain_s: float = 5.0

    @property
    def windows(self) -> int:
        """How many there are at most."""
        if self.duration_s is None:
            return self.most_windows
        return max(round(self.duration_s / self.window_s), LEAST_WINDOWS)

    @property
    def length_s(self) -> float:
        """Of one window, such that they fill the duration."""
        return self.window_s if self.duration_s is None else self.duration_s / self.windows


@dataclass(frozen=True, slots=True)
class Shape:
    """The load of one level: `callers` of a closed loop, or `rate` requests a second of an open one.

    Attributes:
        connections: in all; 0 for one for each caller, up to 4.
        threads: of the generator.
        deadline_ms: sent with each call as its grpc-timeout; 0 for none.
        timeout_s: after which the generator itself gives a call up.
        realtime: whether the threads of an open loop raise their priority where they may.
    """

    callers: int = 0
    rate: float = 0.0
    arrivals: str = ""
    seed: int = 0
    connections: int = 0
    threads: int = 1
    deadline_ms: float = 0.0
    timeout_s: float = 30.0
    realtime: bool = True

    @property
    def hurried(self) -> bool:
        """Whether threads raise their priority: those of an open loop that leave the server a core."""
        return self.realtime and not self.callers and self.threads < len(os.sched_getaffinity(0))

    def settings(self) -> dict[str, Any]:
        """The arguments of `Load`."""
        wires = self.connections or min(self.callers or 4, 4)
        shared = {"connections": max(wires, self.threads), "threads": self.threads, "timeout_s": self.timeout_s}
        if self.callers:
            return {**shared, "callers": self.callers}
        offsets, period = schedule(self.arrivals, self.rate, self.seed)
        spins = len(os.sched_getaffinity(0)) >= MANY_CORES
        return {**shared, "schedule": offsets, "period_ns": period, "quantum_ns": 0 if spins else QUANTUM_NS}
