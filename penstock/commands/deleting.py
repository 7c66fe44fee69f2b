"""`penstock features delete`: take away rows of entities, or a view with all that is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from penstock.commands.features import Json, Models, Url, existing, progress_bar
from penstock.errors import PenstockError

_SHOWN = 5


def delete(
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Name of an applied view.")],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID...", help="Entity ids; of several keys joined by '|'.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="The view itself, and every row of it.")] = False,
    features: Url = None,
    offline: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Take them out of this history of the features, too.")
    ] = None,
    registry: Models = None,
    force: Annotated[bool, typer.Option("--force", help="Even if published versions read the view.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would go, and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Delete rows of entities, or with --all a view and every row of it.

    Of hashes (layout: hash) only the view's own fields go. With --all whoever writes the view is stopped first: what is
    written meanwhile may stay. Stopped half-way, the same command goes on. A server's near cache may give a row for its
    max_age_s longer, and rows of views with on_missing: compute come back when they are asked for.

    Example: penstock features delete customer_activity 17 42 --offline penstock-offline
    """
    from penstock.commands._console import print_json

    given = ids or []
    if bool(given) == everything:
        raise PenstockError(
            f"say whose rows (penstock features delete {view} ID...), or --all for the view and every row"
        )
    read_by = _read_by(view, registry) if everything else []
    if read_by and not force and not dry_run:
        raise PenstockError(
            f"view {view!r} is read by {_some(read_by)}, which would find no row of it; --force deletes it all the same"
        )
    rows, history = _delete(view, given, features, offline, dry_run=dry_run)
    if as_json:
        told = {"view": view, "deleted": not dry_run, "definition": everything, "rows": rows, "history_rows": history}
        print_json(told | {"models": read_by})
    else:
        _tell(view, rows, history, read_by, everything=everything, dry_run=dry_run)


def _read_by(view: str, registry: Path | None) -> list[str]:
    from penstock.commands._views import readers, registry_or_default

    published = registry_or_default(registry)
    return [] if published is None else [version for version, _, _ in readers([view], published)]


def _delete(
    name: str, ids: Sequence[str], url: str | None, folder: Path | None, *, dry_run: bool
) -> tuple[int, int | None]:
    """Rows that were in the store, and in the history. History goes first, while the view is still known."""
    from penstock.features.deleting import definition_of, delete_rows, delete_view
    from penstock.features.entities import entity_ids
    from penstock.features.offline import OfflineStore
    from penstock.features.offline.erasing import erase, erase_view

    history, past = None, OfflineStore(folder) if folder is not None else None
    with existing(url) as store:
        if not ids:
            if past is not None:
                definition_of(store, name)
                history = erase_view(past, name, dry_run=dry_run)
            with progress_bar("looking at keys", "keys") as progress:
                return delete_view(store, name, dry_run=dry_run, progress=progress), history
        view = store.view(name)
        entities = entity_ids(ids, len(view.entity_keys))
        if past is not None:
            with progress_bar("reading history", "files") as progress:
                history = erase(past, view, entities, dry_run=dry_run, progress=progress)
        return delete_rows(store, view, entities, dry_run=dry_run), history


def _tell(
    view: str, rows: int, history: int | None, read_by: Sequence[str], *, everything: bool, dry_run: bool
) -> None:
    from penstock.commands._console import console

    what = f"view {view} with {rows:,} rows" if everything else f"{rows:,} rows of {view}"
    also = "" if history is None else f", and {history:,} rows of its history"
    lines = [f"{'would delete' if dry_run else 'deleted'} {what}{also}"]
    if read_by:
        lines.append(f"read by {_some(read_by)}")
    if rows and not dry_run:
        lines.append("servers with a near cache may give these rows for its max_age_s longer")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _some(versions: Sequence[str]) -> str:
    more = f" and {len(versions) - _SHOWN} more" if len(versions) > _SHOWN else ""
    return ", ".join(versions[:_SHOWN]) + more
