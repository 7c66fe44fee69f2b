"""Ensembles of trees, branch-free: see the head of forest.pyx."""

from collections.abc import Sequence
from typing import Self, final

import numpy as np
from numpy.typing import NDArray

@final
class Forest:
    """What one of ONNX's TreeEnsemble operators computes. Never changes: one forest serves any number of threads.

    Args:
        features: int64 [nodes], what each branch asks for; of leaves nothing is read here and in the next four.
        values: float32 [nodes], what it is compared with.
        modes: uint8 [nodes]: 0 a leaf; a branch goes to its true child where the feature is 1 `<=`, 2 `<`, 3 `>=`,
            4 `>`, 5 `==`, 6 `!=` the value.
        true_children: int64 [nodes], indices of nodes.
        false_children: int64 [nodes], likewise.
        missing: uint8 [nodes], whether a missing feature (NaN) goes to the true child, whatever is asked.
        roots: int64 [trees]. What several branches lead to is copied, up to four times the nodes given.
        leaf_nodes: int64 [weights], the leaf that each weight belongs to.
        leaf_targets: int64 [weights], the sum it is added to, below `n_targets`.
        leaf_weights: float32 [weights], finite.
        n_features: columns of a row.
        n_targets: sums of a row.
        kind: "regression", every sum is a score; "classes", likewise, and the largest tells the class; "binary", one
            sum for two classes; "pair", two sums, of which the second tells the class by being above 0.
        aggregate: "SUM", "AVERAGE", "MIN" or "MAX" over the trees.
        post: "NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO" or "PROBIT", as ONNX Runtime applies them.
        base: float32 [n_targets] added to the sums, or nothing.
        labels: int64 [classes]; nothing for a regression.
        steps: what is done to a row first, in float32 and in this order: up to 8 of (name, float32 [n_features],
            number). "Sub", "Add", "Mul" and "Div" are by these values, whatever the number; "Imputer" puts them in
            place of the number, or of what is missing where that is NaN.
        lanes: rows of a group of masks, 8 or 16; 0 for none, -1 for what this processor does best.
        threads: of a shared run: all but one are the forest's own, wait without the GIL and end with it.

    Raises:
        ValueError: the arrays do not describe trees, or something that is not served; the text says which node.
    """

    @property
    def n_features(self) -> int:
        """Columns of a row."""
    @property
    def n_outputs(self) -> int:
        """Scores of a row: `n_targets`, or 2 for one sum that tells two classes."""
    @property
    def n_trees(self) -> int:
        """How many trees there are."""
    @property
    def n_nodes(self) -> int:
        """Branches and leaves as walked, copies of shared ones among them."""
    @property
    def depth(self) -> int:
        """Branches on the longest way to a leaf."""
    @property
    def nbytes(self) -> int:
        """Memory of nodes, trees and masks: 8 bytes a node, 16 with masks, and some 60 for each tree."""
    @property
    def lanes(self) -> int:
        """Rows of a group of masks; 0 where trees are walked only."""
    def __new__(
        cls,
        *,
        features: NDArray[np.int64],
        values: NDArray[np.float32],
        modes: NDArray[np.uint8],
        true_children: NDArray[np.int64],
        false_children: NDArray[np.int64],
        missing: NDArray[np.uint8],
        roots: NDArray[np.int64],
        leaf_nodes: NDArray[np.int64],
        leaf_targets: NDArray[np.int64],
        leaf_weights: NDArray[np.float32],
        n_features: int,
        n_targets: int = 1,
        kind: str = "regression",
        aggregate: str = "SUM",
        post: str = "NONE",
        base: Sequence[float] | NDArray[np.float32] = (),
        labels: Sequence[int] | NDArray[np.int64] = (),
        steps: Sequence[tuple[str, NDArray[np.float32], float]] = (),
        lanes: int = -1,
        threads: int = 1,
    ) -> Self: ...
    def run(
        self,
        rows: NDArray[np.float32],
        scores: NDArray[np.float32],
        labels: NDArray[np.int64] | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Scores of every row, without the GIL where there is more than a little to do.

        Args:
            rows: [n, n_features], contiguous; not changed.
            scores: [n, n_outputs], written.
            labels: [n], written; left out, or of a regression None.
            shared: let the forest's threads help, unless they are at another run; of 64 rows a thread takes all.

        Raises:
            ValueError: a shape does not fit.
        """
