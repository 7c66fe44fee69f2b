"""Waves: calls that arrive together are run together.

An event loop reads one call after the other. A run started for the first would take it alone, and the next call would
have one of its own: batches of one, and twice the CPU a call. So calls gather for as long as more keep coming, that is
until `PATIENCE` passes of the loop brought none, about 30 microseconds, or a version has a whole batch of them; then
the version decides whether the loop's own thread runs them or a worker does. No timer is set. Whether gathering pays is
learnt: after `LONELY` waves that nobody joined, calls are run at once, and only every `PROBE`-th wave looks again; so a
lone caller does not wait.
"""

from __future__ import annotations

import asyncio

from penstock.kernels.calls import EventSink
from penstock.kernels.lanes import INLINE_NS
from penstock.server.version import Served

PATIENCE = 10
LONELY = 3
PROBE = 16


class Patience:
    """Whether a wave should wait for company: pure state, told how each patient wave ended."""

    def __init__(self) -> None:
        self._lonely = 0
        self._waves = 0

    def next(self) -> int:
        """How many passes without a new call the coming wave waits."""
        self._waves += 1
        return PATIENCE if self._lonely < LONELY or self._waves % PROBE == 0 else 0

    def ended(self, calls: int) -> None:
        """A patient wave gathered so many calls."""
        self._lonely = 0 if calls > 1 else self._lonely + 1


class Waves:
    """Starts the runs of one event loop's calls. Used in the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sink: EventSink) -> None:
        self._loop = loop
        self._sink = sink
        self._patience = Patience()
        self._versions: set[Served] = set()
        self._calls = 0
        self._seen = 0
        self._passes_left = 0
        self._wait = 0
        self._passing = False

    def submitted(self, served: Served) -> None:
        """A call was submitted to the lane of `served` with `wake` off."""
        self._calls += 1
        self._versions.add(served)
        if self._calls == 1:
            self._wait = self._passes_left = self._patience.next()
            self._seen = 1
        if not self._wait or served.full:  # callers enough could keep a wave from ever ending
            self._start()
        elif not self._passing:
            self._passing = True
            self._loop.call_soon(self._pass)

    def _pass(self) -> None:
        """Once every pass of the loop while a wave gathers."""
        self._passing = False
        if not self._calls:  # it was full, and is under way
            return
        if self._calls != self._seen:
            self._seen = self._calls
            self._passes_left = self._wait
        if self._passes_left > 0:
            self._passes_left -= 1
            self._passing = True
            self._loop.call_soon(self._pass)
        else:
            self._start()

    def _start(self) -> None:
        """Run what gathered."""
        if self._wait:
            self._patience.ended(self._calls)
        self._calls = 0
        versions, self._versions = self._versions, set()
        budget: float = INLINE_NS
        for served in versions:
            budget -= served.start(budget)
        if budget < INLINE_NS:
            self._sink.drain()
