"""`penstock features`: declare views, load tables into the feature store, look rows up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.commands._console import flowing
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.features import FeatureStore, FeatureView

app = typer.Typer(
    no_args_is_help=True,
    help=flowing("""Features of entities, kept in Redis.

    The store is --features URL, else the environment's PENSTOCK_FEATURES, else an embedded Redis in the folder
    penstock-features of the current directory (embedded:///...), which keeps its rows from one command to the next.

    Example: penstock features apply customer.yaml && penstock features ingest customer_activity rows.parquet
    """),
)

Url = Annotated[
    str | None,
    typer.Option(
        "--features",
        metavar="URL",
        help="redis://, rediss://, unix:// or embedded:///FOLDER. Default: $PENSTOCK_FEATURES, else "
        "embedded:///CURRENT-DIRECTORY/penstock-features.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def default_folder() -> Path:
    """Where an embedded Redis keeps its rows if nothing else is said."""
    return Path.cwd() / "penstock-features"


@contextmanager
def opened(url: str | None) -> Iterator[FeatureStore]:
    """The store of this command, closed at its end."""
    from penstock.features import StoreUnavailable, open_store

    url = url or os.environ.get("PENSTOCK_FEATURES") or f"embedded://{default_folder()}"
    try:
        with closing(open_store(url)) as store:
            yield store
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{error}; --features URL or PENSTOCK_FEATURES says where the store is") from error


@contextmanager
def existing(url: str | None) -> Iterator[FeatureStore]:
    """The same for commands that only read: they make no folder where there is none."""
    if _missing(url):
        raise PenstockError(
            f"there is no feature store in {default_folder()}; declare a view first (penstock features apply FILE), "
            "or say where the store is with --features URL"
        )
    with opened(url) as store:
        yield store


def _missing(url: str | None) -> bool:
    return not (url or os.environ.get("PENSTOCK_FEATURES") or default_folder().is_dir())


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with one view or several.")],
    features: Url = None,
    replace: Annotated[bool, typer.Option("--replace", help="Allow other columns under the name of a view.")] = False,
    as_json: Json = False,
) -> None:
    """Declare the views of a YAML file.

    Example: penstock features apply customer.yaml
    """
    from penstock.commands._console import console, print_json
    from penstock.features import read_views

    views = read_views(file)
    with opened(features) as store:
        for view in views:
            store.apply(view, replace=replace)
    if as_json:
        print_json([view.name for view in views])
        return
    for view in views:
        console.print(
            f"applied [bold]{view.name}[/]: {len(view.columns)} columns of {view.entity_name}, ttl {view.ttl_s} s"
        )


@app.command()
def ingest(
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Name of an applied view.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Table: .parquet, .csv, .arrow or .feather.")],
    features: Url = None,
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column with the time of each row.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace newer events, too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was stopped.")] = False,
    offline: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the rows in this history of the features, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a table's rows into the store, unless a newer event is stored.

    Example: penstock features ingest customer_activity rows.parquet --time at
    """
    from penstock.commands._console import console, print_json
    from penstock.features.ingest import ingest as write
    from penstock.features.offline import OfflineStore, recording

    with existing(features) as store, told_to_resume() as done, progress_bar(f"ingesting {file.name}") as show:

        def progress(rows: int, fraction: float) -> None:
            done[0] = rows
            show(rows, fraction)

        found = store.view(view)
        with recording(store, OfflineStore(offline) if offline else None, found) as into:
            report = write(into, found, file, progress=progress, time_column=time, overwrite=overwrite, resume=resume)
    if as_json:
        print_json({**asdict(report), "rows_per_s": report.rows_per_s})
        return
    before = f", after {report.resumed:,} of an earlier run" if report.resumed else ""
    older = f"; {report.older:,} older than what is stored" if report.older else ""
    rate = f"{report.seconds:.2f} s ({report.rows_per_s:,.0f} rows/s)"
    console.print(f"wrote {report.rows - report.older:,} rows in {rate}{before}{older}")


@contextmanager
def told_to_resume() -> Iterator[list[int]]:
    """How many rows are done; whoever stops before the end is told of these, and how to go on."""
    from penstock.features import InvalidData

    done = [0]
    try:
        yield done
    except InvalidData:  # it would be met again
        raise
    except (PenstockError, KeyboardInterrupt) as error:
        if not done[0]:
            raise
        reason = str(error) or "interrupted"
        typer.echo(f"penstock: {reason}\n{done[0]:,} rows are done; --resume goes on after them", err=True)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from error


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, float], None]]:
    """A bar on stderr, moved by calling it with the rows done and the fraction of the whole."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from penstock.commands._console import errors

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} rows"))
    with Progress(*columns, TimeElapsedColumn(), console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(title, total=1.0, rows=0)
        yield lambda rows, fraction: bar.update(task, completed=fraction, rows=rows)


@app.command()
def get(
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Name of an applied view.")],
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Entity ids.")],
    features: Url = None,
    as_json: Json = False,
) -> None:
    """Look rows up as the server does, before defaults.

    Example: penstock features get customer_activity 17 42
    """
    from penstock.commands._console import console, print_json, print_table
    from penstock.features import Lookup

    with existing(features) as store:
        found = store.view(view)
        rows = store.fetch([Lookup(found, [identifier.encode() for identifier in ids])], timeout_s=2.0)[0]
    records = [_record(found, identifier, rows, i) for i, identifier in enumerate(ids)]
    if as_json:
        print_json(records)
        return
    for few in _groups(found, records, console.width):
        shown = [record["entity"] for record in few]
        print_table(found.name, (found.entity_name, *shown), _side_by_side(few), numeric=shown)


def _groups(view: FeatureView, records: list[dict[str, Any]], width: int) -> Iterator[list[dict[str, Any]]]:
    """As many entities at a time as stand side by side in `width` columns with their names and values whole."""
    first = max(map(len, (view.entity_name, *view.column_names)))
    each = max(_TIME_WIDTH, *(len(record["entity"]) for record in records))
    count = max(1, (width - first - _FRAME - 1) // (each + _FRAME))
    for start in range(0, len(records), count):
        yield records[start : start + count]


_TIME_WIDTH = len("2026-01-01 00:00:00")
_FRAME = 3  # columns that the frame and the padding of a cell take


def _record(view: FeatureView, identifier: str, rows: Any, i: int) -> dict[str, Any]:
    status = ("ok", "absent", "corrupt", "other schema")[rows.status[i]]
    at = datetime.fromtimestamp(rows.event_times[i] / 1000, UTC).isoformat() if rows.event_times[i] else None
    values = {
        name: None if value != value else value  # noqa: PLR0124 -- NaN is null
        for name, value in zip(view.column_names, rows.values[i].tolist(), strict=True)
    }
    return {"entity": identifier, "status": status, "event_time": at, "values": values}


def _side_by_side(records: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A line for each feature and a column for each entity: features are many, and ids asked for are few."""
    yield ("status", *(record["status"] for record in records))
    yield ("event time", *((record["event_time"] or "")[:19].replace("T", " ") for record in records))
    for name in records[0]["values"]:
        yield (name, *(_shown(record["values"][name]) for record in records))


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.7g}"


