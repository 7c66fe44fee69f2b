"""Feature transforms over a batch: see the head of transforms.pyx, and `reference/transforms.py` for the twin."""

from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Operation: TypeAlias = tuple[str, int | tuple[int, ...], Sequence[float]]
"""(name, column or columns, parameters). All in float64; NaN is missing and goes through all but what names it.

These change the column they name, x:

- `impute` [fill]: fill where x is NaN;
- `clip` [low, high]: low or high where x is beyond it;
- `log1p` []: ln(1 + x); NaN below -1, -inf at -1;
- `standardize` [mean, scale]: (x - mean) / scale;
- `min_max` [scale, shift]: x * scale + shift;
- `bucketize` [edges, ascending]: how many edges are <= x, as `numpy.digitize(x, edges)`;
- `ordinal` [unknown, categories, ascending]: the index of the category equal to x, `unknown` where there is none;
- `time_since` [ms of a unit of x, ms of a unit of now, ms of a unit of the result]: now - x, in that unit. A second
  column is now; else it is the clock, and its unit a millisecond.

These make columns, which get the next numbers:

- `product` []: a * b of columns (a, b);
- `ratio` []: a / b; NaN where b is 0;
- `weighted_sum` [u, v]: a * u + b * v;
- `cyclical` [offset, period]: sine and cosine of the turns (x - offset) / period, within 4e-16;
- `one_hot` [n, unknown, missing, categories, places]: n columns that are 0, but 1 in the place of the category equal to
  x, in `unknown` where there is none, in `missing` where x is NaN. Categories ascend; a place is 1 to n, or 0: no 1;
- `hash` [n, signs, seeds]: n columns of the sums of what columns add. With h = MurmurHash3_x86_32 of the eight bytes of
  x as a little-endian float64 (-0.0 as 0.0) with the column's seed, as a signed number: 1 in |h| modulo n, or -1 where
  h < 0 and signs are 1. NaN adds nothing.
"""

def murmur3_32(data: bytes, seed: int = 0) -> int:
    """MurmurHash3_x86_32 of Austin Appleby, 0 to 2**32 - 1: what `hash` takes for a value's eight bytes."""

@final
class Program:
    """Operations over numbered columns, compiled. Immutable; safe to use from many threads.

    Args:
        n_columns: width k of the batch; its columns are 0 to k - 1.
        operations: run in the order given.
        outputs: numbers of the columns that come out, in order; all of them where None.

    Raises:
        ValueError: an unknown operation, a column that is not there, parameters that do not fit, or more than 1,024
            columns that are needed at once.
    """

    @property
    def n_inputs(self) -> int:
        """Columns of `x`."""
    @property
    def n_outputs(self) -> int:
        """Columns of `out`."""
    @property
    def timed(self) -> bool:
        """Whether the result depends on the clock."""
    def __new__(
        cls, n_columns: int, operations: Sequence[Operation], outputs: Sequence[int] | None = None
    ) -> Program: ...
    def run(self, x: NDArray[np.float32], out: NDArray[np.float32], now: NDArray[np.float64] | None = None) -> None:
        """Transform a batch in one pass, without the GIL where it is large.

        Args:
            x: (n, n_inputs) C-contiguous.
            out: (n, n_outputs) C-contiguous, apart from x. Each value is computed in float64 and rounded to float32
                once.
            now: the clock, milliseconds since 1970: (1,), or (n,) with a time for each row; only where `timed`.

        Raises:
            ValueError: shapes, dtypes or memory order that do not fit, or no clock where it is read.
        """

    def run_exact(
        self, x: NDArray[np.float64], out: NDArray[np.float64], now: NDArray[np.float64] | None = None
    ) -> None:
        """As `run`, in float64 without rounding: for fitting a step on the output of those before it."""
