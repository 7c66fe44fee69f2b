"""Rows for measuring a version: seeded, like those it was trained on, and all different.

Repeated rows flatter trees three to four times, since the processor learns their branches. So float features are drawn
bin by bin from the version's profile, each column for itself, and whole where the profile's are (counts, categories).
Where there is none they are mixed from the golden rows' columns and jittered; texts and other types are golden rows
drawn again and again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError
from penstock.kernels.wire import NUMPY, Plan, PlanInput
from penstock.monitoring import ColumnProfile, Profile
from penstock.proto import inference_pb2 as pb

SEED = 20
JITTER = 0.05
LARGEST_POOL = 8 << 20
"""Bytes of a pool."""
SMALLEST_POOL = 2048
"""Rows, where they fit: enough for many rounds of small sizes to differ."""
Array = NDArray[Any]


class NothingToDraw(PenstockError):  # noqa: N818
    """No rows can be made up that a version would take for real ones."""


class Samples:
    """A pool of rows of one version, and requests cut out of it, each going on where the last one ended.

    Args:
        plan: what the version takes.
        profile: distributions of its float features, or None.
        golden: rows as a caller sends them, by input; empty where there are none.
        most: rows of the largest request wanted; the pool has more, or fewer where rows are large.

    Raises:
        NothingToDraw: an input has neither a profile nor golden rows.
    """

    def __init__(self, plan: Plan, profile: Profile | None, golden: Mapping[str, Array], most: int) -> None:
        chance = np.random.default_rng(SEED)
        self.rows = rows = min(max(most, SMALLEST_POOL), max(LARGEST_POOL // _row_bytes(plan, golden), 1))
        self._plan = plan
        self._next = 0
        drawn = {} if profile is None else {c.name: i for i, c in enumerate(profile.columns)}
        matrix = None if profile is None else from_profile(profile, rows, chance)
        self._pool = {
            entry.name: _rows_of(entry, matrix, drawn, golden, rows, chance)
            for entry in plan.inputs
            if entry.kind != "entity"
        }

    def request(self, rows: int) -> bytes:
        """A ModelInferRequest of the next `rows` rows; at most as many as the pool has."""
        first = self._next if self._next + rows <= self.rows else 0
        self._next = first + rows
        message = pb.ModelInferRequest()
        for entry in self._plan.inputs:
            if entry.name in self._pool:
                values = self._pool[entry.name][first : first + rows]
                message.inputs.add(name=entry.name, datatype=entry.datatype, shape=values.shape)
                message.raw_input_contents.append(_raw(values))
        return message.SerializeToString()


def from_profile(profile: Profile, rows: int, chance: np.random.Generator) -> NDArray[np.float32]:
    """Rows [rows, columns] of a profile's distribution: a bin by its count, then anywhere in it; missing is NaN.

    Below the lowest and above the highest edge nothing is known but the edge.
    """
    drawn = np.full((rows, len(profile.columns)), np.nan, np.float32)
    for index, column in enumerate(profile.columns):
        counts = np.array(column.counts, float)
        if not column.edges or not counts.sum():
            continue
        bins = chance.choice(len(counts), rows, p=counts / counts.sum())
        uppers = np.array([*column.edges, column.edges[-1], np.nan])
        lowers = np.array([column.edges[0], *column.edges, np.nan])
        values = uppers[bins] - (uppers - lowers)[bins] * chance.random(rows)
        drawn[:, index] = np.ceil(values) if _is_whole(column) else values
    return drawn


def _is_whole(column: ColumnProfile) -> bool:
    """Whether a column seems to have whole numbers only; the first edge may lie just below the least value."""
    return all(edge.is_integer() for edge in column.edges[1:] or column.edges)


def from_golden(values: Array, rows: int, chance: np.random.Generator) -> Array:
    """Rows made of golden ones: floats are mixed column by column and jittered, anything else drawn whole."""
    if values.dtype.kind != "f":
        return values[chance.integers(0, len(values), rows)]
    flat = values.reshape(len(values), -1)
    picked = chance.integers(0, len(flat), (rows, flat.shape[1]))
    mixed = np.take_along_axis(flat, picked, axis=0) * (1 + JITTER * chance.standard_normal(picked.shape))
    return mixed.astype(values.dtype).reshape(rows, *values.shape[1:])


def _row_bytes(plan: Plan, golden: Mapping[str, Array]) -> int:
    """About how many bytes a row has, free sizes as the golden rows have them."""
    given = sum(values.nbytes // max(len(values), 1) for values in golden.values())
    return max(given, sum(abs(math.prod(entry.shape)) * 4 for entry in plan.inputs), 1)


def _rows_of(
    entry: PlanInput,
    matrix: NDArray[np.float32] | None,
    drawn: Mapping[str, int],
    golden: Mapping[str, Array],
    rows: int,
    chance: np.random.Generator,
) -> Array:
    """The pool of one input."""
    if matrix is not None and entry.kind == "matrix":
        return matrix
    if matrix is not None and entry.name in drawn and entry.shape in {(), (1,)} and entry.datatype != "BYTES":
        column = matrix[:, drawn[entry.name]].reshape(rows, *entry.shape)
        whole = entry.datatype != "BOOL" and not entry.datatype.startswith(("FP", "BF"))
        return np.nan_to_num(np.ceil(column)).astype(NUMPY[entry.datatype]) if whole else _cast(column, entry)
    if not len(golden.get(entry.name, ())):
        raise NothingToDraw(f"there is neither a profile nor golden rows to draw {entry.name!r} from")
    values = from_golden(golden[entry.name], rows, chance)
    return values if entry.datatype == "BYTES" else _cast(values, entry)


def _cast(values: Array, entry: PlanInput) -> Array:
    return np.ascontiguousarray(values, NUMPY[entry.datatype])


def _raw(values: Array) -> bytes:
    """As the protocol sends them: numbers as they lie in memory, texts each behind its length."""
    if values.dtype.kind != "O":
        return values.tobytes()
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in values.reshape(-1)]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)
