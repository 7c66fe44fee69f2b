"""TreeEnsemble nodes of an ONNX graph as the plain arrays that a forest is made of. Run when a version is loaded.

Read are TreeEnsembleClassifier and TreeEnsembleRegressor (ai.onnx.ml 1 to 4) and TreeEnsemble (ai.onnx.ml 5). What is
not understood raises `Unfit`, whose text is shown to the operator: the node is then left to ONNX Runtime.

ONNX says little about two classes told by one sum, and converters rely on what ONNX Runtime does:

- weights for class 0 only, and at most one base value (scikit-learn, XGBoost, LightGBM): one sum tells both classes;
- weights for both classes and no base values (CatBoost): two sums, and the second one decides.

Other forms are left to ONNX Runtime. About 1 microsecond a node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.errors import PenstockError

if TYPE_CHECKING:
    import onnx

OPERATORS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble")
MODES = ("LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
NEW_POSTS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")  # TreeEnsemble numbers them
NEW_AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
NEW_MEMBER = 6
FIELDS = {1: "f", 2: "i", 3: "s", 6: "floats", 7: "ints", 8: "strings"}  # onnx.AttributeProto.AttributeType
Ints = NDArray[np.int64]
Attributes = dict[str, Any]


class Unfit(PenstockError):  # noqa: N818  # as the other errors, named for what is wrong
    """The graph, or its ensemble, is left to ONNX Runtime; the text says why."""


@dataclass(frozen=True)
class Ensemble:
    """One ensemble, ready for `Forest(**arrays, n_features=...)`.

    Attributes:
        arrays: the keyword arguments of a forest.
        texts: the labels where they are texts; the forest then answers their indices.
    """

    arrays: Attributes
    texts: tuple[str, ...] = ()

    @property
    def classifies(self) -> bool:
        """Whether there is a label beside the scores."""
        return bool(self.arrays["kind"] != "regression")

    def thresholds(self) -> tuple[Ints, NDArray[np.float32]]:
        """Every branch's feature and value."""
        branch = self.arrays["modes"] != 0
        return self.arrays["features"][branch], self.arrays["values"][branch]


def read(node: onnx.NodeProto) -> Ensemble:
    """The ensemble in a node.

    Raises:
        Unfit: it is left to ONNX Runtime, and why.
    """
    attributes = {entry.name: getattr(entry, FIELDS.get(entry.type, "t")) for entry in node.attribute}
    try:
        if node.op_type == "TreeEnsemble":
            return _tree_ensemble(attributes)
        return _classifier(attributes) if node.op_type == "TreeEnsembleClassifier" else _regressor(attributes)
    except (KeyError, IndexError, OverflowError, TypeError, ValueError) as error:
        told = f"the attribute {error} is missing" if isinstance(error, KeyError) else str(error)
        raise Unfit(f"the {node.op_type} is malformed: {told}") from error


def _regressor(attributes: Attributes) -> Ensemble:
    arrays = _nodes(attributes, "target")
    return Ensemble(arrays | {"n_targets": int(attributes.get("n_targets", 1)), "kind": "regression"})


def _classifier(attributes: Attributes) -> Ensemble:
    texts = tuple(text.decode() for text in attributes.get("classlabels_strings", ()))
    labels = tuple(range(len(texts))) if texts else tuple(attributes.get("classlabels_int64s", ()))
    arrays = _nodes(attributes, "class")
    arrays |= {"labels": labels, "n_targets": len(labels), "kind": "classes"}
    if len(labels) < 2:
        raise Unfit(f"a classifier of {len(labels)} classes")
    if len(labels) == 2:
        scored = set(np.unique(arrays["leaf_targets"]).tolist())
        if scored not in ({0}, {0, 1}):
            raise Unfit("a classifier of two classes whose weights are all for the second")
        arrays |= {"kind": "binary", "n_targets": 1} if scored == {0} else {"kind": "pair"}
    return Ensemble(arrays, texts)


def _nodes(attributes: Attributes, what: str) -> Attributes:
    """Branches and leaves by index, for the operators that name them by tree and node; `what` leaves add to."""
    if any(name.endswith("_as_tensor") for name in attributes):
        raise Unfit("its thresholds or weights are float64")
    trees, ids = _ints(attributes["nodes_treeids"]), _ints(attributes["nodes_nodeids"])
    modes = _modes(attributes["nodes_modes"])
    if not len(trees) == len(ids) == len(modes):
        raise ValueError(f"{len(trees)} tree ids, {len(ids)} node ids and {len(modes)} modes")
    find = _Finder(trees, ids)
    branch = modes != 0
    yes, no = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    for name, children in (("nodes_truenodeids", yes), ("nodes_falsenodeids", no)):
        given = _ints(attributes[name])
        if len(given) != len(ids):
            raise ValueError(f"{len(ids)} nodes and {len(given)} {name}")
        children[branch] = find(trees[branch], given[branch])
    missing = _ints(attributes.get("nodes_missing_value_tracks_true", ()))
    return {
        "features": _ints(attributes["nodes_featureids"]),
        "values": np.asarray(attributes["nodes_values"], np.float32),
        "modes": modes,
        "true_children": yes,
        "false_children": no,
        "missing": (missing == 1).astype(np.uint8) if len(missing) else np.zeros(len(ids), np.uint8),
        "roots": find.begins.astype(np.int64),
        "aggregate": attributes.get("aggregate_function", b"SUM").decode(),
        "post": attributes.get("post_transform", b"NONE").decode(),
        "base": tuple(attributes.get("base_values", ())),
        "leaf_nodes": find(_ints(attributes[f"{what}_treeids"]), _ints(attributes[f"{what}_nodeids"])),
        "leaf_targets": _ints(attributes[f"{what}_ids"]),
        "leaf_weights": np.asarray(attributes[f"{what}_weights"], np.float32),
    }


