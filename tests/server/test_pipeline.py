"""Batches of every shape through the whole server: each caller gets its own rows, exactly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper

from penstock.converters import publish_onnx
from penstock.errors import Internal, InvalidRequest
from penstock.proto import inference_pb2 as pb
from penstock.server.pipeline import serve


@pytest.fixture
def double(registry, graphs):
    graphs.publish(registry, "double", graphs.double())
    return registry


def test_a_plain_onnx_file_is_served_as_it_is(registry, graphs, tmp_path, serving, calling):
    (tmp_path / "plain.onnx").write_bytes(graphs.reciprocal())
    publish_onnx(tmp_path / "plain.onnx", "plain", registry)
    caller = calling(serving())
    assert caller.client.predict("plain", [[4], [5]])["y"].tolist() == [[25], [20]]


def test_a_request_of_5000_rows_runs_alone(double, gate, serving, calling):
    caller = calling(serving(max_batch_rows=64))
    gate.shut()
    first = caller.send("double", [[0.0, 0.0]])
    gate.entered()
    values = np.arange(10_000, dtype=np.float32).reshape(5000, 2)
    small = caller.send("double", [[1.0, 1.0]])
    gate.queued(1)
    large = caller.send("double", values)
    gate.queued(5001)
    last = caller.send("double", [[2.0, 2.0]])
    gate.queued(5002)
    gate.open()
    np.testing.assert_array_equal(caller.answer(large), values * 2)
    assert [caller.answer(call).tolist() for call in (first, small, last)] == [[[0, 0]], [[2, 2]], [[4, 4]]]
    assert gate.rows == [1, 1, 5000, 1]
    assert caller.counts("double").batches == {1: 3}  # what is larger than a batch has no size of its own


def test_a_request_without_rows_is_refused(double, serving, calling):
    caller = calling(serving())
    error = caller.send("double", np.zeros((0, 2), np.float32)).exception()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "rows" in error.details()
    assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]


def test_requests_that_wait_together_are_one_batch_and_each_gets_its_rows(double, gate, serving, calling):
    caller = calling(serving(max_batch_rows=256, foresee=False))  # a run held at the gate foretells only slow ones
    gate.shut()
    first = caller.send("double", [[0.0, 0.0]])
    gate.entered()
    rng = np.random.default_rng(0)
    sent = [rng.random((rows, 2)).astype(np.float32) for rows in rng.integers(1, 9, 25)]  # too few to be halved
    calls = []
    for values in sent:
        calls.append(caller.send("double", values))
        gate.queued(sum(len(array) for array in sent[: len(calls)]))
    gate.open()
    assert caller.answer(first).tolist() == [[0, 0]]
    for call, values in zip(calls, sent, strict=True):
        np.testing.assert_array_equal(caller.answer(call), values * 2)
    assert gate.rows == [1, sum(map(len, sent))]


def test_many_threads_with_clients_of_their_own_get_their_own_answers(double, serving, calling):
    address = serving(workers=3).grpc

    def work(number):
        caller = calling(address)
        return all(
            (caller.client.predict("double", [[number, step]])["y"] == [[2 * number, 2 * step]]).all()
            for step in range(100)
        )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


@pytest.mark.parametrize("datatype", ["FP32", "INT64", "BYTES", "BF16"])
def test_tensors_with_several_free_sizes_come_back_in_shape(registry, graphs, serving, calling, datatype):
    graphs.publish(registry, "same", graphs.same(datatype, "n", "a", "b"))
    caller = calling(serving())
    for shape in ((1, 1, 1), (2, 3, 4), (3, 1, 5), (2, 0, 3)):
        count = int(np.prod(shape))
        values = {
            "BYTES": np.array([f"text {i} ü".encode() for i in range(count)], object),
            "INT64": np.arange(count) * -(2**50),
        }.get(datatype, np.arange(count, dtype=np.float32)).reshape(shape)
        answer = caller.client.predict("same", {"x": values})["y"]
        assert answer.shape == shape
        assert answer.tolist() == values.tolist()


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_a_graph_without_a_batch_dimension_takes_what_it_says(registry, graphs, serving, calling, datatype):
    graphs.publish(registry, "same", graphs.same(datatype, 2, 2))
    caller = calling(serving())
    values = np.array([[b"a", b"b"], [b"", b"d"]], object) if datatype == "BYTES" else np.eye(2, dtype=np.float32)
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: caller.client.predict("same", {"x": values})["y"], range(20)))
    assert all(answer.tolist() == values.tolist() for answer in answers)


def test_calls_of_different_shapes_are_answered_each_in_its_own(registry, graphs, gate, serving, calling):
    graphs.publish(registry, "same", graphs.same("FP32", "n", "k"))
    caller = calling(serving())
    gate.shut()
    first = caller.send("same", [[0.0]])
    gate.entered()
    sent = [np.full((2, 1 + i % 3), i, np.float32) for i in range(12)]
    calls = []
    for values in sent:
        calls.append(caller.send("same", values))
        gate.queued(2 * len(calls))
    gate.open()
    assert caller.answer(first).tolist() == [[0]]
    for call, values in zip(calls, sent, strict=True):
        assert caller.answer(call).tolist() == values.tolist()


def test_text_that_is_not_utf_8_is_told_so_and_spoils_nobody(registry, graphs, gate, serving, calling):
    """ONNX Runtime's strings are UTF-8 on their way in and out, so other bytes cannot be served exactly."""
    graphs.publish(registry, "same", graphs.same("BYTES", "n", 1))
    caller = calling(serving())

    def send(*values):
        request = pb.ModelInferRequest(model_name="same")
        request.inputs.add(name="x", datatype="BYTES", shape=[len(values), 1]).contents.bytes_contents.extend(values)
        return caller.stub.ModelInfer.future(request, timeout=20)

    gate.shut()
    first = send(b"first")
    gate.entered()
    good, bad, other = send("gut, grün".encode(), b"a\0b"), send(b"fine", b"\xff\xfe"), send(b"")
    gate.queued(5)
    gate.open()
    assert texts(first) == [b"first"]
    assert texts(good) == ["gut, grün".encode(), b"a\0b"]
    assert texts(other) == [b""]
    assert bad.exception().code() is grpc.StatusCode.INVALID_ARGUMENT
    assert bad.exception().details() == "input 'x' has a value that is not UTF-8 text"
    with pytest.raises(InvalidRequest):
        caller.client.predict("same", {"x": np.array([[b"\xe4"]], object)})


