"""What the counters of a load say: readings of them, the span between two, and whether spans are stable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penstock.bench.histogram import Histogram

OUTCOMES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
    *("no gRPC", "reset", "no connection", "wrong answer", "timed out", "not sent"),
)
"""What may become of a call, in the order of `kernels.load.Load`: gRPC statuses first."""
STABLE_WINDOWS, STABLE_WITHIN = 3, 0.10
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Counters:
    """What is counted of a load, since it began or in a stretch of time.

    Attributes:
        latencies: of calls answered as they should be, in ns.
        lags: how late requests of a schedule were sent, in ns.
        outcomes: how many calls came to what; see OUTCOMES.
        rows: of calls answered as they should be.
        latency_ns: the sum of their latencies.
        cpu_s: of the server; None where it is not known.
        own_s: CPU of the generator.
        busy_s: CPU of whatever ran on the cores that the server may use; None where they are not known.
    """

    latencies: Histogram
    lags: Histogram
    outcomes: tuple[int, ...]
    rows: int
    latency_ns: int
    cpu_s: float | None
    own_s: float = 0.0
    busy_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Span(Counters):
    """What happened in a stretch of time.

    Attributes:
        start_s: since measuring began.
        seconds: how long it was.
    """

    start_s: float
    seconds: float

    @property
    def answered(self) -> int:
        return self.outcomes[0]

    @property
    def failed(self) -> int:
        return sum(self.outcomes[1:])

    @property
    def errors(self) -> dict[str, int]:
        """Calls that were not answered as they should be, by what became of them."""
        return {name: count for name, count in zip(OUTCOMES[1:], self.outcomes[1:], strict=True) if count}

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def mean_us(self) -> float:
        return self.latency_ns / self.answered / 1e3 if self.answered else float("nan")

    @property
    def cpu_us(self) -> float | None:
        """CPU of the server for each call it ended."""
        ended = self.answered + self.failed
        return self.cpu_s / ended * 1e6 if self.cpu_s is not None and ended else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Counters):
    """All counters at one time (CLOCK_MONOTONIC, ns)."""

    at_ns: int

    def since(self, earlier: Reading, origin_ns: int) -> Span:
        """What happened since an earlier reading; `origin_ns` is when measuring began."""
        return Span(
            self.latencies - earlier.latencies,
            self.lags - earlier.lags,
            tuple(now - then for now, then in zip(self.outcomes, earlier.outcomes, strict=True)),
            self.rows - earlier.rows,
            self.latency_ns - earlier.latency_ns,
            _grown(self.cpu_s, earlier.cpu_s),
            self.own_s - earlier.own_s,
            _grown(self.busy_s, earlier.busy_s),
            start_s=(earlier.at_ns - origin_ns) / 1e9,
            seconds=(self.at_ns - earlier.at_ns) / 1e9,
        )


def _grown(now: float | None, then: float | None) -> float | None:
    return None if now is None or then is None else now - then


def is_stable(windows: Sequence[Span]) -> bool:
    """perf_analyzer's rule: over the last three windows neither throughput nor mean latency varies by over 10 %."""
    last = windows[-STABLE_WINDOWS:]
    if len(last) < STABLE_WINDOWS or not all(window.answered for window in last):
        return False
    figures = [window.rate for window in last], [window.mean_us for window in last]
    return all(max(values) <= (1 + STABLE_WITHIN) * min(values) for values in figures)


@dataclass(frozen=True, slots=True)
class Level:
    """One load and what came of it.

    Attributes:
        callers: of a closed loop; 0 for an open one.
        asked_rate: requests a second of an open loop; 0 for a closed one.
        arrivals: "constant" or "poisson" of an open loop.
        span: what is reported: all of the measurement, or its stable windows.
        late: what was answered only after the end; part of the percentiles, not of the throughput.
        slices: latency over time, a fraction of a second each, over the whole measurement.
        stable: whether the last windows agreed.
        server_us: what the server's own statistics say, means for a request in µs; empty where it has none.
        unanswered: calls still in flight when waiting for them was over.
        words: what was first said of each kind of error.
        ended: why measuring ended early, INTERRUPTED by Ctrl-C; empty where it did not.
        cores: which the server may use; 0 where that is not known.
        began_s: when measuring began, in Unix time.
        priority: what the generator raised its own to, in words; empty where it did not.
    """

    callers: int
    asked_rate: float
    arrivals: str
    span: Span
    late: Span
    slices: Sequence[Span]
    stable: bool
    server_us: Mapping[str, float] = field(default_factory=dict)
    unanswered: int = 0
    words: Mapping[str, str] = field(default_factory=dict)
    ended: str = ""
    cores: int = 0
    priority: str = ""
    began_s: float = 0.0

    @property
    def latencies(self) -> Histogram:
        """Of everything that was answered, however late."""
        return self.span.latencies + self.late.latencies

    @property
    def sent_on_time(self) -> float:
        """The share of requests that went out within 1 ms of when they were due; NaN for a closed loop."""
        return self.span.lags.share_within(1e6)
