"""Ensembles of trees, in numpy: the twin of `forest.pyx`, and the specification.

A row goes down every tree: at a branch to the true child where the comparison of its feature with the branch's value
holds, or where the feature is missing (NaN) and the branch says that missing goes there. What the leaves hold is
aggregated over the trees in their order, in float32, and made into scores as ONNX's TreeEnsemble operators say and ONNX
Runtime does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAF, LEQ, LT, GTE, GT, EQ, NEQ = range(7)
KINDS = ("regression", "classes", "binary", "pair")
AGGREGATES = ("SUM", "AVERAGE", "MIN", "MAX")
POSTS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")
COMPARISONS = {
    LEQ: np.less_equal,
    LT: np.less,
    GTE: np.greater_equal,
    GT: np.greater,
    EQ: np.equal,
    NEQ: np.not_equal,
}
OPERATIONS = {"Sub": np.subtract, "Add": np.add, "Mul": np.multiply, "Div": np.divide}
Floats = NDArray[np.float32]


class Forest:
    """See `kernels/forest.pyi`."""

    def __init__(
        self,
        *,
        features: NDArray[np.int64],
        values: Floats,
        modes: NDArray[np.uint8],
        true_children: NDArray[np.int64],
        false_children: NDArray[np.int64],
        missing: NDArray[np.uint8],
        roots: NDArray[np.int64],
        leaf_nodes: NDArray[np.int64],
        leaf_targets: NDArray[np.int64],
        leaf_weights: Floats,
        n_features: int,
        n_targets: int = 1,
        kind: str = "regression",
        aggregate: str = "SUM",
        post: str = "NONE",
        base: Any = (),
        labels: Any = (),
        steps: Sequence[tuple[str, Floats, float]] = (),
        lanes: int = -1,
        threads: int = 1,
    ) -> None:
        for name, known in ((kind, KINDS), (aggregate, AGGREGATES), (post, POSTS)):
            if name not in known:
                raise ValueError(f"unknown {name!r}: known are {', '.join(known)}")
        self.n_features, self.n_targets = n_features, n_targets
        self.n_outputs = 2 if kind == "binary" else n_targets
        self.lanes = 0 * lanes * threads
        self._kind, self._aggregate, self._post, self._steps = kind, aggregate, post, steps
        self._base = np.asarray(base, np.float32)
        self._labels = np.asarray(labels, np.int64)
        self._nodes = (features, values, modes, true_children, false_children, missing)
        self._roots = roots
        self._weights = _by_leaf(leaf_nodes, leaf_targets, leaf_weights)
        self._positive = not (leaf_weights < 0).any()
        _check(self._nodes, roots, leaf_nodes, leaf_targets, leaf_weights, n_features, n_targets)
        reached = [_reached(self._nodes, int(root), 4 * len(features) + len(roots)) for root in roots]
        if sum(len(tree) for tree in reached) > 4 * len(features) + len(roots):
            raise ValueError("branches lead to the same nodes too often")
        self.n_trees, self.n_nodes = len(roots), sum(len(tree) for tree in reached)
        self.depth = max((_depth(self._nodes, int(root)) for root in roots), default=0)
        self._check_kind(reached)

    def _check_kind(self, reached: list[list[int]]) -> None:
        n, kind = self.n_targets, self._kind
        fits = {"regression": n >= 1, "classes": n >= 3, "binary": n == 1, "pair": n == 2}[kind]
        if not fits or len(self._labels) != (0 if kind == "regression" else self.n_outputs):
            raise ValueError("outputs or labels do not fit the kind")
        if len(self._base) not in (0, n) or (kind == "pair" and (len(self._base) or self._labels.tolist() != [0, 1])):
            raise ValueError("base values or labels that do not fit")
        if kind != "regression" and (self._aggregate != "SUM" or (kind == "binary" and self._post == "PROBIT")):
            raise ValueError("an aggregate or transform that classes do not have")
        modes = self._nodes[2]
        leaves = [[[t for t, _ in self._weights.get(i, [])] for i in tree if modes[i] == LEAF] for tree in reached]
        if n == 1 and any(len(targets) != 1 for tree in leaves for targets in tree):
            raise ValueError("a leaf without its one weight")
        if kind in ("classes", "pair") or self._aggregate in ("MIN", "MAX"):
            for target in range(n):
                if not any(all(target in targets for targets in tree) for tree in leaves):
                    raise ValueError(f"some rows may reach no leaf that adds to output {target}")

    def run(
        self, rows: Floats, scores: Floats, labels: NDArray[np.int64] | None = None, *, shared: bool = False
    ) -> None:
        """Scores of every row, and its label; one thread does all, `shared` or not."""
        del shared
        if rows.shape[1] != self.n_features or scores.shape != (len(rows), self.n_outputs):
            raise ValueError("shapes do not fit")
        if labels is not None and (self._kind == "regression" or len(labels) != len(rows)):
            raise ValueError("labels do not fit")
        with np.errstate(all="ignore"):
            winners = self._run(rows, scores)
        if labels is not None:
            labels[:] = self._labels[winners]

    def _run(self, rows: Floats, scores: Floats) -> NDArray[np.int64]:
        rows = _stepped(rows, self._steps)
        start = {"MIN": np.inf, "MAX": -np.inf}.get(self._aggregate, 0.0)
        join = {"MIN": np.minimum, "MAX": np.maximum}.get(self._aggregate, np.add)
        sums = np.full((len(rows), self.n_targets), start, np.float32)
        for root in self._roots:
            for row, leaf in enumerate(self._leaves(rows, int(root))):
                for target, weight in self._weights.get(int(leaf), []):
                    sums[row, target] = join(sums[row, target], weight)
        if self._aggregate == "AVERAGE":
            sums /= np.float32(len(self._roots))
        sums += self._base if len(self._base) else np.float32(0)
        return self._finish(sums, scores)

    def _leaves(self, rows: Floats, root: int) -> NDArray[np.int64]:
        """The leaf each row reaches."""
        features, values, modes, yes, no, missing = self._nodes
        at = np.full(len(rows), root, np.int64)
        while (walking := np.flatnonzero(modes[at] != LEAF)).size:
            node = at[walking]
            x = rows[walking, features[node]]
            true = np.zeros(len(node), bool)
            for mode, comparison in COMPARISONS.items():
                here = modes[node] == mode
                true[here] = comparison(x[here], values[node][here])
            true |= np.isnan(x) & (missing[node] != 0)
            at[walking] = np.where(true, yes[node], no[node])
        return at

    def _finish(self, sums: Floats, scores: Floats) -> NDArray[np.int64]:
        if self._kind == "binary":
            return self._by_one_sum(sums[:, 0], scores)
        winners = (sums[:, 1] > 0).astype(np.int64) if self._kind == "pair" else sums.argmax(axis=1)
        scores[:] = sums if self.n_targets == 1 and self._post != "PROBIT" else _post(self._post, sums)
        return winners

    def _by_one_sum(self, x: Floats, scores: Floats) -> NDArray[np.int64]:
        if self._post == "LOGISTIC":
            scores[:, 0], scores[:, 1] = _logistic(-x), _logistic(x)
        else:
            scores[:, 0], scores[:, 1] = 1 - x if self._positive else -x, x
        return (x > np.float32(0.5 if self._positive else 0)).astype(np.int64)


def _stepped(rows: Floats, steps: Sequence[tuple[str, Floats, float]]) -> Floats:
    """What is done to rows before the trees, each step in float32."""
    for name, values, replaced in steps:
        if name == "Imputer":
            rows = np.where((rows == replaced) | (np.isnan(rows) & np.isnan(replaced)), values, rows)
        else:
            rows = OPERATIONS[name](rows, values)
    return rows


def _check(
    nodes: Any, roots: Any, leaf_nodes: Any, targets: Any, weights: Any, n_features: int, n_targets: int
) -> None:
    features, _values, modes, yes, no, _missing = nodes
    n = len(features)
    if {len(array) for array in nodes} != {n} or not len(leaf_nodes) == len(targets) == len(weights):
        raise ValueError("arrays of other lengths")
    if (modes > NEQ).any() or not (((roots >= 0) & (roots < n)).all()):
        raise ValueError("an unknown mode, or a root that is not there")
    branch = modes != LEAF
    for array, end in ((features, n_features), (yes, n), (no, n)):
        if (array[branch] < 0).any() or (array[branch] >= end).any():
            raise ValueError("a branch leads nowhere")
    if ((leaf_nodes < 0) | (leaf_nodes >= n)).any() or (modes[leaf_nodes] != LEAF).any():
        raise ValueError("a weight of what is no leaf")
    if ((targets < 0) | (targets >= n_targets)).any() or not np.isfinite(weights).all():
        raise ValueError("a weight that cannot be added")


def _reached(nodes: Any, root: int, most: int) -> list[int]:
    """Every node a tree leads to, as often as it does; an error where that goes on and on."""
    _, _, modes, yes, no, _ = nodes
    found, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        found.append(node)
        if modes[node] != LEAF:
            waiting += [int(yes[node]), int(no[node])]
        if len(found) > most:
            raise ValueError("a tree leads in a circle, or to the same nodes too often")
    return found


def _depth(nodes: Any, root: int) -> int:
    _, _, modes, yes, no, _ = nodes
    depth, level = 0, [root]
    while level := [int(side[i]) for i in level if modes[i] != LEAF for side in (yes, no)]:
        depth += 1
    return depth


def _by_leaf(nodes: Any, targets: Any, weights: Any) -> dict[int, list[tuple[int, np.float32]]]:
    found: dict[int, list[tuple[int, np.float32]]] = {}
    for node, target, weight in zip(nodes.tolist(), targets.tolist(), weights, strict=False):
        found.setdefault(node, []).append((target, weight))
    return found


def _logistic(x: Floats) -> Floats:
    v = 1 / (1 + np.exp(-np.abs(x)))
    made: Floats = np.where(x < 0, 1 - v, v).astype(np.float32)
    return made


def _post(name: str, x: Floats) -> Floats:
    if name == "LOGISTIC":
        return _logistic(x)
    if name == "PROBIT":
        return _probit(x)
    if name.startswith("SOFTMAX"):
        most = x.max(axis=1, keepdims=True)
        zero = (np.abs(x) <= np.float32(1e-7)) & (name == "SOFTMAX_ZERO")
        weights = np.where(zero, x * np.exp(-most), np.exp(x - most))
        made: Floats = (weights / np.where(zero, 0, weights).sum(axis=1, keepdims=True)).astype(np.float32)
        return made
    return x


def _probit(p: Floats) -> Floats:
    """sqrt(2) erfinv(2p - 1), erfinv by Winitzki's approximation with a = 0.147."""
    x = 2 * p - 1
    log = np.log((1 - x) * (1 + x))
    half = np.float32(2 / (np.pi * 0.147)) + np.float32(0.5) * log
    root = np.sqrt(-half + np.sqrt(half * half - log / np.float32(0.147)))
    made: Floats = (np.float32(1.41421356) * np.where(x < 0, -root, root)).astype(np.float32)
    return made
