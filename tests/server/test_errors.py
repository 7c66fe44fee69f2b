"""What a caller is told, and what a bad call costs the others: nothing."""

from __future__ import annotations

import logging
import re
from itertools import repeat

import grpc
import numpy as np
import pytest

from penstock.proto import inference_pb2 as pb
from penstock.server.details import trailing_of
from penstock.server.errors import FeaturesUnavailable, UnknownModel

INFER = "/inference.GRPCInferenceService/ModelInfer"
Code = grpc.StatusCode


def refused(call, code):
    """The one line a failed call came with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    assert caught.value.code() is code, caught.value
    assert caught.value.details()
    assert "\n" not in caught.value.details()
    return caught.value.details()


@pytest.fixture
def double(registry, graphs):
    graphs.publish(registry, "double", graphs.double())


@pytest.fixture
def caller(double, serving, calling):
    return calling(serving())


@pytest.mark.parametrize(
    ("change", "code", "told"),
    [
        ({"model_name": "nobody"}, Code.NOT_FOUND, "unknown model: 'nobody'"),
        ({"model_version": "7"}, Code.NOT_FOUND, "version 7 is not found; served are versions 1"),
        ({"model_version": "none-such"}, Code.NOT_FOUND, "none-such"),
        ({"name": "z"}, Code.INVALID_ARGUMENT, "'z'"),
        ({"values": [[1.0, 2.0, 3.0]]}, Code.INVALID_ARGUMENT, "'x'"),
        ({"values": [1.0, 2.0]}, Code.INVALID_ARGUMENT, "'x'"),
        ({"values": [[1, 2]]}, Code.INVALID_ARGUMENT, "FP32"),
        ({"raw": b"123"}, Code.INVALID_ARGUMENT, "'x'"),
        ({"outputs": ["nothing"]}, Code.INVALID_ARGUMENT, "'nothing'"),
    ],
    ids=["model", "version", "alias", "input", "width", "dimensions", "datatype", "bytes", "output"],
)
def test_a_request_that_does_not_fit_is_told_why(caller, change, code, told):
    values = {"model_name": "double", "values": [[1.0, 2.0]], "name": "x", "raw": None, "outputs": []} | change
    request = caller.request(values.pop("model_name"), values["values"], values["name"])
    request.model_version = change.get("model_version", "")
    if values["raw"] is not None:
        request.raw_input_contents[0] = values["raw"]
    for output in values["outputs"]:
        request.outputs.add(name=output)
    assert told in refused(lambda: caller.stub.ModelInfer(request, timeout=20), code)
    assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x06dou", b"\x00" * 50], ids=repr)
def test_bytes_that_are_no_request_are_an_invalid_argument(caller, body):
    call = caller.channel.unary_unary(INFER)
    refused(lambda: call(body, timeout=20), Code.INVALID_ARGUMENT)
    assert caller.counts("double").phases["success"].count == 0


def test_a_full_queue_is_unavailable_and_says_when_to_try_again(double, gate, serving, calling):
    caller = calling(serving(max_queue_rows=3))
    gate.shut()
    running = caller.send("double", [[1.0, 1.0]])
    gate.entered()
    queued = caller.send("double", [[2.0, 2.0]] * 3)
    gate.queued(3)
    with pytest.raises(grpc.RpcError) as caught:
        caller.send("double", [[3.0, 3.0]]).result()
    assert caught.value.code() is Code.UNAVAILABLE
    assert "full" in caught.value.details()
    assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
    too_many = refused(lambda: caller.send("double", [[3.0, 3.0]] * 4).result(), Code.RESOURCE_EXHAUSTED)
    assert "4 rows" in too_many
    gate.open()
    assert caller.answer(running).tolist() == [[2, 2]]
    assert caller.answer(queued).tolist() == [[4, 4]] * 3
    assert gate.rows == [1, 3]
    assert caller.counts("double").phases["fail"].count == 2


def test_a_message_over_the_limit_is_refused_and_the_connection_goes_on(double, serving, calling):
    caller = calling(serving(max_message_bytes=4096))
    refused(lambda: caller.send("double", np.zeros((600, 2), np.float32)).result(), Code.RESOURCE_EXHAUSTED)
    assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]


def test_an_answer_over_the_limit_is_refused(registry, graphs, serving, calling):
    model = graphs.graph(
        [("Concat", ["x"] * 8, ["y"], {"axis": 1})], [("x", "FP32", ["n", 2])], [("y", "FP32", ["n", 16])]
    )
    graphs.publish(registry, "wide", model)
    caller = calling(serving(max_message_bytes=4096))
    told = refused(lambda: caller.send("wide", np.zeros((100, 2), np.float32)).result(), Code.RESOURCE_EXHAUSTED)
    assert "4096" in told
    assert caller.answer(caller.send("wide", [[1.0, 2.0]])).tolist() == [[1, 2] * 8]


def test_a_call_that_waited_past_its_deadline_is_never_run(double, gate, serving, calling):
    caller = calling(serving())
    gate.shut()
    running = caller.send("double", [[1.0, 1.0]])
    gate.entered()
    refused(lambda: caller.send("double", [[2.0, 2.0]] * 5, timeout=0.15).result(), Code.DEADLINE_EXCEEDED)
    hasty = caller.request("double", [[3.0, 3.0]] * 7)  # the request's own timeout, in microseconds
    hasty.parameters["timeout"].int64_param = 1
    hasty = caller.stub.ModelInfer.future(hasty, timeout=20)
    gate.queued(12)
    gate.open()
    assert caller.answer(running).tolist() == [[2, 2]]
    assert "not run" in refused(hasty.result, Code.DEADLINE_EXCEEDED)
    assert caller.answer(caller.send("double", [[4.0, 4.0]])).tolist() == [[8, 8]]
    assert gate.rows == [1, 1]
    counts = caller.counts("double")
    assert (counts.inference_count, counts.execution_count, counts.phases["success"].count) == (2, 2, 2)


def test_a_call_cancelled_while_queued_is_never_run(double, gate, serving, calling):
    caller = calling(serving())
    gate.shut()
    running = caller.send("double", [[1.0, 1.0]])
    gate.entered()
    doomed, kept = caller.send("double", [[2.0, 2.0]] * 5), caller.send("double", [[3.0, 3.0]])
    gate.queued(6)
    doomed.cancel()
    for _ in range(20):  # the cancellation is on the same connection, ahead of these
        caller.stub.ServerLive(pb.ServerLiveRequest(), timeout=5)
    gate.open()
    assert caller.answer(running).tolist() == [[2, 2]]
    assert caller.answer(kept).tolist() == [[6, 6]]
    assert gate.rows == [1, 1]
    assert caller.counts("double").inference_count == 2


@pytest.fixture
def fragile(registry, graphs):
    graphs.publish(registry, "fragile", graphs.reciprocal())


def test_a_fault_of_ours_gives_an_id_and_the_log_the_rest(fragile, serving, calling, caplog):
    caller = calling(serving())
    told = refused(lambda: caller.send("fragile", [[0]]).result(), Code.INTERNAL)
    fault = re.fullmatch(r"internal error ([0-9a-f]{12}); the server's log has the detail", told)
    assert fault, told
    assert fault[1] in caplog.text
    assert "division by zero" in caplog.text


def test_one_poisoned_row_never_fails_its_batch_mates(fragile, gate, serving, calling, caplog):
    caller = calling(serving())
    gate.shut()
    first = caller.send("fragile", [[1]])
    gate.entered()
    good = [caller.send("fragile", [[n], [n]]) for n in range(1, 11)]
    bad = caller.send("fragile", [[5], [0], [5]])
    good += [caller.send("fragile", [[n]]) for n in range(11, 21)]
    gate.queued(33)
    with caplog.at_level(logging.CRITICAL):
        gate.open()
        refused(bad.result, Code.INTERNAL)
        answers = [caller.answer(call, np.int64) for call in (first, *good)]
    assert [a.tolist() for a in answers[1:11]] == [[[100 // n]] * 2 for n in range(1, 11)]
    assert [a.tolist() for a in answers[11:]] == [[[100 // n]] for n in range(11, 21)]
    assert gate.rows == [1, 33, *repeat(2, 10), 3, *repeat(1, 10)]
    counts = caller.counts("fragile")
    assert (counts.phases["success"].count, counts.phases["fail"].count) == (21, 1)


def read_status(data):
    """A google.rpc.Status read by descriptors of our own with its field numbers: (code, message, type, detail)."""
    from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="status_test.proto", package="status_test", syntax="proto3", dependency=[any_pb2.DESCRIPTOR.name]
    )
    message = file.message_type.add(name="Status")
    message.field.add(name="code", number=1, type=5, label=1)
    message.field.add(name="message", number=2, type=9, label=1)
    message.field.add(name="details", number=3, type=11, label=3, type_name=".google.protobuf.Any")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    found = message_factory.GetMessageClass(pool.FindMessageTypeByName("status_test.Status")).FromString(data)
    (detail,) = found.details
    return found.code, found.message, detail.type_url.rpartition(".")[2], detail.value


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_a_bad_request_carries_details_that_other_languages_read(double, serving, calling, transport):
    if transport == "native":
        pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")
    caller = calling(serving(transport=transport))
    with pytest.raises(grpc.RpcError) as caught:
        caller.send("double", [[1.0, 2.0, 3.0]]).result()
    details = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
    code, message, kind, detail = read_status(details)
    assert (code, message, kind) == (3, caught.value.details(), "BadRequest")
    assert message.encode() in detail


def test_who_may_try_again_is_told_when():
    from google.protobuf.duration_pb2 import Duration

    told = dict(trailing_of(FeaturesUnavailable("later")))
    assert told["grpc-retry-pushback-ms"] == "50"
    code, message, kind, detail = read_status(told["grpc-status-details-bin"])
    assert (code, message, kind) == (14, "later", "RetryInfo")
    assert Duration.FromString(detail[2:]).ToMilliseconds() == 50
    assert trailing_of(UnknownModel("none")) == ()
