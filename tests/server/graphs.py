"""Small ONNX graphs whose answers are known, and publishing them."""

from __future__ import annotations

from datetime import UTC, datetime

from onnx import TensorProto, helper

from penstock.converters import signature_of
from penstock.features.entities import united_keys
from penstock.registry import Draft, FeatureSet

KINDS = {
    "FP32": TensorProto.FLOAT,
    "INT64": TensorProto.INT64,
    "BYTES": TensorProto.STRING,
    "BF16": TensorProto.BFLOAT16,
}


def graph(nodes, inputs, outputs, constants=()):
    """ONNX bytes; inputs and outputs are (name, datatype, shape) with text for free sizes."""
    ends = [[helper.make_tensor_value_info(n, KINDS[d], s) for n, d, s in side] for side in (inputs, outputs)]
    made = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", *ends, list(constants))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def double(columns=2):
    """y = x + x, FP32 [n, columns]."""
    x, y = ("x", "FP32", ["n", columns]), ("y", "FP32", ["n", columns])
    return graph([("Add", ["x", "x"], ["y"], {})], [x], [y])


def copy(columns):
    """y = x and its row sums as score: shows the joined vector as the model gets it."""
    nodes = [("Identity", ["x"], ["y"], {}), ("ReduceSum", ["x", "axes"], ["score"], {"keepdims": 0})]
    ends = [("x", "FP32", ["n", columns])], [("y", "FP32", ["n", columns]), ("score", "FP32", ["n"])]
    return graph(nodes, *ends, [helper.make_tensor("axes", TensorProto.INT64, [1], [1])])


def reciprocal():
    """y = 100 / x, INT64 [n, 1]; a zero anywhere makes the whole run fail."""
    hundred = helper.make_tensor("hundred", TensorProto.INT64, [1], [100])
    ends = [("x", "INT64", ["n", 1])], [("y", "INT64", ["n", 1])]
    return graph([("Div", ["hundred", "x"], ["y"], {})], *ends, [hundred])


def same(datatype, *shape):
    """y = x of any datatype and shape."""
    return graph([("Identity", ["x"], ["y"], {})], [("x", datatype, shape)], [("y", datatype, shape)])


def publish(registry, name, onnx, *, columns=(), views=(), files=None, **fields):
    """Publish a graph; `columns` and `views` make it a vector version that joins features."""
    keys = united_keys(view.entity_keys for view in views)
    several = any(view.entity_keys != keys for view in views)
    made = datetime(2026, 1, 1, tzinfo=UTC)
    schemas = [(view.name, view.model_dump(mode="json")) for view in views]
    draft = Draft(
        model_name=name,
        trained_at=made,
        framework="onnx",
        opset={"ai.onnx": 21},
        ir_version=10,
        signature=signature_of(
            onnx, columns=tuple(columns), entity="|".join(keys), entity_keys=keys if several else ()
        ),
        feature_sets=tuple(FeatureSet(name=name, schema=schema, created_at=made) for name, schema in schemas),
        **fields,
    )
    return registry.publish(draft, {"model.onnx": onnx, **(files or {})})
