"""Whether the measured cap on runs is as good as any fixed one.

Every side is `penstock serve` on the native transport with another `batch_cap`: auto, and a range of fixed ones. The
same callers ask each in turn for requests of 1, 8, 64 and 256 rows of three models: a logistic regression and 200
trees of depth 6 on 30 features, and a network 128-256-256. Compared are requests per second of the same round;
auto must reach 0.95 of every fixed cap. The server's CPU time a request is given beside it, since it is steadier
where something else runs on the machine. All rows differ, and every answer's status is checked.

    python -m penstock.benchmarks.caps [--rounds 5] [--seconds 0.6] [--callers 32] [--json]
"""

from __future__ import annotations

import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.benchmarks.generators import PoolLoad
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.processes import Server
from penstock.benchmarks.seeded import Seeded, publish
from penstock.benchmarks.sides import Side, machine, measure, penstock, requests_for
from penstock.client import Client
from penstock.commands._console import console, errors, print_json, print_table

FIXED = (8, 32, 64, 128, 256)
ROWS = (1, 8, 64, 256)
AT_LEAST = 0.95
MODELS = ("plain", "trees", "mlp")
CONNECTIONS = 4


def compare(
    model: Seeded, rows: int, servers: dict[str, Server], rounds: int, seconds: float, callers: int, cores: str
) -> Outcome:
    """Drive every side in turn, `rounds` times."""
    generator, bodies = PoolLoad(CONNECTIONS), model.bodies(rows)
    sides = {name: Side(name, server, bodies) for name, server in servers.items()}
    requests = requests_for(seconds, sides["auto"], generator, callers, cores)
    measured = []
    for i in range(rounds):
        errors.print(f"{model.name}, {rows} rows a request: round {i + 1} of {rounds}", highlight=False)
        order = [*sides.values()][:: 1 if i % 2 else -1]  # nobody is always first
        measured.append({side.name: measure(side, generator, callers, requests, cores) for side in order})
    lines = [Line("auto", "rate", against=name, at_least=AT_LEAST) for name in sides if name != "auto"]
    return Outcome(f"{model.name}, {rows} rows", measured, lines)


def cpu_ratio(outcome: Outcome) -> float:
    """CPU time a request with the measured cap over that of the best fixed one, by medians over rounds."""
    others = [name for name in outcome.sides if name != "auto"]
    return max(
        statistics.median(Line("auto", "cpu_us", against=name, at_most=1).values(outcome.rounds)) for name in others
    )


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Of every comparison.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, help="Of one run.")] = 0.6,
    callers: Annotated[int, typer.Option(min=1, help="Callers in a closed loop.")] = 32,
    server_cores: Annotated[str, typer.Option(metavar="CORES", help="Keep servers there; any otherwise.")] = "",
    load_cores: Annotated[str, typer.Option(metavar="CORES", help="Keep the generator there.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Compare the measured cap with fixed ones; 1 if one of them is more than 5 % better anywhere."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        published = publish(folder, MODELS)
        servers = {
            str(cap): stack.enter_context(penstock(str(cap), folder, "native", server_cores, f"batch_cap: {cap}\n"))
            for cap in ("auto", *FIXED)
        }
        with Client(servers["auto"].address) as client:
            caps = {name: int(client.config(name).parameters["penstock.cap"]) for name in published}
        outcomes = [
            compare(model, rows, servers, rounds, seconds, callers, load_cores)
            for model in published.values()
            for rows in ROWS
        ]
    report(outcomes, caps, as_json)
    raise typer.Exit(0 if all(verdict.held for outcome in outcomes for verdict in outcome.verdicts) else 1)


def told(outcome: Outcome) -> dict[str, Any]:
    """As plain data."""
    return outcome.as_json() | {"cpu_ratio": cpu_ratio(outcome)}


def report(outcomes: list[Outcome], caps: dict[str, int], as_json: bool) -> None:
    """As a table of each comparison's nearest rival, or everything as JSON."""
    if as_json:
        print_json({"machine": machine(), "caps": caps, "outcomes": [told(outcome) for outcome in outcomes]})
        return
    rows = []
    for outcome in outcomes:
        worst = min(outcome.verdicts, key=lambda verdict: verdict.value)
        rate = f"{outcome.sides['auto'].rate:,.0f}"
        judged = "held" if worst.held else "MISSED"
        rows.append(
            (
                outcome.name,
                rate,
                worst.line.against,
                f"{worst.value:.3f}",
                worst.spread,
                judged,
                f"{cpu_ratio(outcome):.3f}",
            )
        )
    headers = ("What", "auto/s", "Best fixed", "auto / fixed", "Range", f"At least {AT_LEAST}", "CPU auto / fixed")
    print_table(machine(), headers, rows, numeric=(*headers[1:4], headers[-1]))
    console.print("Measured caps: " + ", ".join(f"{name} {cap}" for name, cap in caps.items()), highlight=False)


if __name__ == "__main__":
    typer.run(main)
