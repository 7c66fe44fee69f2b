"""Feature transforms over a batch: see the head of transforms.pyx, and `reference/transforms.py` for the twin."""

from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Operation: TypeAlias = tuple[str, int, Sequence[float]]
"""(name, column, parameters). NaN passes through every operation but impute. x is the value, in float64:

- `impute` [fill]: fill where x is NaN;
- `clip` [low, high]: low or high where x is beyond it;
- `log1p` []: ln(1 + x); NaN below -1, -inf at -1;
- `standardize` [mean, scale]: (x - mean) / scale;
- `bucketize` [edges, ascending]: how many edges are <= x, as `numpy.digitize(x, edges)`;
- `ordinal` [unknown, categories, ascending]: the index of the category equal to x, `unknown` where there is none.
"""

@final
class Program:
    """The operations of every column, compiled. Immutable; safe to use from many threads.

    Args:
        n_columns: width k of the batch.
        operations: run for each column in the order given; a column without any is copied.

    Raises:
        ValueError: an unknown operation, a column outside the batch, or parameters that do not fit.
    """

    @property
    def n_inputs(self) -> int:
        """Columns of `x`."""
    @property
    def n_outputs(self) -> int:
        """Columns of `out`; equal to `n_inputs` as long as no operation changes the width."""
    def __new__(cls, n_columns: int, operations: Sequence[Operation]) -> Program: ...
    def run(self, x: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Transform a batch in one pass, without the GIL.

        Args:
            x: (n, n_inputs) C-contiguous.
            out: (n, n_outputs) C-contiguous; `x` itself, or memory apart from it. Each value is computed in float64 and
                rounded to float32 once.

        Raises:
            ValueError: shapes, dtypes or memory order that do not fit.
        """

    def run_exact(self, x: NDArray[np.float64], out: NDArray[np.float64]) -> None:
        """As `run`, in float64 without rounding: for fitting a step on the output of those before it."""
