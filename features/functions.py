"""Python functions in transforms: registered by name by whoever runs them, batch in and batch out.

A function takes columns by name, read-only float64 arrays [n], and gives arrays [n] by name: each row by itself, since
which rows share a batch is chance. A stored version names a function and never where its code is: that, only the
operator says (`load_functions`), so nothing from a registry is ever imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penstock.features.errors import TransformError
from penstock.kernels.transforms import Program

Matrix = NDArray[np.float64]
Function = Callable[[Mapping[str, Matrix]], Mapping[str, ArrayLike]]


def load_functions(named: Mapping[str, str]) -> dict[str, Function]:
    """Import functions by `package.module:function`. This runs code: the names must come from the operator.

    Raises:
        TransformError: a place that is not written so, cannot be imported or is no function, named.
    """
    return {name: _load(name, place) for name, place in named.items()}


def _load(name: str, place: str) -> Function:
    module, _, attribute = place.partition(":")
    if not module or not attribute:
        raise TransformError(f"function {name!r}: {place!r} is not package.module:function")
    try:
        found: Any = getattr(import_module(module), attribute)
    except Exception as error:  # a module may fail in any way while it is imported
        line = " ".join(str(error).split())[:200]
        why = f"{type(error).__name__}: {line}"
        raise TransformError(f"function {name!r}: {place} cannot be imported: {why}") from error
    if not callable(found):
        raise TransformError(f"function {name!r}: {place} is no function")
    loaded: Function = found
    return loaded


@dataclass(frozen=True)
class Call:
    """One function between programs.

    Attributes:
        name: under which it is registered.
        function: itself.
        columns: that it takes, with their places in the matrix.
        outputs: that it gives, put behind the matrix.
    """

    name: str
    function: Function
    columns: tuple[tuple[str, int], ...]
    outputs: tuple[str, ...]

    def run(self, matrix: Matrix) -> Matrix:
        """[n, k] to [n, k + outputs].

        Raises:
            TransformError: the function failed, or gave something else than its outputs, [n] numbers each.
        """
        given = {name: matrix[:, at].copy() for name, at in self.columns}
        for column in given.values():
            column.flags.writeable = False
        try:
            made = dict(self.function(given))
        except Exception as error:  # it is not ours
            line = " ".join(str(error).split())[:200]
            raise TransformError(f"function {self.name!r} failed: {type(error).__name__}: {line}") from error
        if set(made) != set(self.outputs):
            raise TransformError(f"function {self.name!r} gave {sorted(map(str, made))}, not {sorted(self.outputs)}")
        return np.column_stack([matrix, *(self._column(name, made[name], len(matrix)) for name in self.outputs)])

    def _column(self, name: str, values: ArrayLike, n: int) -> Matrix:
        array = np.asarray(values)
        if array.shape != (n,) or array.dtype.kind not in "biuf":
            raise TransformError(
                f"function {self.name!r} gave {name!r} as {array.dtype} {array.shape}, not as numbers ({n},)"
            )
        return array.astype(np.float64)


class Chain:
    """Programs and functions in turn; what `Program` is where there are functions. Values stay float64 until the end.

    Args:
        n_inputs: columns of the batch.
        n_outputs: columns of the result.
        stages: in order.
    """

    def __init__(self, n_inputs: int, n_outputs: int, stages: Sequence[Program | Call]) -> None:
        self.n_inputs, self.n_outputs = n_inputs, n_outputs
        self._stages = tuple(stages)
        self.timed = any(isinstance(stage, Program) and stage.timed for stage in stages)

    def run(self, x: NDArray[np.float32], out: NDArray[np.float32], now: Matrix | None = None) -> None:
        """As `Program.run`; raises TransformError where a function fails."""
        exact = np.empty(out.shape)
        self.run_exact(x.astype(np.float64), exact, now)
        with np.errstate(over="ignore"):
            out[:] = exact.astype(np.float32)

    def run_exact(self, x: Matrix, out: Matrix, now: Matrix | None = None) -> None:
        """As `Program.run_exact`."""
        if x.ndim != 2 or x.shape[1] != self.n_inputs or out.shape != (len(x), self.n_outputs):
            raise ValueError(f"x is {x.shape} and out {out.shape}; columns are {self.n_inputs} and {self.n_outputs}")
        for stage in self._stages:
            if isinstance(stage, Call):
                x = stage.run(x)
            else:
                made = np.empty((len(x), stage.n_outputs))
                stage.run_exact(x, made, now)
                x = made
        out[:] = x


Compiled = Program | Chain
"""What runs transforms."""
