"""`penstock bench` against h2load, on the same native server, and the lines it must hold as a meter.

- *How much it drives*: a logistic regression at 4 connections of 64 streams, requests/s over those of h2load without
  its log. Both share the machine with the server, so that what the generator costs is missing from the figure.
- *Whether its percentiles are right*: 200 trees, 64 rows a request, at 8 callers, against the log that h2load keeps of
  every request. There the server's time is most of a latency; elsewhere each generator would measure its own cost, too.
  Both send the same one body, for repeated rows are faster.
- *Whether it is on time*: an open loop at 100,000 requests/s, the share of requests sent within 1 ms of when due.

Sides run in turn, A B C A B C …, and ratios are taken within a round (see `lines.py`).

    python -m penstock.benchmarks.meter [--rounds 5] [--seconds 3] [--json]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import json as json_format
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from penstock.benchmarks.generators import H2load, LoadFailed
from penstock.benchmarks.lines import Line, Verdict
from penstock.benchmarks.seeded import METHOD, POOL, Rows, publish, request
from penstock.benchmarks.sides import machine, penstock
from penstock.client import Client
from penstock.commands._console import console, errors, print_json, print_table
from penstock.errors import PenstockError

OURS, THEIRS = "penstock bench", "h2load"
CONNECTIONS, MANY, FEW, ROWS, RATE = 4, 256, 8, 64, 100_000
WARMUP_S = 0.5


@dataclass(frozen=True)
class Figures:
    """One run of a generator: requests/s, latency in µs, the share of a schedule that was sent on time; 0: not told."""

    rate: float
    p50_us: float = 0.0
    p90_us: float = 0.0
    p99_us: float = 0.0
    on_time: float = 0.0


Round = Mapping[str, Figures]


@dataclass(frozen=True)
class Comparison:
    """Runs in turn, and the lines that they must hold."""

    name: str
    sides: Mapping[str, Callable[[], Figures]]
    lines: Sequence[Line]

    def rounds(self, count: int) -> list[Round]:
        """Every side, `count` times."""
        found: list[Round] = []
        for i in range(count):
            errors.print(f"{self.name}: round {i + 1} of {count}", highlight=False)
            found.append({name: run() for name, run in self.sides.items()})
        return found

    def verdicts(self, rounds: Sequence[Any]) -> list[Verdict]:
        values = [(line, line.values(rounds)) for line in self.lines]
        return [Verdict(line, statistics.median(found), min(found), max(found)) for line, found in values]


# ---- The generators --------------------------------------------------------------------------------------------------


def ours(address: str, model: str, *words: str, seconds: float) -> Figures:
    """`penstock bench` as a process; raises LoadFailed unless every call was answered as it should be."""
    length = ["--duration", str(seconds), "--warmup", str(WARMUP_S), "--connections", str(CONNECTIONS)]
    command = [sys.executable, "-m", "penstock.cli", "bench", address, "--model", model, *words, *length, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadFailed(done.stderr.strip()[-500:])
    (level,) = json_format.loads(done.stdout)["levels"]
    if any(level["errors"].values()) and not level.get("rate"):
        raise LoadFailed(f"penstock bench: not every request was answered: {level['errors']}")
    p50, p90, p99 = (level["latency_us"][name] for name in ("p50", "p90", "p99"))
    return Figures(level["requests_per_s"], p50, p90, p99, level.get("sent_within_1ms", 0.0))


def theirs(address: str, body: bytes, callers: int, *, seconds: float, rate: float, log: bool) -> Figures:
    """h2load for about so many seconds, where `rate` is what to expect."""
    connections = min(CONNECTIONS, callers)
    generator = H2load(1, connections=connections, log=log)
    count = max(int(rate * seconds), callers)
    load = generator(address, METHOD, [body], callers=callers, requests=count)
    return Figures(load.rate, load.p50_us, load.p90_us, load.p99_us)


# ---- What is compared ------------------------------------------------------------------------------------------------


def comparisons(client: Client, address: str, rows: Rows, folder: Path, seconds: float) -> list[Comparison]:
    """All three; rates are found by a short run of our own first."""
    tensors = {name: client.config(name).vector for name in ("plain", "trees")}
    one = request("plain", tensors["plain"], "FP32", [1, rows.shape[1]], rows[0].tobytes())
    many = request("trees", tensors["trees"], "FP32", [ROWS, rows.shape[1]], rows[:ROWS].tobytes())
    arrays: dict[str, Any] = {tensors["trees"]: rows[:ROWS]}
    np.savez(folder / "rows.npz", **arrays)
    driven, exact = ["--concurrency", str(MANY)], ["--concurrency", str(FEW), "--rows", str(ROWS)]
    exact += ["--input", str(folder / "rows.npz")]
    first = ours(address, "plain", *driven, seconds=0.5).rate
    slow = ours(address, "trees", *exact, seconds=0.5).rate
    return [
        Comparison(
            f"logistic, {MANY} callers",
            {
                OURS: lambda: ours(address, "plain", *driven, seconds=seconds),
                THEIRS: lambda: theirs(address, one, MANY, seconds=seconds, rate=first, log=False),
            },
            (Line(OURS, "rate", against=THEIRS, at_least=0.8),),
        ),
        Comparison(
            f"200 trees x {ROWS} rows, {FEW} callers",
            {
                OURS: lambda: ours(address, "trees", *exact, seconds=seconds),
                THEIRS: lambda: theirs(address, many, FEW, seconds=seconds, rate=slow, log=True),
            },
            tuple(
                Line(OURS, figure, against=THEIRS, at_least=0.95, at_most=1.05)
                for figure in ("p50_us", "p90_us", "p99_us")
            ),
        ),
        Comparison(
            f"open loop, {RATE:,} req/s",
            {OURS: lambda: ours(address, "plain", "--rate", str(RATE), seconds=seconds)},
            (Line(OURS, "on_time", at_least=0.99),),
        ),
    ]


# ---- The command -----------------------------------------------------------------------------------------------------


def measured(folder: Path, rounds: int, seconds: float) -> list[tuple[Comparison, list[Round]]]:
    """Every comparison."""
    if not shutil.which("h2load"):
        raise LoadFailed("this benchmark needs h2load (apt-get install nghttp2-client)")
    seeded = publish(folder, trees=True)
    with penstock("native", folder, "native", "") as server, Client(server.address) as client:
        asked = comparisons(client, server.address, seeded.rows[:POOL], folder, seconds)
        return [(comparison, comparison.rounds(rounds)) for comparison in asked]


HEADERS = ("comparison", "generator", "req/s", "p50 µs", "p90 µs", "p99 µs", "on time")


def table(found: Sequence[tuple[Comparison, list[Round]]]) -> list[tuple[str, ...]]:
    """A row of medians for each generator of each comparison."""
    rows = []
    for comparison, rounds in found:
        for i, name in enumerate(comparison.sides):
            median = {
                key: statistics.median(asdict(one[name])[key] for one in rounds) for key in asdict(rounds[0][name])
            }
            latencies = (f"{median[key]:,.0f}" if median[key] else "" for key in ("p50_us", "p90_us", "p99_us"))
            on_time = f"{median['on_time']:.2%}" if median["on_time"] else ""
            rows.append(("" if i else comparison.name, name, f"{median['rate']:,.0f}", *latencies, on_time))
    return rows


def as_json(found: Sequence[tuple[Comparison, list[Round]]]) -> dict[str, Any]:
    """Every run and every verdict."""
    told = []
    for comparison, rounds in found:
        verdicts = [
            {"name": v.line.name, "value": v.value, "range": [v.least, v.most], "limit": v.line.limit, "held": v.held}
            for v in comparison.verdicts(rounds)
        ]
        runs = [{name: asdict(figures) for name, figures in one.items()} for one in rounds]
        told.append({"name": comparison.name, "rounds": runs, "lines": verdicts})
    return {"machine": machine(), "comparisons": told}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 3.0,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
) -> None:
    """Hold penstock bench against h2load on the same server; ends with 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            found = measured(Path(name), rounds, seconds)
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    verdicts = [(c.name, verdict) for c, measured_rounds in found for verdict in c.verdicts(measured_rounds)]
    if json:
        print_json(as_json(found))
    else:
        print_table("The meter", HEADERS, table(found), numeric=HEADERS[2:])
        for name, verdict in verdicts:
            if verdict.held:
                console.print(f"{name}: {verdict}", highlight=False, markup=False, soft_wrap=True)
    missed = [f"{name}: {verdict}" for name, verdict in verdicts if not verdict.held]
    if missed:
        errors.print("\n".join(missed), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
