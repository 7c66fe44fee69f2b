"""What is still answered in time where twice as much is asked for as the server can do.

`penstock serve`, natively, with 200 trees of depth 6 on 30 features; requests of 64 rows, so that the model is what
runs out, and not the cores that read requests, which the generator shares (docs/batching.md, Measured). First the
capacity is found by a closed loop. Then an open loop with Poisson arrivals and a deadline on every call asks for 0.8,
1.0 and 2.0 times of it, in turn, round after round. Goodput is answers within the deadline, counted from when a
request was due. Held must be: at twice the capacity at least 0.9 of the most goodput at any load of the same round,
and under 1 % of rows run for calls whose deadline had passed when the run began, by the server's own count.

    python -m penstock.benchmarks.deadlines [--rounds 5] [--seconds 2] [--deadline 5] [--json]
"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from penstock.bench.drive import probe
from penstock.bench.levels import Subject, measure
from penstock.bench.shapes import Shape, Timing
from penstock.bench.spans import Level
from penstock.bench.target import Target
from penstock.bench.work import Expected, Work, expected, learn, make
from penstock.benchmarks.seeded import publish
from penstock.benchmarks.sides import machine, penstock
from penstock.client import Client
from penstock.commands._console import console, errors, print_json, print_table

MODEL, ROWS = "trees", 64
LOADS = (0.8, 1.0, 2.0)
CALLERS = 32
AT_LEAST, AT_MOST_LATE = 0.9, 0.01


@dataclass(frozen=True)
class Run:
    """One load: times the capacity, goodput and refusals a second, p99 of answers in us, share of rows run too late."""

    load: float
    asked: float
    goodput: float
    refused: float
    p99_us: float
    late: float
    cpu_us: float


class Bench:
    """A server and what to ask it."""

    def __init__(self, address: str, rows: int, deadline_ms: float) -> None:
        self.client = Client(address)
        self.target = Target.reach(address)
        self.work: Work = make(learn(self.client, MODEL, ""), "", rows, None, None, 0)
        self.outputs: list[Expected] = expected(self.work, probe(self.target, self.work))
        self.deadline_ms = deadline_ms

    def drive(self, shape: Shape, seconds: float) -> Level:
        """One level of load."""
        timing = Timing(warmup_s=min(0.3, seconds / 2), duration_s=seconds, drain_s=2.0)
        return measure(Subject(self.target, self.work, self.outputs), shape, timing, lambda *_: None)

    def capacity(self, seconds: float) -> float:
        """Requests a second of a closed loop."""
        return self.drive(Shape(callers=CALLERS), seconds).span.rate

    def run(self, load: float, capacity: float, seconds: float, seed: int) -> Run:
        """One open loop at `load` times the capacity."""
        before = self._counts()
        shape = Shape(rate=load * capacity, arrivals="poisson", seed=seed, deadline_ms=self.deadline_ms, connections=4)
        shape = replace(shape, realtime=False)  # a generator that goes first takes from the capacity it was told
        level = self.drive(shape, seconds)
        rows, late = (after - then for after, then in zip(self._counts(), before, strict=True))
        span = level.span
        within = span.latencies.share_within(self.deadline_ms * 1e6) if span.answered else 0.0
        (p99,) = span.latencies.percentiles((99,)) if span.answered else (float("nan"),)
        failed = span.failed / span.seconds
        return Run(load, shape.rate, within * span.rate, failed, p99 / 1e3, late / max(rows, 1), span.cpu_us or 0.0)

    def _counts(self) -> tuple[int, int]:
        """Rows run so far, and those of them that were late."""
        (entry,) = self.client.statistics(MODEL)
        late = json.loads(self.client.config(MODEL).parameters["penstock.deadlines"])["late_rows"]
        return entry.inference_count, int(late)


def measured(folder: Path, rounds: int, seconds: float, deadline_ms: float, rows: int, cores: str) -> list[list[Run]]:
    """Rounds of runs, a run for each load."""
    publish(folder, (MODEL,))
    with penstock("server", folder, "native", cores) as server:
        bench = Bench(server.address, rows, deadline_ms)
        capacity = statistics.median(bench.capacity(seconds) for _ in range(3))
        errors.print(f"capacity: {capacity:,.0f} requests of {rows} rows a second", highlight=False)
        runs = []
        for i in range(rounds):
            errors.print(f"round {i + 1} of {rounds}", highlight=False)
            runs.append([bench.run(load, capacity, seconds, seed=i) for load in LOADS])
        return runs


def verdict(rounds: list[list[Run]]) -> tuple[float, float]:
    """Medians over rounds: goodput at the highest load over the most of any, and its share of rows run too late."""
    ratios = [runs[-1].goodput / max(run.goodput for run in runs) for runs in rounds]
    return statistics.median(ratios), statistics.median(runs[-1].late for runs in rounds)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Of every load.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.2, help="Of one run.")] = 2.0,
    deadline: Annotated[float, typer.Option(min=0.1, metavar="MS", help="Of every call.")] = 5.0,
    rows: Annotated[int, typer.Option(min=1, help="Of a request.")] = ROWS,
    server_cores: Annotated[str, typer.Option(metavar="CORES", help="Keep the server there; any otherwise.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Ask for twice what the server can do, with deadlines; 1 if a line is missed."""
    with tempfile.TemporaryDirectory() as name:
        runs = measured(Path(name), rounds, seconds, deadline, rows, server_cores)
    ratio, late = verdict(runs)
    held = ratio >= AT_LEAST and late < AT_MOST_LATE
    if as_json:
        print_json({"machine": machine(), "goodput": ratio, "late": late, "held": held, "rounds": _plain(runs)})
    else:
        headers = ("Load", "Asked/s", "Goodput/s", "Refused/s", "p99 us", "Rows too late", "CPU us a call")
        print_table(machine(), headers, [_row(list(same)) for same in zip(*runs, strict=True)], numeric=headers)
        console.print(
            f"Goodput at {LOADS[-1]:g} times the capacity: {ratio:.3f} of the most (at least {AT_LEAST}); "
            f"rows run too late: {late:.2%} (under {AT_MOST_LATE:.0%}): {'held' if held else 'MISSED'}",
            highlight=False,
        )
    raise typer.Exit(0 if held else 1)


def _plain(rounds: list[list[Run]]) -> list[list[dict[str, Any]]]:
    return [[asdict(run) for run in runs] for runs in rounds]


def _row(runs: list[Run]) -> tuple[str, ...]:
    """Medians of one load's runs."""
    middle = {name: float(np.median([getattr(run, name) for run in runs])) for name in asdict(runs[0])}
    numbers = (f"{middle[name]:,.0f}" for name in ("asked", "goodput", "refused", "p99_us"))
    return (f"{middle['load']:g}", *numbers, f"{middle['late']:.2%}", f"{middle['cpu_us']:.1f}")


if __name__ == "__main__":
    typer.run(main)