def texts(call):
    raw, found, at = call.result().raw_output_contents[0], [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        found.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def test_a_version_whose_warm_up_fails_is_served_and_answers_what_it_can(registry, graphs, serving, calling, caplog):
    """One row of made-up values says nothing about real ones."""
    table = helper.make_tensor("table", TensorProto.INT64, [1], [7])
    ends = [("x", "INT64", ["n", 1])], [("y", "INT64", ["n", 1])]
    graphs.publish(registry, "picky", graphs.graph([("Gather", ["table", "x"], ["y"], {})], *ends, [table]))
    caller = calling(serving())
    assert "picky version 1 was not warmed up" in caplog.text
    assert caller.client.predict("picky", [[0], [-1]])["y"].tolist() == [[7], [7]]
    with pytest.raises(Internal):
        caller.client.predict("picky", [[1]])


@pytest.mark.parametrize("shape", [[1, 2**40, 0, 2**40], [1, 0, 2**62, 2**62]])
def test_a_shape_that_is_empty_and_huge_is_refused_and_the_next_call_is_answered(
    registry, graphs, serving, calling, shape
):
    graphs.publish(registry, "same", graphs.same("FP32", "n", "a", "b", "c"))
    caller = calling(serving())
    request = pb.ModelInferRequest(model_name="same", raw_input_contents=[b""])
    request.inputs.add(name="x", datatype="FP32", shape=shape)
    with pytest.raises(grpc.RpcError, match="unexpected shape for input 'x'"):
        caller.stub.ModelInfer(request, timeout=20)
    assert caller.client.predict("same", np.ones((1, 1, 1, 2), np.float32))["y"].tolist() == [[[[1, 1]]]]


@pytest.mark.parametrize("calls", [1, 2])
def test_a_batch_that_cannot_be_made_is_answered_and_the_worker_goes_on(calls, caplog):
    """Whatever goes wrong between taking and running, the callers hear of it and the next batch is run."""

    class Lane:
        def __init__(self):
            self.left = ["lost"] * calls + [None]

        def take(self, *, block=True):
            taken = self.left.pop(0)
            if taken:
                raise ValueError("array is too big")
            return taken

    lane = Lane()
    serve(lane, pipeline=None)
    assert lane.left == []
    assert caplog.text.count("a batch was lost") == calls


def test_who_sends_no_deadline_gets_the_servers_even_while_a_run_goes_on(double, gate, serving, calling):
    caller = calling(serving(default_deadline_s=0.2))
    gate.shut()
    running = caller.send("double", [[1.0, 2.0]], timeout=None)
    gate.entered()
    queued = caller.send("double", [[1.0, 2.0]], timeout=None)
    for call in (running, queued):
        error = call.exception(timeout=20)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "default deadline" in error.details()
    gate.open()
    patient = caller.send("double", [[1.0, 2.0]], timeout=20)
    assert caller.answer(patient).tolist() == [[2, 4]]
    assert gate.rows == [1, 1]


def test_timing_is_told_to_who_asks(double, serving, calling):
    caller = calling(serving())
    told = caller.client.predict("double", [[1.0, 2.0]], parameters={"timing": True}).parameters
    assert told["digest"].startswith("sha256:")
    assert len(told) > 1
    assert set(caller.client.predict("double", [[1.0, 2.0]]).parameters) == {"digest"}
