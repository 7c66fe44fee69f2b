"""Between a version and the store: rows that were written under a schema which the version has never heard of.

A version keeps the view that it was trained with, and the view in the store goes on changing. When a look-up finds rows
of an unknown schema id, the store is asked for the view's definition, and the rows are read by its schemas from then on
(features/evolution.py), those of this look-up included. An id that the definition does not have either stays a miss.

The definition is asked for within the look-up's own time, and at most once in `AGAIN_S`, so rows of an id that nobody
knows cost next to nothing. Otherwise this costs 0.5 µs a batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from penstock.features.errors import FeatureError
from penstock.features.evolution import same_entities, with_schemas
from penstock.features.plan import stored_view
from penstock.features.schema import FeatureView, Former
from penstock.features.store import FeatureStore, FetchedRows, Lookup, Reader
from penstock.kernels.rows import ROW_SCHEMA

AGAIN_S = 1.0
LEAST_S = 0.002  # less time than this is no use for another round trip

log = logging.getLogger(__name__)


class KnownSchemas:
    """A reader over another that learns schemas from the store; for the views of one version.

    Args:
        store: where the definitions are.
        reader: where rows are looked up: the store, or what stands before it.
    """

    def __init__(
        self, store: FeatureStore, reader: Reader | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._reader, self._clock = store, reader or store, clock
        self._known: dict[str, FeatureView] = {}
        self._asked: dict[str, float] = {}

    def fetch(self, lookups: Sequence[Lookup], timeout_s: float) -> list[FetchedRows]:
        """All rows of all lookups (see `Reader.fetch`)."""
        start = self._clock()
        asked = lookups
        if self._known:
            asked = [Lookup(self._known.get(one.view.name, one.view), one.entities) for one in lookups]
        found = self._reader.fetch(asked, timeout_s)
        strange = [i for i, rows in enumerate(found) if ROW_SCHEMA in rows.status.tobytes()]
        if strange:
            names = self._learn([asked[i].view for i in strange], timeout_s - (self._clock() - start))
            again = [i for i in strange if asked[i].view.name in names]
            left_s = timeout_s - (self._clock() - start)
            if again and left_s > LEAST_S:
                self._read_again(asked, found, again, left_s)
        return found

    def _read_again(
        self, asked: Sequence[Lookup], found: list[FetchedRows], which: Sequence[int], left_s: float
    ) -> None:
        lookups = [Lookup(self._known[asked[i].view.name], asked[i].entities) for i in which]
        try:
            better = self._reader.fetch(lookups, left_s)
        except FeatureError:
            return  # what was found already is an answer
        for i, rows in zip(which, better, strict=True):
            found[i] = rows

    def _learn(self, views: Sequence[FeatureView], left_s: float) -> set[str]:
        """Names of those views of which more schemas are known now than before."""
        now = self._clock()
        due = [view for view in views if now - self._asked.get(view.name, -AGAIN_S) >= AGAIN_S]
        if not due or left_s <= LEAST_S:
            return set()
        self._asked |= dict.fromkeys((view.name for view in due), now)
        try:
            held = self._store.definitions([view.name for view in due], timeout_s=left_s)
        except FeatureError as error:
            log.warning("rows of unknown schemas, and their definitions cannot be read: %s", error)
            return set()
        return {view.name for view in due if self._take(view, held.get(view.name))}

    def _take(self, view: FeatureView, definition: bytes | None) -> bool:
        """Add the schemas of the definition to those by which the view is read."""
        if definition is None:
            return False
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
            self._known[view.name] = wider
            log.info("view %r: rows of %d more schemas are read by name", view.name, len(news))
        return bool(news)
