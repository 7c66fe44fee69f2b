"""Ingestion against Feast's, from one Parquet file into one Redis, and its memory over ten million rows.

Both read the same file and write the same Redis (their keys differ), in turn, A B A B …; the figure is the median of
the ratios of neighbouring runs. Feast is measured by `write_to_online_store` and by `materialize`, and the faster one
of a round counts. Penstock is measured as it is used, where the newest event wins, and with `--overwrite`, plain SET.

Memory is the peak of a process that ingests `--large` rows of 10 features, over a million entities.

    python -m penstock.benchmarks.ingestion [--rounds 3] [--rows 20000] [--features 50] [--large 10000000] [--json]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated

import orjson
import typer

from penstock.benchmarks.lines import Judged, judged, print_judged
from penstock.benchmarks.peers import NotInstalled
from penstock.benchmarks.sides import machine
from penstock.benchmarks.stores import Feast, redis_server, view_of, write_table
from penstock.commands._console import console, errors, print_json, print_table
from penstock.errors import PenstockError
from penstock.features import open_store
from penstock.features.ingest import ingest

TIMES_FEAST = 5.0
LARGE_ENTITIES, LARGE_FEATURES = 1_000_000, 10
MOST_BYTES = 1 << 30


def penstock_rates(table: Path, address: str, features: int, repeats: int) -> dict[str, float]:
    """Rows a second of both ways to write, the median of some runs each, since one takes a tenth of a second."""
    with closing(open_store(f"redis://{address}")) as store:
        found = {
            name: [
                ingest(store, view_of(features), table, time_column="at", overwrite=overwrite) for _ in range(repeats)
            ]
            for name, overwrite in (("newest wins", False), ("overwrite", True))
        }
    return {name: statistics.median(report.rows_per_s for report in reports) for name, reports in found.items()}


def feast_rates(feast: Feast) -> dict[str, float]:
    """Rows a second of both of its ways."""
    found = {how: feast.ask({"ingest": how}) for how in ("write", "materialize")}
    return {f"Feast, {how}": answer["rows"] / answer["seconds"] for how, answer in found.items()}


def compare(folder: Path, rounds: int, rows: int, features: int) -> list[dict[str, float]]:
    """Rows a second of every side, round by round; without Feast where it cannot be had."""
    table = folder / "rows.parquet"
    write_table(table, rows, features)
    with redis_server(folder) as redis:
        penstock_rates(table, redis.address, features, 1)
        try:
            with Feast(table, redis.address, features, errors.print) as feast:
                return [penstock_rates(table, redis.address, features, 5) | feast_rates(feast) for _ in range(rounds)]
        except NotInstalled as error:
            errors.print(f"Feast is left out: {error}", markup=False)
            return [penstock_rates(table, redis.address, features, 5) for _ in range(rounds)]


def large(folder: Path, rows: int) -> dict[str, float]:
    """Rows a second and peak of memory of a process that ingests so many rows."""
    table = folder / "large.parquet"
    write_table(table, rows, LARGE_FEATURES, min(rows, LARGE_ENTITIES))
    with redis_server(folder) as redis:
        done = subprocess.run(
            [sys.executable, "-c", INGESTING, str(table), f"redis://{redis.address}", str(LARGE_FEATURES)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise PenstockError(f"the ingesting process failed: {done.stderr[-1000:].strip()}")
    found: dict[str, float] = orjson.loads(done.stdout)
    return found


INGESTING = """
import json, sys
from pathlib import Path
from penstock.benchmarks.stores import view_of
from penstock.features import open_store
from penstock.features.ingest import ingest
report = ingest(open_store(sys.argv[2]), view_of(int(sys.argv[3])), sys.argv[1], time_column="at")
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
peak = int(status["VmHWM"].split()[0]) * 1024
print(json.dumps({"rows": report.rows, "rows_per_s": report.rows_per_s, "peak": peak}))
"""


def lines_of(rounds: Sequence[dict[str, float]], memory: dict[str, float] | None) -> list[Judged]:
    """What is to hold, as far as it was measured."""
    times = [r["newest wins"] / max(rate for name, rate in r.items() if "Feast" in name) for r in rounds if len(r) > 2]
    lines = [judged("ingestion: Penstock / Feast, rows/s", times, at_least=TIMES_FEAST)] if times else []
    if memory:
        name = f"peak of memory over {memory['rows']:,} rows, MiB"
        lines.append(judged(name, [memory["peak"] / 2**20], at_most=MOST_BYTES / 2**20))
    return lines


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 3,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the table both ingest.")] = 20_000,
    features: Annotated[int, typer.Option(min=1, help="Its features.")] = 50,
    large_rows: Annotated[
        int, typer.Option("--large", min=0, help="Rows whose memory is measured; 0 for none.")
    ] = 10_000_000,
    json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
) -> None:
    """Measure ingestion against Feast's, and its memory; 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            found = compare(Path(name), rounds, rows, features)
            memory = large(Path(name), large_rows) if large_rows else None
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    lines = lines_of(found, memory)
    if json:
        print_json({"machine": machine(), "features": features, "rounds": found, "large": memory, "lines": lines})
    else:
        table = [
            (side, f"{statistics.median(r[side] for r in found):,.0f}", f"{min(r[side] for r in found):,.0f}")
            for side in found[0]
        ]
        print_table(
            f"{rows:,} rows of {features} float32", ("side", "rows/s", "least"), table, numeric=("rows/s", "least")
        )
        if memory:
            console.print(f"{memory['rows']:,} rows: {memory['rows_per_s']:,.0f} rows/s", highlight=False)
    print_judged(lines)
    raise typer.Exit(not all(line["held"] for line in lines))


if __name__ == "__main__":
    typer.run(main)
