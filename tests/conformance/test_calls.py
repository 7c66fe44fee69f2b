"""Unary calls of real grpcio clients: answers by value, every method, every error, metadata."""

from __future__ import annotations

import asyncio
import functools
import json

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.client import AsyncClient
from penstock.features import Column, FeatureView
from penstock.features.opening import open_store
from penstock.proto import inference_pb2 as pb
from penstock.proto import penstock_pb2, penstock_pb2_grpc
from penstock.registry import Registry

STREAMS = {"ModelStreamInfer"}
LEFT_OUT = {
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
}
SLOW = {
    "ServerLive": {},
    "ServerReady": {},
    "ModelReady": {"name": "double"},
    "ServerMetadata": {},
    "ModelMetadata": {"name": "double"},
    "ModelConfig": {"name": "double"},
    "ModelStatistics": {},
    "RepositoryIndex": {},
}


@pytest.mark.parametrize("rows", [1, 2, 7, 256, 1000])
def test_an_answer_is_right_by_value(caller, expected, rows):
    x = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
    np.testing.assert_allclose(caller.answer(caller.send("logistic", x)), expected(x), rtol=1e-4)


def test_the_answer_names_the_call_the_model_and_its_version(caller):
    answer = caller.send("double", [[1.0, 2.0]], id="größe-7", model_version="1").result()
    assert (answer.id, answer.model_name, answer.model_version) == ("größe-7", "double", "1")


async def test_200_concurrent_calls_of_an_async_client_each_get_their_own_answer(server):
    async with AsyncClient(server.grpc, timeout=30) as client:
        sent = [np.full((1 + i % 3, 2), i, np.float32) for i in range(200)]
        told = await asyncio.gather(*(client.predict("double", x, request_id=str(i)) for i, x in enumerate(sent)))
    for i, (x, answer) in enumerate(zip(sent, told, strict=True)):
        np.testing.assert_array_equal(answer["y"], x * 2)
        assert answer.id == str(i)


def test_200_concurrent_calls_of_a_blocking_client_each_get_their_own_answer(caller, expected):
    sent = np.random.default_rng(3).normal(size=(200, 4, 8)).astype(np.float32)
    calls = [caller.send("logistic", x) for x in sent]
    for x, call in zip(sent, calls, strict=True):
        np.testing.assert_allclose(caller.answer(call), expected(x), rtol=1e-4)


def test_features_are_joined_from_the_store(redis_url, graphs, tmp_path, serving, calling):
    view = FeatureView(name="v", entity="customer", columns=[Column(name=n, dtype="float32") for n in ("a", "b")])
    registry = Registry(tmp_path / "joining")
    registry.root.mkdir()
    graphs.publish(registry, "joined", graphs.copy(2), columns=("a", "b"), views=[view])
    store = open_store(redis_url)
    store.put(view, [b"ada", b"bob"], {"a": np.array([1, 2], "f4"), "b": np.array([3, 4], "f4")})
    store.close()
    with_features = calling(serving(registry=registry.root, features=redis_url)).client
    told = with_features.predict("joined", entity_ids=["bob", "ada"], overrides={"b": [9.0, 8.0]}, outputs=["y"])
    assert told["y"].tolist() == [[2, 9], [1, 8]]


@pytest.mark.parametrize("method", sorted(SLOW))
def test_every_method_about_the_server_and_its_models_answers(caller, method):
    answer = getattr(caller.stub, method)(getattr(pb, f"{method}Request")(**SLOW[method]), timeout=20)
    assert answer.ByteSize() > 0


