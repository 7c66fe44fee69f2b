"""The port: what every feature store can do.

`fetch` is the hot path: one round trip for all views of a batch, and never longer than its time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.features.errors import InvalidView, SchemaChanged
from penstock.features.schema import FeatureView
from penstock.kernels.joins import ROW_LOST


Write = Callable[[], int]
"""Writes what was prepared and gives the number of rows written; raises `StoreUnavailable`."""


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
        event_times: int64 [u], ms since 1970 (UTC), 0 where unknown (absent rows, hash layout).
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


class FeatureStore(Reader, Protocol):
    """A place where rows of features are kept. It fetches in one round trip."""

    def put(
        self,
        view: FeatureView,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64] | None = None,
        *,
        overwrite: bool = False,
    ) -> int:
        """Write rows unless a newer event is stored; the number written.

        `columns` has exactly the view's names, each 1-D and as long as `entities`; NaN, and a masked element of a
        `numpy.ma` array, is null. `event_times` are ms since 1970 (UTC), now if None. Of equal times the row written
        last stays; with `overwrite` it always does. Raises `InvalidData`.
        """
        ...

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
        ...

    def mark(self, job: str, new: bytes | None) -> bytes | None:
        """Remember how far a job has come, beside the rows and with their durability; the mark it had before.

        None removes it, and gives None. Marks are forgotten after a week.
        """
        ...

    def marked(self, job: str) -> bytes | None:
        """The mark of a job, None if it has none."""
        ...

    def apply(self, view: FeatureView, *, replace: bool = False) -> None:
        """Store the definition; `SchemaChanged` if other columns stand under the name, unless `replace`."""
        ...

    def views(self) -> list[FeatureView]:
        """Every valid definition, by name; what is not valid is logged and left out."""
        ...

    def view(self, name: str) -> FeatureView:
        """One definition; raises `UnknownView` or `InvalidView`."""
        ...

    def ping(self) -> None:
        """Return if the store answers; else `StoreUnavailable` or `StoreMisconfigured`."""
        ...

    def close(self) -> None:
        """Give back connections and processes. Closing twice is allowed."""
        ...


def refuse_change(old: FeatureView, new: FeatureView) -> None:
    """`SchemaChanged` if rows written under `old` cannot be read under `new`."""
    if not new.same_rows(old):
        raise SchemaChanged(
            f"view {new.name!r} exists with other columns, layout or entity, and its rows would read as missing; "
            "give the new one another name, or replace it (--replace) and ingest again"
        )


def stored_view(name: str, definition: bytes, where: str) -> FeatureView:
    """A definition as read from a store, checked like one from a stranger; raises `InvalidView`."""
    view = FeatureView.parse(definition, source=f"the definition of view {name!r} in {where}")
    if view.name != name:
        raise InvalidView(f"the definition of view {name!r} in {where} is that of {view.name!r}")
    return view
