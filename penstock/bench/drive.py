"""Drives one level of load and reads its counters: warm-up, windows, the rest that comes late.

Sending happens in threads of `kernels.load` that never wait for Python; here the main thread sleeps and reads. Without
a duration, windows are measured until the last three agree (or there were enough of them), and those three are
reported; with one, all of it is reported. Ctrl-C and a server that is gone end a level early, and what was measured so
far is kept.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from penstock.bench import local
from penstock.bench.arrivals import schedule
from penstock.bench.histogram import Histogram, empty
from penstock.bench.spans import OUTCOMES, STABLE_WINDOWS, Level, Reading, Span, is_stable
from penstock.bench.target import BenchFailed, Target
from penstock.bench.work import Expected, Work
from penstock.errors import rpc_error

if TYPE_CHECKING:
    from penstock.kernels.load import Load

METHOD = b"/inference.GRPCInferenceService/ModelInfer"
CONNECT_S, PROBE_S, HOPELESS_S = 5.0, 10.0, 1.0
SLICE_S, SLICES = 0.02, 50  # a slice is a window's SLICES-th part, and at least SLICE_S
QUANTUM_NS = 100_000
LEAST_WINDOWS = 5  # of a duration
MANY_CORES = 4

Progress = Callable[[str, float, float], None]  # what is going on, answers a second, mean latency in µs


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
    """

    callers: int = 0
    rate: float = 0.0
    arrivals: str = ""
    seed: int = 0
    connections: int = 0
    threads: int = 1
    deadline_ms: float = 0.0
    timeout_s: float = 30.0

    def settings(self) -> dict[str, Any]:
        """The arguments of `Load`."""
        wires = self.connections or min(self.callers or 4, 4)
        shared = {"connections": max(wires, self.threads), "threads": self.threads, "timeout_s": self.timeout_s}
        if self.callers:
            return {**shared, "callers": self.callers}
        offsets, period = schedule(self.arrivals, self.rate, self.seed)
        spins = len(os.sched_getaffinity(0)) >= MANY_CORES
        return {**shared, "schedule": offsets, "period_ns": period, "quantum_ns": 0 if spins else QUANTUM_NS}


def kernel() -> type[Load]:
    """The compiled generator; raises BenchFailed where it was not built."""
    try:
        from penstock.kernels.load import Load
    except ImportError as error:
        raise BenchFailed(
            f"the load generator is not built here ({error}); it needs nghttp2: apt-get install libnghttp2-dev "
            "libssl-dev, then reinstall penstock from its source"
        ) from None
    return Load


def headers(target: Target, deadline_ms: float = 0.0, method: bytes = METHOD) -> list[tuple[bytes, bytes]]:
    """Of every request."""
    sent = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", method),
        (b":authority", target.authority.encode()),
    ]
    sent += [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
    return [*sent, (b"grpc-timeout", b"%du" % round(deadline_ms * 1000))] if deadline_ms else sent


@contextmanager
def running(
    load: Load, threads: int, connections: int, address: str, cores: str = ""
) -> Iterator[list[threading.Thread]]:
    """The load's threads, connected, on these cores ("1,3") or any; they are ended at the end.

    Raises:
        BenchFailed: they cannot connect.
    """
    lives = [threading.Thread(target=_live, args=(load, i, cores), name=f"load-{i}") for i in range(threads)]
    for life in lives:
        life.start()
    try:
        until = time.monotonic() + CONNECT_S
        while load.counts()["connected"] < connections:  # type: ignore[operator]
            if time.monotonic() > until or not any(life.is_alive() for life in lives):
                said = load.words().get(OUTCOMES.index("no connection"), b"no answer").decode("utf-8", "replace")
                raise BenchFailed(f"not every one of {connections} connections to {address} came about: {said}")
            time.sleep(0.001)
        yield lives
    finally:
        load.stop()
        for life in lives:
            life.join()


def _live(load: Load, index: int, cores: str) -> None:
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})  # of this thread only
    load.run(index)


def probe(target: Target, work: Work) -> bytes:
    """Send one request as all will be sent, and give back its answer.

    Raises:
        RpcError: the server answers it with another status than OK.
        BenchFailed: there is no answer.
    """
    load = kernel()(
        host=target.host.encode(),
        port=target.port,
        headers=headers(target),
        bodies=work.bodies[:1],
        rows=[work.rows],
        connections=1,
        callers=1,
        limit=1,
        timeout_s=PROBE_S,
    )
    with running(load, 1, 1, target.address) as lives:
        load.start()
        lives[0].join(PROBE_S + 1)
    outcomes = _outcomes(load)
    if outcomes[0] and (sample := load.sample()) is not None:
        return sample
    failed = next((i for i, count in enumerate(outcomes) if count and i), OUTCOMES.index("timed out"))
    said = words_of(load).get(OUTCOMES[failed], "")
    if failed < OUTCOMES.index("no gRPC"):
        raise rpc_error(OUTCOMES[failed], said)
    raise BenchFailed(f"{target.address}: the first request was not answered: {said or OUTCOMES[failed]}")


