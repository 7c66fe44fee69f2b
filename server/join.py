"""The join: features of the batch's entities, from the store into the matrix. One round trip a batch.

Each value comes from the caller where the caller sent it, else from the store, else from the view's default; where from
is kept in the batch's `source` and told to callers who ask. What a view does without a row (`on_missing`) and without a
store (`on_outage`) is declared in the view. A call whose every value was sent is never touched by the store's troubles.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic_ns

import numpy as np
from numpy.typing import NDArray

from penstock.features.errors import FeatureError
from penstock.features.schema import FeatureView
from penstock.features.store import FeatureStore, FetchedRows, Lookup
from penstock.kernels.batches import Batch
from penstock.kernels.rows import ROW_ABSENT, SOURCE_MISSING, SOURCE_NONE, scatter
from penstock.server.errors import FeaturesUnavailable, InvalidRequest, UnknownEntity

_log = logging.getLogger("penstock.server")

SOURCES = np.array(["none", "request", "store", "cache", "default", "missing"], dtype=object)
"""Words for the codes in a batch's `source`."""

Shorts = NDArray[np.int32]


@dataclass
class Counts:
    """What look-ups gave, in values since the start."""

    store: int = 0
    default: int = 0
    missing: int = 0
    outages: int = 0


@dataclass
class Join:
    """Looks up the features of one version.

    Args:
        store: where features are kept.
        views: what to look up; every column of theirs that the model reads is filled.
        columns: the model's columns, in order.
        timeout_s: bound of one look-up; a batch's latest deadline may shorten it.
    """

    store: FeatureStore
    views: Sequence[FeatureView]
    columns: Sequence[str]
    timeout_s: float
    counts: Counts = field(default_factory=Counts)
    _trouble: str = ""

    def __post_init__(self) -> None:
        place = {name: index for index, name in enumerate(self.columns)}
        self._places = [np.array([place.get(name, -1) for name in v.feature_names], np.int32) for v in self.views]
        self._kept = [np.flatnonzero(places >= 0) for places in self._places]
        looked_up = {name for view in self.views for name in view.feature_names}
        self._to_send = [index for index, name in enumerate(self.columns) if name not in looked_up]

    def fill(self, batch: Batch) -> bool:
        """Fill in what the callers left open; False where the store did not answer."""
        answered = self._look_up(batch)
        if self._to_send:
            self._refuse_unsent(batch)
        return answered

    def _look_up(self, batch: Batch) -> bool:
        entities, row_of = batch.unique_entities()
        if not entities:
            return True
        lookups = [Lookup(view, entities) for view in self.views]
        try:
            fetched = self.store.fetch(lookups, self._budget_s(batch))
        except FeatureError as error:
            self.counts.outages += 1
            self._tell(str(error))
            self._degrade(batch, row_of, len(entities))
            return False
        self._tell("")
        for index, rows in enumerate(fetched):
            use_defaults = self.views[index].on_missing == "default"
            missing = self._scatter(batch, index, rows, row_of, use_defaults=use_defaults)
            if missing and self.views[index].on_missing == "error":
                self._refuse_missing(batch, index, row_of)
        return True

    def _budget_s(self, batch: Batch) -> float:
        """Seconds this look-up may take: what is left to the most patient caller, less a fifth to answer in.

        The most patient one, for a caller in a hurry must not make the store look slow to all others of the batch.
        """
        if batch.latest_deadline_ns == 0:
            return self.timeout_s
        return max(0.001, min(self.timeout_s, 0.8e-9 * (batch.latest_deadline_ns - monotonic_ns())))

    def _scatter(self, batch: Batch, index: int, rows: FetchedRows, row_of: Shorts, *, use_defaults: bool) -> int:
        """Write one view's rows into the batch; the number of values that stay missing."""
        kept, places = self._kept[index], self._places[index]
        values, defaults = rows.values, self.views[index].defaults
        if len(kept) < len(places):  # the model leaves some of the view's columns out
            values, defaults, places = np.ascontiguousarray(values[:, kept]), defaults[kept], places[kept]
        assert batch.matrix is not None
        assert batch.source is not None
        found, defaulted, missing = scatter(
            values, rows.status, row_of, places, defaults, use_defaults, batch.matrix, batch.source
        )
        self.counts.store += found
        self.counts.default += defaulted
        self.counts.missing += missing
        return missing

    def _tell(self, trouble: str) -> None:
        """Log when the store fails, fails otherwise or answers again; callers are not told where it stands."""
        if trouble != self._trouble:
            _log.warning("%s", trouble or "the feature store answers again")
            self._trouble = trouble

    def _degrade(self, batch: Batch, row_of: Shorts, entities: int) -> None:
        """No store: each view's declared mode, for the rows that needed it."""
        for index, view in enumerate(self.views):
            if view.on_outage == "error":
                message = f"features of view {view.name!r} are unavailable; the server's log has the detail"
                for row in np.flatnonzero(row_of >= 0):
                    batch.refuse(int(row), FeaturesUnavailable.status, message)
            absent = FetchedRows.empty(Lookup(view, [b""] * entities))
            absent.status[:] = ROW_ABSENT
            absent.values[:] = np.nan
            self._scatter(batch, index, absent, row_of, use_defaults=view.on_outage == "default")

    def _refuse_unsent(self, batch: Batch) -> None:
        """Refuse the calls that left out a column which no view has."""
        assert batch.source is not None
        unsent = batch.source[:, self._to_send] == SOURCE_NONE
        for row in np.flatnonzero(unsent.any(axis=1)):
            names = ", ".join(repr(self.columns[self._to_send[at]]) for at in np.flatnonzero(unsent[row])[:10])
            message = f"no feature view has {names[:400]}: send it, as [n] or [n, 1]"
            batch.refuse(int(row), InvalidRequest.status, message)

    def _refuse_missing(self, batch: Batch, index: int, row_of: Shorts) -> None:
        """Refuse the calls with an entity that the view has no full row of."""
        view, places = self.views[index], self._places[index][self._kept[index]]
        assert batch.source is not None
        assert batch.entities is not None
        lacking = (batch.source[:, places] == SOURCE_MISSING).any(axis=1) & (row_of >= 0)
        for row in np.flatnonzero(lacking):
            entity = (batch.entities[int(row)] or b"").decode("utf-8", "backslashreplace")[:100]
            message = f"view {view.name!r} has no features of {view.entity_name} {entity!r}"
            batch.refuse(int(row), UnknownEntity.status, message)
