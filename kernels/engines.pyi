"""What one version does with a batch, from rows to replies, without the GIL: see the head of engines.pyx."""

from collections.abc import Collection, Sequence
from typing import Self, final

from typing_extensions import disjoint_base

from penstock.kernels.forest import Forest
from penstock.kernels.ledger import Ledger
from penstock.kernels.ort import Session
from penstock.kernels.transforms import Program
from penstock.kernels.windows import Windows
from penstock.kernels.wire import Plan

@disjoint_base
class Engine:
    """What runs a batch."""

    def predicted_ns(self, rows: int) -> int:
        """How many nanoseconds a run of so many rows will take; 0 where nobody knows."""

@final
class GraphEngine(Engine):
    """Runs an ONNX graph behind transforms.

    Args:
        plan: of the lane.
        ledger: of the lane.
        session: the graph.
        transforms: run over the matrix first.
        forest: runs the whole graph instead of the session, where the batch's size says so.
        forest_scores: names of the outputs that are its scores; others are its labels.
        forest_turns: ascending sizes of batch from which the forest serves, then the session, then the forest again.
        features: counts the matrix, or the inputs named in `watched`, before transforms.
        watched: inputs of one value a row, for a version without a matrix.
        scores: counts one value a row.
        score: the output that value is of.
        score_column: which one of a row; None for the largest.

    Raises:
        ValueError: the version is not for an engine; the text says why.
    """

    def __new__(
        cls,
        plan: Plan,
        ledger: Ledger,
        session: Session,
        *,
        transforms: Program | None = None,
        forest: Forest | None = None,
        forest_scores: Collection[str] = (),
        forest_turns: Sequence[int] = (),
        features: Windows | None = None,
        watched: Sequence[str] = (),
        scores: Windows | None = None,
        score: str = "",
        score_column: int | None = None,
    ) -> Self: ...
    def seed(self, rows: int, ns: int) -> None:
        """A point of a curve measured beforehand: what a run of so many rows takes."""
