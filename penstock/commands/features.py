"""`penstock features`: declare views, load tables into the feature store, look rows up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.commands._console import flowing
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.features import FeatureStore

app = typer.Typer(
    no_args_is_help=True,
    help=flowing("""Features of entities, kept in Redis.

    The store is --features URL, else the environment's PENSTOCK_FEATURES, else an embedded Redis in the folder
    penstock-features of the current directory (embedded:///...), which keeps its rows from one command to the next.

    Example: penstock features apply customer.yaml && penstock features ingest customer_activity rows.parquet
    """),
)

FORMS = "redis://, redis+cluster:// or redis+sentinel:// (rediss for TLS), unix:// or embedded:///FOLDER"
Url = Annotated[
    str | None,
    typer.Option(
        "--features",
        metavar="URL",
        help=f"{FORMS}. Default: $PENSTOCK_FEATURES, else embedded:///CURRENT-DIRECTORY/penstock-features.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Models = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        envvar="PENSTOCK_REGISTRY",
        metavar="DIR",
        help="Published models, to tell which of them lose something. Default: ./penstock-models if it exists.",
        show_default=False,
    ),
]


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
    replace: Annotated[
        bool, typer.Option("--replace", help="Allow what breaks something; the plan says what.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan, and change nothing.")] = False,
    registry: Models = None,
    as_json: Json = False,
) -> None:
    """Declare the views of a YAML file, all or none: show what is added and changed and what that breaks, and do it.

    What breaks something (a column dropped, a type that cannot hold every value, another entity or layout) needs
    --replace. Rows written before stay readable as long as entity and layout are the same. Views of the store that are
    not in the file are kept.

    Example: penstock features apply customer.yaml --dry-run
    """
    from penstock.commands._console import console, print_json
    from penstock.commands._views import models_that_lose, print_plan, registry_or_default
    from penstock.features import StoreUnavailable, read_views

    views = read_views(file)
    with opened(features) as store:
        plan = store.plan(views, replace=replace)
        published = registry_or_default(registry)
        losing = models_that_lose(plan, published) if published is not None else []
        kept = sorted(store.definitions().keys() - {view.name for view in views})
        if not as_json:
            print_plan(plan, losing, kept)
        if not replace and not dry_run:
            plan.require_harmless()
        if not dry_run and not store.carry_out(plan):
            raise StoreUnavailable("somebody changed these views meanwhile, and nothing was applied; try again")
    if as_json:
        changes = [change.as_dict() for change in plan.changes]
        print_json({"applied": not dry_run, "changes": changes, "models": losing, "kept": kept})
        return
    done = "nothing to do" if plan.is_empty else "not applied (--dry-run)" if dry_run else "applied"
    console.print(done, highlight=False)


@app.command()
def ingest(
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Name of an applied view.")],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Table: .parquet, .csv, .arrow or .feather; or a folder or 'pattern*' of .parquet."
        ),
    ],
    features: Url = None,
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column with the time of each row.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace newer events, too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run was stopped.")] = False,
    offline: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the rows in this history of the features, too.")
    ] = None,
    created: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column with when each row was known, for --offline; else now.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a table's rows into the store, unless a newer event is stored.

    Example: penstock features ingest customer_activity rows.parquet --time at
    """
    from penstock.commands._console import console, print_json
    from penstock.features.ingest import ingest as write
    from penstock.features.offline import OfflineStore, recording

    if created is not None and offline is None:
        raise PenstockError("--created is for the history of features: say where that is with --offline DIR")
    with existing(features) as store, told_to_resume() as done, progress_bar(f"ingesting {file.name}") as show:

        def progress(rows: int, fraction: float) -> None:
            done[0] = rows
            show(rows, fraction)

        found = store.view(view)
        with recording(store, OfflineStore(offline) if offline else None, found) as into:
            report = write(
                into,
                found,
                file,
                progress=progress,
                time_column=time,
                created_column=created,
                overwrite=overwrite,
                resume=resume,
            )
    if as_json:
        print_json({**asdict(report), "rows_per_s": report.rows_per_s})
        return
    before = f", after {report.resumed:,} of an earlier run" if report.resumed else ""
    older = f"; {report.older:,} older than what is stored" if report.older else ""
    over = f"; {report.over:,} not kept, {found.ttl_s} s (ttl_s) or more after their events" if report.over else ""
    rate = f"{report.seconds:.2f} s ({report.rows_per_s:,.0f} rows/s)"
    unknown = "".join(f"; {words:,} unknown words in {column}" for column, words in report.unknown.items())
    console.print(f"wrote {report.kept:,} rows in {rate}{before}{older}{over}{unknown}", markup=False)


@contextmanager
def told_to_resume() -> Iterator[list[int]]:
    """How many rows are done; whoever stops before the end is told of these, and how to go on."""
    from penstock.features import InvalidData
    from penstock.features.errors import HistoryUnwritable

    done = [0]
    try:
        yield done
    except InvalidData:  # it would be met again
        raise
    except HistoryUnwritable as error:
        typer.echo(f"penstock: {error}\n--resume goes on after the rows that the history has", err=True)
        raise typer.Exit(1) from error
    except (PenstockError, KeyboardInterrupt) as error:
        if not done[0]:
            raise
        reason = str(error) or "interrupted"
        typer.echo(f"penstock: {reason}\n{done[0]:,} rows are done; --resume goes on after them", err=True)
        raise typer.Exit(130 if isinstance(error, KeyboardInterrupt) else 1) from error


@contextmanager
def progress_bar(title: str, unit: str = "rows") -> Iterator[Callable[[int, float], None]]:
    """A bar on stderr, moved by calling it with the rows (or other units) done and the fraction of the whole."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from penstock.commands._console import errors

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]:,} " + unit))
    with Progress(*columns, TimeElapsedColumn(), console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(title, total=1.0, rows=0)
        yield lambda rows, fraction: bar.update(task, completed=fraction, rows=rows)


@app.command()
def get(
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Name of an applied view.")],
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Entity ids; of several keys joined by '|'.")],
    features: Url = None,
    columns: Annotated[str, typer.Option(metavar="NAME,...", help="Of these columns only.")] = "",
    as_json: Json = False,
) -> None:
    """Look rows up as they are stored, before defaults.

    Example: penstock features get customer_activity 17 42
    """
    from penstock.commands._console import print_json
    from penstock.commands._views import print_records, records

    with existing(features) as store:
        found = store.get(view, ids, columns.split(",") if columns else None)
    told = records(found, ids)
    if as_json:
        print_json(told)
    else:
        print_records(found.view, told)


@app.command("list")
def list_views(features: Url = None, as_json: Json = False) -> None:
    """List the views of the store.

    Example: penstock features list --json
    """
    from penstock.commands._console import console, print_json
    from penstock.commands._views import print_views

    views = []
    if not _missing(features):
        with opened(features) as store:
            views = store.views()
    if as_json:
        print_json([view.model_dump(mode="json") for view in views])
    elif not views:
        console.print("No views yet. Declare one: penstock features apply FILE", highlight=False)
    else:
        print_views(views)


@app.command()
def show(
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Name of an applied view.")],
    features: Url = None,
    as_json: Json = False,
) -> None:
    """Show one view: its columns, its policies, and the former schemas by which its rows are read.

    Example: penstock features show customer_activity
    """
    from penstock.commands._console import print_json
    from penstock.commands._views import print_view

    with existing(features) as store:
        found = store.view(view)
    if as_json:
        print_json(found.model_dump(mode="json") | {"schema_id": found.schema_id})
    else:
        print_view(found)


@app.command()
def stats(
    view: Annotated[
        str | None, typer.Argument(metavar="VIEW", help="Of this view, column by column; else of all.")
    ] = None,
    features: Url = None,
    keys: Annotated[int, typer.Option(min=1, help="Look at so many keys of the store at most.")] = 100_000,
    rows: Annotated[int, typer.Option(min=1, max=100_000, help="Read so many rows of a view at most.")] = 1000,
    as_json: Json = False,
) -> None:
    """Count rows, and tell their size, age and nulls from a sample; ~ marks what is estimated.

    Example: penstock features stats customer_activity --rows 10000
    """
    from penstock.commands._console import console, print_json
    from penstock.commands._views import print_stats
    from penstock.features.stats import survey

    with existing(features) as store, progress_bar("looking at keys", "keys") as progress:
        views = store.views() if view is None else [store.view(view)]
        found = survey(store, views, max_keys=keys, max_rows=rows, progress=progress)
    if as_json:
        print_json([asdict(one) for one in found])
    elif not found:
        console.print("No views yet. Declare one: penstock features apply FILE", highlight=False)
    else:
        print_stats(found, by_column=view is not None)


@app.command()
def check(
    sample: Annotated[
        Path, typer.Option(metavar="DIR", help="Sample of served vectors, as the server's setting sample_served says.")
    ] = Path("penstock-served"),
    offline: Annotated[Path, typer.Option(metavar="DIR", help="History of the features.")] = Path("penstock-offline"),
    model: Annotated[str, typer.Option(metavar="MODEL", help="Rows of this model only.")] = "",
    view: Annotated[list[str] | None, typer.Option(metavar="VIEW", help="This view only; may be repeated.")] = None,
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

    Views without a history, and views whose missing rows are computed, are left out and named.

    Example: penstock features check --sample penstock-served --offline penstock-offline
    """
    from penstock.commands._check import as_dict, print_report
    from penstock.commands._console import print_json
    from penstock.features.offline import OfflineStore
    from penstock.features.offline.check import check as compare

    report = compare(
        sample,
        OfflineStore(offline),
        model=model,
        views=view or (),
        tolerance=tolerance,
        settle_s=settle,
        worst=worst,
    )
    if as_json:
        print_json(as_dict(report, threshold))
    else:
        print_report(report, threshold)
    if report.share > threshold:
        raise typer.Exit(1)
