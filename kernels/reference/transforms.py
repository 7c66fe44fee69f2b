"""What `kernels.transforms` must equal, in numpy: one function for each operation, over whole float64 columns.

Every function takes the columns that the operation names and its parameters, and gives the columns it makes: in the
place of the first one where `CHANGES` lists it, behind all others where `MAKES` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
Columns = Sequence[Column]
Operation = tuple[str, int | tuple[int, ...], Sequence[float]]
MAX_GROUP = 2**16
TURN = (  # (-1)**k (2 pi)**(2k + 1) / (2k + 1)!
    *(6.283185307179586, -41.34170224039976, 81.60524927607506, -76.70585975306139, 42.058693944897655),
    *(-15.09464257682299, 3.819952584848282, -0.7181223017785006, 0.10422916220813984, -0.012031585942120627),
    0.0011309237482517963,
)


def impute(x: Columns, p: Column) -> Columns:
    """Parameters: fill."""
    return [np.where(np.isnan(x[0]), p[0], x[0])]


def clip(x: Columns, p: Column) -> Columns:
    """Parameters: low, high."""
    return [np.clip(x[0], p[0], p[1])]


def log1p(x: Columns, _: Column) -> Columns:
    """No parameters."""
    return [np.asarray(np.log1p(x[0]))]


def standardize(x: Columns, p: Column) -> Columns:
    """Parameters: mean, scale."""
    return [(x[0] - p[0]) / p[1]]


def min_max(x: Columns, p: Column) -> Columns:
    """Parameters: scale, shift."""
    return [x[0] * p[0] + p[1]]


def bucketize(x: Columns, p: Column) -> Columns:
    """Parameters: edges, ascending."""
    return [np.where(np.isnan(x[0]), np.nan, np.digitize(x[0], p, right=False))]


def ordinal(x: Columns, p: Column) -> Columns:
    """Parameters: unknown, then categories, ascending."""
    return [_looked_up(x[0], p[1:], np.arange(len(p) - 1.0), p[0], np.nan)]


def time_since(x: Columns, p: Column) -> Columns:
    """Columns: a time and the present. Parameters: milliseconds in a unit of the first, the second and the result."""
    then, now = x
    return [(now * p[1] - then * p[0]) / p[2]]


def product(x: Columns, _: Column) -> Columns:
    """Two columns, no parameters."""
    return [x[0] * x[1]]


def ratio(x: Columns, _: Column) -> Columns:
    """Two columns, no parameters."""
    return [x[0] / np.where(x[1] == 0, np.nan, x[1])]


def weighted_sum(x: Columns, p: Column) -> Columns:
    """Two columns. Parameters: a weight for each."""
    return [x[0] * p[0] + x[1] * p[1]]


def cyclical(x: Columns, p: Column) -> Columns:
    """Parameters: offset, period. Sine and cosine."""
    turns = (x[0] - p[0]) / p[1]
    turns = np.clip(np.where(np.isinf(turns), np.nan, turns), -(2.0**51), 2.0**51)
    part = turns - np.rint(turns)
    size = np.abs(part)
    return [np.copysign(_wave(np.where(size < 0.5 - size, size, 0.5 - size)), part), _wave(0.25 - size)]


def one_hot(x: Columns, p: Column) -> Columns:
    """Parameters: columns, place of the unknown, place of the missing, categories, the place of each; from 1 on."""
    categories, places = np.split(p[3:], 2)
    place = _looked_up(x[0], categories, places, p[1], p[2])
    return [(place == 1 + i).astype(np.float64) for i in range(int(p[0]))]


def hashing(x: Columns, p: Column) -> Columns:
    """Columns that share buckets. Parameters: buckets, whether there are signs, a seed for each column."""
    made = np.zeros((int(p[0]), len(x[0])))
    for column, seed in zip(x, p[2:].tolist(), strict=True):
        for row in np.flatnonzero(~np.isnan(column)):
            code = murmur3_32((column[row] + 0.0).tobytes(), int(seed))
            code -= (code >= 2**31) * 2**32
            made[abs(code) % len(made), row] += -1 if code < 0 and p[1] else 1
    return list(made)


def murmur3_32(data: bytes, seed: int = 0) -> int:
    """MurmurHash3_x86_32 of Austin Appleby."""

    def times(x: int, factor: int) -> int:
        return x * factor & 0xFFFFFFFF

    def rotated(x: int, bits: int) -> int:
        return (x << bits | x >> 32 - bits) & 0xFFFFFFFF

    def scrambled(block: int) -> int:
        return times(rotated(times(block, 0xCC9E2D51), 15), 0x1B873593)

    state, end = seed, len(data) & ~3
    for at in range(0, end, 4):
        state ^= scrambled(int.from_bytes(data[at : at + 4], "little"))
        state = (rotated(state, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
    state ^= scrambled(int.from_bytes(data[end:], "little")) ^ len(data)
    state = times(state ^ state >> 16, 0x85EBCA6B)
    state = times(state ^ state >> 13, 0xC2B2AE35)
    return state ^ state >> 16


def _wave(x: Column) -> Column:
    """sin(2 pi x) for x from -1/4 to 1/4, by Horner's rule."""
    total = np.full_like(x, TURN[-1])
    for coefficient in TURN[-2::-1]:
        total = total * (x * x) + coefficient
    return x * total


def _looked_up(x: Column, keys: Column, values: Column, unknown: float, missing: float) -> Column:
    """For each x the value of the key that equals it."""
    found = dict(zip(keys.tolist(), values.tolist(), strict=True))
    return np.array([missing if v != v else found.get(v, unknown) for v in x.tolist()], np.float64)  # noqa: PLR0124


