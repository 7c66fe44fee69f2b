"""Streams: order, half-close, cancelling in the middle, and company of unary calls on one connection."""

from __future__ import annotations

import asyncio
import itertools
import queue

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from penstock.proto import inference_pb2 as pb
from penstock.registry import Registry

SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture
def health(caller):
    return health_pb2_grpc.HealthStub(caller.channel)


@pytest.mark.parametrize(("service", "status"), [("", SERVING), ("double", SERVING), ("nobody", SERVICE_UNKNOWN)])
def test_a_watcher_hears_the_status_at_once(health, service, status):
    watching = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20)
    assert next(watching).status == status
    watching.cancel()


def test_a_watcher_hears_of_a_model_that_comes_later(tmp_path, graphs, serving, calling):
    registry = Registry(tmp_path / "growing")
    registry.root.mkdir()
    stub = health_pb2_grpc.HealthStub(calling(serving(registry=registry.root, poll_s=0.02)).channel)
    watching = stub.Watch(health_pb2.HealthCheckRequest(service="later"), timeout=20)
    assert next(watching).status == SERVICE_UNKNOWN
    graphs.publish(registry, "later", graphs.double())
    assert next(watching).status == SERVING
    watching.cancel()


def test_100_watchers_and_unary_calls_share_a_connection(health, caller):
    watchers = [health.Watch(health_pb2.HealthCheckRequest(), timeout=20) for _ in range(100)]
    assert [next(one).status for one in watchers] == [SERVING] * 100
    calls = [caller.send("double", [[float(i), 0.0]]) for i in range(50)]
    for one in watchers[::2]:
        one.cancel()
    assert [caller.answer(call)[0, 0] for call in calls] == [2 * i for i in range(50)]
    for one in watchers[1::2]:
        one.cancel()


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_health_request_that_is_none_is_invalid(caller, refused, method):
    call = caller.channel.unary_stream(f"/grpc.health.v1.Health/{method}")
    assert refused(lambda: list(call(b"\xff", timeout=20)))[0] == "INVALID_ARGUMENT"


@pytest.fixture(params=["v1alpha", "v1"])
def reflect(request, caller):
    """Asks the reflection service of a version; the two have the same messages."""
    path = f"/grpc.reflection.{request.param}.ServerReflection/ServerReflectionInfo"
    call = caller.channel.stream_stream(
        path,
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )

    def ask(*requests):
        return list(call(iter([reflection_pb2.ServerReflectionRequest(**fields) for fields in requests]), timeout=20))

    return ask


def test_reflection_lists_and_describes_every_service(reflect):
    symbol = "inference.GRPCInferenceService"
    listed, described, unknown = reflect(
        {"list_services": ""}, {"file_containing_symbol": symbol}, {"file_containing_symbol": "no.such.Thing"}
    )
    names = {service.name for service in listed.list_services_response.service}
    reflections = {f"grpc.reflection.{version}.ServerReflection" for version in ("v1alpha", "v1")}
    assert names >= {symbol, "penstock.Penstock", "grpc.health.v1.Health"} | reflections
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto.FromString(described.file_descriptor_response.file_descriptor_proto[0])
    methods = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert [method.name for method in file.service[0].method] == [method.name for method in methods]
    assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_200_streamed_inferences_are_answered_in_order(caller, expected):
    sent = np.random.default_rng(2).normal(size=(200, 3, 8)).astype(np.float32)
    requests = [caller.request("logistic", x, id=str(i)) for i, x in enumerate(sent)]
    answers = list(caller.stub.ModelStreamInfer(iter(requests), timeout=60))
    assert [one.infer_response.id for one in answers] == [str(i) for i in range(200)]
    assert {one.error_message for one in answers} == {""}
    for x, one in zip(sent, answers, strict=True):
        found = np.frombuffer(one.infer_response.raw_output_contents[0], "f4").reshape(-1, 1)
        np.testing.assert_allclose(found, expected(x), rtol=1e-4)


def test_a_streamed_inference_that_fails_says_so_and_the_stream_goes_on(caller):
    requests = [
        caller.request("double", [[1.0, 2.0]]),
        caller.request("nobody", [[1.0, 2.0]]),
        caller.request("double", [[1.0, 2.0, 3.0]]),
        caller.request("double", [[3.0, 4.0]]),
    ]
    answers = list(caller.stub.ModelStreamInfer(iter(requests), timeout=20))
    assert [bool(one.error_message) for one in answers] == [False, True, True, False]
    assert "nobody" in answers[1].error_message
    assert "'x'" in answers[2].error_message


def test_each_streamed_answer_comes_before_the_next_question_is_asked(caller):
    asked = queue.SimpleQueue()
    stream = caller.stub.ModelStreamInfer(iter(asked.get, None), timeout=30)
    for turn in range(20):
        asked.put(caller.request("double", [[float(turn), 0.0]]))
        answer = next(stream).infer_response
        assert np.frombuffer(answer.raw_output_contents[0], "f4")[0] == 2 * turn
    asked.put(None)
    assert list(stream) == []
    assert stream.code() is grpc.StatusCode.OK


def test_a_stream_without_a_message_ends_well(caller):
    stream = caller.stub.ModelStreamInfer(iter(()), timeout=20)
    assert list(stream) == []
    assert stream.code() is grpc.StatusCode.OK


def test_a_stream_cancelled_in_the_middle_harms_no_other_call(caller):
    requests = (caller.request("double", [[float(i), 0.0]]) for i in itertools.count())
    stream = caller.stub.ModelStreamInfer(requests, timeout=60)
    for _ in range(10):
        next(stream)
    stream.cancel()
    with pytest.raises(grpc.RpcError):
        list(stream)
    assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]


async def test_streams_and_unary_calls_interleave_on_one_connection(server, infer, body_of, values_of):
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        unary, stream = channel.unary_unary(infer), channel.stream_stream(STREAM)

        async def streaming(value):
            bodies = [body_of("double", [[value, float(i)]]) for i in range(50)]
            found = [pb.ModelStreamInferResponse.FromString(m) async for m in stream(iter(bodies), timeout=60)]
            return [np.frombuffer(one.infer_response.raw_output_contents[0], "f4").tolist() for one in found]

        async def calling(value):
            return values_of(await unary(body_of("double", [[value, 1.0]]), timeout=60)).tolist()

        streamed = asyncio.gather(*(streaming(float(i)) for i in range(4)))
        called = await asyncio.gather(*(calling(float(i)) for i in range(100)))
        assert called == [[[2.0 * i, 2.0]] for i in range(100)]
        assert await streamed == [[[2.0 * i, 2.0 * k] for k in range(50)] for i in range(4)]


def test_a_stream_ends_at_its_deadline(health, refused):
    watching = health.Watch(health_pb2.HealthCheckRequest(), timeout=0.3)
    assert refused(lambda: list(watching))[0] == "DEADLINE_EXCEEDED"
