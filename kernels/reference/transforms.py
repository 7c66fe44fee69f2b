"""What `kernels.transforms` must equal, in numpy: one function for each operation, over one float64 column."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]
Operation = tuple[str, int, Sequence[float]]


def impute(x: Column, p: Column) -> Column:
    """Parameters: fill."""
    return np.where(np.isnan(x), p[0], x)


def clip(x: Column, p: Column) -> Column:
    """Parameters: low, high."""
    return np.clip(x, p[0], p[1])


def log1p(x: Column, _: Column) -> Column:
    """No parameters."""
    return np.asarray(np.log1p(x))


def standardize(x: Column, p: Column) -> Column:
    """Parameters: mean, scale."""
    scaled: Column = (x - p[0]) / p[1]
    return scaled


def bucketize(x: Column, p: Column) -> Column:
    """Parameters: edges, ascending."""
    return np.where(np.isnan(x), np.nan, np.digitize(x, p, right=False))


def ordinal(x: Column, p: Column) -> Column:
    """Parameters: unknown, then categories, ascending."""
    index = {category: float(i) for i, category in enumerate(p[1:].tolist())}
    return np.array([v if v != v else index.get(v, p[0]) for v in x.tolist()], np.float64)  # noqa: PLR0124


OPERATIONS: dict[str, Callable[[Column, Column], Column]] = {
    f.__name__: f for f in (impute, clip, log1p, standardize, bucketize, ordinal)
}
PARAMETERS = {"impute": 1, "clip": 2, "log1p": 0, "standardize": 2}


def check(n_columns: int, name: str, column: int, parameters: Sequence[float]) -> None:
    """Refuse an operation that cannot be run."""
    p = np.array(parameters, np.float64)
    right = name in OPERATIONS and 0 <= column < n_columns and len(p) == PARAMETERS.get(name, len(p))
    right = right and len(p) <= 2**24 and not (name == "ordinal" and len(p) == 0)
    right = right and not (name == "clip" and not p[0] <= p[1])
    right = right and not (name == "standardize" and (np.isnan(p).any() or p[1] == 0))
    rising = {"bucketize": p, "ordinal": p[1:]}.get(name, np.array([]))
    if not right or np.isnan(rising).any() or not (np.diff(rising) > 0).all():
        raise ValueError(f"{name} of column {column} cannot have {parameters}")


class Program:
    """The operations of every column."""

    def __init__(self, n_columns: int, operations: Sequence[Operation]) -> None:
        if n_columns < 1:
            raise ValueError("a program runs over at least one column")
        for operation in operations:
            check(n_columns, *operation)
        self.n_inputs = self.n_outputs = n_columns
        self.operations = tuple((name, column, np.array(p, np.float64)) for name, column, p in operations)

    def run(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """In float64, rounded once."""
        exact = np.empty(x.shape, np.float64)
        self._check_shapes(x.shape, out.shape)
        self.run_exact(x.astype(np.float64), exact)
        with np.errstate(over="ignore"):
            out[:] = exact.astype(np.float32)

    def run_exact(self, x: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """In float64 without rounding."""
        self._check_shapes(x.shape, out.shape)
        out[:] = x
        with np.errstate(all="ignore"):
            for name, column, p in self.operations:
                out[:, column] = OPERATIONS[name](out[:, column], p)

    def _check_shapes(self, x: tuple[int, ...], out: tuple[int, ...]) -> None:
        if x != out or len(x) != 2 or x[1] != self.n_inputs:
            raise ValueError(f"x is {x} and out {out}; this program takes and gives {self.n_inputs} columns")
