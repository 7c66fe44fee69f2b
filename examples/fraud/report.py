"""What the demo prints: steps with their times, progress bars, and the summary, for people or as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from penstock.answers import FeatureDrift, ModelDrift
from penstock.commands._console import console as stdout
from penstock.commands._console import errors, print_json, print_table
from penstock.commands.drift import show
from penstock.examples.fraud.decisions import Outcome, real_probability
from penstock.examples.fraud.traffic import IN_FLIGHT, Answers, Look
from penstock.features.offline.check import Report

TOLERANCE = 1e-5


class Story:
    """Tells what happens while it happens: on stdout, or on stderr where stdout is for JSON."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self.console: Console = errors if as_json else stdout

    @contextmanager
    def step(self, title: str) -> Iterator[Callable[[str], None]]:
        """A step, timed; call what is given to say what came of it."""
        found: list[str] = []
        started = time.monotonic()
        with self.console.status(f"{title} ..."):
            yield found.append
        self._done(title, started, found)

    @contextmanager
    def calls(self, title: str, count: int) -> Iterator[Callable[[], None]]:
        """A step of `count` calls, with a bar; call what is given after each."""
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        started = time.monotonic()
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("waiting for a new drift window", total=count)

            def tick() -> None:
                bar.advance(task)
                if bar.tasks[0].completed == 1:
                    bar.update(task, description=title)
                if bar.finished:
                    bar.update(task, description="waiting for the drift window to close")

            yield tick
        self._done(title, started, [])

    def closer_look(self, looks: Sequence[Look], fraud_share: float) -> None:
        """Print where each value of a few calls came from, and what was decided."""
        table = Table(title="Two calls seen closely: what came from where", title_justify="left", header_style="bold")
        table.add_column("Feature")
        for look in looks:
            table.add_column(look.customer, justify="right")
            table.add_column("from")
        for place, name in enumerate(looks[0].columns):
            table.add_row(name, *(cell for look in looks for cell in (plain(look.values[place]), look.sources[place])))
        table.add_section()
        real = [float(real_probability(np.array(look.fraud), fraud_share)) for look in looks]
        table.add_row(
            "score, on balanced classes", *(cell for look in looks for cell in (f"{look.fraud:.2%}", "model"))
        )
        table.add_row("probability of fraud", *(cell for p in real for cell in (f"{100 * p:.2g}%", "")))
        self.console.print(table)

    def drift(self, drift: ModelDrift) -> None:
        """Print the drift table, and which column moved most."""
        if not self.as_json:
            show(drift)
        most = moved_most(drift)
        self.console.print(f"[bold]{most.name}[/] moved most: PSI {most.psi:.2f}, KS {most.ks:.2f}.\n", highlight=False)

    def say(self, line: str) -> None:
        """A line of plain text under the last step."""
        self.console.print(f"          {line}", markup=False, highlight=False)

    def result(self, summary: Summary, took: float) -> None:
        """Print the summary, and the last line."""
        summary.print_json() if self.as_json else summary.show()
        self.console.print(f"{took:.0f} s in all. Server, Redis and scratch folder are gone.", highlight=False)
        self.console.print("The same by hand, in ten commands: docs/quickstart.md", highlight=False)

    def _done(self, title: str, started: float, found: list[str]) -> None:
        seconds = time.monotonic() - started
        self.console.print(f"[green]✓[/] [dim]{seconds:5.1f} s[/]  {title}", highlight=False)
        for line in found:
            self.say(line)


@dataclass(frozen=True)
class Parity:
    """How the served answers compare with scikit-learn's."""

    compared: int
    worst: float

    @property
    def holds(self) -> bool:
        """Whether every answer is within the tolerance; NaN is not."""
        return self.worst <= TOLERANCE

    @classmethod
    def of(cls, answers: Answers, expected: np.ndarray[Any, np.dtype[np.float64]]) -> Parity:
        """Compare every probability."""
        return cls(len(expected), float(np.abs(answers.probabilities - expected).max()))

    def __add__(self, other: Parity) -> Parity:
        return Parity(self.compared + other.compared, float(np.maximum(self.worst, other.worst)))


@dataclass(frozen=True)
class Summary:
    """What the demo found."""

    customers: int
    answers: Answers
    alone: Answers
    mean_batch: float
    parity: Parity
    outcome: Outcome
    before: ModelDrift
    after: ModelDrift
    consistency: Report

    def show(self) -> None:
        """Print the summary table."""
        done, alone, outcome = self.answers, self.alone, self.outcome
        low, high = moved_most(self.before), moved_most(self.after)
        rows = [
            (f"calls/s, {IN_FLIGHT} in flight", f"{done.per_second:,.0f}"),
            ("p50, p95, p99 of these", ", ".join(f"{done.percentile_ms(q):.1f}" for q in (50, 95, 99)) + " ms"),
            ("p50, p99 of one caller alone", f"{alone.percentile_ms(50):.2f}, {alone.percentile_ms(99):.2f} ms"),
            ("rows in a batch, on average", f"{self.mean_batch:.1f}"),
            ("answers equal to scikit-learn's", f"{self.parity.compared:,}; worst difference {self.parity.worst:.1e}"),
            (
                "decisions by expected utility",
                f"{outcome.reviews:,} reviews find {outcome.caught} of {outcome.frauds} frauds",
            ),
            (
                "cost of fraud and reviews",
                f"{outcome.cost:,.0f}; {outcome.cost_of_approving_all:,.0f} without the model",
            ),
            ("drift before the shift", f"{low.name}, PSI {low.psi:.3f}"),
            ("drift after the shift", f"{high.name}, PSI {high.psi:.3f}"),
            ("served values equal to their history", f"{self.consistency.compared:,}, all of them"),
        ]
        print_table("", ("Summary", f"{len(done.latency_ms):,} calls, {self.customers:,} customers"), rows)

    def print_json(self) -> None:
        """Print the same as JSON."""
        quantiles = {f"p{q}": self.answers.percentile_ms(q) for q in (50, 95, 99)}
        alone = {f"p{q}": self.alone.percentile_ms(q) for q in (50, 99)}
        print_json(
            {
                "customers": self.customers,
                "calls": len(self.answers.latency_ms),
                "in_flight": IN_FLIGHT,
                "calls_per_s": self.answers.per_second,
                "latency_ms": quantiles,
                "latency_alone_ms": alone,
                "mean_batch": self.mean_batch,
                "parity": asdict(self.parity) | {"tolerance": TOLERANCE, "holds": self.parity.holds},
                "decisions": asdict(self.outcome),
                "consistency": asdict(self.consistency),
                "drift": {name: _drift(window) for name, window in (("before", self.before), ("after", self.after))},
            }
        )


def plain(value: float) -> str:
    """A number for people: at most two decimals, and none where there are none."""
    return f"{round(value, 2):,.12g}"


def moved_most(drift: ModelDrift) -> FeatureDrift:
    """The feature with the greatest PSI."""
    return max(drift.features, key=lambda feature: feature.psi)


def _drift(drift: ModelDrift) -> dict[str, Any]:
    return {"moved_most": moved_most(drift).name, **asdict(drift)}
