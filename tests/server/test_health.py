"""Health and reflection as their own clients see them."""

from __future__ import annotations

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from penstock.proto import inference_pb2 as pb
from penstock.server.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING, Health

Request = health_pb2.HealthCheckRequest


@pytest.fixture
def caller(registry, graphs, serving, calling):
    graphs.publish(registry, "double", graphs.double())
    return calling(serving(poll_s=0.02))


@pytest.fixture
def stub(caller):
    return health_pb2_grpc.HealthStub(caller.channel)


@pytest.mark.parametrize("service", ["", "double"])
def test_check_tells_the_server_and_each_model(stub, service):
    assert stub.Check(Request(service=service), timeout=20).status == SERVING


def test_check_of_what_is_no_model_is_not_found(stub):
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(Request(service="nobody"), timeout=20)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_a_request_that_is_none_is_invalid(caller, method):
    path = f"/grpc.health.v1.Health/{method}"
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.channel.unary_stream(path)(b"\xff", timeout=20))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_watcher_hears_of_a_model_that_comes_later(stub, graphs, registry):
    watching = stub.Watch(Request(service="later"), timeout=20)
    assert next(watching).status == SERVICE_UNKNOWN
    graphs.publish(registry, "later", graphs.double())
    assert next(watching).status == SERVING
    watching.cancel()


def test_many_watchers_come_and_go(stub, graphs, registry):
    watchers = [stub.Watch(Request(service="later"), timeout=20) for _ in range(50)]
    assert [next(one).status for one in watchers] == [SERVICE_UNKNOWN] * 50
    for one in watchers[::2]:
        one.cancel()
    graphs.publish(registry, "later", graphs.double())
    assert [next(one).status for one in watchers[1::2]] == [SERVING] * 25
    for one in watchers[1::2]:
        one.cancel()


def test_reflection_describes_every_service(caller):
    database = ProtoReflectionDescriptorDatabase(caller.channel)
    assert {
        "inference.GRPCInferenceService",
        "penstock.Penstock",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    } <= set(database.get_services())
    found = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    ours = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    assert {method.name for method in found.service[0].method} == {method.name for method in ours}


def test_states_are_told_to_listeners_from_any_thread():
    health, heard = Health(), []
    assert (health.status(""), health.status("a"), health.ready) == (NOT_SERVING, SERVICE_UNKNOWN, False)

    def listener():
        heard.append((health.status(""), health.status("a")))

    health.listen(listener)
    thread = threading.Thread(target=health.set_models, args=({"a"},))
    thread.start()
    thread.join()
    health.drain()
    health.forget(listener)
    health.set_models({"a", "b"})
    assert heard == [(SERVING, SERVING), (NOT_SERVING, NOT_SERVING)]
    assert health.status("b") == NOT_SERVING
