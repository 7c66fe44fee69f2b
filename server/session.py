"""One loaded ONNX graph, as versions use it. The graph itself is run by `kernels/ort.pyx`.

Loaded from bytes that were verified, never from a path; one thread a run by default, since many small runs at once beat
one run on many threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.errors import PenstockError
from penstock.kernels import ort


class ModelRefused(PenstockError):  # noqa: N818
    """ONNX Runtime does not take the graph."""


class Session:
    """A graph ready to run. Safe to use from many threads.

    Args:
        onnx: the model's bytes.
        outputs: names of the outputs to fetch, in order.
        threads: ONNX Runtime threads of one run.

    Raises:
        ModelRefused: the graph cannot be run, or there is no ONNX Runtime to run it.
    """

    def __init__(self, onnx: bytes, outputs: Sequence[str], *, threads: int = 1) -> None:
        release = ""
        try:
            release = ort.version()
            self.graph = ort.Session(onnx, outputs, threads=threads)
        except ort.OrtError as error:
            line = " ".join(str(error).split())[:300]
            raise ModelRefused(f"ONNX Runtime {release} refuses the graph: {line}" if release else line) from error

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name for inputs by name: ndarrays, objects of str for BYTES, uint16 for BF16."""
        return self.graph.run(feeds)

    def release(self) -> None:
        """Give back the graph and its memory; a run fails from then on, and nobody may be in one."""
        self.graph.release()
