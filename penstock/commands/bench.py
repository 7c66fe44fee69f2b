"""`penstock bench`: measure any Open Inference Protocol server over gRPC, by a closed or an open loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from penstock.bench.drive import Progress, Shape, Timing
    from penstock.bench.spans import Level
    from penstock.bench.target import Target
    from penstock.bench.work import Work
    from penstock.client import Client

_INTERRUPTED = 130


def bench(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server; unix:/PATH works too.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model to ask.")],
    version: Annotated[str, typer.Option(help="Its version or alias; the server chooses without.")] = "",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each request.")] = 1,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Closed loop: so many callers, one level after the other; 1,8,32 if not said."
        ),
    ] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="R,R,...", help="Open loop instead: requests a second, whatever comes back.")
    ] = None,
    arrivals: Annotated[str, typer.Option(metavar="constant|poisson", help="Of an open loop.")] = "constant",
    duration: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="SECONDS", help="Length of a level; until 3 windows agree if not said."),
    ] = None,
    window: Annotated[float, typer.Option(min=0.05, metavar="SECONDS", help="Of one window.")] = 2.0,
    warmup: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Before anything counts.")] = 1.0,
    input: Annotated[  # noqa: A002 - the option's name
        Path | None,
        typer.Option(metavar="FILE", help="Rows to send: .npz, .json (perf_analyzer's), .csv or .parquet."),
    ] = None,
    entities: Annotated[Path | None, typer.Option(metavar="FILE", help="Entity ids to send, one on each line.")] = None,
    connections: Annotated[int, typer.Option(min=0, help="In all; 0: one for each caller, up to 4.")] = 0,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Of the generator.")] = 1,
    deadline: Annotated[float, typer.Option(min=0.0, metavar="MS", help="Deadline sent with each call; 0: none.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="To give a call up after.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of made-up rows and Poisson arrivals.")] = 7,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write perf_analyzer's CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write plots of latency.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure a server of the Open Inference Protocol over gRPC: throughput, latency to p99.99, errors.

    A closed loop keeps so many calls in flight, each caller asking again once it is answered: it finds throughput, but
    waits with a server that stalls. An open loop sends on time whatever the server does and counts latency from when a
    request was due: it finds what users wait at that load.

    Rows are made up by the model's metadata, all different, unless --input or --entities gives them. Every answer is
    held against the first one's outputs and shapes.

    Example: penstock bench localhost:8001 --model fraud --concurrency 1,8,32

    Example: penstock bench localhost:8001 --model fraud --rate 20000 --arrivals poisson --duration 30 --plot fraud.html

    Example: penstock bench localhost:8001 --model fraud --rows 64 --input rows.csv --csv results.csv --json
    """
    from penstock.bench.drive import Timing
    from penstock.bench.rows import read, read_ids
    from penstock.bench.target import BenchFailed, Target
    from penstock.client import Client

    if input is not None and entities is not None:
        raise BenchFailed("give either --input or --entities")
    _check_outputs(csv, plot)
    shapes = _shapes(concurrency, rate, arrivals, seed, connections, threads, deadline, timeout)
    columns = read(input) if input is not None else None
    ids = read_ids(entities) if entities is not None else None
    timing = Timing(warmup, window, duration)
    target = Target.reach(address)
    with Client(address if target.port == 0 else f"{_bracketed(target.host)}:{target.port}") as client:
        levels, work, interrupted = _measured(
            client, target, (model, version, rows, columns, ids, seed), shapes, timing
        )
    if levels:
        _report(target, work, levels, csv, plot, seed if as_json else None)
    if interrupted:
        raise typer.Exit(_INTERRUPTED)
    if levels and levels[-1].ended:
        raise BenchFailed(levels[-1].ended)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _check_outputs(csv: Path | None, plot: Path | None) -> None:
    """What would fail after the measurement fails before it."""
    from penstock.bench.target import BenchFailed

    if plot is not None and plot.suffix.lower() not in {".html", ".htm"}:
        raise BenchFailed(f"--plot: plots are written as HTML, so the name must end in .html, not {plot.name!r}")
    for option, path in (("--csv", csv), ("--plot", plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise BenchFailed(f"{option}: there is no folder {path.absolute().parent}")


def _shapes(
    concurrency: str | None,
    rate: str | None,
    arrivals: str,
    seed: int,
    connections: int,
    threads: int,
    deadline: float,
    timeout: float,
) -> list[Shape]:
    """The levels that the options ask for."""
    from penstock.bench.drive import Shape
    from penstock.bench.target import BenchFailed

    if concurrency and rate:
        raise BenchFailed("give either --concurrency, for a closed loop, or --rate, for an open one")
    if arrivals not in {"constant", "poisson"}:
        raise BenchFailed(f"--arrivals is constant or poisson, not {arrivals!r}")
    common: dict[str, Any] = {"connections": connections, "threads": threads, "deadline_ms": deadline}
    common |= {"timeout_s": timeout, "seed": seed}
    if rate:
        rates = _numbers("--rate", rate, 0.1, 10_000_000)
        return [Shape(rate=number, arrivals=arrivals, **common) for number in rates]
    callers = _numbers("--concurrency", concurrency or "1,8,32", 1, 1_000_000)
    return [Shape(callers=int(number), **common) for number in callers]


def _numbers(option: str, text: str, least: float, most: float) -> list[float]:
    from penstock.bench.target import BenchFailed

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    whole = option == "--rate" or all(number.is_integer() for number in numbers)
    if not numbers or not whole or not all(least <= number <= most for number in numbers):
        raise BenchFailed(f"{option} is a list such as 1,8,32, of numbers from {least:g} to {most:,.0f}; not {text!r}")
    return numbers


def _measured(
    client: Client, target: Target, asked: tuple[Any, ...], shapes: Sequence[Shape], timing: Timing
) -> tuple[list[Level], Work, bool]:
    """Every level, in order; whether Ctrl-C ended them."""
    from penstock.bench.drive import measure, probe
    from penstock.bench.report import name_of
    from penstock.bench.work import expected, learn, make

    name, version, *rest = asked
    work = make(learn(client, name, version), version, *rest)
    outputs = expected(work, probe(target, work))
    levels: list[Level] = []
    for shape in shapes:
        label = f"{shape.callers} callers" if shape.callers else f"{shape.rate:,g} req/s"
        with _progress(label) as progress:
            level, interrupted = measure(
                target, work, outputs, shape, timing, progress, _statistics(client, name, version)
            )
        if interrupted and not level.span.answered:
            return levels, work, True
        levels.append(level)
        _say_level(name_of(level), level)
        if interrupted or level.ended:
            return levels, work, interrupted
    return levels, work, False


def _statistics(client: Client, name: str, version: str) -> Callable[[], dict[str, tuple[int, int]]]:
    """Reads what the server counts of a model, all its versions together; nothing where it does not tell."""
    from penstock.errors import PenstockError

    def read() -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        try:
            for entry in client.statistics(name, version if version.isdigit() else ""):
                for phase, spent in entry.phases.items():
                    count, ns = found.get(phase, (0, 0))
                    found[phase] = (count + spent.count, ns + spent.ns)
        except PenstockError:
            return {}
        return found

    return read


@contextmanager
def _progress(label: str) -> Iterator[Progress]:
    """A line on stderr that says what goes on; only on a terminal."""
    from penstock.commands._console import errors

    with errors.status(f"{label}: connecting") as status:

        def show(what: str, rate: float, mean_us: float) -> None:
            mean = f", mean {mean_us:,.0f} µs" if mean_us == mean_us else ""  # noqa: PLR0124 - NaN
            status.update(f"{label}: {what}, {rate:,.0f} req/s{mean}")

        yield show


def _say_level(label: str, level: Level) -> None:
    from penstock.commands._console import errors

    p50, p99 = (value / 1e3 for value in level.latencies.percentiles((50, 99)))
    line = f"{label}: {level.span.rate:,.0f} req/s, p50 {p50:,.0f} µs, p99 {p99:,.0f} µs"
    errors.print(line, markup=False, highlight=False)


def _report(
    target: Target, work: Work, levels: Sequence[Level], csv: Path | None, plot: Path | None, json_seed: int | None
) -> None:
    """Write the files that were asked for and print the table, or JSON where `json_seed` is given."""
    from penstock.bench import perf_csv, plots, report
    from penstock.commands._console import console, print_json, print_table

    heading, remarks = report.title(target, work, levels), list(report.remarks(work, levels))
    if csv is not None:
        perf_csv.write(csv, levels)
    if plot is not None:
        plot.write_text(plots.page(heading, levels, remarks))
    if json_seed is not None:
        print_json(report.as_json(target, work, levels, json_seed))
        return
    headers, rows = report.table(work, levels)
    print_table(heading, headers, rows, numeric=headers)
    for remark in remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
