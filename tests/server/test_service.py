"""What the RPCs about models tell, asked over the wire; that each has an answer at all: tests/conformance."""

from __future__ import annotations

import json

import grpc
import numpy as np
import pytest

from penstock.features import Column, FeatureView
from penstock.proto import inference_pb2 as pb
from penstock.proto import penstock_pb2, penstock_pb2_grpc
from penstock.registry import Registry

VIEW = FeatureView(name="activity", entity="customer", columns=[Column(name=n, dtype="float32") for n in ("a", "b")])


@pytest.fixture
def caller(registry, graphs, serving, calling):
    graphs.publish(registry, "double", graphs.double())
    graphs.publish(registry, "joined", graphs.copy(2), columns=("a", "b"), views=[VIEW])
    return calling(serving(features="memory://", max_batch_rows=16, max_queue_delay_us=5))


def corrupt(registry: Registry, name, version):
    """Change one byte of a published model."""
    path = registry.root / "models" / name / "versions" / str(version) / "model.onnx"
    path.parent.chmod(0o755)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


@pytest.mark.parametrize("method", ["ModelMetadata", "ModelConfig", "ModelReady", "ModelStatistics"])
@pytest.mark.parametrize("version", ["", "9"])
def test_what_is_asked_of_an_unknown_model_is_not_found(caller, method, version):
    name = "nobody" if not version else "double"
    with pytest.raises(grpc.RpcError) as caught:
        getattr(caller.stub, method)(getattr(pb, f"{method}Request")(name=name, version=version), timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert name in caught.value.details()


def test_live_ready_and_metadata_of_the_server(caller):
    assert caller.client.live()
    assert caller.client.ready()
    assert caller.client.ready("double")
    assert caller.client.ready("double", "champion")
    told = caller.client.server_metadata()
    assert (told.name, told.version) == ("penstock", "testing")
    assert {"statistics", "model_repository", "binary_tensor_data"} <= set(told.extensions)


def test_metadata_of_a_model_names_its_tensors(caller):
    told = caller.client.metadata("double")
    assert (told.name, told.versions, told.platform) == ("double", ("1",), "onnxruntime_onnx")
    assert [(t.name, t.datatype, t.shape) for t in told.inputs] == [("x", "FP32", (-1, 2))]
    assert [(t.name, t.datatype, t.shape) for t in told.outputs] == [("y", "FP32", (-1, 2))]


def test_metadata_of_a_joining_model_names_the_entity_and_the_outputs_on_request(caller):
    told = caller.client.metadata("joined")
    assert [(t.name, t.datatype, t.shape) for t in told.inputs] == [
        ("customer", "BYTES", (-1, 1)),
        ("x", "FP32", (-1, 2)),
    ]
    assert [t.name for t in told.outputs] == ["y", "score", "penstock.features", "penstock.feature_status"]


def test_configuration_tells_batching_and_what_our_client_needs(caller):
    told = caller.client.config("joined")
    assert (told.max_batch_size, told.backend, told.platform) == (16, "onnxruntime", "onnxruntime_onnx")
    assert (told.entity, told.vector, told.columns) == ("customer", "x", ("a", "b"))
    assert [(t.name, t.shape) for t in told.inputs] == [("customer", (1,)), ("x", (2,))]
    digest = told.parameters["penstock.digest"]
    assert digest.startswith("sha256:")
    assert len(digest) == len("sha256:") + 64
    raw = caller.stub.ModelConfig(pb.ModelConfigRequest(name="joined"), timeout=20).config
    assert raw.dynamic_batching.max_queue_delay_microseconds == 5
    assert [tensor.optional for tensor in raw.input] == [False, True]
    assert json.loads(raw.parameters["penstock.columns"].string_value) == ["a", "b"]


def test_statistics_count_exactly_what_was_sent(caller):
    for rows in (1, 1, 3, 40):
        caller.client.predict("double", np.ones((rows, 2), np.float32))
    bad = [{"z": [[1.0, 2.0]]}, {"x": [[1.0, 2.0, 3.0]]}]
    for inputs in bad:
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            caller.client.predict("double", inputs)
    seen = caller.counts("double")
    assert (seen.name, seen.version) == ("double", "1")
    assert (seen.inference_count, seen.execution_count) == (45, 4)
    assert {name: seen.phases[name].count for name in seen.phases} == {
        "success": 4,
        "fail": 2,
        "queue": 4,
        "compute_input": 4,
        "compute_infer": 4,
        "compute_output": 4,
        "cache_hit": 0,
        "cache_miss": 0,
    }
    assert all(seen.phases[name].ns > 0 for name in ("success", "queue", "compute_infer", "compute_output"))
    assert seen.batches == {1: 2, 3: 1}  # the call larger than a batch has no size of its own
    assert seen.last_inference_ms > 1_600_000_000_000
    assert {found.name for found in caller.client.statistics()} == {"double", "joined"}


def test_the_index_tells_what_is_served_and_why_something_is_not(registry, graphs, serving, calling):
    graphs.publish(registry, "double", graphs.double())
    graphs.publish(registry, "double", graphs.double(3))
    graphs.publish(registry, "broken", graphs.double())
    graphs.publish(registry, "needs-store", graphs.copy(2), columns=("a", "b"), views=[VIEW])
    registry.promote("double", 2, who="test", why="broken on purpose")
    corrupt(registry, "double", 2)
    corrupt(registry, "broken", 1)
    caller = calling(serving())
    told = {(state.name, state.version): state for state in caller.client.models()}
    assert {key: state.state for key, state in told.items()} == {
        ("broken", "1"): "UNAVAILABLE",
        ("double", "1"): "READY",
        ("double", "2"): "UNAVAILABLE",
        ("needs-store", "1"): "UNAVAILABLE",
    }
    assert "model.onnx" in told["double", "2"].reason
    assert "--features" in told["needs-store", "1"].reason
    assert told["double", "1"].reason == ""
    assert caller.client.predict("double", [[1.0, 2.0]]).model_version == "1"
    ready = caller.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), timeout=20)
    assert [(m.name, m.version) for m in ready.models] == [("double", "1")]


def test_a_version_that_fails_in_an_unforeseen_way_stops_nobody_else(registry, graphs, serving, calling, caplog):
    graphs.publish(registry, "a-bad", graphs.copy(2), columns=("a", "b"), files={"transforms.json": b"[]"})
    graphs.publish(registry, "b-bad", graphs.double(), files={"profile.json": b"[1]"})
    graphs.publish(registry, "c-good", graphs.double())
    caller = calling(serving())
    told = {state.name: state for state in caller.client.models()}
    assert {name: state.state for name, state in told.items()} == {
        "a-bad": "UNAVAILABLE",
        "b-bad": "UNAVAILABLE",
        "c-good": "READY",
    }
    assert all(told[name].reason for name in ("a-bad", "b-bad"))
    assert "\n" not in told["a-bad"].reason + told["b-bad"].reason


def test_drift_status_of_models_without_a_reference_is_empty_and_of_unknown_ones_not_found(caller):
    stub = penstock_pb2_grpc.PenstockStub(caller.channel)
    assert not stub.DriftStatus(penstock_pb2.DriftStatusRequest(), timeout=20).models
    with pytest.raises(grpc.RpcError) as caught:
        stub.DriftStatus(penstock_pb2.DriftStatusRequest(model_name="nobody"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
