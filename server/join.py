"""The join: features of the batch's entities, from the store into the matrix. One round trip a batch.

Each value comes from the caller where the caller sent it, else from the row, else from the view's default; where from
is kept in the batch's `source` and told to callers who ask. What a view does without a row (`on_missing`), with one too
old (`on_stale`) and without an answer (`on_outage`) is declared in the view. A call whose every value was sent is never
touched by the store's troubles.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic_ns, time_ns

import numpy as np
from numpy.typing import NDArray

from penstock.features.errors import FeatureError
from penstock.features.schema import FeatureView
from penstock.features.store import FetchedRows, Lookup, Reader
from penstock.features.treatments import treatments
from penstock.kernels.batches import Batch
from penstock.kernels.joins import ROW_LOST, ROW_STALE, SOURCE_MISSING, SOURCE_NONE, observe, scatter
from penstock.server.errors import FeaturesUnavailable, InvalidRequest, UnknownEntity
from penstock.server.tallies import AGES_MS, Tally

_log = logging.getLogger("penstock.server")

SOURCES = np.array(["none", "request", "store", "cache", "default", "missing", "stale", "computed"], dtype=object)
"""Words for the codes in a batch's `source`."""

Shorts = NDArray[np.int32]


class _View:
    """One view of a version: which of its columns the model reads, and what is done with its rows."""

    def __init__(self, view: FeatureView, columns: Sequence[str]) -> None:
        place = {name: index for index, name in enumerate(columns)}
        places = np.array([place.get(name, -1) for name in view.feature_names], np.int32)
        self.view = view
        self.kept = np.flatnonzero(places >= 0)
        self.is_whole = len(self.kept) == len(places)
        self.places = places[self.kept]
        self.defaults = view.defaults[self.kept]
        self.treatments = treatments(view)
        self.max_age_ms = -1 if view.max_age_s is None else int(view.max_age_s * 1000)
        self.tally = Tally(view.name, [view.feature_names[index] for index in self.kept])

    def fill(self, batch: Batch, rows: FetchedRows, row_of: Shorts, now_ms: int) -> None:
        """Write the view's rows into the batch, and refuse the calls that the view says not to answer."""
        assert batch.matrix is not None
        assert batch.source is not None
        observe(rows.status, rows.event_times, now_ms, self.max_age_ms, self.tally.rows, AGES_MS, self.tally.ages)
        values = rows.values if self.is_whole else np.ascontiguousarray(rows.values[:, self.kept])
        missing = scatter(
            values,
            rows.status,
            row_of,
            self.places,
            self.defaults,
            self.treatments,
            batch.matrix,
            batch.source,
            self.tally.values,
        )
        if rows.trouble and self.view.on_outage == "error":
            self._refuse_lost(batch, rows, row_of)
        if self.view.on_stale == "error":
            self._refuse_stale(batch, rows, row_of, now_ms)
        if missing and self.view.on_missing == "error":
            self._refuse_missing(batch, rows, row_of)

    def _refuse_lost(self, batch: Batch, rows: FetchedRows, row_of: Shorts) -> None:
        message = f"features of view {self.view.name!r} are unavailable; the server's log has the detail"
        for row in _of_status(rows, row_of, ROW_LOST):
            batch.refuse(int(row), FeaturesUnavailable.status, message)

    def _refuse_stale(self, batch: Batch, rows: FetchedRows, row_of: Shorts, now_ms: int) -> None:
        for row in _of_status(rows, row_of, ROW_STALE):
            at, limit = int(rows.event_times[row_of[row]]), f"more than {self.view.max_age_s:g} s"
            age = f"{(now_ms - at) / 1000:.0f} s old, {limit}" if at else f"without an event time, perhaps {limit} old"
            message = f"view {self.view.name!r}: features of {self._entity(batch, row)} are {age}"
            batch.refuse(int(row), UnknownEntity.status, message)

    def _refuse_missing(self, batch: Batch, rows: FetchedRows, row_of: Shorts) -> None:
        """Refuse the calls with an entity that the view has no full row of."""
        assert batch.source is not None
        lacking = (batch.source[:, self.places] == SOURCE_MISSING).any(axis=1) & (row_of >= 0)
        lacking[_of_status(rows, row_of, ROW_LOST)] = False
        lacking[_of_status(rows, row_of, ROW_STALE)] = False
        for row in np.flatnonzero(lacking):
            message = f"view {self.view.name!r} has no features of {self._entity(batch, row)}"
            batch.refuse(int(row), UnknownEntity.status, message)

    def _entity(self, batch: Batch, row: np.intp) -> str:
        assert batch.entities is not None
        shown = (batch.entities[int(row)] or b"").decode("utf-8", "backslashreplace")[:100]
        return f"{self.view.entity_name} {shown!r}"


