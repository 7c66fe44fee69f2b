"""Health as its own client sees it."""

from __future__ import annotations

import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

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


def test_many_watchers_come_and_go(stub, graphs, registry):
    watchers = [stub.Watch(Request(service="later"), timeout=20) for _ in range(50)]
    assert [next(one).status for one in watchers] == [SERVICE_UNKNOWN] * 50
    for one in watchers[::2]:
        one.cancel()
    graphs.publish(registry, "later", graphs.double())
    assert [next(one).status for one in watchers[1::2]] == [SERVING] * 25
    for one in watchers[1::2]:
        one.cancel()


def test_a_watcher_who_leaves_is_forgotten(stub, monkeypatch, eventually):
    told = []
    forget = Health.forget
    monkeypatch.setattr(Health, "forget", lambda self, listener: (told.append(listener), forget(self, listener)))
    watchers = [stub.Watch(Request(), timeout=20) for _ in range(5)]
    assert [next(one).status for one in watchers] == [SERVING] * 5
    for one in watchers:
        one.cancel()
    eventually(lambda: len(told) == 5)


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