def words_of(load: Load) -> dict[str, str]:
    """What was first said of each kind of error."""
    return {OUTCOMES[i]: unquote(said.decode("utf-8", "replace")) for i, said in load.words().items() if i}


def _outcomes(load: Load) -> tuple[int, ...]:
    found: Any = load.counts()["outcomes"]
    return tuple(found)


class Meter:
    """Reads a load's counters and the server's CPU time."""

    def __init__(self, load: Load, pids: Sequence[int]) -> None:
        self._load = load
        self._pids = pids

    def read(self) -> Reading:
        counts: Any = self._load.counts()
        latencies, lags = empty(), empty()
        self._load.read_latencies(latencies)
        self._load.read_lags(lags)
        cpu = local.family_cpu_s(self._pids) if self._pids else None
        outcomes = tuple(counts["outcomes"])
        return Reading(
            time.monotonic_ns(),
            Histogram(latencies),
            Histogram(lags),
            outcomes,
            counts["rows"],
            counts["latency_ns"],
            cpu,
        )


def measure(
    target: Target,
    work: Work,
    outputs: Sequence[Expected],
    shape: Shape,
    timing: Timing,
    progress: Progress,
    statistics: Callable[[], dict[str, tuple[int, int]]],
) -> tuple[Level, bool]:
    """Drive one level; whether Ctrl-C ended it.

    `statistics` reads the server's own counters: for each phase, how often and how many ns.

    Raises:
        BenchFailed: the server cannot be reached, or every call fails.
    """
    settings = shape.settings()
    load = kernel()(
        host=target.host.encode(),
        port=target.port,
        headers=headers(target, shape.deadline_ms),
        bodies=work.bodies,
        rows=[work.rows] * len(work.bodies),
        outputs=outputs,
        **settings,
    )
    pids = local.listeners(target.port, target.host) if target.local else []
    with running(load, shape.threads, settings["connections"], target.address) as lives:
        run = _Run(Meter(load, pids), timing, progress, statistics)
        load.start()
        run.measure()
        unanswered, late = _drain(load, lives, run, timing.drain_s)
    if not run.last.outcomes[0] and run.ended != "interrupted":
        raise BenchFailed(f"every call fails: {_reason(run.last.outcomes, words_of(load))}")
    level = Level(
        shape.callers,
        shape.rate,
        shape.arrivals,
        run.reported(),
        late,
        run.slices,
        is_stable(run.windows),
        run.server_us(),
        unanswered,
        words_of(load),
        run.why(words_of(load)),
    )
    return level, run.ended == "interrupted"


def _drain(load: Load, lives: Sequence[threading.Thread], run: _Run, drain_s: float) -> tuple[int, Span]:
    """Send no more and wait for what is in flight; how many calls remain, and what came late."""
    load.finish()
    until = time.monotonic() + (drain_s if not run.ended else min(drain_s, 0.5))
    try:
        for life in lives:
            life.join(max(until - time.monotonic(), 0))
    except KeyboardInterrupt:
        run.ended = "interrupted"
    load.stop()
    for life in lives:
        life.join()
    reading = run.meter.read()
    counts: Any = load.counts()
    ended = sum(reading.outcomes) - reading.outcomes[OUTCOMES.index("not sent")]
    return max(int(counts["sent"]) - ended, 0), reading.since(run.last, run.origin)


class _Run:
    """One level as it is measured: readings become windows and slices."""

    def __init__(
        self, meter: Meter, timing: Timing, progress: Progress, statistics: Callable[[], dict[str, tuple[int, int]]]
    ) -> None:
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
            self.ended = "interrupted"
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
        """Read every slice for so long, unless the run is hopeless."""
        until = time.monotonic() + seconds
        each = max(self.timing.length_s / SLICES, SLICE_S)
        while not self.ended and (left := until - time.monotonic()) > 0:
            time.sleep(min(each, left))
            reading = self.meter.read()
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
        """Means of the server's own phases over the whole measurement, for a request in µs."""
        if len(self._server) < 2 or not self._server[-1]:
            return {}
        before, after = self._server[0], self._server[-1]
        spent = {name: (after[name][0] - n, after[name][1] - ns) for name, (n, ns) in before.items() if name in after}
        return {name: ns / n / 1e3 if n > 0 else 0.0 for name, (n, ns) in spent.items()}

    def why(self, words: dict[str, str]) -> str:
        """Why it ended early."""
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
