"""What a run came to, for people and for machines: a table with what must be known to read it, or JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from penstock.bench.capacity import Capacity
from penstock.bench.histogram import RELATIVE_ERROR
from penstock.bench.shapes import Shape
from penstock.bench.spans import Level, Span
from penstock.bench.target import Target
from penstock.bench.work import POOL_ROWS, Work

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9, 99.99)
SHOWN = (50.0, 90.0, 99.0, 99.9, 99.99)
FALLS_BEHIND, ON_TIME = 0.95, 0.99


def name_of(level: Level | Shape) -> str:
    """A level, measured or not yet, in a word or two."""
    if level.callers:
        return f"{level.callers} caller{'s' if level.callers > 1 else ''}"
    rate = level.asked_rate if isinstance(level, Level) else level.rate
    return f"{rate:,.1f} req/s" if rate < 100 else f"{rate:,.0f} req/s"


# ---- For people ------------------------------------------------------------------------------------------------------


def title(target: Target, work: Work, levels: Sequence[Level]) -> str:
    """The heading of the table."""
    loop = "closed loop" if levels[0].callers else f"open loop, {levels[0].arrivals} arrivals"
    rows = f"{work.rows} row{'s' if work.rows > 1 else ''} a request"
    return f"{work.model} on {target.address}: {loop}, {rows}; latency in µs"


def table(work: Work, levels: Sequence[Level]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows; what nothing is known of, or nothing came of, has no column."""
    cpu = any(level.span.cpu_us is not None for level in levels)
    failed = any(level.span.failed or level.unanswered for level in levels)
    headers = ["Callers" if levels[0].callers else "Asked/s", "Req/s", *(["Rows/s"] if work.rows > 1 else [])]
    headers += [*(f"p{percent:g}" for percent in SHOWN), "max"]
    headers += [*(["CPU µs"] if cpu else []), *(["Errors"] if failed else [])]
    return headers, [_row(work, level, cpu=cpu, failed=failed) for level in levels]


def _row(work: Work, level: Level, *, cpu: bool, failed: bool) -> list[str]:
    span = level.span
    asked = f"{level.asked_rate:,.1f}".removesuffix(".0") if level.asked_rate < 100 else f"{level.asked_rate:,.0f}"
    row = [f"{level.callers:,}" if level.callers else asked, f"{span.rate:,.0f}"]
    row += [f"{span.rows / span.seconds if span.seconds else 0:,.0f}"] if work.rows > 1 else []
    row += [_us(value) for value in level.latencies.percentiles((*SHOWN, 100.0))]
    row += [("" if span.cpu_us is None else f"{span.cpu_us:.1f}")] if cpu else []
    return [*row, f"{span.failed + level.unanswered:,}"] if failed else row


def _us(ns: float) -> str:
    if ns != ns:  # noqa: PLR0124 - NaN: nothing was answered
        return ""
    return f"{ns / 1e3:,.0f}" if ns >= 100e3 else f"{ns / 1e3:.1f}"


def remarks(work: Work, levels: Sequence[Level]) -> Iterator[str]:
    """What one must know to read the table."""
    yield _about_latencies(levels)
    if any(level.span.cpu_us is not None for level in levels):
        yield "CPU µs: of the server's process and its children, for each request."
    if work.distinct < POOL_ROWS:
        yield f"Only {work.distinct:,} different rows were sent: repeated rows flatter trees and caches."
    for level in levels:
        yield from (f"{name_of(level)}: {remark}" for remark in _remarks(level))


def _about_latencies(levels: Sequence[Level]) -> str:
    exact = f"to within {RELATIVE_ERROR:.1%}, of calls that were answered OK"
    if levels[0].callers:
        return f"Latencies are {exact}, from sending a request to the end of its answer."
    return f"Latencies are {exact}, from when a request was due, sent late or not, to the end of its answer."


def _remarks(level: Level) -> Iterator[str]:
    span = level.span
    if not level.stable:
        yield "not stable: over the last 3 windows throughput or mean latency varied by more than 10 %"
    if not level.callers and span.seconds and span.rate < FALLS_BEHIND * level.asked_rate:
        yield f"{level.asked_rate:,.0f} requests a second were due, and {span.rate:,.0f} were answered"
    if not level.callers and span.lags.total:
        late = level.sent_on_time < ON_TIME
        only = "only " if late else ""
        yield (
            f"{only}{level.sent_on_time:.2%} of requests were sent within 1 ms of when they were due"
            + (f", by a generator at {level.priority}" if level.priority else "")
            + ("; this machine is too busy, so its own delay is in the latencies" if late else "")
        )
    for name, count in span.errors.items():
        yield f"{count:,} {name}" + (f" ({level.words[name]})" if level.words.get(name) else "")
    if level.unanswered:
        yield f"{level.unanswered:,} calls had no answer yet when waiting for them was over"
    if level.ended:
        yield f"ended early: {level.ended}"