CHANGES: dict[str, Callable[[Columns, Column], Columns]] = {
    f.__name__: f for f in (impute, clip, log1p, standardize, min_max, bucketize, ordinal, time_since)
}
MAKES: dict[str, Callable[[Columns, Column], Columns]] = {
    "hash": hashing,
    **{f.__name__: f for f in (product, ratio, weighted_sum, cyclical, one_hot)},
}
PARAMETERS = {"impute": 1, "clip": 2, "log1p": 0, "standardize": 2, "min_max": 2, "product": 0, "ratio": 0}
PARAMETERS |= {"weighted_sum": 2, "cyclical": 2, "time_since": 3}
COLUMNS = {"product": (2,), "ratio": (2,), "weighted_sum": (2,), "time_since": (1, 2)}


def check(n_columns: int, name: str, columns: tuple[int, ...], parameters: Sequence[float]) -> None:
    """Refuse an operation that cannot be run."""
    p = np.array(parameters, np.float64)
    right = name in CHANGES | MAKES and all(0 <= column < n_columns for column in columns)
    right = right and (len(columns) in COLUMNS.get(name, (1,)) or (name == "hash" and len(columns) > 0))
    right = right and len(p) == PARAMETERS.get(name, len(p)) and len(p) <= 2**24
    if not right or not _fit(name, p, len(columns)):
        raise ValueError(f"{name} of column {columns} cannot have {parameters}")


def _fit(name: str, p: Column, n_columns: int) -> bool:  # noqa: PLR0911  # a rule for each operation
    """Whether as many parameters as there must be make sense."""
    match name:
        case "clip":
            return bool(p[0] <= p[1])
        case "standardize":
            return not np.isnan(p).any() and p[1] != 0
        case "min_max" | "weighted_sum":
            return bool((np.abs(p) <= 1e300).all())
        case "cyclical" | "time_since":
            return bool((np.abs(p) <= 1e300).all() and (p[1:] if name == "cyclical" else p).min() > 0)
        case "bucketize":
            return _rising(p)
        case "ordinal":
            return len(p) > 0 and _rising(p[1:])
        case "one_hot":
            if len(p) < 3 or len(p) % 2 == 0 or not _places(p[:1], 1, MAX_GROUP):
                return False
            categories, places = np.split(p[3:], 2)
            return _rising(categories) and _places(np.append(places, p[1:3]), 0, p[0])
        case "hash":
            right = len(p) == 2 + n_columns and _places(p[:1], 1, MAX_GROUP)
            return right and p[1] in (0, 1) and _places(p[2:], 0, 2**32 - 1)
    return True


def _rising(values: Column) -> bool:
    return not np.isnan(values).any() and bool((np.diff(values) > 0).all())


def _places(values: Column, low: float, high: float) -> bool:
    return bool(((values >= low) & (values <= high) & (values == np.rint(values))).all())


class Program:
    """Operations over numbered columns, and which of them come out."""

    def __init__(self, n_columns: int, operations: Sequence[Operation], outputs: Sequence[int] | None = None) -> None:
        if n_columns < 1:
            raise ValueError("a program runs over at least one column")
        self.n_inputs = n_columns
        self.operations: list[tuple[str, tuple[int, ...], Column]] = []
        count = n_columns
        for name, columns, p in operations:
            chosen = (columns,) if isinstance(columns, int) else tuple(columns)
            check(count, name, chosen, p)
            self.operations.append((name, chosen, np.array(p, np.float64)))
            count += {"cyclical": 2, "one_hot": int([*p, 0][0]), "hash": int([*p, 0][0])}.get(name, name in MAKES)
        self.outputs = tuple(range(count) if outputs is None else outputs)
        if not self.outputs or not all(0 <= column < count for column in self.outputs):
            raise ValueError(f"columns {self.outputs} cannot be outputs; there are {count}")
        self.n_outputs = len(self.outputs)

    @property
    def timed(self) -> bool:
        """Whether it reads the clock."""
        return any(name == "time_since" and len(columns) == 1 for name, columns, _ in self.operations)

    def run(self, x: NDArray[np.float32], out: NDArray[np.float32], now: Column | None = None) -> None:
        """In float64, rounded once."""
        self._check(x, out, now)
        exact = np.empty(out.shape, np.float64)
        self.run_exact(x.astype(np.float64), exact, now)
        with np.errstate(over="ignore"):
            out[:] = exact.astype(np.float32)

    def run_exact(self, x: NDArray[np.float64], out: NDArray[np.float64], now: Column | None = None) -> None:
        """In float64 without rounding."""
        self._check(x, out, now)
        columns = [x[:, j].copy() for j in range(self.n_inputs)]
        with np.errstate(all="ignore"):
            for name, chosen, p in self.operations:
                read = [columns[j] for j in chosen]
                if name == "time_since" and len(chosen) == 1 and now is not None:
                    read.append(np.broadcast_to(now, len(x)))
                if name in CHANGES:
                    (columns[chosen[0]],) = CHANGES[name](read, p)
                else:
                    columns += MAKES[name](read, p)
        for j, column in enumerate(self.outputs):
            out[:, j] = columns[column]

    def _check(self, x: NDArray[np.floating], out: NDArray[np.floating], now: Column | None) -> None:
        if x.ndim != 2 or x.shape[1] != self.n_inputs or out.shape != (len(x), self.n_outputs):
            raise ValueError(f"x is {x.shape} and out {out.shape}; this program has {self.n_inputs}, {self.n_outputs}")
        if np.shares_memory(x, out):
            raise ValueError("out lies in the memory of x")
        if self.timed and (now is None or len(now) not in (1, len(x))):
            raise ValueError("this program reads the clock")
