"""Measures one level of load by the counters of the generator: warm-up, windows, the rest that comes late.

Without a duration, windows are measured until the last three agree (or there were enough of them), and those three are
reported; with one, all of it is reported. Ctrl-C and a server that is gone end a level early, and what was measured so
far is kept. The main thread sleeps and reads meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from penstock.bench import local
from penstock.bench.drive import headers, kernel, running, words_of
from penstock.bench.histogram import Histogram, empty
from penstock.bench.shapes import Shape, Timing
from penstock.bench.spans import INTERRUPTED, OUTCOMES, STABLE_WINDOWS, Level, Reading, Span, is_stable
from penstock.bench.target import Target
from penstock.bench.work import Expected, Work

if TYPE_CHECKING:
    from penstock.kernels.load import Load

HOPELESS_S = 1.0
SLICE_S, SLICES = 0.02, 50  # a slice is a window's SLICES-th part, and at least SLICE_S

Progress = Callable[[str, float, float], None]  # what is going on, answers a second, mean latency in µs
Statistics = Callable[[], dict[str, tuple[int, int]]]  # the server's own counters: of each phase, how often and ns


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured: the server, the requests it gets and the answers it should give.

    Attributes:
        outputs: what every answer must look like; none of them where answers are not looked into.
        statistics: reads the server's own counters.
    """

    target: Target
    work: Work
    outputs: Sequence[Expected] = ()
    statistics: Statistics = dict


class Meter:
    """Reads a load's counters, and the CPU time of the server, of this process and of the server's cores.

    CPU time costs a millisecond of /proc, which a generator that shares the server's cores takes from both.
    """

    def __init__(self, load: Load, pids: Sequence[int]) -> None:
        self._load = load
        self._pids = pids
        self._cores = local.cores_of(pids)

    def read(self, *, cpu: bool = True) -> Reading:
        counts: Any = self._load.counts()
        now = time.monotonic_ns()
        latencies, lags = empty(), empty()
        self._load.read_latencies(latencies)
        self._load.read_lags(lags)
        return Reading(
            Histogram(latencies),
            Histogram(lags),
            tuple(counts["outcomes"]),
            counts["rows"],
            counts["latency_ns"],
            local.family_cpu_s(self._pids) if cpu and self._pids else None,
            time.process_time(),
            local.busy_s(self._cores) if cpu and self._cores else None,
            at_ns=now,
        )


def measure(subject: Subject, shape: Shape, timing: Timing, progress: Progress) -> Level:
    """Drive one level.

    Raises:
        BenchFailed: the server cannot be reached.
    """
    target, work, settings = subject.target, subject.work, shape.settings()
    load = kernel()(
        host=target.host.encode(),
        port=target.port,
        headers=headers(target, shape.deadline_ms),
        bodies=work.bodies,
        rows=[work.rows] * len(work.bodies),
        outputs=subject.outputs,
        tls=target.trust.kernel(target.name) if target.trust else None,
        **settings,
    )
    pids = local.listeners(target.port, target.host) if target.local else []
    threads, wires = shape.threads, settings["connections"]
    with running(load, threads, wires, target.address, hurried=shape.hurried) as lives:
        run = _Run(Meter(load, pids), timing, progress, subject.statistics)
        load.start()
        run.measure()
        unanswered, late = _drain(load, lives, run, timing.drain_s)
    words = words_of(load)
    return Level(
        shape.callers,
        shape.rate,
        shape.arrivals,
        run.reported(),
        late,
        run.slices,
        is_stable(run.windows),
        run.server_us(),
        unanswered,
        words,
        run.why(words),
        len(local.cores_of(pids)),
        lives[0].priority,
        time.time() - (time.monotonic_ns() - run.origin) / 1e9,
    )


def _drain(load: Load, lives: Sequence[threading.Thread], run: _Run, drain_s: float) -> tuple[int, Span]:
    """Send no more and wait for what is in flight; how many calls remain, and what came late."""
    load.finish()
    until = time.monotonic() + (drain_s if not run.ended else min(drain_s, 0.5))
    try:
        for life in lives:
            life.join(max(until - time.monotonic(), 0))
    except KeyboardInterrupt:
        run.ended = INTERRUPTED
    load.stop()
    for life in lives:
        life.join()
    reading = run.meter.read()
    counts: Any = load.counts()
    ended = sum(reading.outcomes) - reading.outcomes[OUTCOMES.index("not sent")]
    return max(int(counts["sent"]) - ended, 0), reading.since(run.last, run.origin)


