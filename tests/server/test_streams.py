"""Streamed inference and reflection, asked over the wire."""

from __future__ import annotations

import asyncio
import gc
import queue
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from penstock.proto import inference_pb2 as pb
from penstock.server.streams import IN_FLIGHT, _streamed

Code = grpc.StatusCode
ENDED = object()


class Requests:
    """Requests that are sent when they are put, as an iterator for gRPC."""

    def __init__(self) -> None:
        self._queue = queue.Queue()

    def put(self, request=ENDED) -> None:
        self._queue.put(request)

    def __iter__(self):
        return iter(self._queue.get, ENDED)


@pytest.fixture
def requests():
    made = Requests()
    yield made
    made.put()  # so that gRPC's thread ends


@pytest.fixture
def double(registry, graphs):
    graphs.publish(registry, "double", graphs.double())


@pytest.fixture
def caller(double, serving, calling):
    return calling(serving())


def number(caller, n):
    return caller.request("double", [[float(n)] * 2], id=str(n))


def value(message):
    """What one message of a stream tells: its id, and the first number or the error."""
    answer = message.infer_response
    if message.error_message:
        assert not answer.outputs
        return answer.id, message.error_message
    return answer.id, float(np.frombuffer(answer.raw_output_contents[0], np.float32)[0])


def test_a_thousand_requests_are_answered_in_their_order(caller):
    answers = caller.stub.ModelStreamInfer((number(caller, n) for n in range(1000)), timeout=60)
    assert [value(one) for one in answers] == [(str(n), 2.0 * n) for n in range(1000)]
    assert answers.code() is Code.OK
    assert caller.counts("double").inference_count == 1000


def test_an_answer_comes_before_the_next_request_is_sent(caller, requests):
    answers = caller.stub.ModelStreamInfer(iter(requests), timeout=20)
    for n in range(3):
        requests.put(number(caller, n))
        assert value(next(answers)) == (str(n), 2.0 * n)
    requests.put()
    assert list(answers) == []


def test_requests_of_one_stream_run_together_and_are_told_in_order(double, gate, serving, calling, requests):
    caller = calling(serving())
    gate.shut()
    answers = caller.stub.ModelStreamInfer(iter(requests), timeout=20)
    requests.put(number(caller, 0))
    gate.entered()
    for n in range(1, 11):
        requests.put(number(caller, n))
    gate.queued(10)
    gate.open()
    assert [value(next(answers)) for _ in range(11)] == [(str(n), 2.0 * n) for n in range(11)]
    assert gate.rows == [1, 10]


def test_no_more_than_the_bound_are_read_from_a_stream(double, gate, serving, calling):
    caller = calling(serving())
    gate.shut()
    running = caller.send("double", [[1.0, 1.0]])
    gate.entered()
    answers = caller.stub.ModelStreamInfer((number(caller, n) for n in range(3 * IN_FLIGHT)), timeout=30)
    gate.queued(IN_FLIGHT)
    for _ in range(20):  # time enough to read more
        caller.stub.ServerLive(pb.ServerLiveRequest(), timeout=5)
    gate.queued(IN_FLIGHT)
    gate.open()
    assert caller.answer(running).tolist() == [[2, 2]]
    assert [value(one)[1] for one in answers] == [2.0 * n for n in range(3 * IN_FLIGHT)]


def test_a_request_that_fails_is_told_in_its_place_and_the_stream_goes_on(caller):
    wrong = [
        caller.request("nobody", [[1.0, 1.0]], id="a"),
        caller.request("double", [[1.0, 1.0, 1.0]], id="b"),
        caller.request("double", [[1.0, 1.0]], name="z", id="c"),
    ]
    sent = [number(caller, 1), wrong[0], number(caller, 2), wrong[1], wrong[2], number(caller, 3)]
    told = [value(one) for one in caller.stub.ModelStreamInfer(iter(sent), timeout=20)]
    assert [id_ for id_, _ in told] == ["1", "a", "2", "b", "c", "3"]
    assert [told[0][1], told[2][1], told[5][1]] == [2.0, 4.0, 6.0]
    assert "unknown model: 'nobody'" in told[1][1]
    assert "'x'" in told[3][1]
    assert "'z'" in told[4][1]


