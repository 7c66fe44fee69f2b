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
from penstock.features.store import FetchedRows, Reader
from penstock.features.treatments import treatments
from penstock.kernels.batches import Batch
from penstock.kernels.joins import ROW_LOST, ROW_STALE, SOURCE_MISSING, SOURCE_NONE, observe, scatter
from penstock.server.entities import Asked, Entities, readable
from penstock.server.errors import FeaturesUnavailable, InvalidRequest, UnknownEntity
from penstock.server.tallies import AGES_MS, Tally

_log = logging.getLogger("penstock.server")

SOURCES = np.array(["none", "request", "store", "cache", "default", "missing", "stale", "computed"], dtype=object)
"""Words for the codes in a batch's `source`."""


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

    def fill(self, batch: Batch, rows: FetchedRows, asked: Asked, now_ms: int) -> None:
        """Write the view's rows into the batch, and refuse the calls that the view says not to answer."""
        assert batch.matrix is not None
        assert batch.source is not None
        _, row_of = asked
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
            self._refuse_lost(batch, rows, asked)
        if self.view.on_stale == "error":
            self._refuse_stale(batch, rows, asked, now_ms)
        if missing and self.view.on_missing == "error":
            self._refuse_missing(batch, rows, asked)

    def _refuse_lost(self, batch: Batch, rows: FetchedRows, asked: Asked) -> None:
        message = f"features of view {self.view.name!r} are unavailable; the server's log has the detail"
        for row in _of_status(rows, asked, ROW_LOST):
            batch.refuse(int(row), FeaturesUnavailable.status, message)

    def _refuse_stale(self, batch: Batch, rows: FetchedRows, asked: Asked, now_ms: int) -> None:
        _, row_of = asked
        for row in _of_status(rows, asked, ROW_STALE):
            at, limit = int(rows.event_times[row_of[row]]), f"more than {self.view.max_age_s:g} s"
            age = f"{(now_ms - at) / 1000:.0f} s old, {limit}" if at else f"without an event time, perhaps {limit} old"
            message = f"view {self.view.name!r}: features of {self._entity(asked, row)} are {age}"
            batch.refuse(int(row), UnknownEntity.status, message)

    def _refuse_missing(self, batch: Batch, rows: FetchedRows, asked: Asked) -> None:
        """Refuse the calls with an entity that the view has no full row of."""
        assert batch.source is not None
        _, row_of = asked
        lacking = (batch.source[:, self.places] == SOURCE_MISSING).any(axis=1) & (row_of >= 0)
        lacking[_of_status(rows, asked, ROW_LOST)] = False
        lacking[_of_status(rows, asked, ROW_STALE)] = False
        for row in np.flatnonzero(lacking):
            message = f"view {self.view.name!r} has no features of {self._entity(asked, row)}"
            batch.refuse(int(row), UnknownEntity.status, message)

    def _entity(self, asked: Asked, row: np.intp) -> str:
        lookup, row_of = asked
        return f"{self.view.entity_name} {readable(lookup.entities[row_of[row]])}"


def _of_status(rows: FetchedRows, asked: Asked, status: int) -> NDArray[np.intp]:
    """The batch rows whose entity's row has that status."""
    _, row_of = asked
    return np.flatnonzero((row_of >= 0) & (rows.status == status)[row_of])


@dataclass
class Join:
    """Looks up the features of one version.

    Args:
        reader: where features are looked up.
        views: what to look up; every column of theirs that the model reads is filled.
        keys: what the parts of an entity id are, in order; those of every view are among them.
        columns: the model's columns, in order.
        timeout_s: bound of one look-up; a batch's latest deadline may shorten it.

    Attributes:
        outages: look-ups that were not answered, or not in full.
        tallies: what came of the others, by view.
    """

    reader: Reader
    views: Sequence[FeatureView]
    keys: Sequence[str]
    columns: Sequence[str]
    timeout_s: float
    outages: int = 0
    tallies: list[Tally] = field(init=False)
    _trouble: str = ""

    def __post_init__(self) -> None:
        self._views = [_View(view, self.columns) for view in self.views]
        self.tallies = [view.tally for view in self._views]
        self._entities = Entities(self.keys, self.views)
        looked_up = {name for view in self.views for name in view.feature_names}
        self._to_send = [index for index, name in enumerate(self.columns) if name not in looked_up]

    def fill(self, batch: Batch) -> bool:
        """Fill in what the callers left open; False where the store did not answer, or not in full."""
        answered = self._look_up(batch)
        if self._to_send:
            self._refuse_unsent(batch)
        return answered

    def _look_up(self, batch: Batch) -> bool:
        asked = self._entities.asked(batch)
        if not asked:
            return True
        lookups = [lookup for lookup, _ in asked]
        try:
            fetched = self.reader.fetch(lookups, self._budget_s(batch))
        except FeatureError as error:
            fetched = [FetchedRows.lost(lookup, str(error)) for lookup in lookups]
        now_ms, trouble = time_ns() // 1_000_000, ""
        for view, rows, one in zip(self._views, fetched, asked, strict=True):
            trouble = trouble or rows.trouble
            view.fill(batch, rows, one, now_ms)
        self._tell(trouble)
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
