"""The port: what every feature store can do.

`fetch` is the hot path: one round trip for all views of a batch, and never longer than its time limit. Everything else
is for people and programs that prepare: `get` and `put` with numpy or Arrow, definitions applied all or none.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penstock.features.arrow import from_table
from penstock.features.columns import as_array, as_times
from penstock.features.complaints import meant
from penstock.features.deleting import delete_rows
from penstock.features.entities import Id, entity_ids
from penstock.features.errors import InvalidView, StoreUnavailable, UnknownView
from penstock.features.plan import Plan, stored_view
from penstock.features.plan import plan as make_plan
from penstock.features.reading import Features, read
from penstock.features.schema import FeatureView
from penstock.kernels.joins import ROW_LOST

SLOW_S = 5.0  # time limit of a request that is not on the hot path
TRIES = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """What became of rows, but for those left out because a newer event was stored.

    Attributes:
        kept: written.
        over: not kept, for their time was over: `ttl_s` after their event had passed. What they replace is gone.
    """

    kept: int = 0
    over: int = 0

    def __add__(self, other: Written) -> Written:
        return Written(self.kept + other.kept, self.over + other.over)


Write = Callable[[], Written]
"""Writes what was prepared and tells what became of it; raises `StoreUnavailable`."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is wanted of one view: its entities, each once."""

    view: FeatureView
    entities: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class FetchedRows:
    """Answer to a lookup of u entities of a view that gives k numbers (`view.feature_names`).

    Attributes:
        values: float32 [u, k], NaN for null and for every value of a row that is not OK.
        event_times: int64 [u], ms since 1970 (UTC), 0 where unknown (absent rows, hashes without a `time_field`).
        status: uint8 [u], `ROW_OK`, `ROW_ABSENT`, `ROW_CORRUPT` or `ROW_SCHEMA` of `penstock.kernels.rows`, or one of
            those of `penstock.kernels.joins`.
        trouble: why rows are `ROW_LOST`, in one line; empty where none is.
    """

    values: NDArray[np.float32]
    event_times: NDArray[np.int64]
    status: NDArray[np.uint8]
    trouble: str = ""

    @classmethod
    def empty(cls, lookup: Lookup) -> FetchedRows:
        """Arrays of the right shapes, to be filled in full."""
        rows = len(lookup.entities)
        values = np.empty((rows, lookup.view.width), np.float32)
        return cls(values, np.zeros(rows, np.int64), np.empty(rows, np.uint8))

    @classmethod
    def lost(cls, lookup: Lookup, trouble: str) -> FetchedRows:
        """What a look-up comes to that nobody answered."""
        rows = len(lookup.entities)
        values = np.full((rows, lookup.view.width), np.nan, np.float32)
        return cls(values, np.zeros(rows, np.int64), np.full(rows, ROW_LOST, np.uint8), trouble)


class Reader(Protocol):
    """What rows are looked up through: a store, or a layer before one. Safe to use from many threads."""

    def fetch(self, lookups: Sequence[Lookup], timeout_s: float) -> list[FetchedRows]:
        """All rows of all lookups, in order, within `timeout_s` (never later than 1.2 times that).

        Rows that nobody answered for, where others were, are `ROW_LOST`.

        Raises:
            StoreUnavailable: nothing was answered.
            StoreMisconfigured: the store refuses us.
        """
        ...