def test_bytes_that_are_no_request_are_told_without_an_id(caller):
    call = caller.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    good = number(caller, 4).SerializeToString()
    told = list(call(iter([b"\xff\xff", good]), timeout=20))
    assert told[0].error_message
    assert told[0].infer_response == pb.ModelInferResponse()
    assert value(told[1]) == ("4", 8.0)


def test_a_full_queue_is_told_in_the_stream(double, gate, serving, calling, requests, eventually):
    caller = calling(serving(max_queue_rows=2))
    gate.shut()
    answers = caller.stub.ModelStreamInfer(iter(requests), timeout=20)
    requests.put(number(caller, 0))
    gate.entered()
    for n in (1, 2, 3):
        requests.put(number(caller, n))
    gate.queued(2)
    eventually(lambda: sum(lane.snapshot()["refused"] for lane in gate.lanes))
    gate.open()
    told = [value(next(answers)) for _ in range(4)]
    assert told[:3] == [("0", 0.0), ("1", 2.0), ("2", 4.0)]
    assert told[3][0] == "3"
    assert "full" in told[3][1]


def test_the_deadline_of_a_stream_ends_it_and_what_is_queued_is_never_run(double, gate, serving, calling):
    caller = calling(serving())
    gate.shut()
    running = caller.send("double", [[1.0, 1.0]])
    gate.entered()
    with pytest.raises(grpc.RpcError) as caught:
        list(caller.stub.ModelStreamInfer(iter([number(caller, 1), number(caller, 2)]), timeout=0.3))
    assert caught.value.code() is Code.DEADLINE_EXCEEDED
    gate.open()
    assert caller.answer(running).tolist() == [[2, 2]]
    assert caller.answer(caller.send("double", [[4.0, 4.0]])).tolist() == [[8, 8]]
    assert gate.rows == [1, 1]


def test_requests_without_a_deadline_have_the_default_one_each(double, gate, serving, calling, requests):
    caller = calling(serving(default_deadline_s=0.2))
    gate.shut()
    answers = caller.stub.ModelStreamInfer(iter(requests))
    requests.put(number(caller, 1))
    gate.entered()
    assert value(next(answers)) == ("1", "no answer within the server's default deadline")
    gate.open()
    requests.put(number(caller, 2))
    assert value(next(answers)) == ("2", 4.0)


def test_a_stream_that_is_cancelled_takes_its_requests_back(double, gate, serving, calling, requests):
    caller = calling(serving())
    gate.shut()
    running = caller.send("double", [[1.0, 1.0]])
    gate.entered()
    answers = caller.stub.ModelStreamInfer(iter(requests), timeout=20)
    for n in range(10):
        requests.put(number(caller, n))
    gate.queued(10)
    answers.cancel()
    for _ in range(20):  # the cancellation is on the same connection, ahead of these
        caller.stub.ServerLive(pb.ServerLiveRequest(), timeout=5)
    gate.open()
    assert caller.answer(running).tolist() == [[2, 2]]
    assert caller.answer(caller.send("double", [[4.0, 4.0]])).tolist() == [[8, 8]]
    assert gate.rows == [1, 1]


def test_streams_that_are_left_leave_no_tasks_behind(caller, eventually, caplog):
    for n in range(30):
        sent = Requests()
        answers = caller.stub.ModelStreamInfer(iter(sent), timeout=20)
        sent.put(number(caller, n))
        if n % 2:
            next(answers)
        answers.cancel()
        sent.put()
    eventually(lambda: tasks_named("_read") == 0)
    requests = iter([number(caller, 1)])
    assert [value(one) for one in caller.stub.ModelStreamInfer(requests, timeout=20)] == [("1", 2.0)]
    assert not caplog.records


def tasks_named(name):
    """How many tasks of any loop in this process run the coroutine function of that name."""
    alive = [one for one in gc.get_objects() if isinstance(one, asyncio.Task) and not one.done()]
    return sum(getattr(task.get_coro(), "__name__", "") == name for task in alive)


