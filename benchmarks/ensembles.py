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