class FeatureStore(Reader):
    """A place where rows and definitions of views are kept. It fetches in one round trip.

    A subclass says how; what people call (`get`, `put`, `apply`, `views`) is the same for all. `name` is where it is,
    without any password.
    """

    name: str

    def __new__(cls, *_: object, **__: object) -> Self:
        """An instance of a subclass; `TypeError` for who means `open_store`."""
        if cls is FeatureStore:
            raise TypeError("a FeatureStore is opened by penstock.features.open_store(url)")
        return super().__new__(cls)

    # For people ---------------------------------------------------------------------------------------------------

    def get(self, view: FeatureView | str, ids: Iterable[Id], columns: Sequence[str] | None = None) -> Features:
        """The features of entities, in their own dtypes and before defaults: a mapping from column to masked array.

        Args:
            view: a view, or the name of one that was applied.
            ids: str, bytes or int; tuples of them where the entity has several keys.
            columns: which of the view's columns, in this order; all if None.

        Raises:
            UnknownView: no view of that name.
            InvalidData: no such column, or ids of another number of parts.
        """
        found = self._found(view)
        entities = entity_ids(ids, len(found.entity_keys))
        features = read(found, entities, self.stored(found, entities))
        return features if columns is None else features.only(columns)

    def put(
        self,
        view: FeatureView | str,
        ids: Iterable[Id],
        columns: Mapping[str, ArrayLike],
        event_times: ArrayLike | None = None,
        *,
        overwrite: bool = False,
    ) -> int:
        """Write rows unless a newer event is stored, or their time is over; the number written.

        Args:
            view: a view, or the name of one that was applied.
            ids: n ids, as for `get`.
            columns: arrays or lists of n values under exactly the view's names. Words and texts are str, vectors rows
                of a matrix; None, NaN and a masked element are null.
            event_times: n times, datetime64 or ms since 1970 (UTC), at most a day ahead; now if None. Of equal times
                the row written last stays.
            overwrite: write whatever is stored.

        Raises:
            InvalidData: something does not fit the view.
            UnknownView: no view of that name.
        """
        found = self._found(view)
        arrays = {name: as_array(values) for name, values in columns.items()}
        times = None if event_times is None else as_times(event_times)
        entities = entity_ids(ids, len(found.entity_keys))
        return self.prepare(found, entities, arrays, times, overwrite=overwrite)().kept

    def put_table(self, view: FeatureView | str, table: Any, *, overwrite: bool = False) -> int:
        """`put` of an Arrow table: it has the entity's keys and the view's columns, and `event_time` if wanted."""
        found = self._found(view)
        return self.prepare(found, *from_table(found, table), overwrite=overwrite)().kept

    def delete(self, view: FeatureView | str, ids: Iterable[Id]) -> int:
        """Take away a view's rows of entities, and of aggregates what is remembered of their events; how many rows.

        Fields of hashes that another view reads, too, stay. A server's near cache may have a row for its `max_age_s`
        longer. `penstock.features.deleting.delete_view` takes away a view.

        Raises:
            UnknownView: no view of that name.
        """
        found = self._found(view)
        return delete_rows(self, found, entity_ids(ids, len(found.entity_keys)))

    def _found(self, view: FeatureView | str) -> FeatureView:
        return self.view(view) if isinstance(view, str) else view

    # Definitions --------------------------------------------------------------------------------------------------

    def plan(self, views: FeatureView | Sequence[FeatureView], *, replace: bool = False) -> Plan:
        """What `apply` would do; `InvalidView` where a definition in the way cannot be read, unless `replace`."""
        wanted = [views] if isinstance(views, FeatureView) else list(views)
        held = self.definitions([view.name for view in wanted])
        return make_plan(wanted, {view.name: held.get(view.name) for view in wanted}, self.name, replace=replace)

    def apply(self, views: FeatureView | Sequence[FeatureView], *, replace: bool = False) -> Plan:
        """Store the definitions, all or none; what was done. Former schemas stay readable.

        Raises:
            SchemaChanged: the change takes something away (see `Plan.breaks`), unless `replace`.
        """
        for _ in range(TRIES):
            plan = self.plan(views, replace=replace)
            if not replace:
                plan.require_harmless()
            if self.carry_out(plan):
                return plan
        raise StoreUnavailable(f"definitions in the feature store at {self.name} are changed by somebody all the time")

    def carry_out(self, plan: Plan) -> bool:
        """Store what the plan says, all or nothing; False where the store is not as it was when the plan was made."""
        changed = {change.view.name: change.view.definition() for change in plan.changes if change.kind != "unchanged"}
        return not changed or self.swap(plan.expected, changed)

    def views(self) -> list[FeatureView]:
        """Every valid definition, by name; what is not valid is logged and left out."""
        views = []
        for name, definition in sorted(self.definitions().items()):
            try:
                views.append(stored_view(name, definition, self.name))
            except InvalidView as error:
                log.warning("left out: %s", error)
        return views

    def view(self, name: str) -> FeatureView:
        """One definition; raises `UnknownView` or `InvalidView`."""
        definition = self.definitions([name]).get(name)
        if definition is None:
            asked = meant(name, list(self.definitions())) or "apply its YAML file first"
            raise UnknownView(f"no view {name!r} in the feature store at {self.name}; {asked}")
        return stored_view(name, definition, self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a kind of store does ------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(
        self,
        view: FeatureView,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64] | None = None,
        *,
        overwrite: bool = False,
    ) -> Write:
        """`put` in two halves: everything is checked and encoded here, and written by calling the result.

        It may be called from another thread, and again after `StoreUnavailable`.
        """

    @abstractmethod
    def stored(self, view: FeatureView, entities: Sequence[bytes]) -> list[Any]:
        """What is kept of entities: packed rows, None where there is none; for the hash layout lists of texts or None.

        The texts are those of `FeatureView.read_fields`; an entity whose key holds something else is None itself.
        """

    @abstractmethod
    def definitions(self, names: Sequence[str] | None = None, *, timeout_s: float = SLOW_S) -> dict[str, bytes]:
        """The definitions under these names, as far as there are any; all of them if None."""

    @abstractmethod
    def swap(self, expected: Mapping[str, bytes | None], new: Mapping[str, bytes | None]) -> bool:
        """Store `new` if the definitions are the `expected` ones, in one step; else do nothing, and False.

        `new` has names of `expected` only; None takes a definition away.
        """

    @abstractmethod
    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Some `count` keys of the store from `cursor` on, and the next cursor; both begin and end with 0."""

    @abstractmethod
    def unlink(self, keys: Sequence[bytes]) -> int:
        """Take away keys, as `scan` gives them; how many there were."""

    @abstractmethod
    def drop_fields(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> int:
        """Take away these fields of hashes; how many hashes had one. What is no hash is left alone."""

    @abstractmethod
    def size(self) -> int:
        """How many keys the store has, whosever they are."""

    @abstractmethod
    def mark(self, job: str, new: bytes | None) -> bytes | None:
        """Remember how far a job has come, beside the rows and with their durability; the mark it had before.

        None removes it, and gives None. Marks are forgotten after a week.
        """

    @abstractmethod
    def marked(self, job: str) -> bytes | None:
        """The mark of a job, None if it has none."""

    @abstractmethod
    def ping(self) -> None:
        """Return if the store answers; else `StoreUnavailable` or `StoreMisconfigured`."""

    def snapshot(self) -> dict[str, int]:
        """How its servers are, for metrics; empty where there are none.

        `servers` there are, `shunned` ones that do not answer, `outages` until now, `connections` opened.
        """
        return {}

    @abstractmethod
    def close(self) -> None:
        """Give back connections and processes. Closing twice is allowed."""
