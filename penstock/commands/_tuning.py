"""How a version runs on a server: its curve, its cap, what runs cost and the way its calls take; asked and printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from penstock.errors import PenstockError, Unavailable


@dataclass(frozen=True)
class Point:
    """A measured size: rows of a batch and what it took, in microseconds."""

    rows: int
    run_us: float
    row_us: float
    rows_per_s: float
    cap: bool


@dataclass(frozen=True)
class Cost:
    """What was learnt of one step, t(n) = fixed + row n in microseconds; `error` is the mean of relative errors."""

    fixed_us: float
    row_us: float
    error: float
    runs: int


@dataclass(frozen=True)
class Tuning:
    """How a version runs.

    Attributes:
        server: where.
        way: which way calls take, and why.
        model: what runs the model, and why.
        cap: rows of a run at most; 0 where there is no cap.
        curve: the measured sizes, ascending.
        whole: whether all sizes were measured that were wanted.
        reason: why nothing was measured.
        costs: lookup and run.
        too_late: calls refused since they could not have been answered in time.
        late_rows: rows that were run after their deadline had passed.
    """

    server: str
    way: str
    model: str
    cap: int
    curve: tuple[Point, ...]
    whole: bool
    reason: str
    costs: Mapping[str, Cost]
    too_late: int
    late_rows: int

    @classmethod
    def of(cls, server: str, parameters: Mapping[str, str]) -> Tuning:
        """From what ModelConfig tells; raises KeyError, TypeError or ValueError where that is nothing of ours."""
        names = ("curve", "cost", "cap", "deadlines")
        curve, costs, cap, deadlines = (json.loads(parameters[f"penstock.{name}"]) for name in names)
        points = [(int(rows), int(ns) or 1) for rows, ns in zip(curve["rows"], curve["ns"], strict=True)]
        return cls(
            server,
            parameters["penstock.way"],
            parameters["penstock.model"],
            int(cap),
            tuple(Point(n, ns / 1e3, ns / n / 1e3, n / ns * 1e9, n == cap) for n, ns in points),
            bool(curve["whole"]),
            str(curve["reason"]),
            {step: Cost(c["fixed_ns"] / 1e3, c["row_ns"] / 1e3, c["error"], c["runs"]) for step, c in costs.items()},
            int(deadlines["too_late"]),
            int(deadlines["late_rows"]),
        )

    def as_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def tuning_at(server: str, name: str, version: int, digest: str) -> Tuning:
    """How the server runs that version.

    Raises:
        PenstockError: nobody answers there, it is no Penstock, or it serves other bytes under that number.
    """
    from penstock.client import Client

    try:
        with Client(server) as client:
            told = client.config(name, str(version)).parameters
    except Unavailable as error:
        raise PenstockError(
            f"no server answers at {server}: start one (penstock serve), or say where it is with --server HOST:PORT "
            f"({error.details})"
        ) from error
    if told.get("penstock.digest") not in {digest, f"sha256:{digest}"}:
        raise PenstockError(
            f"{server} serves another {name} version {version} than this registry holds; name its registry: --registry"
        )
    try:
        return Tuning.of(server, told)
    except (KeyError, TypeError, ValueError) as error:
        raise PenstockError(f"{server} does not tell how {name} version {version} runs; is it an older one?") from error


def print_tuning(tuning: Tuning) -> None:
    """For people."""
    from penstock.commands._console import console, print_table

    def say(line: str, style: str = "") -> None:
        console.print(line, style=style or None, markup=False, highlight=False, soft_wrap=True)

    console.print()
    say(f"Serving at {tuning.server}", "bold")
    say(f"Way   {tuning.way}")
    say(f"Runs  {tuning.model}")
    say(f"Cap   {f'{tuning.cap:,} rows a run' if tuning.cap else 'none'}")
    for step, cost in tuning.costs.items():
        if cost.runs or cost.fixed_us or cost.row_us:
            learnt = f"{cost.fixed_us:,.1f} us + {cost.row_us:,.3f} us a row"
            say(f"Cost  {step}: {learnt}; predictions are {cost.error:.0%} off over {cost.runs:,} runs")
    say(f"Late  {tuning.too_late:,} calls refused early; {tuning.late_rows:,} rows run after their deadline")
    if tuning.reason:
        say(f"Curve was not measured: {tuning.reason}")
        return
    headers = ("Rows", "us a run", "us a row", "Rows/s", "")
    rows = [_row(point) for point in tuning.curve]
    print_table("", headers, rows, numeric=headers[:4])
    if not tuning.whole:
        say("Larger sizes were not measured: rows are large, or would not have fitted into warmup_ms.", "dim")


def _row(point: Point) -> tuple[str, ...]:
    numbers = (f"{point.run_us:,.1f}", f"{point.row_us:,.2f}", f"{point.rows_per_s:,.0f}")
    return (f"{point.rows:,}", *numbers, "cap" if point.cap else "")
