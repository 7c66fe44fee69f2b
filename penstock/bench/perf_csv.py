"""Results as perf_analyzer's CSV, whose columns other tools read: Concurrency or Request Rate, throughput, phases, µs.

As there, rows ascend by throughput and all but the throughput are whole µs. What the server spends is from its own
statistics, and what is left of the mean latency is the network's; sending and receiving by the client is not told
apart here, so both are 0. The columns after p99 are those of perf_analyzer's --verbose-csv.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from penstock.bench.spans import Level

SERVER = {
    "Server Queue": "queue",
    "Server Compute Input": "compute_input",
    "Server Compute Infer": "compute_infer",
    "Server Compute Output": "compute_output",
}
CACHE = {"Server Cache Hit": "cache_hit", "Server Cache Miss": "cache_miss"}
PERCENTILES = (50, 90, 95, 99)


def write(path: Path, levels: Sequence[Level]) -> None:
    """Write the levels, which are all closed loops or all open ones."""
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows(levels))


def rows(levels: Sequence[Level]) -> Iterator[list[str]]:
    """The header and a row for each level."""
    phases = dict(SERVER if any(level.server_us for level in levels) else {})
    phases |= CACHE if any(level.server_us.get("cache_hit", 0) for level in levels) else {}
    yield [
        *("Concurrency" if levels[0].callers else "Request Rate", "Inferences/Second", "Client Send"),
        *(("Network+Server Send/Recv", *phases) if phases else ()),
        *("Client Recv", *(f"p{percent} latency" for percent in PERCENTILES)),
        *("Avg latency", "request/response", "response wait"),
    ]
    for level in sorted(levels, key=lambda level: level.span.rows / max(level.span.seconds, 1e-9)):
        yield _row(level, list(phases.values()))


def _row(level: Level, phases: Sequence[str]) -> list[str]:
    span = level.span
    mean = span.mean_us if span.answered else 0.0
    spent = [level.server_us.get(phase, 0.0) for phase in phases]
    latencies = level.latencies.percentiles(PERCENTILES) if level.latencies.total else [0.0] * len(PERCENTILES)
    return [
        str(level.callers) if level.callers else f"{level.asked_rate:g}",
        f"{span.rows / span.seconds:.6g}" if span.seconds else "0",
        "0",
        *([str(int(max(mean - sum(spent), 0))), *(str(int(value)) for value in spent)] if phases else []),
        "0",
        *(str(int(value / 1e3)) for value in latencies),
        *(str(int(mean)), "0", str(int(mean))),
    ]
