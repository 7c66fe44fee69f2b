"""The highest rate at which a server keeps a promise, and which resource ends it.

The promise: of all calls that are due, 99 % are answered as they should be within the limit, counted from when they
were due. Calls that fail, are never sent or have no answer at the end are late ones here, or refusing calls would look
fast. A closed loop says how much the server can do at most; from there open loops are searched (`search.py`).

What ended it is judged by the lowest rate that missed: `errors`, `server CPU`, `shared CPU` (cores that the server has
to share are busy with generator and others), `generator` (it did not keep its schedule, so that the server could do
more), or `latency` (the server has CPU left: calls wait for one thread, for a batch or for another system).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import NamedTuple

from penstock.bench.levels import Progress, Subject, measure
from penstock.bench.search import Search
from penstock.bench.shapes import Shape, Timing
from penstock.bench.spans import INTERRUPTED, Level
from penstock.bench.target import BenchFailed

SHARE = 0.99  # of the calls, in time
ON_TIME = 0.99  # of the sends, within 1 ms
BY_FAR = 0.5  # a share so small is no accident
FULL = 0.9  # of the cores
FAILING = 1 - SHARE
FIRST = 0.6  # of what a closed loop reaches
CALLERS = 64  # of that closed loop
ENOUGH, LIMITS = 1000, 20  # a probe has so many requests, and is so many times as long as the limit
PROBE_S, LONGEST_S, LEAST_DRAIN_S = 3.0, 60.0, 0.5

Show = Callable[[Shape], AbstractContextManager[Progress]]
Tried = Callable[[Shape, Level, float], None]  # and the share of its calls that were in time


@dataclass(frozen=True, slots=True)
class Promise:
    """99 % of the calls within `limit_ms`; the rate is found to within `precision`, a share."""

    limit_ms: float
    precision: float = 0.05


class End(NamedTuple):
    """What ended it, in a word or two and in words; see the head of this file."""

    resource: str
    words: str


@dataclass(frozen=True, slots=True)
class Capacity:
    """What was found.

    Attributes:
        promise: what was looked for.
        rate: the highest requests a second at which it was kept; 0 where there was none.
        missed: the lowest at which it was not; infinite where there was none.
        closed_rate: requests a second of the closed loop before.
        end: what ended it.
        lower_bound: whether the generator did not keep its own schedule, so that the server may do more.
        levels: every open loop, in order.
        complete: False where Ctrl-C ended the search.
    """

    promise: Promise
    rate: float
    missed: float
    closed_rate: float
    end: End
    lower_bound: bool
    levels: Sequence[Level]
    complete: bool


def find(subject: Subject, promise: Promise, shape: Shape, timing: Timing, show: Show, tried: Tried) -> Capacity:
    """Search; `shape` gives all but callers and rate, `timing` the least length of a probe.

    Raises:
        BenchFailed: the server cannot be reached, or answers nothing.
    """

    def run(asked: Shape, timing: Timing) -> Level:
        with show(asked) as progress:
            level = measure(subject, asked, timing, progress)
        if level.ended != INTERRUPTED:
            tried(asked, level, share_in_time(level, promise.limit_ms))
        return level

    timing = replace(timing, duration_s=timing.duration_s or PROBE_S)
    closed = run(replace(shape, callers=CALLERS, arrivals=""), timing)
    if not closed.span.answered:
        raise BenchFailed(closed.ended)
    search, levels, missed = Search(closed.span.rate * FIRST, promise.precision), [], None
    while closed.ended != INTERRUPTED and (rate := search.rate) is not None:
        level = run(replace(shape, rate=rate), probe_timing(timing, rate, promise))
        if level.ended == INTERRUPTED:
            break
        levels.append(level)
        share = share_in_time(level, promise.limit_ms)
        search = search.after(held=share >= SHARE, by_far=share < BY_FAR)
        missed = level if rate == search.missed else missed
    return Capacity(
        promise,
        search.held,
        search.missed,
        closed.span.rate,
        end_of(missed, promise.limit_ms) if missed else End("", ""),
        missed is not None and missed.sent_on_time < ON_TIME,
        levels,
        search.rate is None,
    )


def probe_timing(timing: Timing, rate: float, promise: Promise) -> Timing:
    """As long as it takes for a percentile to mean something, and for a queue to outgrow the limit.

    What is answered later than the limit is late however late it is, so it is not waited for much longer.
    """
    least = timing.duration_s or PROBE_S
    wanted = max(ENOUGH / rate, LIMITS * promise.limit_ms / 1e3)
    drain = min(timing.drain_s, max(2 * promise.limit_ms / 1e3, LEAST_DRAIN_S))
    return replace(timing, duration_s=max(least, min(wanted, LONGEST_S)), drain_s=drain)


def share_in_time(level: Level, limit_ms: float) -> float:
    """Of all calls that were due, those that were answered as they should be, in time; 0 where there were none."""
    latencies = level.latencies
    due = latencies.total + level.span.failed + level.late.failed + level.unanswered
    return latencies.share_within(limit_ms * 1e6) * latencies.total / due if latencies.total else 0.0


def end_of(level: Level, limit_ms: float) -> End:
    """Why a level missed: the first of the reasons at the head of this file that is there."""
    span = level.span
    due = max(span.answered + span.failed + level.unanswered, 1)
    errors = {name: count for name, count in span.errors.items() if name != "not sent"}
    if sum(errors.values()) > FAILING * due:
        worst = max(errors, key=lambda name: errors[name])
        return End("errors", f"{sum(errors.values()) / due:.1%} of the calls failed, most of them by {worst}")
    seconds = span.seconds or 1.0
    server = (span.cpu_s or 0.0) / seconds
    if level.cores and server >= FULL * level.cores:
        return End("server CPU", f"the server kept its {_cores(level.cores)} busy ({server:.2f} of {level.cores})")
    if level.cores and span.busy_s is not None and span.busy_s / seconds >= FULL * level.cores:
        busy, mine = span.busy_s / seconds, span.own_s / seconds
        others = max(busy - server - mine, 0)
        own = f"server {server:.2f}, generator {mine:.2f}, others {others:.2f} of {_cores(level.cores)}"
        return End("shared CPU", f"the server's cores are full, and not of it alone ({own})")
    if level.sent_on_time < ON_TIME:
        return End("generator", f"only {level.sent_on_time:.1%} of the requests were sent within 1 ms of when due")
    if not level.cores:
        return End("latency", f"p99 was over {limit_ms:g} ms; the server's CPU is not known, as it runs elsewhere")
    idle = f"the server used {server:.2f} of {_cores(level.cores)}"
    return End("latency", f"p99 was over {limit_ms:g} ms with CPU left ({idle}): calls wait, as for a single thread")


def _cores(count: int) -> str:
    return f"{count} core{'s' if count > 1 else ''}"
