"""Lines to hold: a figure of one side, alone or over another side's of the same round, and its limit.

Ratios are taken within a round, where the sides ran in turn, and their median is judged: machines drift within seconds,
and neighbours drift together. A figure alone is judged by its median.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from penstock.benchmarks.sides import Run, median_run
from penstock.commands._console import errors

FIGURES = {"rate": "requests/s", "cpu_us": "CPU µs a request", "p50_us": "p50", "p90_us": "p90", "p99_us": "p99"}
FIGURES |= {"on_time": "share sent within 1 ms"}


@dataclass(frozen=True)
class Line:
    """`figure` (a field of Run) of `side`, over that of `against` if given, is `at_least`, `at_most` or between."""

    side: str
    figure: str
    against: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def name(self) -> str:
        over = f" / {self.against}" if self.against else ""
        return f"{self.side}{over}, {FIGURES[self.figure]}"

    @property
    def limit(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        return f"at least {self.at_least:.4g}" if self.at_least is not None else f"at most {self.at_most:.4g}"

    def values(self, rounds: Sequence[Mapping[str, Run]]) -> list[float]:
        """The figure or ratio of each round."""
        own = [float(getattr(runs[self.side], self.figure)) for runs in rounds]
        if not self.against:
            return own
        others = (float(getattr(runs[self.against], self.figure)) for runs in rounds)
        return [value / other for value, other in zip(own, others, strict=True)]

    def holds(self, value: float) -> bool:
        above = self.at_least is None or value >= self.at_least
        return above and (self.at_most is None or value <= self.at_most)


@dataclass(frozen=True)
class Verdict:
    """A line and what it came to: the median, and the range over rounds."""

    line: Line
    value: float
    least: float
    most: float

    @property
    def held(self) -> bool:
        return self.line.holds(self.value)

    @property
    def spread(self) -> str:
        return f"{self.least:.3g} to {self.most:.3g}"

    def __str__(self) -> str:
        judged = "held" if self.held else "MISSED"
        return f"{self.line.name}: {self.value:.3g} ({self.spread}), {self.line.limit}: {judged}"


@dataclass(frozen=True)
class Outcome:
    """What the rounds of one scenario came to; each round holds one run of every side."""

    name: str
    rounds: Sequence[Mapping[str, Run]]
    lines: Sequence[Line]

    @property
    def sides(self) -> dict[str, Run]:
        """The medians of each side."""
        return {name: median_run(runs[name] for runs in self.rounds) for name in self.rounds[0]}

    @property
    def verdicts(self) -> list[Verdict]:
        judged = [(line, line.values(self.rounds)) for line in self.lines]
        return [Verdict(line, statistics.median(values), min(values), max(values)) for line, values in judged]

    def as_json(self) -> dict[str, Any]:
        rounds = [{name: asdict(run) for name, run in runs.items()} for runs in self.rounds]
        verdicts = [
            {"name": v.line.name, "value": v.value, "range": [v.least, v.most], "limit": v.line.limit, "held": v.held}
            for v in self.verdicts
        ]
        return {"name": self.name, "rounds": rounds, "lines": verdicts}


Judged = dict[str, Any]
"""A line and what it came to, as plain data: name, value, range over rounds, limit, and whether it is held."""


def judged(
    name: str, values: Sequence[float], *, at_least: float | None = None, at_most: float | None = None
) -> Judged:
    """The median of what some rounds gave, held against a limit."""
    line = Line(name, "rate", at_least=at_least, at_most=at_most)
    value = statistics.median(values)
    spread = [_short(min(values)), _short(max(values))] if len(values) > 1 else []
    return {"name": name, "value": _short(value), "range": spread, "limit": line.limit, "held": line.holds(value)}


def print_judged(lines: Sequence[Judged]) -> None:
    """What was held or missed, on stderr."""
    for line in lines:
        spread = f" ({line['range'][0]} to {line['range'][1]})" if line["range"] else ""
        held = "held" if line["held"] else "MISSED"
        text = f"{line['name']}: {line['value']}{spread}, {line['limit']}: {held}"
        errors.print(text, markup=False, highlight=False, soft_wrap=True)


def markdown_of(lines: Sequence[Judged]) -> str:
    """The same as a table of the README."""
    table = ["| figure | median (range) | limit |", "|---|---|---|"]
    for line in lines:
        spread = f" ({line['range'][0]:,} to {line['range'][1]:,})" if line["range"] else ""
        limit = f"{line['limit']}{'' if line['held'] else ', **missed**'}"
        table.append(f"| {line['name']} | **{line['value']:,}**{spread} | {limit} |")
    return "\n".join(table)


def _short(value: float) -> float:
    """Three digits that count, and whole numbers whole."""
    return round(value) if abs(value) >= 100 else float(f"{value:.3g}")
