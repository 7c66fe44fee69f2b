"""Two runs of the suite held against each other: what changed beyond the noise, and whether that is a regression.

Runs an hour apart are not comparable as they stand, since machines drift by half. What is not ours stands still,
however: the median change of all sides that are not Penstock is the machine's own, and is taken out. Then a figure of
Penstock's has changed if its median moved by more than its limit (5 %, p99 by 20 %) and the ranges of its rounds lie
apart. A change for the worse is a regression.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock.benchmarks.results import OURS, Cell, NoResults, Results


@dataclass(frozen=True)
class Figure:
    """What is compared: a field of Run, its name, whether more is better, and which change is none."""

    field: str
    name: str
    more_is_better: bool
    limit: float


FIGURES = (
    Figure("rate", "req/s", more_is_better=True, limit=0.05),
    Figure("p50_us", "p50", more_is_better=False, limit=0.05),
    Figure("p99_us", "p99", more_is_better=False, limit=0.20),
    Figure("cpu_us", "CPU a request", more_is_better=False, limit=0.05),
)


@dataclass(frozen=True)
class Change:
    """One figure of one side in one cell, now over then, the machine's own change taken out.

    Attributes:
        ratio: of the medians.
        least, most: what it may have been, by the ranges of both runs' rounds.
    """

    cell: Cell
    side: str
    figure: Figure
    ratio: float
    least: float
    most: float

    @property
    def is_real(self) -> bool:
        """Beyond the limit, and whatever round one takes."""
        beyond = self.ratio > 1 + self.figure.limit or self.ratio < 1 / (1 + self.figure.limit)
        return beyond and not self.least <= 1 <= self.most

    @property
    def is_worse(self) -> bool:
        return (self.ratio < 1) is self.figure.more_is_better

    @property
    def is_regression(self) -> bool:
        return self.is_real and self.is_worse and self.side in OURS

    def __str__(self) -> str:
        judged = "worse" if self.is_worse else "better"
        spread = f"{self.least:.2f} to {self.most:.2f}"
        return f"{self.cell}, {self.side}: {self.figure.name} {self.ratio:.2f} times as before ({spread}), {judged}"


def changes(before: Results, now: Results) -> list[Change]:
    """Every figure that both have; raises NoResults where they have none in common."""
    found = [change for figure in FIGURES for change in _of_figure(before, now, figure)]
    if not found:
        raise NoResults("the two results have no cell of Penstock's in common")
    return found


def machine_change(before: Results, now: Results, figure: Figure) -> float:
    """Now over then, the median over all cells of sides that are not ours; 1 where there are none."""
    ratios = [
        statistics.median(new) / statistics.median(old)
        for _, side, old, new in _pairs(before, now, figure)
        if side not in OURS
    ]
    return statistics.median(ratios) if ratios else 1.0


def _of_figure(before: Results, now: Results, figure: Figure) -> Iterator[Change]:
    scale = machine_change(before, now, figure)
    for cell, side, old, new in _pairs(before, now, figure):
        if side in OURS:
            ratio = statistics.median(new) / statistics.median(old) / scale
            yield Change(cell, side, figure, ratio, min(new) / max(old) / scale, max(new) / min(old) / scale)


def _pairs(
    before: Results, now: Results, figure: Figure
) -> Iterator[tuple[Cell, str, Sequence[float], Sequence[float]]]:
    """Values of each round then and now, of what both have."""
    for cell, sides in now.runs.items():
        for side, runs in sides.items():
            old = [float(getattr(run, figure.field)) for run in before.runs.get(cell, {}).get(side, ())]
            new = [float(getattr(run, figure.field)) for run in runs]
            if old and new and min(old) > 0 and min(new) > 0:
                yield cell, side, old, new


def report(before: Results, now: Results) -> tuple[list[str], bool]:
    """What to print, and whether something regressed."""
    found = changes(before, now)
    real = [change for change in found if change.is_real]
    lines = [f"then {before.made}, {before.machine}", f"now  {now.made}, {now.machine}"]
    drift = ", ".join(f"{figure.name} {machine_change(before, now, figure):.2f}" for figure in FIGURES)
    lines.append(f"the machine's own change, by the sides that are not ours (taken out): {drift}")
    lines += [str(change) for change in sorted(real, key=lambda change: not change.is_regression)]
    for figure in FIGURES:
        ratios = [change.ratio for change in found if change.figure is figure]
        lines.append(f"{figure.name}: {statistics.geometric_mean(ratios):.3f} over {len(ratios)} cells")
    worse = [change for change in real if change.is_regression]
    lines.append(f"{len(found)} figures, {len(real)} changed, {len(worse)} of them for the worse")
    return lines, bool(worse)
