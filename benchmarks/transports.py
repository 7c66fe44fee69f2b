"""Penstock's native transport against its grpcio transport and against a bare nghttp2 echo, and the lines it must hold.

Three servers run as processes of their own: `penstock serve` on either transport, over one registry, and
`nghttp2_echo.c`, compiled for the occasion, which is what one thread can do at most. h2load drives them in turn,
A B C A B C …; see `lines.py` for how ratios are taken. On two cores the generator's own CPU (1 to 5 µs a request) is
part of every figure. Trees are asked by four h2loads with a row each and again, with 1,024 rows that differ, by
the generator of `penstock bench`, which also asks for 1,024 entities, since a batch looks up an entity once, however
often it is in it.

Every request must be answered by HTTP 200 and counted as a success by the server; answers are held against the models'
sources by value, before and after.

    python -m penstock.benchmarks.transports [--rounds 5] [--seconds 3] [--pin] [--json | --markdown]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer

from penstock.benchmarks.generators import Generator, H2load, LoadFailed, PoolLoad
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.processes import Server, compiled, redis_of
from penstock.benchmarks.seeded import METHOD, Seeded, check_values, publish
from penstock.benchmarks.sides import Side, counter, machine, measure, penstock, requests_for
from penstock.client import Client
from penstock.commands._console import console, errors, print_json, print_table
from penstock.errors import PenstockError

CONNECTIONS, STREAMS = 4, 64
DISTINCT = 1024  # rows or entities of a pool


@dataclass(frozen=True)
class Scenario:
    """Sides driven in turn by so many callers, and the lines that must hold."""

    name: str
    sides: Sequence[Side]
    generator: Generator
    callers: int
    lines: Sequence[Line]

    def outcome(self, rounds: int, seconds: float, cores: str) -> Outcome:
        """Drive every side `rounds` times for about `seconds` each, after short runs that find how many requests."""
        sizes = [requests_for(seconds, side, self.generator, self.callers, cores) for side in self.sides]
        measured = []
        for i in range(rounds):
            errors.print(f"{self.name}: round {i + 1} of {rounds}", highlight=False)
            runs = {
                side.name: measure(side, self.generator, self.callers, size, cores)
                for side, size in zip(self.sides, sizes, strict=True)
            }
            measured.append(runs)
        return Outcome(self.name, measured, self.lines)


# ---- The servers -----------------------------------------------------------------------------------------------------


def echo_server(folder: Path, cores: str = "") -> Server:
    """The echo, compiled and not started yet."""
    return Server("echo", [str(compiled("nghttp2_echo", folder))], folder / "echo.json", cores=cores)


@dataclass(frozen=True)
class Servers:
    """What is measured, running, with a client of each Penstock."""

    native: Server
    grpcio: Server
    echo: Server
    clients: tuple[Client, Client]  # native, grpcio

    def check(self, seeded: Mapping[str, Seeded]) -> None:
        """Raise LoadFailed unless both transports give the models' values and the echo gives back what it got."""
        for client in self.clients:
            check_values(client, seeded)
        with grpc.insecure_channel(self.echo.address) as channel:
            call: Any = channel.unary_unary(METHOD)
            if call(b"as it came", timeout=10) != b"as it came":
                raise LoadFailed("the echo does not give back what it got")


@contextmanager
def servers(folder: Path, cores: str) -> Iterator[Servers]:
    """All three, started and ended."""
    with ExitStack() as stack:
        echo = stack.enter_context(echo_server(folder, cores))
        native = stack.enter_context(penstock("native", folder, "native", cores))
        grpcio = stack.enter_context(penstock("grpcio", folder, "grpcio", cores))
        clients = (stack.enter_context(Client(native.address)), stack.enter_context(Client(grpcio.address)))
        yield Servers(native, grpcio, echo, clients)


# ---- What is asked, and what must come of it -------------------------------------------------------------------------


def scenarios(running: Servers, seeded: Mapping[str, Seeded], folder: Path) -> list[Scenario]:
    """Every comparison, at 4 connections of 64 streams unless it says otherwise; the servers work in `folder`."""
    native, grpcio = running.clients
    vector, trees = (seeded[name].bodies()[:DISTINCT] for name in ("plain", "trees"))
    joined, count_joined = seeded["joined"], counter(native, "joined")
    plain = [
        Side("native", running.native, vector, counter(native, "plain")),
        Side("grpcio", running.grpcio, vector, counter(grpcio, "plain")),
        Side("echo", running.echo, vector),
    ]
    boosted = [
        Side("native", running.native, trees, counter(native, "trees")),
        Side("grpcio", running.grpcio, trees, counter(grpcio, "trees")),
    ]
    looked_up = [
        Side("by id", running.native, joined.entity_bodies()[:DISTINCT], count_joined, redis_of(folder / "store")),
        Side("by vector", running.native, joined.bodies()[:DISTINCT], count_joined),
    ]
    many = CONNECTIONS * STREAMS
    one, four = H2load(1, connections=CONNECTIONS, log=False), H2load(CONNECTIONS, log=False)
    pool = PoolLoad(CONNECTIONS)
    return [
        Scenario("logistic, 4 x 64", plain, one, many, LOGISTIC),
        Scenario("logistic, 1 x 1", plain, H2load(1), 1, ONE_CALLER),
        Scenario("200 trees, 4 rows", boosted, four, many, TREES),
        Scenario("200 trees, 1,024 rows", boosted, pool, many, TREES),
        Scenario("Redis, 1,024 ids", looked_up, pool, many, LOOKED_UP),
    ]


