"""Results in Markdown: the table of the README, and every cell for the record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from penstock.benchmarks.cells import Kind
from penstock.benchmarks.results import BASE, Cell, NoResults, Results
from penstock.benchmarks.sides import Run

BEGIN, END = "<!-- scripts/bench --readme: from here -->", "<!-- scripts/bench --readme: to here -->"
MODELS = {
    "plain": "logistic regression",
    "trees": "200 trees",
    "mlp": "network 2 x 256",
    "joined": "logistic regression",
}
NONE = "–"  # noqa: RUF001 - an en dash, as tables have it


def name_of(kind: Kind) -> str:
    """A kind of request in words."""
    rows = "1 row" if kind.rows == 1 else f"{kind.rows} rows"
    return f"{MODELS.get(kind.model, kind.model)}, {rows} by {kind.by}"


def summary(results: Results) -> str:
    """What the README shows: one row for each side of each kind of request, and the memory."""
    callers = results.callers
    few = sorted({callers[0], callers[len(callers) // 2], callers[-1]})
    some = " / ".join(map(str, few))
    headers = ["request", "server", *(f"req/s, c={count}" for count in callers)]
    headers += [f"{figure} at c={some}" for figure in ("p50 µs", "p99 µs", "CPU µs")]
    headers += [f"native is, c={some}"]
    body = []
    for kind in results.kinds:
        for i, side in enumerate(results.sides(kind)):
            runs = {count: results.median(Cell(kind, count), side) for count in callers}
            row = [name_of(kind) if not i else "", results.titles[side], *(_rate(run) for run in runs.values())]
            row += [" / ".join(_figure(runs[c], figure) for c in few) for figure in ("p50_us", "p99_us", "cpu_us")]
            ratios = " / ".join(_times(results.ahead(Cell(kind, count), side)) for count in few)
            row.append(ratios if side != BASE else "")
            body.append(row)
    lines = [*_about(results), "", *_markdown(headers, body, texts=2)]
    memory = [[results.titles[side], f"{size / 2**20:,.0f}"] for side, size in results.resident.items()]
    lines += ["", *_markdown(["server", "resident MiB, after the run"], memory, texts=1)]
    return "\n".join(lines)


def everything(results: Results) -> str:
    """Every cell."""
    headers = ["request", "c", "server", "req/s", "range", "p50 µs", "p99 µs", "CPU µs", "Redis µs", "native is"]
    body = []
    for cell, sides in results.runs.items():
        for side, runs in sides.items():
            median = results.median(cell, side)
            rates = [run.rate for run in runs]
            if median is None:
                continue
            row = [name_of(cell.kind), str(cell.callers), results.titles[side], _rate(median)]
            row += [f"{min(rates):,.0f} to {max(rates):,.0f}", _number(median.p50_us), _number(median.p99_us)]
            row += [_number(median.cpu_us), _number(median.redis_us or None)]
            body.append([*row, _times(results.ahead(cell, side)) if side != BASE else ""])
    return "\n".join([*_about(results), "", *_markdown(headers, body, texts=3)])


def replaced(readme: str, block: str) -> str:
    """The README with `block` between its markers; raises NoResults where it has none."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise NoResults(f"README.md has no lines {BEGIN!r} and {END!r} to put the table between")
    return f"{before}{begin}\n{block.strip()}\n{end}{after}"


def update(path: Path, results: Results) -> None:
    """Put the summary into the README."""
    path.write_text(replaced(path.read_text(), summary(results)))


def _about(results: Results) -> Iterator[str]:
    versions = ", ".join(f"{name} {number}" for name, number in results.versions.items())
    yield f"{results.made[:10]}, {results.machine}; {versions}."
    yield f"Medians of {results.rounds} rounds of {results.seconds:g} s, servers and load on the same cores."
    for what, why in results.left_out.items():
        yield f"Left out: {results.titles.get(what, what)}: {why}"


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int) -> Iterator[str]:
    """A table; the first `texts` columns are aligned left."""
    yield f"| {' | '.join(headers)} |"
    yield f"|{'---|' * texts}{'---:|' * (len(headers) - texts)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _rate(run: Run | None) -> str:
    return NONE if run is None else f"{run.rate:,.0f}"


def _figure(run: Run | None, name: str) -> str:
    return NONE if run is None else _number(getattr(run, name))


def _number(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _times(ratio: float | None) -> str:
    return NONE if ratio is None else f"{ratio:.0f} x" if ratio >= 10 else f"{ratio:.2g} x"
