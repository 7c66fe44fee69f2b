"""Golden rows: inputs with the outputs they gave when the version was published, run again before it serves.

They warm the graph up on real values and catch what no checksum can: another ONNX Runtime or processor that computes
something else. Compared are the float outputs, to a tolerance far above rounding; labels only where a version has no
float output, since a score on the border may rightly fall either way on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from penstock.errors import PenstockError

RTOL, ATOL = 1e-3, 1e-4
LARGEST = 256 << 20
Run = Callable[[dict[str, Any]], Mapping[str, Any]]
Arrays = dict[str, np.ndarray[Any, Any]]


class GoldenMismatch(PenstockError):  # noqa: N818  # as the registry's errors, named for what is wrong
    """The version does not compute here what it computed where it was published."""


@dataclass(frozen=True)
class Golden:
    """Golden rows, by name [rows, ...].

    Attributes:
        inputs: as a caller sends them; texts are objects.
        outputs: what they gave.
        now: the clock by which they did, milliseconds since 1970, [1] or [rows]; None where it did not matter.
    """

    inputs: Arrays
    outputs: Arrays
    now: np.ndarray[Any, Any] | None = None

    def check(self, run: Run) -> None:
        """Run the rows and compare.

        Args:
            run: from inputs as a caller sends them to outputs, by name, at the time `now`.

        Raises:
            GoldenMismatch: naming the output and the greatest difference.
        """
        if not self.inputs or not self.outputs:
            return
        got = run(self.inputs)
        floats = {name for name, array in self.outputs.items() if array.dtype.kind == "f"}
        for name in floats or self.outputs:
            _compare(name, self.outputs[name], np.asarray(got[name]))


def read(golden: bytes) -> Golden:
    """The rows of an npz of arrays `input/<name>` and `output/<name>`, and `clock` where it matters, never pickled.

    Raises:
        GoldenMismatch: the file cannot be read.
    """
    try:
        arrays = _unpacked(golden)
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise GoldenMismatch(f"golden.npz cannot be read: {error}; publish the version again") from error
    inputs = {n.removeprefix("input/"): _fed(a) for n, a in arrays.items() if n.startswith("input/")}
    outputs = {n.removeprefix("output/"): a for n, a in arrays.items() if n.startswith("output/")}
    return Golden(inputs, outputs, _clock(arrays))


def _clock(arrays: Arrays) -> np.ndarray[Any, Any] | None:
    """The times of the rows, where they matter."""
    now = arrays.get("clock")
    if now is not None and not (now.dtype == np.float64 and now.ndim == 1):
        raise GoldenMismatch(f"golden.npz has a clock of {now.dtype} {now.shape}; publish the version again")
    return now


def _unpacked(golden: bytes) -> Arrays:
    """The arrays, none of them unpickled, none larger than a few rows have reason to be."""
    with ZipFile(BytesIO(golden)) as zipped:
        if sum(entry.file_size for entry in zipped.infolist()) > LARGEST:
            raise ValueError(f"it unpacks to more than {LARGEST} bytes")
    with np.load(BytesIO(golden), allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _fed(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Texts are stored at a fixed width and run as objects."""
    return array.astype(object) if array.dtype.kind in "US" else array


def _compare(name: str, expected: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> None:
    if expected.dtype.kind != "f":
        if got.shape != expected.shape or (got.astype(expected.dtype) != expected).any():
            raise GoldenMismatch(
                f"output {name!r} differs from the golden rows; was the version built for other libraries?"
            )
        return
    if got.shape == expected.shape and np.allclose(got, expected, RTOL, ATOL, equal_nan=True):
        return
    worst = np.nanmax(np.abs(got - expected)) if got.shape == expected.shape else float("nan")
    raise GoldenMismatch(
        f"output {name!r} differs from the golden rows by up to {worst:.3g}; was the version built for other libraries?"
    )