def capacity_remarks(found: Capacity) -> Iterator[str]:
    """What a search came to."""
    limit = f"99 % of the calls within {found.promise.limit_ms:g} ms"
    if not found.complete:
        yield f"interrupted: what follows is as far as the search came, which had tried {len(found.levels)} rates"
    if found.rate:
        at_least = "at least " if found.lower_bound else ""
        yield f"Capacity: {at_least}{found.rate:,.0f} requests a second, with {limit}."
    else:
        yield f"Capacity: no rate that was tried keeps {limit}."
    if found.missed < float("inf"):
        yield f"Ended by {found.end.resource} at {found.missed:,.0f} req/s: {found.end.words}."
    if found.lower_bound:
        yield (
            f"The generator did not keep its schedule at {found.missed:,.0f} req/s, so the server may do more: drive "
            "it from another machine, or with --threads."
        )
    yield (
        f"A closed loop reached {found.closed_rate:,.0f} req/s. Latency counts from when a request was due; calls that "
        "fail, or have no answer at the end, count as late."
    )


# ---- For machines ----------------------------------------------------------------------------------------------------


def as_json(target: Target, work: Work, levels: Sequence[Level], seed: int) -> dict[str, Any]:
    """Everything, with latencies in µs."""
    return {
        "address": target.address,
        "model": work.model,
        "rows": work.rows,
        "pool": {"requests": len(work.bodies), "rows": work.distinct, "seed": seed},
        "relative_error": RELATIVE_ERROR,
        "levels": [_level(level) for level in levels],
    }


def capacity_json(found: Capacity) -> dict[str, Any]:
    """What a search came to; the rates that it tried are levels."""
    return {
        "requests_per_s": found.rate,
        "missed_at": None if found.missed == float("inf") else found.missed,
        "p99_ms": found.promise.limit_ms,
        "precision": found.promise.precision,
        "lower_bound": found.lower_bound,
        "ended_by": found.end.resource,
        "why": found.end.words,
        "closed_loop_requests_per_s": found.closed_rate,
        "complete": found.complete,
    }


def _level(level: Level) -> dict[str, Any]:
    shape: dict[str, Any] = {"concurrency": level.callers}
    if not level.callers:
        shape = {"rate": level.asked_rate, "arrivals": level.arrivals, "sent_within_1ms": level.sent_on_time}
        shape["generator_priority"] = level.priority
        shape["sent_late_us"] = _percentiles(level.span.lags.percentiles(PERCENTILES))
    span = level.span
    return {
        **shape,
        "began_s": round(level.began_s + span.start_s, 6),
        "seconds": span.seconds,
        "requests": span.answered,
        "requests_per_s": span.rate,
        "rows_per_s": span.rows / span.seconds if span.seconds else 0.0,
        "stable": level.stable,
        "latency_us": {"mean": _number(span.mean_us), **_percentiles(level.latencies.percentiles(PERCENTILES))}
        | {"max": _number(level.latencies.maximum / 1e3)},
        "errors": span.errors,
        "error_words": dict(level.words),
        "unanswered": level.unanswered,
        "answered_late": level.late.answered,
        "server_cpu_us_per_request": span.cpu_us,
        "server_cores_used": None if span.cpu_s is None else _share(span.cpu_s, span.seconds),
        "server_cores": level.cores or None,
        "generator_cores_used": _share(span.own_s, span.seconds),
        "server_us": dict(level.server_us),
        "ended": level.ended,
        "over_time": [_slice(part) for part in level.slices],
    }


def _share(cpu_s: float, seconds: float) -> float | None:
    return round(cpu_s / seconds, 3) if seconds else None


def _slice(span: Span) -> dict[str, Any]:
    p50, p99, most = span.latencies.percentiles((50, 99, 100))
    figures = {"p50": _number(p50 / 1e3), "p99": _number(p99 / 1e3), "max": _number(most / 1e3)}
    return {"at_s": round(span.start_s, 4), "seconds": round(span.seconds, 4), "requests": span.answered, **figures}


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    return {f"p{p:g}": _number(value / 1e3) for p, value in zip(PERCENTILES, values, strict=True)}


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else round(value, 3)  # noqa: PLR0124
