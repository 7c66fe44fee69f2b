"""Ensembles made from a seed, as the arrays of a forest and as ONNX: what tests and benchmarks compare forests on."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper

MODES = ("LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
Arrays = dict[str, Any]


def complete(trees: int, depth: int, features: int, seed: int = 0) -> Arrays:
    """Complete trees, as the arguments of a forest: thresholds between -1 and 1, leaves between -1 and 1."""
    chance = np.random.default_rng(seed)
    branches, nodes = (1 << depth) - 1, (2 << depth) - 1
    at = np.arange(trees * nodes).reshape(trees, nodes)
    is_branch = np.tile(np.arange(nodes) < branches, (trees, 1))
    children = np.zeros((2, trees, nodes), np.int64)
    for side in (0, 1):
        children[side, :, :branches] = at[:, :1] + 2 * np.arange(branches) + 1 + side
    leaves = at[:, branches:].ravel()
    return {
        "features": chance.integers(0, features, trees * nodes),
        "values": chance.uniform(-1, 1, trees * nodes).astype(np.float32),
        "modes": is_branch.ravel().astype(np.uint8),
        "true_children": children[0].ravel(),
        "false_children": children[1].ravel(),
        "missing": np.zeros(trees * nodes, np.uint8),
        "roots": at[:, 0].copy(),
        "leaf_nodes": leaves,
        "leaf_targets": np.zeros(len(leaves), np.int64),
        "leaf_weights": chance.uniform(-1, 1, len(leaves)).astype(np.float32),
        "n_features": features,
    }


def to_onnx(arrays: Arrays, texts: tuple[str, ...] = ()) -> bytes:
    """The same ensemble as an ONNX model: input `x`; outputs `label`, where it has classes, and `score`."""
    roots = np.sort(arrays["roots"])
    tree = np.searchsorted(roots, np.arange(len(arrays["modes"])), side="right") - 1
    what = "target" if arrays.get("kind", "regression") == "regression" else "class"
    attributes = {
        "nodes_treeids": tree,
        "nodes_nodeids": np.arange(len(tree)),
        "nodes_featureids": arrays["features"],
        "nodes_truenodeids": arrays["true_children"],
        "nodes_falsenodeids": arrays["false_children"],
        "nodes_missing_value_tracks_true": arrays["missing"],
        "nodes_values": arrays["values"],
        f"{what}_treeids": tree[arrays["leaf_nodes"]],
        f"{what}_nodeids": arrays["leaf_nodes"],
        f"{what}_ids": arrays["leaf_targets"],
        f"{what}_weights": arrays["leaf_weights"],
    }
    given: dict[str, Any] = {name: values.tolist() for name, values in attributes.items()}
    given["nodes_modes"] = [MODES[mode] for mode in arrays["modes"]]
    given["post_transform"] = arrays.get("post", "NONE")
    if len(arrays.get("base", ())):
        given["base_values"] = [float(value) for value in arrays["base"]]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", arrays["n_features"]])
    score = helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n", "outputs"])
    if what == "target":
        given |= {"n_targets": arrays.get("n_targets", 1), "aggregate_function": arrays.get("aggregate", "SUM")}
        node = helper.make_node("TreeEnsembleRegressor", ["x"], ["score"], domain="ai.onnx.ml", **given)
        return _model([node], [x], [score])
    if texts:
        given["classlabels_strings"] = list(texts)
    else:
        given["classlabels_int64s"] = [int(label) for label in arrays["labels"]]
    label = helper.make_tensor_value_info("label", TensorProto.STRING if texts else TensorProto.INT64, ["n"])
    node = helper.make_node("TreeEnsembleClassifier", ["x"], ["label", "score"], domain="ai.onnx.ml", **given)
    return _model([node], [x], [label, score])


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> bytes:
    graph = helper.make_graph(nodes, "ensemble", inputs, outputs)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return made


def odd(seed: int, *, modes: tuple[int, ...] = (1, 2, 3, 4, 5, 6), kind: str = "regression") -> Arrays:
    """A small ensemble of anything goes: lopsided trees, single leaves, few values that meet often, missing tracks."""
    chance = np.random.default_rng(seed)
    targets = {"regression": int(chance.integers(1, 4)), "binary": 1, "pair": 2, "classes": int(chance.integers(3, 6))}[
        kind
    ]
    features = int(chance.integers(1, 6))
    grid = np.concatenate([[0.0, -0.0, 1e-45, -1e-45, 1, -1, np.inf, -np.inf, 3e38], chance.normal(size=6)])
    nodes: list[tuple[int, float, int, int, int, int]] = []
    weights: list[tuple[int, int, float]] = []
    several = kind in ("pair", "classes") or (targets > 1 and bool(chance.integers(2)))
    depth_at_most = int(chance.integers(0, 10))

    def grow(depth: int) -> int:
        at = len(nodes)
        if depth == 0 or chance.random() < 0.15:
            nodes.append((0, 0.0, 0, 0, 0, 0))
            added = range(targets) if several else [int(chance.integers(targets))]
            weights.extend((at, target, float(np.float32(chance.normal()))) for target in added)
            return at
        nodes.append((0, 0.0, 0, 0, 0, 0))
        asked = (int(chance.integers(features)), float(chance.choice(grid)), int(chance.choice(modes)))
        nodes[at] = (*asked, grow(depth - 1), grow(depth - 1), int(chance.integers(2)))
        return at

    roots = [grow(depth_at_most) for _ in range(int(chance.integers(1, 40)))]
    table = list(zip(*nodes, strict=True))
    leaf = list(zip(*weights, strict=True))
    classes = {"regression": 0, "binary": 2, "pair": 2, "classes": targets}[kind]
    base = (
        chance.normal(size=targets).astype(np.float32)
        if kind != "pair" and chance.integers(2)
        else np.empty(0, np.float32)
    )
    posts = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")
    return {
        "features": np.array(table[0], np.int64),
        "values": np.array(table[1], np.float32),
        "modes": np.array(table[2], np.uint8),
        "true_children": np.array(table[3], np.int64),
        "false_children": np.array(table[4], np.int64),
        "missing": np.array(table[5], np.uint8),
        "roots": np.array(roots, np.int64),
        "leaf_nodes": np.array(leaf[0], np.int64),
        "leaf_targets": np.array(leaf[1], np.int64),
        "leaf_weights": np.array(leaf[2], np.float32),
        "n_features": features,
        "n_targets": targets,
        "kind": kind,
        "aggregate": str(chance.choice(["SUM", "AVERAGE", "MIN", "MAX"] if several else ["SUM", "AVERAGE"]))
        if kind == "regression"
        else "SUM",
        "post": str(chance.choice(posts)),
        "base": base,
        "labels": tuple(range(classes)),
    }


def rows_for(arrays: Arrays, n: int, seed: int = 0) -> Any:
    """Rows [n, features] whose values are those that branches compare with, their neighbours, and what is no number."""
    chance = np.random.default_rng(seed)
    values = arrays["values"][arrays["modes"] != 0]
    special = np.array([0, -0.0, np.nan, np.inf, -np.inf, 1e-45], np.float32)
    pool = np.concatenate(
        [values, np.nextafter(values, np.float32(np.inf)), np.nextafter(values, -np.float32(np.inf)), special]
    )
    return chance.choice(pool.astype(np.float32), (n, arrays["n_features"]))
