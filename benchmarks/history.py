"""The point-in-time join of labels with the history of features: how long it takes, and how much memory.

A view of `COLUMNS` float32 columns; every entity has 20 rows on average, at random moments of 30 days, known an hour
later on average. Labels are random entities at random moments of the same days. Writing and joining run in processes of
their own, whose peak of resident memory is taken.

    python -m penstock.benchmarks.history [--rows 10000000] [--labels 1000000] [--json]
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from penstock.benchmarks.seeded import SEED
from penstock.commands._console import print_json, print_table
from penstock.features import Column, FeatureView
from penstock.features.offline import OfflineStore, join

COLUMNS, DAYS, ENTITIES_OF_ROWS = 10, 30, 20
DAY_MS = 86_400_000
FIRST_MS = 20_000 * DAY_MS
HOUR_MS = 3_600_000
SLICE = 500_000
VIEW = FeatureView(
    name="history",
    entity="id",
    ttl_s=7 * 86400,
    columns=tuple(Column(name=f"f{i}", dtype="float32") for i in range(COLUMNS)),
)


@dataclass(frozen=True)
class Step:
    """What one process did; memory is resident, with libraries and data."""

    name: str
    rows: int
    seconds: float
    peak_mib: int


def write(root: Path, rows: int) -> Step:
    """Write a history of so many rows, slice by slice as they are made up."""
    random, made = np.random.default_rng(SEED), 0.0
    began = time.monotonic()
    with OfflineStore(root).writer(VIEW) as out:
        for start in range(0, rows, SLICE):
            making = time.monotonic()
            table = _slice(random, min(SLICE, rows - start), rows // ENTITIES_OF_ROWS)
            made += time.monotonic() - making
            out.add(table, created="known")
    return Step("write", rows, time.monotonic() - began - made, _peak_mib())


def _slice(random: np.random.Generator, rows: int, entities: int) -> dict[str, Any]:
    at = FIRST_MS + random.integers(0, DAYS * DAY_MS, rows)
    known = at + random.exponential(HOUR_MS, rows).astype(np.int64)
    features = {name: random.normal(size=rows).astype(np.float32) for name in VIEW.column_names}
    return {"id": random.integers(0, max(entities, 1), rows), "event_time": at, "known": known} | features


def look_up(root: Path, labels: int, rows: int) -> Step:
    """Join so many labels with it."""
    random = np.random.default_rng(SEED + 1)
    ids = random.integers(0, max(rows // ENTITIES_OF_ROWS, 1), labels)
    frame = {"id": ids, "at": FIRST_MS + random.integers(0, DAYS * DAY_MS, labels)}
    began = time.monotonic()
    found = join(frame, VIEW, root, time="at")
    return Step("join", found.num_rows, time.monotonic() - began, _peak_mib())


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main(
    rows: Annotated[int, typer.Option(min=1, help="Rows of the history.")] = 10_000_000,
    labels: Annotated[int, typer.Option(min=1, help="Labels to join.")] = 1_000_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure writing a history and joining labels with it."""
    steps = []
    with tempfile.TemporaryDirectory(prefix="penstock-history-") as scratch:
        for work, arguments in ((write, (rows,)), (look_up, (labels, rows))):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                steps.append(process.submit(work, Path(scratch), *arguments).result())
    if as_json:
        print_json({"cores": len(os.sched_getaffinity(0)), "history": rows, "steps": [asdict(step) for step in steps]})
        return
    title = f"A history of {rows:,} rows of {COLUMNS} columns, {len(os.sched_getaffinity(0))} cores"
    table = [
        (s.name, f"{s.rows:,}", f"{s.seconds:.1f}", f"{s.rows / s.seconds:,.0f}", f"{s.peak_mib:,}") for s in steps
    ]
    headers = ("Step", "Rows", "Seconds", "Rows/s", "Peak, MiB")
    print_table(title, headers, table, numeric=headers[1:])


if __name__ == "__main__":
    typer.run(main)