def test_every_method_of_the_protocol_has_an_answer(caller, refused):
    """Even those left out: UNIMPLEMENTED and one line that names the method."""
    methods = {m.name for m in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    assert methods == LEFT_OUT | set(SLOW) | STREAMS | {"ModelInfer"}
    for name in sorted(LEFT_OUT):
        call = caller.channel.unary_unary(f"/inference.GRPCInferenceService/{name}")
        code, details = refused(functools.partial(call, b"", timeout=20))
        assert code == "UNIMPLEMENTED", name
        assert details == f"{name} is not served by Penstock"


def test_drift_and_health_answer_on_the_same_port(caller):
    drift = penstock_pb2_grpc.PenstockStub(caller.channel)
    assert not drift.DriftStatus(penstock_pb2.DriftStatusRequest(), timeout=20).models
    health = health_pb2_grpc.HealthStub(caller.channel)
    for name in ("", "double"):
        assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status == 1


@pytest.mark.parametrize(
    "path", ["/inference.GRPCInferenceService/Nothing", "/nobody.Service/ModelInfer", "/nothing", "/"]
)
def test_an_unknown_method_is_unimplemented(caller, refused, path):
    code, _ = refused(lambda: caller.channel.unary_unary(path)(b"", timeout=20))
    assert code == "UNIMPLEMENTED"


@pytest.mark.parametrize("name", ["nobody", "größe 100% %41 \U0001f427", "%", "a\tb", "x" * 100])
def test_an_unknown_model_is_not_found_and_its_name_arrives_intact(caller, name):
    error = caller.send(name, [[1.0, 2.0]]).exception()
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert name in error.details()


def test_an_error_message_is_percent_encoded_on_the_wire(peer, infer, body_of):
    answer = peer.call(infer, body_of("größe 100%", [[1.0]]))
    assert answer.code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "gr%C3%B6%C3%9Fe 100%25" in answer.trailers["grpc-message"]
    assert "größe 100%" in answer.message


@pytest.mark.parametrize(("values", "wrong"), [([[1.0, 2.0, 3.0]], "2"), ([1.0, 2.0], "2"), ([[1, 2]], "FP32")])
def test_an_unfitting_request_is_invalid_and_the_input_is_named(caller, values, wrong):
    error = caller.send("double", values).exception()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'x'" in error.details()
    assert wrong in error.details()


@pytest.mark.parametrize("body", [b"\xff\xff", b"\x0a\x06doub", b"\x0a\xff\xff\xff\xff\x0f", bytes(9)])
@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ModelConfig", "ModelReady", "ModelStatistics"])
def test_bytes_that_are_no_message_are_invalid(caller, refused, method, body):
    call = caller.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
    assert refused(lambda: call(body, timeout=20))[0] == "INVALID_ARGUMENT"


def test_a_run_that_fails_is_internal_and_tells_no_more_than_an_id(caller):
    error = caller.send("reciprocal", [[0]]).exception()
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "Div" not in error.details()
    assert caller.answer(caller.send("reciprocal", [[4]]), np.int64).tolist() == [[25]]


def test_an_empty_body_is_a_message_like_any_other(caller, live, infer, refused):
    assert pb.ServerLiveResponse.FromString(caller.channel.unary_unary(live)(b"", timeout=20)).live
    code, details = refused(lambda: caller.channel.unary_unary(infer)(b"", timeout=20))
    assert code == "NOT_FOUND"
    assert "''" in details


METADATA = [
    ("x-request-id", "7"),
    ("x-empty", ""),
    ("trace-bin", bytes(range(256))),
    ("x-twice", "1"),
    ("x-twice", "2"),
]


@pytest.mark.parametrize("method", ["infer", "live"])
@pytest.mark.parametrize("metadata", [METADATA, [("x-large", "v" * 12_288)]], ids=["usual", "12 KiB"])
def test_metadata_of_the_caller_is_accepted(caller, request, body_of, method, metadata):
    call = caller.channel.unary_unary(request.getfixturevalue(method))
    body = body_of("double", [[1.0, 2.0]]) if method == "infer" else b""
    assert call(body, timeout=20, metadata=metadata)


@pytest.mark.parametrize("method", ["infer", "live"])
def test_20_kib_of_metadata_are_refused_and_the_connection_goes_on(caller, request, refused, body_of, method):
    call = caller.channel.unary_unary(request.getfixturevalue(method))
    body = body_of("double", [[1.0, 2.0]]) if method == "infer" else b""
    large = [("x-large", "v" * 20_480)]
    assert refused(lambda: call(body, timeout=20, metadata=large))[0] == "RESOURCE_EXHAUSTED"
    assert call(body, timeout=20)


@pytest.fixture
def queue_of_one(gate, serving):
    """A server whose queue takes one row, with one call at the gate and one waiting; and the two calls."""

    def start(caller_of):
        addresses = serving(max_queue_rows=1)
        caller = caller_of(addresses)
        gate.shut()
        calls = [caller.send("double", [[1.0, 2.0]])]
        gate.entered()
        calls.append(caller.send("double", [[3.0, 4.0]]))
        gate.queued(1)
        return addresses, caller, calls

    return start


def test_a_full_queue_is_unavailable_and_says_when_to_come_again(queue_of_one, gate, calling):
    _, caller, calls = queue_of_one(calling)
    error = caller.send("double", [[5.0, 6.0]]).exception()
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    gate.open()
    assert [caller.answer(call).tolist() for call in calls] == [[[2, 4]], [[6, 8]]]


def service_config(**policy):
    return ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], **policy}]}))


RETRY = {
    "maxAttempts": 5,
    "initialBackoff": "10s",  # longer than the test: only the server's pushback lets it succeed in time
    "maxBackoff": "10s",
    "backoffMultiplier": 1,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def test_a_standard_client_tries_again_when_the_server_said(queue_of_one, gate, calling, channel, infer, body_of):
    address, caller, calls = queue_of_one(calling)
    retrying = channel(address.grpc, service_config(retryPolicy=RETRY)).unary_unary(infer)
    refused_once = refusals(caller)
    again = retrying.future(body_of("double", [[5.0, 6.0]]), timeout=5)
    refused_once()
    gate.open()
    answer = pb.ModelInferResponse.FromString(again.result())
    assert np.frombuffer(answer.raw_output_contents[0], "f4").tolist() == [10, 12]
    assert [caller.answer(call).tolist() for call in calls] == [[[2, 4]], [[6, 8]]]


def refusals(caller):
    """Waits until one more call of `double` failed than had when this was made."""
    import time

    def failed():
        return caller.counts("double").phases["fail"].count

    before = failed()

    def wait():
        until = time.monotonic() + 10
        while failed() == before:
            assert time.monotonic() < until, "nothing was refused"

    return wait


def test_a_client_with_a_hedging_policy_is_served(server, channel, infer, body_of, values_of):
    policy = {"maxAttempts": 3, "hedgingDelay": "0.001s", "nonFatalStatusCodes": ["UNAVAILABLE"]}
    call = channel(server.grpc, service_config(hedgingPolicy=policy)).unary_unary(infer)
    answers = [call.future(body_of("double", [[i + 0.0, 1.0]]), timeout=20) for i in range(50)]
    assert [values_of(one.result())[0, 0] for one in answers] == [2 * i for i in range(50)]
