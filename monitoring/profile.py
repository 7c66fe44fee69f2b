"""Profiles: the reference distribution a version carries, as fixed bins and counts for each column.

Bins are chosen once, on the reference rows, and never move; so counts of batches, workers and windows add up exactly.
Column `j` with edges `e[0] < ... < e[m-1]` has `m + 2` counters: `(-inf, e[0]]`, `(e[0], e[1]]`, ..., `(e[m-1], inf)`,
missing (NaN). How edges are chosen:

- few distinct values (up to `bins - 2`: flags, small counts, constants): an edge at each value and one just below the
  least. Every value has its own bin, and the outer bins are empty until something new appears on either side.
- else the quantiles 1/bins ... (bins-1)/bins, as values of the column itself (the inverse of the empirical CDF); equal
  ones are merged, so a value that fills several bins leaves fewer.
- a column with no value at all has no edges: one bin and the missing counter.

Edges are finite float32 values, strictly ascending; infinite values fall into the outer bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from penstock.errors import PenstockError
from penstock.kernels.drift import bin_counts

MOST_BINS = 256
FINITE = Annotated[float, Field(allow_inf_nan=False)]
COUNT = Annotated[int, Field(ge=0, lt=2**63)]
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


class ProfileError(PenstockError):
    """A profile is malformed, or was asked for from data it cannot be made of."""


class _Stored(BaseModel):
    """A value kept as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> bytes:
        """UTF-8 JSON; floats are written so that reading gives the same bits."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Read and check what `to_json` wrote.

        Raises:
            ProfileError: it is not such JSON, or its parts do not fit together.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise ProfileError(f"the drift profile cannot be read: {first_problem(error)}; publish it again") from error


class ColumnProfile(_Stored):
    """One column: `m` edges and the `m + 2` counts of the reference rows."""

    name: Annotated[str, Field(min_length=1)]
    edges: Annotated[tuple[FINITE, ...], Field(max_length=MOST_BINS - 1)]
    counts: tuple[COUNT, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.counts) != len(self.edges) + 2:
            raise ValueError(f"column {self.name} needs {len(self.edges) + 2} counts, has {len(self.counts)}")
        if any(low >= high for low, high in pairwise(self.edges)):
            raise ValueError(f"edges of column {self.name} do not ascend")
        with np.errstate(over="ignore"):
            rounded = np.array(self.edges).astype(np.float32)
        if rounded.tolist() != list(self.edges):
            raise ValueError(f"edges of column {self.name} are not float32 values")
        return self


@dataclass(frozen=True)
class Layout:
    """All columns' edges in one array, as `kernels.drift.bin_counts` takes them."""

    edges: NDArray[np.float32]  # [total]
    offsets: NDArray[np.int32]  # [k + 1]; column j has edges[offsets[j]:offsets[j + 1]]

    @classmethod
    def of(cls, columns: Sequence[Sequence[float]]) -> Self:
        """The layout of columns with these edges."""
        edges = np.array([edge for column in columns for edge in column], dtype=np.float32)
        offsets = np.cumsum([0, *map(len, columns)], dtype=np.int32)
        edges.flags.writeable = offsets.flags.writeable = False
        return cls(edges, offsets)

    def counters(self) -> NDArray[np.int64]:
        """Zeroed counters for all columns, int64 `[total + 2 k]`."""
        return np.zeros(len(self.edges) + 2 * (len(self.offsets) - 1), dtype=np.int64)

    def split(self, counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Views of each column's counters."""
        borders = self.offsets + 2 * np.arange(len(self.offsets))
        return [counts[first:last] for first, last in pairwise(borders)]


class Profile(_Stored):
    """The reference counts of a table's columns, in order."""

    format: Literal[1] = 1
    rows: COUNT
    columns: tuple[ColumnProfile, ...]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.names)) != len(self.columns):
            raise ValueError("two columns have the same name")
        for column in self.columns:
            if sum(column.counts) != self.rows:
                raise ValueError(f"counts of column {column.name} sum to {sum(column.counts)}, not to {self.rows} rows")
        return self

    @classmethod
    def of(cls, matrix: NDArray[np.float32], names: Sequence[str], bins: int = 20) -> Self:
        """Profile a table.

        Args:
            matrix: float32 `[n, k]`; NaN is missing, infinities are values.
            names: the `k` columns' names, all different.
            bins: at most this many bins a column, 3 to 256, the missing counter apart.

        Raises:
            ProfileError: shape, names or bins do not fit.
        """
        if not 3 <= bins <= MOST_BINS:
            raise ProfileError(f"a profile has 3 to {MOST_BINS} bins a column, not {bins}")
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(matrix, dtype=np.float32)
        if values.ndim != 2 or values.shape[1] != len(names):
            raise ProfileError(f"a profile of {len(names)} columns needs a table of them, not an array {values.shape}")
        edges = [choose_edges(column, bins) for column in values.T]
        return cls._counted(values, names, edges)

    @classmethod
    def _counted(cls, values: NDArray[np.float32], names: Sequence[str], edges: list[list[float]]) -> Self:
        layout = Layout.of(edges)
        counts = layout.counters()
        bin_counts(values, layout.edges, layout.offsets, counts)
        parts = zip(names, edges, layout.split(counts), strict=True)
        try:
            columns = [ColumnProfile(name=n, edges=tuple(e), counts=tuple(c.tolist())) for n, e, c in parts]
            return cls(rows=len(values), columns=tuple(columns))
        except ValidationError as error:
            raise ProfileError(f"the table cannot be profiled: {first_problem(error)}") from error

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in order."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def layout(self) -> Layout:
        """The bins as the kernel takes them."""
        return Layout.of([column.edges for column in self.columns])

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """All columns' counts, laid out as a window's: int64 `[total + 2 k]`, read-only."""
        counts = np.array([count for column in self.columns for count in column.counts], dtype=np.int64)
        counts.flags.writeable = False
        return counts


class Reference(_Stored):
    """What a version stores: the profile of its input columns, and of its score, if it has one."""

    format: Literal[1] = 1
    features: Profile
    score: Profile | None = None


def choose_edges(column: NDArray[np.float32], bins: int) -> list[float]:
    """At most `bins - 1` edges for one column of values, ascending; see the head of this file."""
    present = np.sort(column[~np.isnan(column)]) + np.float32(0)  # -0.0 and 0.0 are one value
    if len(present) == 0:
        return []
    distinct = np.unique(present)
    if len(distinct) > bins - 2:
        ranks = -(-np.arange(1, bins) * len(present) // bins) - 1
        return finite(np.unique(present[ranks]))
    edges = finite(distinct)
    return ([below(edges[0])] if edges and edges[0] > np.finfo(np.float32).min else []) + edges


def finite(values: NDArray[np.float32]) -> list[float]:
    """Those that can be edges."""
    kept: list[float] = values[np.isfinite(values)].tolist()
    return kept


def below(value: float) -> float:
    """The next smaller float32, stepping over denormals, which some runtimes' threads flush to zero."""
    if 0 <= value <= SMALLEST_NORMAL:
        return 0.0 if value == SMALLEST_NORMAL else -SMALLEST_NORMAL
    return float(np.nextafter(np.float32(value), np.float32(-np.inf)))


def first_problem(error: ValidationError) -> str:
    """The first thing pydantic found, in one line."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message