@app.command("list")
def list_views(features: Url = None, as_json: Json = False) -> None:
    """List the views of the store.

    Example: penstock features list --json
    """
    from penstock.commands._console import console, print_json, print_table

    views = []
    if not _missing(features):
        with opened(features) as store:
            views = store.views()
    if as_json:
        print_json([view.model_dump(mode="json") for view in views])
        return
    if not views:
        console.print("No views yet. Declare one: penstock features apply FILE", highlight=False)
        return
    headers = ("View", "Entity", "Columns", "Layout", "TTL, s", "On missing", "On outage")
    rows = [(v.name, v.entity_name, len(v.columns), v.layout, v.ttl_s, v.on_missing, v.on_outage) for v in views]
    print_table("", headers, rows, numeric=("Columns", "TTL, s"))


@app.command()
def check(
    sample: Annotated[
        Path, typer.Option(metavar="DIR", help="Sample of served vectors, as the server's setting sample_served says.")
    ] = Path("penstock-served"),
    offline: Annotated[Path, typer.Option(metavar="DIR", help="History of the features.")] = Path("penstock-offline"),
    model: Annotated[str, typer.Option(metavar="MODEL", help="Rows of this model only.")] = "",
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a feature's values that may not agree.")
    ] = 0.001,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="By which part of the larger a value may be off; 0: equal as float32.")
    ] = 0.0,
    settle: Annotated[
        float, typer.Option(min=0, max=86400, metavar="SECONDS", help="Leave out look-ups so close to a change.")
    ] = 2.0,
    worst: Annotated[int, typer.Option(min=0, max=1000, help="Examples to show of each feature.")] = 3,
    as_json: Json = False,
) -> None:
    """Hold served features against their history; exits with 1 where they disagree by more than the threshold.

    Example: penstock features check --sample penstock-served --offline penstock-offline
    """
    from penstock.commands._check import as_dict, show
    from penstock.commands._console import print_json
    from penstock.features.offline import OfflineStore
    from penstock.features.offline.check import check as compare

    report = compare(sample, OfflineStore(offline), model=model, tolerance=tolerance, settle_s=settle, worst=worst)
    if as_json:
        print_json(as_dict(report, threshold))
    else:
        show(report, threshold)
    if report.share > threshold:
        raise typer.Exit(1)
