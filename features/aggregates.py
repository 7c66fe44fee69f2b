"""Aggregates of an event stream: which column of a view is what function of which field over which window.

    name: customer_spending
    entity: customer_id
    columns:
      - {name: purchases_1h, dtype: int64, default: 0}
      - {name: spent_7d, dtype: float64, default: 0}
    aggregates:
      late_s: 3600              # events older than this when they come are dropped and counted
      columns:
        purchases_1h: {function: count, window: 1h}
        spent_7d: {function: sum, of: amount, window: 7d}

A window of length W slides in steps of W/60: its value is over all events of the last W, and of up to W/60 before that.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from penstock.features.records import Layout

STEPS = 60  # buckets of a window
UNITS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}
WINDOW = re.compile(r"([1-9]\d{0,3})([mhd])")
MAX_WINDOW_MS = 366 * UNITS["d"]

Function = Literal["count", "sum", "mean", "min", "max", "distinct"]


class Aggregate(BaseModel):
    """One column of an aggregated view.

    Attributes:
        function: `count` is of events, or with `of` of those that have the field; the others are of that field's
        values.
        of: field of the event; a number, but for `count` and `distinct`, which take any bytes.
        window: how far it looks back: a number and m, h or d.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: Function
    window: str
    of: Annotated[str, Field(max_length=200)] = ""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not WINDOW.fullmatch(self.window) or self.window_ms > MAX_WINDOW_MS:
            msg = f"a window is a number and m, h or d, such as 24h, of at most a year; not {self.window!r}"
            raise ValueError(msg)
        if not self.of and self.function != "count":
            msg = f"{self.function} is of a field: say of which (of: amount)"
            raise ValueError(msg)
        return self

    @cached_property
    def window_ms(self) -> int:
        """Length of the window."""
        number, unit = int(self.window[:-1]), self.window[-1]
        return number * UNITS[unit]

    def __str__(self) -> str:
        """As a person says it."""
        return f"{self.function}{f' of {self.of}' if self.of else ''} over {self.window}"


class Aggregates(BaseModel):
    """How the columns of a view come from events.

    Attributes:
        columns: for each column of the view what it is.
        late_s: events older than this when they come are dropped; without it only those that no window has any more.
        max_distinct: of each `distinct` field the values seen last are kept, at most so many; more are not told apart
            from as many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    columns: dict[str, Aggregate] = Field(min_length=1, max_length=256)
    late_s: float | None = Field(default=None, ge=0)
    max_distinct: int = Field(default=1000, ge=1, le=10_000)

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """The different windows, in ms, from the shortest."""
        return tuple(sorted({column.window_ms for column in self.columns.values()}))

    @cached_property
    def counted(self) -> tuple[str, ...]:
        """Fields of which numbers are kept in buckets; the empty one stands for the events themselves."""
        return tuple(sorted({c.of for c in self.columns.values() if c.function != "distinct"}))

    @cached_property
    def numeric(self) -> tuple[str, ...]:
        """Those of them that must be numbers."""
        return tuple(sorted({c.of for c in self.columns.values() if c.function not in ("count", "distinct")}))

    @cached_property
    def told_apart(self) -> tuple[str, ...]:
        """Fields whose different values are counted."""
        return tuple(sorted({c.of for c in self.columns.values() if c.function == "distinct"}))

    @cached_property
    def plan(self) -> tuple[tuple[Function, int, int], ...]:
        """For each column its function, which of `windows`, and which of `counted` (or `told_apart`) it is of."""
        return tuple(
            (
                column.function,
                self.windows.index(column.window_ms),
                (self.told_apart if column.function == "distinct" else self.counted).index(column.of),
            )
            for column in self.columns.values()
        )

    @cached_property
    def layout(self) -> Layout:
        """What states of it have."""
        return Layout.of(self.windows, ((name, name in self.numeric) for name in self.counted), self.told_apart)

    def begins_empty(self, column: Aggregate, former: Aggregates) -> bool:
        """Whether states of the former declaration have nothing of what this column is made of."""
        if column.function == "distinct":
            return column.of not in former.told_apart
        field = self.layout.counted[self.counted.index(column.of)]
        return column.window_ms not in former.windows or field not in former.layout.counted

    @cached_property
    def digest(self) -> int:
        """32 bits of the declaration, which is all that states of format 1 say of it."""
        return zlib.crc32(self.model_dump_json().encode())

    @cached_property
    def late_ms(self) -> int:
        """How old an event may be when it comes."""
        longest = self.windows[-1] + self.windows[-1] // STEPS
        return longest if self.late_s is None else min(int(self.late_s * 1000), longest)

    @property
    def keep_s(self) -> int:
        """How long a state and its row are kept after an event: the longest window, and a sixtieth, and an hour."""
        longest = self.windows[-1]
        return (longest + longest // STEPS) // 1000 + 3600


def check_columns(aggregates: Aggregates, dtypes: Mapping[str, str], layout: str) -> None:
    """Raise ValueError unless aggregates and columns are the same, each of a dtype that can hold it."""
    if layout != "row":
        raise ValueError("aggregates are kept in packed rows: take the row layout")
    if different := set(dtypes) ^ set(aggregates.columns):
        name = min(different)
        raise ValueError(f"{name!r} is {'no aggregate' if name in dtypes else 'an aggregate, but no column'}")
    for name, column in aggregates.columns.items():
        allowed = ("float64", "float32") + (("int64", "int32") if column.function in ("count", "distinct") else ())
        if dtypes[name] not in allowed:
            raise ValueError(f"column {name!r}: a {column.function} is {' or '.join(allowed)}, not {dtypes[name]}")


def as_columns(dtypes: Mapping[str, str], values: NDArray[np.float64]) -> dict[str, NDArray[Any]]:
    """Values of n states, float64 [n, k] in the order of `dtypes`, by column; what a dtype cannot hold is null."""
    columns = {}
    for (name, dtype), column in zip(dtypes.items(), values.T, strict=True):
        kind = np.dtype(dtype)
        most = np.finfo(kind).max if kind.kind == "f" else np.iinfo(kind).max
        columns[name] = np.where(np.abs(column) <= most, column, np.nan)
    return columns