class _Run:
    """One level as it is measured: readings become windows and slices."""

    def __init__(self, meter: Meter, timing: Timing, progress: Progress, statistics: Statistics) -> None:
        self.meter, self.timing, self.progress, self._statistics = meter, timing, progress, statistics
        self.ended = ""
        self.windows: list[Span] = []
        self.slices: list[Span] = []
        self._edges: list[Reading] = []
        self._server: list[dict[str, tuple[int, int]]] = []
        self.last = meter.read()
        self._good = self.last

    @property
    def origin(self) -> int:
        return self._edges[0].at_ns if self._edges else self.last.at_ns

    def measure(self) -> None:
        """Warm up, then measure windows until there are enough; Ctrl-C ends it."""
        try:
            self._stretch(self.timing.warmup_s, "warming up", keep=False)
            self._mark()
            while not self.ended and not self._enough():
                self._stretch(self.timing.length_s, f"window {len(self.windows) + 1}", keep=True)
                self._mark()
        except KeyboardInterrupt:
            self.ended = INTERRUPTED
            self.last = self.meter.read()
            self._mark()

    def _enough(self) -> bool:
        if len(self.windows) >= self.timing.windows:
            return True
        return self.timing.duration_s is None and is_stable(self.windows)

    def _mark(self) -> None:
        """The end of a window, which is where the next one begins."""
        self._server.append(self._statistics())
        self._edges.append(self.last)
        if len(self._edges) > 1:
            self.windows.append(self._edges[-1].since(self._edges[-2], self.origin))

    def _stretch(self, seconds: float, what: str, *, keep: bool) -> None:
        """Read every slice for so long, unless the run is hopeless; CPU time at the end only."""
        until = time.monotonic() + seconds
        each = max(self.timing.length_s / SLICES, SLICE_S)
        done = seconds <= 0
        while not (done or self.ended):
            time.sleep(min(each, max(until - time.monotonic(), 0)))
            done = time.monotonic() >= until
            reading = self.meter.read(cpu=done)
            span = reading.since(self.last, self.origin if keep else reading.at_ns)
            self.last = reading
            if keep:
                self.slices.append(span)
            self._judge(reading)
            self.progress(what, span.rate, span.mean_us)

    def _judge(self, reading: Reading) -> None:
        """A second without an answer but with errors is the end."""
        if reading.outcomes[0] > self._good.outcomes[0] or sum(reading.outcomes) == sum(self._good.outcomes):
            self._good = reading
        elif reading.at_ns - self._good.at_ns > HOPELESS_S * 1e9:
            self.ended = "hopeless"

    def reported(self) -> Span:
        """The stable windows, or all of them."""
        first = len(self._edges) - 1 - len(self.windows)
        if self.timing.duration_s is None and is_stable(self.windows):
            first = len(self._edges) - 1 - STABLE_WINDOWS
        if len(self._edges) < 2:
            return replace(self.last.since(self.last, self.origin), start_s=0.0)
        return self._edges[-1].since(self._edges[first], self.origin)

    def server_us(self) -> dict[str, float]:
        """Means of the server's own phases over the whole measurement, for a request in µs.

        None of them where a counter went back: then they say nothing.
        """
        if len(self._server) < 2 or not self._server[-1]:
            return {}
        before, after = self._server[0], self._server[-1]
        spent = {name: (after[name][0] - n, after[name][1] - ns) for name, (n, ns) in before.items() if name in after}
        if any(n < 0 or ns < 0 for n, ns in spent.values()):
            return {}
        return {name: ns / n / 1e3 if n > 0 else 0.0 for name, (n, ns) in spent.items()}

    def why(self, words: dict[str, str]) -> str:
        """Why it ended early."""
        if not self.last.outcomes[0] and self.ended != INTERRUPTED:
            return f"every call fails: {_reason(self.last.outcomes, words)}"
        if self.ended != "hopeless":
            return self.ended
        return f"no call was answered for a second: {_reason(self.last.outcomes, words)}"


def _reason(outcomes: Sequence[int], words: dict[str, str]) -> str:
    """The most frequent error, and what was said of it."""
    worst = max(range(1, len(outcomes)), key=lambda i: outcomes[i])
    if not outcomes[worst]:
        return "there is no answer at all"
    name = OUTCOMES[worst]
    return f"{name}: {words[name]}" if words.get(name) else name
