"""What `penstock bench` does once its options are understood: measure with words on the way, write files, report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from penstock.bench import perf_csv, pictures, plots, report
from penstock.bench.capacity import Capacity, Promise, find
from penstock.bench.drive import probe
from penstock.bench.levels import Progress, Statistics, Subject, measure
from penstock.bench.shapes import Shape, Timing
from penstock.bench.spans import INTERRUPTED, Level
from penstock.bench.target import BenchFailed, Target
from penstock.bench.work import expected, learn, make
from penstock.client import Client
from penstock.commands._console import console, errors, print_json, print_table
from penstock.errors import PenstockError


class Files(NamedTuple):
    """Where results go beside the terminal; `json` is for stdout instead of the table."""

    csv: Path | None
    plot: Path | None
    json: bool


# ---- Measuring -------------------------------------------------------------------------------------------------------


def subject_of(client: Client, target: Target, name: str, version: str, *asked: Any) -> Subject:
    """What is sent to a model and what comes back; `asked` as `work.make` takes it. It sends the first request."""
    work = make(learn(client, name, version), version, *asked)
    return Subject(target, work, expected(work, probe(target, work)), _statistics(client, name, version))


def levels_of(subject: Subject, shapes: Sequence[Shape], timing: Timing) -> list[Level]:
    """Every level in order, until one ends early; none of it where Ctrl-C came before anything was measured."""
    levels: list[Level] = []
    for shape in shapes:
        with _progress(report.name_of(shape)) as progress:
            level = measure(subject, shape, timing, progress)
        if level.ended == INTERRUPTED and not level.span.answered:
            break
        levels.append(level)
        if not level.latencies.total:
            raise BenchFailed(level.ended)
        _say(report.name_of(shape), level)
        if level.ended:
            break
    return levels


def capacity_of(subject: Subject, promise: Promise, shape: Shape, timing: Timing) -> Capacity:
    """Search, with a line for each rate that was tried."""

    def tried(shape: Shape, level: Level, share: float) -> None:
        _say(f"{report.name_of(shape)}: {share:.2%} in time", level)

    return find(subject, promise, shape, timing, lambda shape: _progress(report.name_of(shape)), tried)


def _statistics(client: Client, name: str, version: str) -> Statistics:
    """Reads what the server counts of a model, all its versions together; nothing where it does not tell."""

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
    with errors.status(f"{label}: connecting") as status:

        def show(what: str, rate: float, mean_us: float) -> None:
            mean = f", mean {mean_us:,.0f} µs" if mean_us == mean_us else ""  # noqa: PLR0124 - NaN
            status.update(f"{label}: {what}, {rate:,.0f} req/s{mean}")

        yield show


def _say(label: str, level: Level) -> None:
    p50, p99 = (value / 1e3 for value in level.latencies.percentiles((50, 99)))
    line = f"{label}: {level.span.rate:,.0f} req/s, p50 {p50:,.0f} µs, p99 {p99:,.0f} µs"
    errors.print(line, markup=False, highlight=False)


# ---- Reporting -------------------------------------------------------------------------------------------------------


def report_levels(subject: Subject, levels: Sequence[Level], seed: int, files: Files) -> None:
    """Write the files that were asked for, and print the table or JSON."""
    _write(subject, levels, files, list(report.remarks(subject.work, levels)))
    if files.json:
        print_json(report.as_json(subject.target, subject.work, levels, seed))
        return
    _print_table(subject, levels)
    for remark in report.remarks(subject.work, levels):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)


def report_capacity(subject: Subject, found: Capacity, seed: int, files: Files) -> None:
    """The same for a search: its probes in the order of their rates, and what came of it."""
    levels = sorted(found.levels, key=lambda level: level.asked_rate)
    said = list(report.capacity_remarks(found))
    _write(subject, levels, files, said)
    if files.json:
        told = report.as_json(subject.target, subject.work, levels, seed)
        print_json({"capacity": report.capacity_json(found), **told})
        return
    if levels:
        _print_table(subject, levels)
    for remark in said:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)


def _write(subject: Subject, levels: Sequence[Level], files: Files, remarks: Sequence[str]) -> None:
    if files.csv is not None and levels:
        perf_csv.write(files.csv, levels)
    if files.plot is None or not levels:
        return
    heading = report.title(subject.target, subject.work, levels)
    if files.plot.suffix.lower() == ".png":
        pictures.write(files.plot, heading, levels)
    else:
        files.plot.write_text(plots.page(heading, levels, remarks))


def _print_table(subject: Subject, levels: Sequence[Level]) -> None:
    headers, rows = report.table(subject.work, levels)
    print_table(report.title(subject.target, subject.work, levels), headers, rows, numeric=headers)
