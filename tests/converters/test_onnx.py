"""Plain ONNX files: their signature, and what cannot be served."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType

from penstock.converters import ConvertError, UnsupportedModel, publish_onnx, signature_of
from penstock.converters.onnx import newest_ir
from penstock.registry import Registry, TensorSpec


def identity(shape=(None, 3), out=None, *, element=TensorProto.FLOAT, weights=False) -> onnx.ModelProto:
    ends = [
        helper.make_tensor_value_info(n, element, s) for n, s in (("x", shape), ("y", shape if out is None else out))
    ]
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    tensors = []
    if weights:
        nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
        tensors = [numpy_helper.from_array(np.ones(3, np.float32), "w")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], producer_name="by hand")
    model.ir_version = 10
    return model


def test_a_plain_file_is_published_byte_for_byte_with_its_signature(tmp_path):
    data = identity().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    manifest = publish_onnx(tmp_path / "m.onnx", "plain", tmp_path / "registry")
    assert manifest.signature.inputs == (TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),)
    assert manifest.signature.batched
    assert manifest.opset == {"ai.onnx": 21}
    assert manifest.framework == "onnx (by hand)"
    assert Registry(tmp_path / "registry").load("plain", 1).files["model.onnx"] == data


@pytest.mark.parametrize(
    ("shape", "out", "batched"),
    [((None, 3), (None, 3), True), (("n",), ("n",), True), ((1, 3), (1, 3), False), ((), (), False)],
)
def test_batched_means_that_every_first_dimension_is_free(shape, out, batched):
    assert signature_of(identity(shape, out).SerializeToString()).batched is batched


@pytest.mark.parametrize(
    ("element", "datatype"),
    [
        (TensorProto.STRING, "BYTES"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.BOOL, "BOOL"),
        (TensorProto.DOUBLE, "FP64"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.UINT8, "UINT8"),
    ],
)
def test_datatypes_have_the_protocols_names(element, datatype):
    assert signature_of(identity(element=element).SerializeToString()).inputs[0].datatype == datatype


def refused(tmp_path, data: bytes) -> str:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(UnsupportedModel) as error:
        publish_onnx(tmp_path / "m.onnx", "plain", tmp_path / "registry")
    assert not (tmp_path / "registry").exists()
    return str(error.value)


def answers(data, rows):
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": rows})


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "beside the tensor itself"])
def test_maps_of_probabilities_are_published_as_the_tensor_they_were(tmp_path, logistic, shared):
    model = convert_sklearn(logistic.model, initial_types=[("x", FloatTensorType([None, 30]))], target_opset=21)
    if shared:
        (zipmap,) = [node for node in model.graph.node if node.op_type == "ZipMap"]
        model.graph.output.append(helper.make_tensor_value_info(zipmap.input[0], TensorProto.FLOAT, [None, 2]))
    rows = np.random.default_rng(1).normal(size=(20, 30)).astype(np.float32)
    labels, maps, *_ = answers(model.SerializeToString(), rows)
    onnx.save(model, tmp_path / "m.onnx")
    manifest = publish_onnx(tmp_path / "m.onnx", "mapped", tmp_path / "registry")
    names = [value.name for value in model.graph.output]
    assert [spec.name for spec in manifest.signature.outputs] == names
    assert manifest.signature.outputs[1] == TensorSpec(name=names[1], datatype="FP32", shape=(-1, 2))
    assert manifest.signature.batched
    published = answers(Registry(tmp_path / "registry").load("mapped", 1).files["model.onnx"], rows)
    assert (published[0] == labels).all()
    assert (published[1] == [[row[0], row[1]] for row in maps]).all()


def by_hand(classes, maps, *nodes):
    """A classifier as CatBoost writes one, of ai.onnx.ml alone: its probabilities as so many maps."""
    labels = {f"classlabels_{'strings' if isinstance(classes[0], str) else 'ints'}": classes}
    coefficients = np.arange(9, dtype=np.float32).tolist()
    made = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "p"],
            domain="ai.onnx.ml",
            coefficients=coefficients,
            intercepts=[0.0] * 3,
            post_transform="SOFTMAX",
            **labels,
        ),
        *(
            helper.make_node("ZipMap", ["p"], [name], domain="ai.onnx.ml", **{labels_of_maps(classes): classes})
            for name in maps
        ),
        *nodes,
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3])
    key = TensorProto.STRING if isinstance(classes[0], str) else TensorProto.INT64
    of_map = helper.make_map_type_proto(key, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    ends = [helper.make_value_info(name, helper.make_sequence_type_proto(of_map)) for name in maps]
    imports = [helper.make_opsetid("ai.onnx.ml", 1)]
    if nodes:
        imports.append(helper.make_opsetid("", 15))
        ends.append(helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [None, 3]))
    model = helper.make_model(helper.make_graph(made, "g", [x], ends), opset_imports=imports)
    model.ir_version = 8 if nodes else 3
    return model


def labels_of_maps(classes):
    return "classlabels_strings" if isinstance(classes[0], str) else "classlabels_int64s"


def reads_inside():
    """Nodes of which an inner graph reads the probabilities."""
    branch = helper.make_graph(
        [helper.make_node("Neg", ["p"], ["inner"])],
        "branch",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, [None, 3])],
    )
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return [
        helper.make_node("Constant", [], ["yes"], value=yes),
        helper.make_node("If", ["yes"], ["negative"], then_branch=branch, else_branch=branch),
    ]


@pytest.mark.parametrize(
    "model",
    [
        by_hand(["a", "b", "c"], ["maps"]),
        by_hand([7, 8, 9], ["maps", "again"]),
        by_hand([7, 8, 9], ["maps"], *reads_inside()),
    ],
    ids=["as CatBoost", "two maps", "read by an inner graph"],
)
def test_maps_become_tensors_wherever_the_probabilities_are_read(tmp_path, model):
    rows = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    expected = answers(model.SerializeToString(), rows)
    onnx.save(model, tmp_path / "m.onnx")
    manifest = publish_onnx(tmp_path / "m.onnx", "mapped", tmp_path / "registry")
    assert manifest.signature.outputs[0] == TensorSpec(name="maps", datatype="FP32", shape=(-1, 3))
    data = Registry(tmp_path / "registry").load("mapped", 1).files["model.onnx"]
    onnx.checker.check_model(onnx.load_model_from_string(data))
    for got, wanted in zip(answers(data, rows), expected, strict=True):
        assert (got == ([[*row.values()] for row in wanted] if isinstance(wanted, list) else wanted)).all()


def test_other_outputs_that_are_no_tensors_are_refused(tmp_path):
    model = identity()
    model.graph.node[0].op_type = "SequenceConstruct"
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    assert "'y' of " in refused(tmp_path, model.SerializeToString())


def test_a_newer_ir_is_refused_with_the_version_to_set(tmp_path):
    model = identity()
    model.ir_version = newest_ir() + 1
    assert f"takes {newest_ir()} at most" in refused(tmp_path, model.SerializeToString())


def test_weights_in_other_files_are_refused(tmp_path):
    model = identity(weights=True)
    onnx.external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    onnx.save(model, tmp_path / "saved.onnx")
    assert "save it as one file" in refused(tmp_path, (tmp_path / "saved.onnx").read_bytes())


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff", b"{}"])
def test_other_bytes_are_no_model(tmp_path, data):
    assert "is no ONNX model" in refused(tmp_path, data)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(ConvertError, match="No such file"):
        publish_onnx(tmp_path / "none.onnx", "plain", tmp_path)
