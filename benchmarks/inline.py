"""Inline runs against lanes, and against a C++ server written by hand; and the lines they must hold.

The same Penstock twice, with inline runs and without, beside `cpp_grpc.cc`: one caller, 8 callers and 4 connections of
64 streams, one row a request of a logistic regression, all different. Sides run in turn; ratios are taken within a
round.

    python -m penstock.benchmarks.inline [--rounds 5] [--seconds 2] [--json]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from penstock.benchmarks.cells import Kind, Question, ask, drive
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.processes import Server
from penstock.benchmarks.rivals import RIVALS
from penstock.benchmarks.seeded import publish
from penstock.benchmarks.sides import Run, machine, penstock
from penstock.commands._console import console, errors, print_json, print_table
from penstock.errors import PenstockError

LINES = {
    1: (
        Line("inline", "p50_us", against="lane", at_most=0.75),
        Line("inline", "p50_us", against="C++", at_most=1.0),
    ),
    8: (Line("inline", "rate", against="lane", at_least=1.5),),
    256: (Line("inline", "cpu_us", at_most=3),),
}
HEADERS = ("callers", "server", "req/s", "p50 µs", "p99 µs", "CPU µs/req")


def measured(folder: Path, rounds: int, seconds: float) -> list[Outcome]:
    """Every number of callers, one after the other."""
    models = publish(folder, ("plain",))
    kind = Kind("plain", "vector", 1)
    with ExitStack() as stack:
        started = {
            "inline": penstock("inline", folder, "native", ""),
            "lane": penstock("lane", folder, "native", "", 'inline: "off"\n'),
            "C++": RIVALS["cpp1"].start(folder, models, "", _say),  # the best for one caller
            "C++, a thread a core": RIVALS["cpp"].start(folder, models, "", _say),
        }
        servers = {name: stack.enter_context(server) for name, server in started.items()}
        asked = {name: (server, ask(server.address, kind, models["plain"])) for name, server in servers.items()}
        return [_outcome(asked, callers, rounds, seconds) for callers in LINES]


def _outcome(asked: dict[str, tuple[Server, Question]], callers: int, rounds: int, seconds: float) -> Outcome:
    def in_turn(i: int) -> dict[str, Run]:
        _say(f"{callers} callers: round {i + 1} of {rounds}")
        return {
            name: drive(server.address, question, callers, seconds, [server.cpu_s])
            for name, (server, question) in asked.items()
        }

    return Outcome(f"{callers} caller{'s' if callers > 1 else ''}", [in_turn(i) for i in range(rounds)], LINES[callers])


def report(outcomes: Sequence[Outcome]) -> None:
    """Print the table and the lines."""
    rows = [
        ("" if i else outcome.name, name, *(f"{v:,.1f}" for v in (run.rate, run.p50_us, run.p99_us, run.cpu_us)))
        for outcome in outcomes
        for i, (name, run) in enumerate(outcome.sides.items())
    ]
    print_table("Inline runs", HEADERS, rows, numeric=HEADERS[2:])
    for outcome in outcomes:
        for verdict in outcome.verdicts:
            console.print(f"{outcome.name}: {verdict}", markup=False, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 2.0,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
) -> None:
    """Measure inline runs against lanes and a C++ server; ends with 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            outcomes = measured(Path(name), rounds, seconds)
    except PenstockError as error:
        _say(str(error))
        raise typer.Exit(1) from None
    if json:
        print_json({"machine": machine(), "scenarios": [outcome.as_json() for outcome in outcomes]})
    else:
        report(outcomes)
    if not all(verdict.held for outcome in outcomes for verdict in outcome.verdicts):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
