"""An ONNX model that gives back what it gets, in every datatype of the protocol.

For each OIP datatype D there is an input `in_D` and an output `out_D` of shape `[n, k]`, both sizes free. ONNX
Runtime's CPU provider runs Identity on all fourteen of them, BFLOAT16 included, so that a small graph shows whether
values cross the whole server unchanged. Its Python interface cannot give strings in and take BFLOAT16 out of the same
graph, hence the choice of datatypes.
"""

from __future__ import annotations

from datetime import UTC, datetime

import onnx
from onnx import TensorProto, helper

from penstock.registry import Draft, Registry, Signature, TensorSpec

DATATYPES: dict[str, int] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def identity_model(datatypes: tuple[str, ...] = tuple(DATATYPES)) -> onnx.ModelProto:
    """The model with one Identity for each of `datatypes`, at opset 21 and IR 10."""
    nodes = [helper.make_node("Identity", [f"in_{name}"], [f"out_{name}"]) for name in datatypes]
    inputs, outputs = (
        [helper.make_tensor_value_info(f"{side}_{name}", DATATYPES[name], ["n", "k"]) for name in datatypes]
        for side in ("in", "out")
    )
    graph = helper.make_graph(nodes, "identity", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def publish_identity(registry: Registry, name: str, datatypes: tuple[str, ...]) -> None:
    """Publish the model of `datatypes` as the next version of `name`."""
    inputs, outputs = (
        tuple(TensorSpec(name=f"{side}_{datatype}", datatype=datatype, shape=(-1, -1)) for datatype in datatypes)
        for side in ("in", "out")
    )
    draft = Draft(
        model_name=name,
        trained_at=datetime(2026, 1, 1, tzinfo=UTC),
        framework="onnx",
        opset={"": 21},
        ir_version=10,
        signature=Signature(inputs=inputs, outputs=outputs, batched=True),
    )
    registry.publish(draft, {"model.onnx": identity_model(datatypes).SerializeToString()})
