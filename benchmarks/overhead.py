"""What Penstock costs on top of gRPC itself, and what entity keys cost on top of vectors.

Two servers run as processes of their own: a bare grpc.aio echo (`echo.py`) and `penstock serve` on the grpcio transport
with a seeded logistic regression of 30 features. The same generator drives them in turn, A B A B …, one row a request,
at 64 callers and at 1. Compared is the server's CPU time for each request, which is steadier than requests per second;
the figure is the median of the ratios of neighbouring runs, since machines drift within seconds. Entity keys are
compared with vectors in the same way, on one server and one model; Redis' own CPU time is given apart.

Every answer is checked: the first ones by value, all by the server's own count of successes.

    python -m penstock.benchmarks.overhead [--rounds 5] [--seconds 3] [--pin] [--json | --markdown]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.benchmarks.generators import Generator, best
from penstock.benchmarks.processes import Server, redis_of
from penstock.benchmarks.seeded import check_values, publish
from penstock.benchmarks.sides import Run, Side, counter, machine, measure, median_run, penstock, requests_for
from penstock.client import Client
from penstock.commands._console import console, errors, print_json, print_table
from penstock.errors import PenstockError

LIMITS = {"penstock / echo": 1.35, "entity keys / vectors": 1.5}


@dataclass(frozen=True)
class Comparison:
    """Runs of two sides in turn; `ratio` is the median of second / first CPU per request over neighbouring runs."""

    name: str
    callers: int
    sides: tuple[str, str]
    runs: tuple[tuple[Run, Run], ...]

    @property
    def ratios(self) -> list[float]:
        return [second.cpu_us / first.cpu_us for first, second in self.runs]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def side(self, i: int) -> Run:
        """Medians over the runs of one side."""
        return median_run(pair[i] for pair in self.runs)

    def as_json(self) -> dict[str, Any]:
        sides = {name: asdict(self.side(i)) for i, name in enumerate(self.sides)}
        return {"name": self.name, "callers": self.callers, **sides, "ratio": self.ratio, "ratios": self.ratios}


def compare(
    name: str, first: Side, second: Side, generator: Generator, *, callers: int, rounds: int, seconds: float, cores: str
) -> Comparison:
    """Drive both sides in turn, `rounds` times `seconds` each, after short runs that find how many requests it is."""

    def drive(side: Side, requests: int) -> Run:
        return measure(side, generator, callers, requests, cores)

    sizes = {side.name: requests_for(seconds, side, generator, callers, cores) for side in (first, second)}
    runs = []
    for i in range(rounds):
        errors.print(f"{name}, {callers} callers: round {i + 1} of {rounds}", highlight=False)
        runs.append((drive(first, sizes[first.name]), drive(second, sizes[second.name])))
    return Comparison(name, callers, (first.name, second.name), tuple(runs))


# ---- The command -----------------------------------------------------------------------------------------------------


@contextmanager
def servers(folder: Path, cores: str) -> Iterator[tuple[Server, Server]]:
    """The echo and Penstock, started and ended."""
    command = [sys.executable, "-m", "penstock.benchmarks.echo"]
    with ExitStack() as stack:
        echo = stack.enter_context(Server("echo", command, folder / "echo.json", cores=cores))
        yield echo, stack.enter_context(penstock("penstock", folder, "grpcio", cores))


def measured(folder: Path, rounds: int, seconds: float, *, pin: bool) -> list[Comparison]:
    """Every comparison, in turn."""
    server_cores, load_cores = ("0", "1") if pin else ("", "")
    options: dict[str, Any] = {"rounds": rounds, "seconds": seconds, "cores": load_cores}
    seeded = publish(folder)
    with servers(folder, server_cores) as (echo, server), Client(server.address) as client:
        check_values(client, seeded)
        plain, joined, redis = seeded["plain"].bodies(), seeded["joined"], redis_of(folder / "store")
        first = Side("echo", echo, plain)
        second = Side("penstock", server, plain, counter(client, "plain"))
        vectors = Side("vectors", server, joined.bodies(), counter(client, "joined"))
        keys = Side("entity keys", server, joined.entity_bodies(), vectors.counted, redis)
        return [
            *(compare("penstock / echo", first, second, best(16), callers=callers, **options) for callers in (64, 1)),
            compare("entity keys / vectors", vectors, keys, best(64), callers=64, **options),
        ]


def report(comparisons: Sequence[Comparison], generator: str) -> None:
    """The table, and each ratio against its limit."""
    rows = []
    for comparison in comparisons:
        for i, name in enumerate(comparison.sides):
            run = comparison.side(i)
            redis = f"{run.redis_us:.1f}" if run.redis_us else ""
            ratio = f"{comparison.ratio:.2f}" if i else ""
            figures = (f"{run.rate:,.0f}", f"{run.cpu_us:.1f}", redis, f"{run.p50_us:.0f}", ratio)
            rows.append((comparison.callers, name, *figures))
    headers = ("callers", "server", "req/s", "CPU µs/req", "Redis µs/req", "p50 µs", "CPU ratio")
    print_table(f"Overhead (load: {generator})", headers, rows, numeric=(headers[0], *headers[2:]))
    for comparison in comparisons:
        spread = f"{min(comparison.ratios):.2f} to {max(comparison.ratios):.2f}"
        limit = LIMITS[comparison.name] if comparison.callers > 1 else None
        verdict = "" if limit is None else f", limit {limit}: {'held' if comparison.ratio <= limit else 'EXCEEDED'}"
        console.print(
            f"{comparison.name}, {comparison.callers} callers: {comparison.ratio:.2f} ({spread}){verdict}",
            highlight=False,
        )


def print_markdown(comparisons: Sequence[Comparison], generator: str, *, pin: bool) -> None:
    """The table of the README."""
    where = "server on one core, load on the other" if pin else "server and load on the same cores"
    print(f"Median of {len(comparisons[0].runs)} rounds, {generator}, {where}; {machine()}.\n")
    print("| what | in flight | CPU µs a call | against | CPU µs a call | ratio (range) |\n|---|---|---|---|---|---|")
    for comparison in comparisons:
        first, second = comparison.sides
        before, after = comparison.side(0).cpu_us, comparison.side(1).cpu_us
        spread = f"{min(comparison.ratios):.2f} to {max(comparison.ratios):.2f}"
        cells = (second, comparison.callers, f"{after:.0f}", first, f"{before:.0f}")
        print("|", *(f"{cell} |" for cell in cells), f"**{comparison.ratio:.2f}** ({spread}) |")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 3.0,
    pin: Annotated[bool, typer.Option(help="Servers on core 0, load on core 1.")] = False,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
    markdown: Annotated[bool, typer.Option(help="The table of the README.")] = False,
) -> None:
    """Measure CPU for each request against a bare grpc.aio echo, and entity keys against vectors."""
    generator = best(1).name
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            comparisons = measured(Path(name), rounds, seconds, pin=pin)
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    if json:
        print_json({"generator": generator, "pinned": pin, "comparisons": [c.as_json() for c in comparisons]})
    elif markdown:
        print_markdown(comparisons, generator, pin=pin)
    else:
        report(comparisons, generator)


if __name__ == "__main__":
    typer.run(main)
