"""Before the store: rows that were written under a schema which a version has never heard of.

A version keeps the view that it was trained with, and the view in the store goes on changing. When a look-up finds rows
of an unknown schema id, the store is asked for the view's definition, and the rows are read by its schemas from then on
(features/evolution.py), those of this look-up included. An id that the definition does not have either stays a miss.

The definition is asked for within the look-up's own time, and at most once in `AGAIN_S` for each view as some version
knows it, so rows of an id that nobody knows cost next to nothing. Otherwise this costs 0.5 µs a batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from penstock.features.errors import FeatureError
from penstock.features.evolution import same_entities, with_schemas
from penstock.features.plan import stored_view
from penstock.features.schema import FeatureView, Former
from penstock.features.store import FeatureStore, FetchedRows, Lookup
from penstock.kernels.rows import ROW_SCHEMA

AGAIN_S = 1.0
LEAST_S = 0.002  # less time than this is no use for another round trip

log = logging.getLogger(__name__)


Key = tuple[tuple[str | int, ...], tuple[int, ...]]
"""A view as some version knows it: what it makes of a row, and the schemas that it can read."""


class KnownSchemas:
    """A reader that learns schemas from the store that it reads. Safe to use from many threads."""

    def __init__(self, store: FeatureStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._known: dict[Key, FeatureView] = {}
        self._asked: dict[Key, float] = {}

    def fetch(self, lookups: Sequence[Lookup], timeout_s: float) -> list[FetchedRows]:
        """All rows of all lookups (see `Reader.fetch`)."""
        start = self._clock()
        asked = lookups
        if self._known:
            asked = [Lookup(self._known.get(_key(one.view), one.view), one.entities) for one in lookups]
        found = self._store.fetch(asked, timeout_s)
        strange = [i for i, rows in enumerate(found) if ROW_SCHEMA in rows.status.tobytes()]
        if strange:
            learnt = self._learn([lookups[i].view for i in strange], timeout_s - (self._clock() - start))
            again = [i for i in strange if _key(lookups[i].view) in learnt]
            left_s = timeout_s - (self._clock() - start)
            if again and left_s > LEAST_S:
                self._read_again(lookups, found, again, left_s)
        return found

    def _read_again(
        self, lookups: Sequence[Lookup], found: list[FetchedRows], which: Sequence[int], left_s: float
    ) -> None:
        asked = [Lookup(self._known[_key(lookups[i].view)], lookups[i].entities) for i in which]
        try:
            better = self._store.fetch(asked, left_s)
        except FeatureError:
            return  # what was found already is an answer
        for i, rows in zip(which, better, strict=True):
            found[i] = rows

    def _learn(self, views: Sequence[FeatureView], left_s: float) -> set[Key]:
        """Those of the views of which more schemas are known now than before."""
        now = self._clock()
        due = {_key(view): view for view in views if now - self._asked.get(_key(view), -AGAIN_S) >= AGAIN_S}
        if not due or left_s <= LEAST_S:
            return set()
        self._asked |= dict.fromkeys(due, now)
        try:
            held = self._store.definitions(list({view.name for view in due.values()}), timeout_s=left_s)
        except FeatureError as error:
            log.warning("rows of unknown schemas, and their definitions cannot be read: %s", error)
            return set()
        return {key for key, view in due.items() if self._take(key, view, held.get(view.name))}

    def _take(self, key: Key, view: FeatureView, definition: bytes | None) -> bool:
        """Add the schemas of the definition to those by which the view is read."""
        if definition is None:
            return False
        view = self._known.get(key, view)
        try:
            current = stored_view(view.name, definition, self._store.name)
        except FeatureError as error:
            log.warning("rows of unknown schemas: %s", error)
            return False
        if not same_entities(current, view):
            log.warning(
                "view %r is of %s in the feature store now, and its rows are not read", view.name, current.entity
            )
            return False
        newest = Former(schema_id=current.schema_id, columns=current.columns)
        wider = with_schemas(view, [newest, *current.former, *view.former])
        news = {former.schema_id for former in wider.former} - {former.schema_id for former in view.former}
        if news:
            self._known[key] = wider
            log.info("view %r: rows of %d more schemas are read by name", view.name, len(news))
        return bool(news)


def _key(view: FeatureView) -> Key:
    return view.read_as, view.readable
