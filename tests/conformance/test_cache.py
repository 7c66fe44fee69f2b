"""The cache of answers over real calls: what comes again is answered without a run, and says so."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
import redis

from penstock.proto import inference_pb2 as pb
from penstock.registry import Registry

CACHED = {"double": {"bytes": 1 << 20}}


@pytest.fixture
def caller(serving, calling):
    """A server that keeps the answers of `double`."""
    return calling(serving(cache=CACHED))


def is_cached(answer) -> bool:
    return answer.parameters["cached"].bool_param if "cached" in answer.parameters else False


def test_what_comes_again_is_answered_without_a_run_and_says_so(caller):
    first = caller.send("double", [[1.0, 2.0]], id="a").result()
    again = caller.send("double", [[1.0, 2.0]], id="b", model_version="1").result()
    assert not is_cached(first)
    assert is_cached(again)
    assert (first.id, again.id) == ("a", "b")
    assert list(again.outputs) == list(first.outputs)
    assert again.raw_output_contents == first.raw_output_contents
    assert again.parameters["digest"] == first.parameters["digest"]
    counts = caller.counts("double")
    assert (counts.execution_count, counts.phases["success"].count) == (1, 2)
    assert (counts.phases["cache_hit"].count, counts.phases["cache_miss"].count) == (1, 1)
    assert counts.phases["cache_hit"].ns > 0


def test_a_compressed_request_is_the_same_request(caller):
    caller.send("double", [[1.0, 2.0]]).result()
    call = caller.stub.ModelInfer(caller.request("double", [[1.0, 2.0]]), compression=grpc.Compression.Gzip)
    assert is_cached(call)


def test_a_model_that_is_not_named_keeps_nothing(caller):
    for _ in range(2):
        assert not is_cached(caller.send("echo", [[1.0]]).result())
    for model, kept in (("double", True), ("echo", False)):
        config = caller.stub.ModelConfig(pb.ModelConfigRequest(name=model)).config
        assert config.response_cache.enable == kept


def test_a_call_that_asks_for_times_is_run(caller):
    request = caller.request("double", [[1.0, 2.0]])
    caller.stub.ModelInfer(request)
    request.parameters["timing"].bool_param = True
    answer = caller.stub.ModelInfer(request)
    assert not is_cached(answer)
    assert answer.parameters["batch_rows"].int64_param == 1


def test_a_refusal_is_not_kept(serving, calling):
    caller = calling(serving(cache={"*": {}}))
    for _ in range(2):
        with pytest.raises(grpc.RpcError):
            caller.send("reciprocal", [[0]]).result()
    assert caller.counts("reciprocal").phases["cache_miss"].count == 2


def test_a_hit_waits_for_no_run(serving, calling, gate):
    """With a model of free sizes, which no transport runs in its own thread."""
    caller = calling(serving(cache={"echo": {}}))
    caller.send("echo", [[1.0]]).result()
    gate.shut()
    held = caller.send("echo", [[3.0]])
    gate.entered()
    assert is_cached(caller.send("echo", [[1.0]]).result())
    gate.open()
    assert caller.answer(held).tolist() == [[3]]


def test_what_a_transport_runs_itself_is_kept(serving, calling):
    caller = calling(serving(cache=CACHED, inline="on"))
    first, again = (caller.send("double", [[1.0, 2.0]]).result() for _ in range(2))
    assert (is_cached(first), is_cached(again)) == (False, True)
    assert again.raw_output_contents == first.raw_output_contents


def test_a_new_version_answers_for_itself(serving, calling, graphs, eventually, tmp_path):
    registry = Registry(tmp_path / "registry")
    registry.root.mkdir()
    graphs.publish(registry, "m", graphs.double())
    caller = calling(serving(registry=registry.root, cache={"*": {}}, poll_s=0.02))
    for _ in range(3):
        assert caller.answer(caller.send("m", [[1.0, 2.0]])).tolist() == [[2, 4]]
    graphs.publish(registry, "m", graphs.same("FP32", "n", 2))
    registry.promote("m", 2)
    eventually(lambda: caller.send("m", [[1.0, 2.0]]).result().model_version == "2")
    for _ in range(3):
        answer = caller.send("m", [[1.0, 2.0]]).result()
        assert np.frombuffer(answer.raw_output_contents[0], "f4").tolist() == [1, 2]


@pytest.fixture
def fleet(serving, calling, redis_url):
    """Starts servers that share their answers."""
    shared = {"*": {"shared": redis_url, "shared_timeout_ms": 2000}}
    return lambda **settings: calling(serving(cache=shared, **settings))


@pytest.fixture
def written(redis_url, eventually):
    """Waits until so many answers lie in Redis."""
    with redis.Redis.from_url(redis_url) as client:
        yield lambda count: eventually(lambda: client.dbsize() == count)


def test_what_another_server_ran_is_answered_without_a_run_and_says_so(fleet, written):
    first, second = fleet(), fleet(inline="on")
    rows = [[float(i), -1.0] for i in range(20)]
    ran = [call.result() for call in [first.send("double", [row], id=f"a{i}") for i, row in enumerate(rows)]]
    written(20)
    found = [call.result() for call in [second.send("double", [row], id=f"b{i}") for i, row in enumerate(rows)]]
    assert [answer.id for answer in found] == [f"b{i}" for i in range(20)]
    assert not any(map(is_cached, ran))
    assert all(map(is_cached, found))
    for one, other in zip(ran, found, strict=True):
        assert one.raw_output_contents == other.raw_output_contents
        assert one.parameters["digest"] == other.parameters["digest"]
    counts = second.counts("double")
    assert (counts.execution_count, counts.phases["success"].count, counts.phases["queue"].count) == (0, 20, 20)
    assert (counts.phases["cache_hit"].count, counts.phases["cache_miss"].count) == (20, 0)


def test_a_stream_shares_with_other_servers(fleet, written):
    first, second = fleet(), fleet()
    requests = [first.request("double", [[float(i), 0.0]], id=f"{i}") for i in range(10)]
    for caller, cached in ((first, False), (second, True)):
        answers = list(caller.stub.ModelStreamInfer(iter(requests), timeout=20))
        assert not any(answer.error_message for answer in answers)
        found = {answer.infer_response.id: answer.infer_response for answer in answers}
        for i in range(10):
            values = np.frombuffer(found[f"{i}"].raw_output_contents[0], "f4").tolist()
            assert (values, is_cached(found[f"{i}"])) == ([2.0 * i, 0.0], cached)
        written(10)


def test_a_refusal_is_not_shared(fleet, written):
    first, second = fleet(), fleet()
    for caller in (first, second):
        with pytest.raises(grpc.RpcError):
            caller.send("reciprocal", [[0]]).result()
    first.send("reciprocal", [[5]]).result()
    written(1)


def test_many_callers_get_their_own_answers(caller):
    """Some of them at once, so that one request is run by several calls and then answered from the cache."""
    rows = [[float(i % 7), float(i % 5)] for i in range(400)]
    calls = [caller.send("double", [row], id=str(i)) for i, row in enumerate(rows)]
    for i, call in enumerate(calls):
        assert caller.answer(call).tolist() == [[2 * value for value in rows[i]]]
        assert call.result().id == str(i)
    assert caller.counts("double").phases["cache_hit"].count > 0