def test_an_answer_over_the_limit_is_told_and_the_stream_goes_on(registry, graphs, serving, calling):
    model = graphs.graph(
        [("Concat", ["x"] * 8, ["y"], {"axis": 1})], [("x", "FP32", ["n", 2])], [("y", "FP32", ["n", 16])]
    )
    graphs.publish(registry, "wide", model)
    caller = calling(serving(max_message_bytes=4096))
    sent = [caller.request("wide", np.zeros((100, 2), np.float32)), caller.request("wide", [[1.0, 2.0]])]
    told = list(caller.stub.ModelStreamInfer(iter(sent), timeout=20))
    assert "4096" in told[0].error_message
    assert value(told[1])[1] == 1.0


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 3_000_000])
def test_an_answer_is_wrapped_as_protobuf_would(size):
    answer = pb.ModelInferResponse(id="a" * size)
    wrapped = pb.ModelStreamInferResponse(infer_response=answer).SerializeToString()
    assert _streamed(answer.SerializeToString()) == wrapped


def waiting(server):
    """Rows in the queue of a server."""
    with urlopen(f"http://{server.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("penstock_queue_rows{"))


def test_a_drain_answers_what_was_read_and_ends_every_stream(
    double, registry, penstock_server, calling, eventually, requests
):
    server = penstock_server(registry.root, "--max-queue-delay-us", "1500000", metrics=True)
    caller = calling(server)
    answers = caller.stub.ModelStreamInfer(iter(requests), timeout=20)
    idle = Requests()
    others = [
        caller.stub.ModelStreamInfer(iter(idle), timeout=20),
        caller.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")(iter(idle)),
    ]
    for n in range(3):
        requests.put(number(caller, n))
    eventually(lambda: waiting(server) == 3)
    server.terminate()
    told = []
    for stream in (answers, *others):
        with pytest.raises(grpc.RpcError) as caught:
            told += map(value, stream)
        assert caught.value.code() is Code.UNAVAILABLE
        assert "draining" in caught.value.details()
    assert told == [(str(n), 2.0 * n) for n in range(3)]
    for _ in others:
        idle.put()
    server.stop(within_s=5)


VERSIONS = ["v1alpha", "v1"]


class Renamed:
    """A channel on which reflection goes by its newer name."""

    def __init__(self, channel) -> None:
        self._channel = channel

    def stream_stream(self, path, *args, **kwargs):
        return self._channel.stream_stream(path.replace("v1alpha", "v1"), *args, **kwargs)


@pytest.fixture(params=VERSIONS)
def database(request, caller):
    """Reflection's own client, by either name."""
    return ProtoReflectionDescriptorDatabase(Renamed(caller.channel) if request.param == "v1" else caller.channel)


def test_reflection_lists_every_service(database):
    assert set(database.get_services()) == {
        "inference.GRPCInferenceService",
        "penstock.Penstock",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "grpc.reflection.v1.ServerReflection",
    }


def test_reflection_describes_every_service_it_lists(database):
    pool = DescriptorPool(database)
    for name in database.get_services():
        assert pool.FindServiceByName(name).methods, name
    found = pool.FindServiceByName("inference.GRPCInferenceService")
    ours = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.name for method in found.methods} == {method.name for method in ours.methods}
    newer = pool.FindMethodByName("grpc.reflection.v1.ServerReflection.ServerReflectionInfo")
    assert newer.input_type.full_name == "grpc.reflection.v1.ServerReflectionRequest"


def test_reflection_of_what_is_not_there_is_not_found(database):
    with pytest.raises(KeyError):
        database.FindFileContainingSymbol("inference.Nothing")


@pytest.mark.parametrize("version", VERSIONS)
def test_reflection_refuses_bytes_that_are_no_request(caller, version):
    call = caller.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    good = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    answers = call(iter([good, b"\xff", good]), timeout=20)
    assert reflection_pb2.ServerReflectionResponse.FromString(next(answers)).list_services_response.service
    with pytest.raises(grpc.RpcError) as caught:
        next(answers)
    assert caught.value.code() is Code.INVALID_ARGUMENT
