"""`penstock bench` against h2load, on the same native server, and the lines it must hold as a meter.

- *How much it drives*: a logistic regression at 4 connections of 64 streams, requests/s over those of h2load without
  its log. Both share the machine with the server, so that what the generator costs is missing from the figure.
- *Whether its percentiles are right*: 200 trees by ONNX Runtime (`forests: off`), 64 rows a request, against the log
  that h2load keeps of every request. There the server's time is most of a latency. Both send the same one body, for
  repeated rows are faster, by 4 callers each, and at the same time: p99 is what the machine does to a server now and
  then, which in turn would be another thing for each. Of the log counts what began while the other measured.

  Why a slow server: one that is always busy serves each caller once a turn, so that a latency and the caller's own time
  until it asks again are that turn together. The generator that takes longer between two requests then sees the shorter
  latency. Ours takes 17 us on two cores and h2load 35, which tells where a turn is 370 us, as with forests.
- *Whether it is on time*: an open loop at 100,000 requests/s, the share of requests sent within 1 ms of when due.

Ratios are taken within a round (see `lines.py`).

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
CONNECTIONS, MANY, FEW, ROWS, RATE = 4, 256, 4, 64, 100_000
ENDLESS = str(10**9)  # requests; h2load is ended when the other is done
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
    """What a round is, and the lines that rounds must hold."""

    name: str
    run: Callable[[], Round]
    lines: Sequence[Line]

    def rounds(self, count: int) -> list[Round]:
        found = []
        for i in range(count):
            errors.print(f"{self.name}: round {i + 1} of {count}", highlight=False)
            found.append(self.run())
        return found

    def verdicts(self, rounds: Sequence[Any]) -> list[Verdict]:
        values = [(line, line.values(rounds)) for line in self.lines]
        return [Verdict(line, statistics.median(found), min(found), max(found)) for line, found in values]


# ---- The generators --------------------------------------------------------------------------------------------------


def ours(address: str, model: str, *words: str, seconds: float) -> Any:
    """What `penstock bench` says of a level, in a process of its own; LoadFailed unless every call was answered."""
    length = ["--duration", str(seconds), "--warmup", str(WARMUP_S), "--connections", str(CONNECTIONS)]
    command = [sys.executable, "-m", "penstock.cli", "bench", address, "--model", model, *words, *length, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadFailed(done.stderr.strip()[-500:])
    (level,) = json_format.loads(done.stdout)["levels"]
    if level["errors"] and not level.get("rate"):
        raise LoadFailed(f"penstock bench: not every request was answered: {level['errors']}")
    return level


def figures_of(level: Any) -> Figures:
    """The figures of a level."""
    p50, p90, p99 = (level["latency_us"][name] for name in ("p50", "p90", "p99"))
    return Figures(level["requests_per_s"], p50, p90, p99, level.get("sent_within_1ms", 0.0))


def theirs(address: str, body: bytes, callers: int, requests: int) -> Figures:
    """The rate of h2load without a log."""
    load = H2load(1, connections=CONNECTIONS, log=False)(address, METHOD, [body], callers=callers, requests=requests)
    return Figures(load.rate)


def at_once(address: str, body: bytes, callers: int, run: Callable[[], Any], folder: Path) -> Round:
    """Both at the same time: h2load's log of what began while the other measured."""
    content, log = folder / "body", folder / "log"
    content.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
    log.unlink(missing_ok=True)
    command = ["h2load", "-n", ENDLESS, "-c", str(CONNECTIONS), "-m", str(callers // CONNECTIONS), "-t", "1"]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(content)]
    command += [f"--log-file={log}", f"http://{address}{METHOD}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            level = run()
        finally:
            process.terminate()
    until = level["began_s"] + level["seconds"]
    return {OURS: figures_of(level), THEIRS: logged(log.read_text(), level["began_s"], until)}


def logged(log: str, since_s: float, until_s: float) -> Figures:
    """Of a log of lines "start in µs since the epoch, HTTP status, latency in µs", what began in between."""
    rows = [line.split("\t") for line in log.splitlines()[:-1]]  # the last may be cut off
    found = [(status, int(us)) for start, status, us in rows if since_s <= int(start) / 1e6 < until_s]
    if not found or any(status != "200" for status, _ in found):
        raise LoadFailed("h2load: not every request was answered by HTTP 200")
    p50, p90, p99 = np.percentile([us for _, us in found], (50, 90, 99), method="inverted_cdf")
    return Figures(len(found) / (until_s - since_s), float(p50), float(p90), float(p99))


# ---- What is compared ------------------------------------------------------------------------------------------------


def comparisons(client: Client, address: str, rows: Rows, folder: Path, seconds: float) -> list[Comparison]:
    """All three; how many requests h2load gets is found by a short run of our own first."""
    tensors = {name: client.config(name).vector for name in ("plain", "trees")}
    one = request("plain", tensors["plain"], "FP32", [1, rows.shape[1]], rows[0].tobytes())
    many = request("trees", tensors["trees"], "FP32", [ROWS, rows.shape[1]], rows[:ROWS].tobytes())
    arrays: dict[str, Any] = {tensors["trees"]: rows[:ROWS]}
    np.savez(folder / "rows.npz", **arrays)
    driven = ["--concurrency", str(MANY)]
    exact = ["--concurrency", str(FEW), "--rows", str(ROWS), "--input", str(folder / "rows.npz")]
    count = max(int(ours(address, "plain", *driven, seconds=0.5)["requests_per_s"] * seconds), MANY)

    def driving() -> Round:
        level = ours(address, "plain", *driven, seconds=seconds)
        return {OURS: figures_of(level), THEIRS: theirs(address, one, MANY, count)}

    def timing() -> Round:
        return at_once(address, many, FEW, lambda: ours(address, "trees", *exact, seconds=seconds), folder)

    def scheduled() -> Round:
        return {OURS: figures_of(ours(address, "plain", "--rate", str(RATE), seconds=seconds))}

    near = (Line(OURS, figure, THEIRS, at_least=0.95, at_most=1.05) for figure in ("p50_us", "p90_us", "p99_us"))
    return [
        Comparison(f"{MANY} callers in turn", driving, (Line(OURS, "rate", THEIRS, at_least=0.8),)),
        Comparison(f"{FEW} callers each at once", timing, tuple(near)),
        Comparison(f"{RATE:,} req/s", scheduled, (Line(OURS, "on_time", at_least=0.99),)),
    ]


# ---- The command -----------------------------------------------------------------------------------------------------


def measured(folder: Path, rounds: int, seconds: float) -> list[tuple[Comparison, list[Round]]]:
    """Every comparison."""
    if not shutil.which("h2load"):
        raise LoadFailed("this benchmark needs h2load (apt-get install nghttp2-client)")
    seeded = publish(folder, ("plain", "trees"))
    with penstock("native", folder, "native", "", "forests: off\n") as server, Client(server.address) as client:
        asked = comparisons(client, server.address, seeded["plain"].rows[:POOL], folder, seconds)
        return [(comparison, comparison.rounds(rounds)) for comparison in asked]


HEADERS = ("comparison", "generator", "req/s", "p50 µs", "p90 µs", "p99 µs", "on time")


def table(found: Sequence[tuple[Comparison, list[Round]]]) -> list[tuple[str, ...]]:
    """A row of medians for each generator of each comparison."""
    rows = []
    for comparison, rounds in found:
        for i, name in enumerate(rounds[0]):
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