def _of_status(rows: FetchedRows, row_of: Shorts, status: int) -> NDArray[np.intp]:
    """The batch rows whose entity's row has that status."""
    return np.flatnonzero((row_of >= 0) & (rows.status == status)[row_of])


@dataclass
class Join:
    """Looks up the features of one version.

    Args:
        reader: where features are looked up.
        views: what to look up; every column of theirs that the model reads is filled.
        columns: the model's columns, in order.
        timeout_s: bound of one look-up; a batch's latest deadline may shorten it.

    Attributes:
        outages: look-ups that were not answered, or not in full.
        tallies: what came of the others, by view.
    """

    reader: Reader
    views: Sequence[FeatureView]
    columns: Sequence[str]
    timeout_s: float
    outages: int = 0
    tallies: list[Tally] = field(init=False)
    _trouble: str = ""

    def __post_init__(self) -> None:
        self._views = [_View(view, self.columns) for view in self.views]
        self.tallies = [view.tally for view in self._views]
        looked_up = {name for view in self.views for name in view.feature_names}
        self._to_send = [index for index, name in enumerate(self.columns) if name not in looked_up]

    def fill(self, batch: Batch) -> bool:
        """Fill in what the callers left open; False where the store did not answer, or not in full."""
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
            fetched = self.reader.fetch(lookups, self._budget_s(batch))
        except FeatureError as error:
            fetched = [FetchedRows.lost(lookup, str(error)) for lookup in lookups]
        trouble = next((rows.trouble for rows in fetched if rows.trouble), "")
        self._tell(trouble)
        now_ms = time_ns() // 1_000_000
        for view, rows in zip(self._views, fetched, strict=True):
            view.fill(batch, rows, row_of, now_ms)
        return not trouble

    def _budget_s(self, batch: Batch) -> float:
        """Seconds this look-up may take: what is left to the most patient caller, less a fifth to answer in.

        The most patient one, for a caller in a hurry must not make the store look slow to all others of the batch.
        """
        if batch.latest_deadline_ns == 0:
            return self.timeout_s
        return max(0.001, min(self.timeout_s, 0.8e-9 * (batch.latest_deadline_ns - monotonic_ns())))

    def _tell(self, trouble: str) -> None:
        """Log when the store fails, fails otherwise or answers again; callers are not told where it stands."""
        self.outages += trouble != ""
        if trouble != self._trouble:
            _log.warning("%s", trouble or "the feature store answers again")
            self._trouble = trouble

    def _refuse_unsent(self, batch: Batch) -> None:
        """Refuse the calls that left out a column which no view has."""
        assert batch.source is not None
        unsent = batch.source[:, self._to_send] == SOURCE_NONE
        for row in np.flatnonzero(unsent.any(axis=1)):
            names = ", ".join(repr(self.columns[self._to_send[at]]) for at in np.flatnonzero(unsent[row])[:10])
            message = f"no feature view has {names[:400]}: send it, as [n] or [n, 1]"
            batch.refuse(int(row), InvalidRequest.status, message)
