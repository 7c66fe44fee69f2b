"""Every line of the feature plane in one table: look-ups, transforms and ingestion, each as its own benchmark has it.

    python -m penstock.benchmarks.features [--markdown] [--json]

Four minutes, most of them for ingestion. Ends with 1 if a line is missed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from penstock.benchmarks import ingestion, lookups, transforms
from penstock.benchmarks.lines import Judged, markdown_of, print_judged
from penstock.benchmarks.sides import machine
from penstock.commands._console import errors, print_json
from penstock.errors import PenstockError

ROUNDS, CALLS, ROWS, FEATURES = 5, 200, 20_000, 50


def measured(folder: Path, large_rows: int) -> list[Judged]:
    """The lines of all three; those against Feast are left out where it cannot be had, which is told."""
    scenarios = [lookups.against_hand(folder, ROUNDS, CALLS, lookups.ENTITIES)]
    scenarios += lookups.against_feast(folder, ROUNDS, CALLS, lookups.ENTITIES)
    lines = [line for scenario in scenarios for line in scenario["lines"]]
    lines += transforms.lines_of(transforms.measure(tuple(transforms.LINES)))
    rounds = ingestion.compare(folder, ROUNDS, ROWS, FEATURES)
    return lines + ingestion.lines_of(rounds, ingestion.large(folder, large_rows))


def main(
    large_rows: Annotated[int, typer.Option("--large", min=1, help="Rows whose memory is measured.")] = 10_000_000,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table of the README.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
) -> None:
    """Measure look-ups, ingestion and transforms of features; 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            lines = measured(Path(name), large_rows)
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    if json:
        print_json({"machine": machine(), "lines": lines})
    elif markdown:
        print(f"Medians of {ROUNDS} rounds; {machine()}.\n\n{markdown_of(lines)}")
    print_judged(lines)
    raise typer.Exit(not all(line["held"] for line in lines))


if __name__ == "__main__":
    typer.run(main)
