"""`penstock bench`: measure any Open Inference Protocol server over gRPC, by a closed or an open loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    arrivals: Annotated[
        str | None,
        typer.Option(metavar="constant|poisson", help="Of an open loop; constant if not said, poisson for --capacity."),
    ] = None,
    capacity: Annotated[
        bool, typer.Option("--capacity", help="Find the highest rate at which --p99 holds, and what ends it.")
    ] = False,
    p99: Annotated[
        float, typer.Option(min=0.01, metavar="MS", help="For --capacity: 99 % are answered within it.")
    ] = 10,
    precision: Annotated[
        float, typer.Option(min=0.5, max=50, metavar="PERCENT", help="For --capacity: how close the rate is to it.")
    ] = 5.0,
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
    realtime: Annotated[
        bool, typer.Option(help="Open loop: raise the generator's priority, where allowed, so that it sends on time.")
    ] = True,
    deadline: Annotated[float, typer.Option(min=0.0, metavar="MS", help="Deadline sent with each call; 0: none.")] = 0,
    timeout: Annotated[float, typer.Option(min=0.01, metavar="SECONDS", help="To give a call up after.")] = 30.0,
    tls: Annotated[bool, typer.Option("--tls", help="Connect over TLS; the three below imply it.")] = False,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="CAs to trust; else the system's.")] = None,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="The client's own, for mutual TLS.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="The key of --certificate.")] = None,
    seed: Annotated[int, typer.Option(help="Of made-up rows and Poisson arrivals.")] = 7,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write perf_analyzer's CSV.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write plots of latency: .html or .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Measure a server of the Open Inference Protocol over gRPC: throughput, latency to p99.99, errors.

    A closed loop keeps so many calls in flight, each caller asking again once it is answered: it finds throughput, but
    waits with a server that stalls. An open loop sends on time whatever the server does and counts latency from when a
    request was due: it finds what users wait at that load. --capacity searches for the highest rate at which 99 % of
    the calls are answered within --p99, and says which resource ends it.

    Rows are made up by the model's metadata, all different, unless --input or --entities gives them. Every answer is
    held against the first one's outputs and shapes.

    Example: penstock bench localhost:8001 --model fraud --concurrency 1,8,32

    Example: penstock bench localhost:8001 --model fraud --rate 20000 --arrivals poisson --duration 30 --plot fraud.html

    Example: penstock bench localhost:8001 --model fraud --capacity --p99 5

    Example: penstock bench localhost:8001 --model fraud --rows 64 --input rows.csv --csv results.csv --json
    """
    from penstock.bench import options
    from penstock.bench.capacity import Promise
    from penstock.bench.rows import read, read_ids
    from penstock.bench.shapes import Shape, Timing
    from penstock.bench.spans import INTERRUPTED
    from penstock.bench.target import BenchFailed, Target
    from penstock.bench.trust import Trust
    from penstock.client import Client
    from penstock.commands import _bench

    if input is not None and entities is not None:
        raise BenchFailed("give either --input or --entities")
    files = _bench.Files(csv, plot, as_json)
    options.check_files(csv, plot)
    common = Shape(
        seed=seed,
        connections=connections,
        threads=threads,
        deadline_ms=deadline,
        timeout_s=timeout,
        realtime=realtime,
    )
    shapes = options.shapes(common, concurrency, rate, arrivals, capacity=capacity)
    columns = read(input) if input is not None else None
    ids = read_ids(entities) if entities is not None else None
    timing = Timing(warmup, window, duration)
    tls = tls or ca is not None or certificate is not None or key is not None
    target = Target.reach(address, Trust(ca, certificate, key) if tls else None)
    with Client(target.grpc, tls=target.trust.client(target.name) if target.trust else False) as client:
        subject = _bench.subject_of(client, target, model, version, rows, columns, ids, seed)
        if capacity:
            found = _bench.capacity_of(subject, Promise(p99, precision / 100), shapes[0], timing)
        else:
            levels = _bench.levels_of(subject, shapes, timing)
    if capacity:
        _bench.report_capacity(subject, found, seed, files)
        interrupted, ended = not found.complete, ""
    else:
        if levels:
            _bench.report_levels(subject, levels, seed, files)
        ended = levels[-1].ended if levels else INTERRUPTED
        interrupted = ended == INTERRUPTED
    if interrupted:
        raise typer.Exit(_INTERRUPTED)
    if ended:
        raise BenchFailed(ended)
