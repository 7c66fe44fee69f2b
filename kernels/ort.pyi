"""ONNX graphs run by ONNX Runtime's C API, without the GIL and without its Python package: see the head of ort.pyx."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

class OrtError(Exception):
    """What ONNX Runtime says of a graph or a run, or why there is no ONNX Runtime."""

def library() -> Path:
    """The shared library of the installed onnxruntime package.

    Raises:
        OrtError: there is none.
    """

def version() -> str:
    """The version of ONNX Runtime.

    Raises:
        OrtError: it cannot be loaded.
    """

@final
class Session:
    """A graph ready to run. Safe to use from many threads.

    Args:
        onnx: the model's bytes. Nothing but them is read: what names another file is refused.
        outputs: names of those to compute, in order; None for all of them.
        threads: ONNX Runtime threads of one run; they never spin.

    Raises:
        OrtError: ONNX Runtime refuses the graph, or an input or output is not a tensor of a type that is served.
    """

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the graph."""
    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in the order asked for."""
    def __new__(cls, onnx: bytes, outputs: Sequence[str] | None = None, *, threads: int = 1) -> Self: ...
    def dtype(self, name: str) -> np.dtype[Any]:
        """The numpy type of an input or output; uint16 for bfloat16, object for texts."""
    def release(self) -> None:
        """Give back the graph, and what memory is free to the operating system; names and types stay.

        For a graph that nobody runs, or will: a later run raises OrtError.
        """
    def run(self, feeds: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Outputs by name for inputs by name, without the GIL while the graph runs.

        Args:
            feeds: every input as an ndarray of the type that `dtype` tells, of up to 8 dimensions; texts as str, or as
                the bytes of UTF-8.

        Returns:
            Arrays of their own memory; texts as str.

        Raises:
            OrtError: an input is missing, unknown or of another type or shape, or the graph fails on these values.
            UnicodeDecodeError: a text that the graph gave is not UTF-8.
        """