def _modes(names: Sequence[bytes]) -> NDArray[np.uint8]:
    numbers = {name.encode(): number for number, name in enumerate(MODES)}
    if unknown := set(names) - set(numbers):
        raise Unfit(f"its branches compare by {min(unknown).decode(errors='replace')}")
    return np.fromiter(map(numbers.__getitem__, names), np.uint8, len(names))


class _Finder:
    """From (tree id, node id) to the node's index; the nodes of a tree stand together."""

    def __init__(self, trees: Ints, ids: Ints) -> None:
        if len(ids) and not 0 <= ids.min() <= ids.max() < 1 << 31:
            raise ValueError("node ids are between 0 and 2147483647")
        self.begins = np.flatnonzero(np.diff(trees, prepend=trees[:1] - 1) != 0)
        self._trees = np.sort(trees[self.begins])
        if (np.diff(self._trees) == 0).any():
            raise Unfit("the nodes of its trees are mixed")
        keys = self._keys(trees, ids)
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]
        if (again := np.flatnonzero(np.diff(self._sorted) == 0)).size:
            node = int(self._order[again[0]])
            raise ValueError(f"node {ids[node]} of tree {trees[node]} is there twice")

    def _keys(self, trees: Ints, ids: Ints) -> Ints:
        """One number for each pair; -1 where there is no such tree."""
        rank = np.minimum(np.searchsorted(self._trees, trees), len(self._trees) - 1)
        known = (self._trees[rank] == trees) & (ids >= 0) & (ids < 1 << 31)
        return np.where(known, (rank << 31) | ids, -1)

    def __call__(self, trees: Ints, ids: Ints) -> Ints:
        if len(trees) != len(ids):
            raise ValueError(f"{len(trees)} tree ids and {len(ids)} node ids")
        keys = self._keys(trees, ids)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        lost = self._sorted[at] != keys
        if lost.any():
            raise ValueError(f"there is no node {ids[lost][0]} in tree {trees[lost][0]}")
        return self._order[at].astype(np.int64)


def _tree_ensemble(attributes: Attributes) -> Ensemble:
    """The newest operator: branches and leaves apart, named by their indices."""
    modes = _tensor(attributes["nodes_modes"], np.uint8)
    if (modes == NEW_MEMBER).any():
        raise Unfit("its branches ask for membership in a set")
    n = len(modes)
    features = _ints(attributes["nodes_featureids"])
    values = _tensor(attributes["nodes_splits"], np.float32)
    targets, weights = _ints(attributes["leaf_targetids"]), _tensor(attributes["leaf_weights"], np.float32)
    missing = _ints(attributes.get("nodes_missing_value_tracks_true", ()))
    yes, no = _ints(attributes["nodes_truenodeids"]), _ints(attributes["nodes_falsenodeids"])
    to_leaf = [_ints(attributes[name]) != 0 for name in ("nodes_trueleafs", "nodes_falseleafs")]
    if {len(part) for part in (features, values, yes, no, *to_leaf)} != {n} or len(missing) not in (0, n):
        raise ValueError("its attributes of nodes have different lengths")
    more = len(weights)
    for children, leads in ((yes, to_leaf[0]), (no, to_leaf[1])):
        if ((children[leads] < 0) | (children[leads] >= more)).any() or len(targets) != more:
            raise ValueError(f"a branch leads to a leaf that is none of the {more}")
        children[leads] += n
    arrays = {
        "features": np.concatenate([features, np.zeros(more, np.int64)]),
        "values": np.concatenate([values, np.zeros(more, np.float32)]),
        "modes": np.concatenate([modes + 1, np.zeros(more)]).astype(np.uint8),
        "true_children": np.concatenate([yes, np.zeros(more, np.int64)]),
        "false_children": np.concatenate([no, np.zeros(more, np.int64)]),
        "missing": np.concatenate([missing == 1 if len(missing) else np.zeros(n), np.zeros(more)]).astype(np.uint8),
        "roots": _ints(attributes["tree_roots"]),
        "leaf_nodes": n + np.arange(more),
        "leaf_targets": targets,
        "leaf_weights": weights,
        "n_targets": int(attributes.get("n_targets", 1)),
        "kind": "regression",
        "aggregate": NEW_AGGREGATES[attributes.get("aggregate_function", 1)],
        "post": NEW_POSTS[attributes.get("post_transform", 0)],
    }
    return Ensemble(arrays)


def _tensor(value: Any, dtype: type[np.generic]) -> NDArray[Any]:
    from onnx import numpy_helper

    array = np.array(numpy_helper.to_array(value)).ravel()
    if array.dtype != dtype:
        raise Unfit(f"its thresholds or weights are {array.dtype}")
    return array


def _ints(values: Any) -> Ints:
    return np.array(values, np.int64)
