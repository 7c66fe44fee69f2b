"""`penstock features join`, `restore` and `compact`: what is done with the history of features."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.commands.features import Json, Url, existing, progress_bar
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.features import FeatureView
    from penstock.features.offline.compacting import Compaction

History = Annotated[Path, typer.Option(metavar="DIR", help="History of the features.")]


def join(
    labels: Annotated[
        Path, typer.Argument(metavar="LABELS", help="Table with entities, times and labels: .parquet, .csv or .arrow.")
    ],
    view: Annotated[
        list[str],
        typer.Option(metavar="NAME|FILE", help="A view of the store, or a YAML file of views; may be repeated."),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the training set goes, a .parquet file.")],
    time: Annotated[str, typer.Option(metavar="COLUMN", help="Column with the labels' times.")] = "event_time",
    entity: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=COLUMN", help="What the labels call a key of an entity; may be repeated."),
    ] = None,
    offline: History = Path("penstock-offline"),
    ignore_created: Annotated[
        bool, typer.Option("--ignore-created", help="Event times alone count, for a history without created times.")
    ] = False,
    prefix: Annotated[bool, typer.Option("--prefix", help="Call the new columns VIEW__COLUMN.")] = False,
    words: Annotated[bool, typer.Option("--words", help="Give categories as words, and not as numbers.")] = False,
    events: Annotated[
        list[str] | None,
        typer.Option(metavar="VIEW=FILE", help="Events of which an aggregated view is made; may be repeated."),
    ] = None,
    event_time: Annotated[
        str, typer.Option(metavar="COLUMN", help="Events' column with when they happened.")
    ] = "event_time",
    event_created: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Events' column with when they came; else as they happened.")
    ] = None,
    features: Url = None,
    as_json: Json = False,
) -> None:
    """Join labels with the features that serving would have known at each label's time.

    The rows of LABELS, in their order, with the columns of the views. A file that is there already is replaced once the
    new one is whole.

    Example: penstock features join labels.parquet --view customer_activity --time at --out training.parquet
    """
    from penstock.commands._console import console, print_json
    from penstock.features.offline import OfflineStore
    from penstock.features.offline.training import join_file

    keys = dict(_pair(one, "--entity is KEY=COLUMN") for one in entity or ())
    tables = dict(_pair(one, "--events is VIEW=FILE") for one in events or ())
    views = views_of(view, features)
    known = {key for one in views for key in one.entity_keys}
    if unknown := sorted(keys.keys() - known):
        raise PenstockError(f"--entity {unknown[0]}=...: the views' keys are {', '.join(sorted(known))}")
    with progress_bar(f"joining {labels.name}") as progress:
        summary = join_file(
            labels,
            views,
            OfflineStore(offline),
            out,
            time_column=time,
            keys=keys,
            as_of_created=not ignore_created,
            prefix=prefix,
            words=words,
            events={name: Path(file) for name, file in tables.items()},
            event_time=event_time,
            event_created=event_created,
            progress=progress,
        )
    if as_json:
        print_json(asdict(summary))
        return
    console.print(
        f"wrote {summary.labels:,} labels with {summary.features:,} features to {out} in {summary.seconds:.2f} s",
        highlight=False,
        markup=False,
    )
    for name, found in summary.found.items():
        console.print(f"{name}: rows of {found:,} of them", highlight=False, markup=False)


def _pair(text: str, form: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise PenstockError(f"{form}, not {text!r}")
    return key, value


def views_of(given: Sequence[str], url: str | None) -> list[FeatureView]:
    """Views by name, from the store, and those of YAML files; the store is opened only if one is named."""
    from penstock.features import read_views

    views = []
    names = [one for one in given if Path(one).suffix.lower() not in {".yaml", ".yml", ".json"}]
    with existing(url) if names else nullcontext() as store:
        for one in given:
            views += [store.view(one)] if store is not None and one in names else read_views(Path(one))
    return views


def restore(
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Name of an applied view.")],
    offline: History = Path("penstock-offline"),
    features: Url = None,
    as_json: Json = False,
) -> None:
    """Write the newest row of each entity, of those within its ttl, from the history into the store.

    For a Redis that was lost or is new. What is newer in the store stays; where it was stopped, run it again.

    Example: penstock features restore customer_activity --offline penstock-offline
    """
    from penstock.commands._console import console, print_json
    from penstock.features.offline import OfflineStore
    from penstock.features.offline.restoring import restore as write

    with existing(features) as store, progress_bar(f"restoring {view}") as progress:
        report = write(store, store.view(view), OfflineStore(offline), progress=progress)
    if as_json:
        print_json({**asdict(report), "rows_per_s": report.rows_per_s})
        return
    older = f"; {report.older:,} older than what is stored" if report.older else ""
    older += f"; {report.over:,} whose ttl has ended" if report.over else ""
    rate = f"{report.seconds:.2f} s ({report.rows_per_s:,.0f} rows/s)"
    console.print(f"restored {report.kept:,} rows in {rate}{older}", highlight=False)


def compact(
    view: Annotated[
        list[str] | None, typer.Argument(metavar="VIEW...", help="Names of views; all of the history, if none.")
    ] = None,
    offline: History = Path("penstock-offline"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be merged, and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Merge the many small files of a history, day by day, while others read and write it.

    A consumer of a stream publishes up to 2,880 files a day. No answer changes; of rows that were written twice one
    stays. For once a day, from cron. Where it was stopped, run it again.

    Example: penstock features compact customer_activity --offline penstock-offline
    """
    from penstock.commands._console import print_json
    from penstock.features.offline import OfflineStore
    from penstock.features.offline.compacting import compact as merge

    store = OfflineStore(offline)
    names = view or store.names()
    if not names:
        raise PenstockError(f"there is no history in {offline}: say where it is with --offline DIR")
    told = []
    for name in names:
        with progress_bar(f"compacting {name}", "files") as progress:
            told.append(merge(store, name, dry_run=dry_run, progress=progress))
        if not as_json:
            _tell(told[-1], dry_run=dry_run)
    if as_json:
        print_json([asdict(one) | {"compacted": not dry_run} for one in told])


def _tell(one: Compaction, *, dry_run: bool) -> None:
    from rich.filesize import decimal

    from penstock.commands._console import console

    text = f"nothing to merge in {one.files:,} file{'s' * (one.files != 1)}"
    if one.merged:
        became = "would become" if dry_run else "became"
        sizes = decimal(one.bytes) if dry_run else f"{decimal(one.bytes)}, now {decimal(one.bytes_after)}"
        text = f"{one.merged:,} of {one.files:,} files {became} {one.into:,} ({sizes})"
        text += f"; {one.dropped:,} rows less, of those written twice" if one.dropped else ""
    console.print(f"{one.view}: {text}", highlight=False, markup=False)
