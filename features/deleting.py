"""Taking away rows, or a view with all of its rows, and never what is somebody else's.

Rows of the row layout stand under keys of their own, and go with the state that aggregates keep beside them. Hashes
(`layout: hash`) are shared: only the view's fields go, and of these only those that no other view of the store reads.

A view's rows are found by going over all keys of the store (1.5 µs a key); what is written meanwhile may stay, so
whoever writes the view is stopped first. Its definition goes last: stopped half-way, the same call goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from penstock.features.errors import InvalidView, StoreUnavailable, UnknownView
from penstock.features.plan import stored_view
from penstock.features.schema import FeatureView

if TYPE_CHECKING:
    from penstock.features.store import FeatureStore

SCAN_KEYS = 1000
STATE = b":state"
HASHES = b"features:"

Progress = Callable[[int, float], None]


def delete_rows(store: FeatureStore, view: FeatureView, entities: Sequence[bytes], *, dry_run: bool = False) -> int:
    """Take away what a view has of some entities; of how many it had a row.

    With `dry_run` they are only counted.

    Raises:
        InvalidView: of a hash, what another view reads cannot be told, for its definition cannot be read.
    """
    distinct = list(dict.fromkeys(entities))
    keys = view.keys(distinct)
    if view.layout == "hash":
        own = _own_fields(store, view)
        if dry_run:
            return sum(_has(view, own, texts) for texts in store.stored(view, distinct))
        return store.drop_fields(keys, own)
    if dry_run:
        return sum(row is not None for row in store.stored(view, distinct))
    if view.aggregates is not None:  # first, else a consumer would go on from it
        store.unlink([key + STATE for key in keys])
    return store.unlink(keys)


def delete_view(
    store: FeatureStore, name: str, *, dry_run: bool = False, progress: Progress = lambda _keys, _fraction: None
) -> int:
    """Take away a view: its rows, what is remembered beside them, and at last its definition; the number of rows.

    A definition that cannot be read goes with the rows of the row layout under its name.

    Args:
        store: where it is.
        name: the view's.
        dry_run: count its rows, and change nothing.
        progress: called as (keys seen, fraction of the store), as the store is gone over.

    Raises:
        UnknownView: there is none of that name.
        InvalidView: it is of hashes, and the definition of another view, which may read them, cannot be read.
        StoreUnavailable: the store is away, or somebody changed the definition meanwhile: call it again.
    """
    definition, view = definition_of(store, name), None
    with suppress(InvalidView):
        view = stored_view(name, definition, store.name)
    rows = 0
    for keys in _scanned(store, progress):
        if view is not None and view.layout == "hash":
            rows += delete_rows(store, view, _hash_entities(keys), dry_run=dry_run)
        rows += _delete_keys(store, name.encode(), keys, dry_run=dry_run)  # of hashes those it had in another layout
    if not dry_run:
        store.unlink([b"fs:due:" + name.encode()])
        if not store.swap({name: definition}, {name: None}):
            raise StoreUnavailable(f"somebody changed view {name!r} meanwhile; its rows are gone, try again")
    return rows


def definition_of(store: FeatureStore, name: str) -> bytes:
    """The definition of a view, valid or not; raises `UnknownView`."""
    definition = store.definitions([name]).get(name)
    if definition is None:
        raise UnknownView(f"no view {name!r} in the feature store at {store.name}")
    return definition


def _scanned(store: FeatureStore, progress: Progress) -> Iterator[list[bytes]]:
    """The keys of the store, some at a time; one may come twice while others write."""
    total, cursor, seen = max(store.size(), 1), 0, 0
    while True:
        cursor, keys = store.scan(cursor, SCAN_KEYS)
        yield keys
        seen += len(keys)
        progress(seen, min(seen / total, 1.0))
        if cursor == 0:
            return


def _delete_keys(store: FeatureStore, name: bytes, keys: Sequence[bytes], *, dry_run: bool) -> int:
    """Of these keys the view's own: rows, states, and marks of ingestions, by which no row would be written again."""
    row, mark = b"}:" + name, b"fs:ingest:" + name + b":"
    own = [key for key in keys if key.startswith(b"fs:{")]
    rows = [key for key in own if key.endswith(row)]
    if dry_run:
        return len(rows)
    states = [key for key in own if key.endswith(row + STATE)]
    store.unlink([*states, *(key for key in keys if key.startswith(mark))])
    return store.unlink(rows)


def _hash_entities(keys: Sequence[bytes]) -> list[bytes]:
    return [key.removeprefix(HASHES) for key in keys if key.startswith(HASHES) and key != HASHES]


def _own_fields(store: FeatureStore, view: FeatureView) -> list[bytes]:
    """The view's fields of a hash, and that of its event time, but for those of other views; raises `InvalidView`."""
    held = {name: text for name, text in store.definitions().items() if name != view.name}
    others = [stored_view(name, definition, store.name) for name, definition in sorted(held.items())]
    shared = {field for other in others if other.layout == "hash" for field in (*other.fields, other.stamp)}
    return [field for field in (*view.fields, view.stamp) if field not in shared]


def _has(view: FeatureView, own: Sequence[bytes], texts: Sequence[bytes | None] | None) -> bool:
    """Whether a hash, as `FeatureStore.stored` tells of it, has one of these fields."""
    return any(text is not None and field in own for field, text in zip(view.fields, texts or (), strict=False))