LOGISTIC = (
    Line("native", "rate", against="grpcio", at_least=15),
    Line("native", "rate", against="echo", at_least=0.6),
    Line("native", "cpu_us", at_most=5),
)
ONE_CALLER = (Line("native", "p50_us", against="grpcio", at_most=1 / 3),)
TREES = (Line("native", "rate", against="grpcio", at_least=10),)
LOOKED_UP = (Line("by id", "rate", against="by vector", at_least=0.6),)


# ---- The command -----------------------------------------------------------------------------------------------------


def measured(folder: Path, rounds: int, seconds: float, *, pin: bool) -> list[Outcome]:
    """Every scenario, in turn."""
    if not shutil.which("h2load"):
        raise LoadFailed("this benchmark needs h2load (apt-get install nghttp2-client)")
    server_cores, load_cores = ("0", "1") if pin else ("", "")
    seeded = publish(folder, ("plain", "joined", "trees"))
    with servers(folder, server_cores) as running:
        running.check(seeded)
        asked = scenarios(running, seeded, folder)
        outcomes = [scenario.outcome(rounds, seconds, load_cores) for scenario in asked]
        running.check(seeded)
        return outcomes


def rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """One row for each side of each scenario."""
    return [
        (
            "" if i else outcome.name,
            name,
            f"{run.rate:,.0f}",
            f"{run.cpu_us:.1f}",
            f"{run.redis_us:.1f}" if run.redis_us else "",
            f"{run.p50_us:.0f}" if run.p50_us else "",
        )
        for outcome in outcomes
        for i, (name, run) in enumerate(outcome.sides.items())
    ]


HEADERS = ("scenario", "server", "req/s", "CPU µs/req", "Redis µs/req", "p50 µs")


def report(outcomes: Sequence[Outcome], title: str = "Transports") -> None:
    """The table, and each line that holds; `main` tells which do not."""
    print_table(title, HEADERS, rows(outcomes), numeric=HEADERS[2:])
    for outcome in outcomes:
        for verdict in filter(lambda verdict: verdict.held, outcome.verdicts):
            console.print(f"{outcome.name}: {verdict}", highlight=False, markup=False, soft_wrap=True)


def markdown_of(outcomes: Sequence[Outcome], *, pin: bool) -> str:
    """Both tables of the README."""
    where = "servers on one core, load on the other" if pin else "servers and load on the same cores"
    lines = [f"Median of {len(outcomes[0].rounds)} rounds, {where}; {machine()}.", ""]
    lines += [f"| {' | '.join(HEADERS)} |", "|---|---|---:|---:|---:|---:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(outcomes)]
    lines += ["", "| scenario | figure | median (range) | limit |", "|---|---|---|---|"]
    for outcome in outcomes:
        for verdict in outcome.verdicts:
            judged = f"{verdict.line.limit}{'' if verdict.held else ', **missed**'}"
            lines.append(
                f"| {outcome.name} | {verdict.line.name} | **{verdict.value:.3g}** ({verdict.spread}) | {judged} |"
            )
    return "\n".join(lines)


def missed(outcomes: Sequence[Outcome]) -> list[str]:
    """The lines that do not hold."""
    return [f"{o.name}: {verdict}" for o in outcomes for verdict in o.verdicts if not verdict.held]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 3.0,
    pin: Annotated[bool, typer.Option(help="Servers on core 0, load on core 1.")] = False,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
    markdown: Annotated[bool, typer.Option(help="The tables of the README.")] = False,
) -> None:
    """Measure the native transport against the grpcio transport and a bare echo; ends with 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            outcomes = measured(Path(name), rounds, seconds, pin=pin)
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    lines = missed(outcomes)
    if json:
        print_json({"machine": machine(), "pinned": pin, "scenarios": [outcome.as_json() for outcome in outcomes]})
    elif markdown:
        print(markdown_of(outcomes, pin=pin))
    else:
        report(outcomes)
    if lines:
        errors.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
