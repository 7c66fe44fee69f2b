"""Servers that share answers through a real Redis, whatever becomes of it."""

from __future__ import annotations

import importlib.util
import logging
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from penstock.features import Column, FeatureView, open_store
from penstock.registry import Registry


def _load(path):
    spec = importlib.util.spec_from_file_location(f"shared_tests_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load(Path(__file__).parents[1] / "features" / "servers.py")


def pytest_generate_tests(metafunc):
    """With --slow these hold for every server that is here."""
    if "redis_executable" in metafunc.fixturenames:
        metafunc.parametrize("redis_executable", servers.OTHERS_SELDOM, indirect=True, scope="session")


VIEW = FeatureView(name="v", entity="id", columns=[Column(name="a", dtype="float32", default=0.0)], ttl_s=30)


@pytest.fixture
def fleet(registry, graphs, serving, calling, own_redis):
    """Starts servers of `double` that share answers; Callers."""
    graphs.publish(registry, "double", graphs.double(1))

    def start(*, shared=own_redis.url, timeout_ms=2000.0, cache=None, **settings):
        given = {"shared": shared, "shared_timeout_ms": timeout_ms, **(cache or {})}
        return calling(serving(cache={"*": given}, **settings))

    return start


def ask(caller, value: float, **fields) -> tuple[float, bool]:
    answer = caller.send("double", [[value]], **fields).result()
    return float(np.frombuffer(answer.raw_output_contents[0], "f4")[0]), "cached" in answer.parameters


def keys(own_redis) -> list[bytes]:
    return own_redis.client.keys("cache:*")


def written(own_redis, eventually, count: int) -> None:
    eventually(lambda: len(keys(own_redis)) == count)


def troubles(caplog) -> list[str]:
    return [r.message for r in caplog.records if "shared cache" in r.message]


def counts(caller) -> tuple[int, int, int]:
    """(runs, hits, misses) of the model."""
    found = caller.counts("double")
    return found.execution_count, found.phases["cache_hit"].count, found.phases["cache_miss"].count


# ---- Sharing --------------------------------------------------------------------------------------------------------


def test_what_one_server_ran_another_answers(fleet, own_redis, eventually):
    first, second = fleet(), fleet()
    assert ask(first, 1.5, id="a") == (3.0, False)
    written(own_redis, eventually, 1)
    answer = second.send("double", [[1.5]], id="b").result()
    assert (answer.id, answer.parameters["cached"].bool_param) == ("b", True)
    assert np.frombuffer(answer.raw_output_contents[0], "f4").tolist() == [3.0]
    assert ask(second, 1.5) == (3.0, True)
    assert counts(second) == (0, 2, 0)  # a hit of either tier
    assert counts(first) == (1, 0, 1)
    assert 59_000 < own_redis.client.pttl(keys(own_redis)[0]) <= 60_000
    config = second.client.config("double")
    assert config.parameters["penstock.way"] == "lane: its answers are shared through Redis"


def test_many_callers_of_two_servers_get_their_own_answers(fleet, own_redis, eventually):
    first, second = fleet(), fleet()
    numbers = [i % 40 for i in range(400)]
    for caller in (first, second):
        calls = [caller.send("double", [[float(n)]], id=f"{i}") for i, n in enumerate(numbers)]
        for i, (call, n) in enumerate(zip(calls, numbers, strict=True)):
            assert caller.answer(call).tolist() == [[2.0 * n]]
            assert call.result().id == f"{i}"
        written(own_redis, eventually, 40)
    assert counts(second)[0] == 0


def test_a_new_version_does_not_answer_from_the_old_ones(fleet, graphs, registry, own_redis, eventually):
    first = fleet(poll_s=0.02)
    ask(first, 1.0)
    written(own_redis, eventually, 1)
    graphs.publish(registry, "double", graphs.same("FP32", "n", 1))
    registry.promote("double", 2)
    second = fleet()
    assert ask(second, 1.0) == (1.0, False)
    eventually(lambda: first.send("double", [[1.0]]).result().model_version == "2")
    assert ask(first, 1.0) == (1.0, True)


def test_another_registry_with_another_model_of_that_name_shares_nothing(
    fleet, graphs, serving, calling, own_redis, eventually, tmp_path
):
    ask(fleet(), 1.0)
    written(own_redis, eventually, 1)
    other = Registry(tmp_path / "other")
    other.root.mkdir()
    graphs.publish(other, "double", graphs.same("FP32", "n", 1))
    assert ask(fleet(registry=other.root), 1.0) == (1.0, False)


def test_a_server_with_a_shorter_ttl_writes_for_a_shorter_time(fleet, own_redis, eventually):
    ask(fleet(cache={"ttl_s": 5}), 1.0)
    written(own_redis, eventually, 1)
    assert 4_000 < own_redis.client.pttl(keys(own_redis)[0]) <= 5_000


def test_what_is_to_be_run_for_others_runs_beside_what_was_found(fleet, own_redis, eventually, gate):
    """One batch of hits and misses: each caller gets its own answer."""
    ask(fleet(), 1.0)
    ask(fleet(), 2.0)
    written(own_redis, eventually, 2)
    second = fleet(workers=1)
    gate.shut()
    held = second.send("double", [[9.0]])
    gate.entered()
    calls = [second.send("double", [[value]]) for value in (1.0, 5.0, 2.0, 6.0, 1.0)]
    gate.queued(5)
    gate.open()
    assert [second.answer(call).item() for call in (held, *calls)] == [18, 2, 10, 4, 12, 2]
    assert gate.rows[-1] == 2


# ---- Features -------------------------------------------------------------------------------------------------------


@pytest.fixture
def joined(registry, graphs, redis_url, fleet, calling):
    """Starts servers that join features of a store and share what they gave; what asks them for ada's."""
    graphs.publish(
        registry, "copy", graphs.copy(1), columns=("a",), views=[VIEW.model_copy(update={"on_outage": "nan"})]
    )
    store = open_store(redis_url)
    store.put(VIEW, [b"ada"], {"a": np.array([1.5], "f4")})

    def start(features=redis_url, **settings):
        return fleet(features=features, cache={"joined_ttl_s": 20}, feature_timeout_ms=2000, **settings)

    yield start, store
    store.close()


def ada(caller) -> tuple[float, bool]:
    request = caller.request("copy", [[1.0]])
    del request.inputs[:]
    del request.raw_input_contents[:]
    request.inputs.add(name="id", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"ada")
    answer = caller.stub.ModelInfer(request)
    return float(np.frombuffer(answer.raw_output_contents[0], "f4")[0]), "cached" in answer.parameters


def test_answers_with_features_are_shared_where_these_come_from_one_place(joined, own_redis, eventually):
    start, store = joined
    first, second, elsewhere = start(), start(), start(features=own_redis.url)
    assert ada(first) == (1.5, False)
    written(own_redis, eventually, 1)
    assert 19_000 < own_redis.client.pttl(keys(own_redis)[0]) <= 20_000
    store.put(VIEW, [b"ada"], {"a": np.array([2.5], "f4")})
    assert ada(second) == (1.5, True)  # as old as joined_ttl_s allows
    assert ada(elsewhere) == (0.0, False)


def test_an_answer_without_its_features_is_not_shared(joined, own_redis, proxy, eventually):
    start, _ = joined
    server = start(features=proxy.url)
    proxy.mode = "cut"
    value, cached = ada(server)
    assert np.isnan(value)
    assert not cached
    proxy.mode = "open"
    eventually(lambda: ada(server) == (1.5, False) or ada(server) == (1.5, True))
    written(own_redis, eventually, 1)


def test_features_of_this_process_are_not_shared(joined, caplog, own_redis):
    start, _ = joined
    server = start(features="memory://")
    assert ada(server)[1] is False
    assert "copy joins features of a store that no other server has, so its answers are not shared" in caplog.text
    assert not keys(own_redis)


# ---- Trouble --------------------------------------------------------------------------------------------------------


def test_a_redis_that_is_killed_is_missed_once_and_used_again(fleet, own_redis, eventually, caplog):
    server = fleet()
    ask(server, 0.0)
    written(own_redis, eventually, 1)
    own_redis.kill()
    for number in range(1, 30):
        assert ask(server, float(number)) == (2.0 * number, False)
    assert len(troubles(caplog)) == 1
    assert "is unavailable" in troubles(caplog)[0]
    own_redis.start()
    numbers = iter(range(100, 10_000))
    eventually(lambda: ask(server, float(next(numbers))) and keys(own_redis))
    eventually(lambda: len(troubles(caplog)) == 2)
    assert troubles(caplog)[1] == "the shared cache works again"


def test_a_redis_that_hangs_delays_a_call_by_its_timeout_until_the_breaker_opens(fleet, own_redis, eventually, caplog):
    """Five look-ups of 200 ms; from then on one in half a second, where 40 would take 8 s."""
    server = fleet(timeout_ms=200)
    ask(server, 0.0)
    started = time.monotonic()
    own_redis.signal(signal.SIGSTOP)
    try:
        for number in range(1, 41):
            assert ask(server, float(number)) == (2.0 * number, False)
        assert time.monotonic() - started < 5
        assert len([line for line in troubles(caplog) if "did not answer in time" in line]) == 1
    finally:
        own_redis.signal(signal.SIGCONT)
    numbers = iter(range(100, 10_000))
    eventually(lambda: ask(server, float(next(numbers))) and "the shared cache works again" in troubles(caplog))


def test_a_redis_that_is_full_is_still_read(fleet, own_redis, eventually, caplog):
    first, second = fleet(), fleet()
    ask(first, 1.0)
    written(own_redis, eventually, 1)
    own_redis.client.config_set("maxmemory", 1)
    assert ask(first, 2.0) == (4.0, False)
    eventually(lambda: troubles(caplog))
    assert "OOM" in troubles(caplog)[0]
    assert ask(second, 1.0) == (2.0, True)
    assert ask(second, 2.0) == (4.0, False)
    own_redis.client.config_set("maxmemory", 0)
    numbers = iter(range(100, 10_000))
    eventually(lambda: ask(first, float(next(numbers))) and "the shared cache works again" in troubles(caplog))


def test_a_redis_that_is_read_only_is_still_read(fleet, own_redis, eventually, caplog):
    first, second = fleet(), fleet()
    ask(first, 1.0)
    written(own_redis, eventually, 1)
    own_redis.client.config_set("replica-serve-stale-data", "yes")
    own_redis.client.replicaof("127.0.0.1", "1")
    assert ask(first, 2.0) == (4.0, False)
    eventually(lambda: troubles(caplog))
    assert "READONLY" in troubles(caplog)[0]
    assert ask(second, 1.0) == (2.0, True)
    own_redis.client.replicaof("NO", "ONE")


def test_corrupted_values_are_run_and_replaced(fleet, own_redis, eventually):
    first, second = fleet(), fleet()
    ask(first, 1.0)
    written(own_redis, eventually, 1)
    (name,) = keys(own_redis)
    whole = own_redis.client.get(name)
    for wrong in (b"", whole[:-1], whole + b"\0", whole[:40] + b"\xff" + whole[41:]):
        own_redis.client.set(name, wrong)
        server = fleet()
        assert ask(server, 1.0) == (2.0, False)
        eventually(lambda wrong=wrong: own_redis.client.get(name) != wrong)
    own_redis.client.delete(name)
    own_redis.client.lpush(name, "no string")
    assert ask(second, 1.0) == (2.0, False)
    eventually(lambda: own_redis.client.type(name) == b"string")


@pytest.mark.parametrize("mode", ["cut", "stray", "drip", "black hole"])
def test_a_link_that_misbehaves_costs_sharing_and_nothing_else(fleet, proxy, mode, caplog):
    caplog.set_level(logging.WARNING)
    server = fleet(shared=proxy.url, timeout_ms=100)
    assert ask(server, 1.0) == (2.0, False)
    proxy.mode, proxy.stray = mode, b"*2\r\n$1\r\n1\r\n$1\r\n1\r\n"
    for number in range(2, 20):
        assert ask(server, float(number)) == (2.0 * number, False)
    assert len(troubles(caplog)) == 1


def test_a_password_is_never_told(fleet, own_redis, caplog):
    own_redis.client.config_set("requirepass", "geheim")
    server = fleet(shared=own_redis.url.replace("unix://", "unix://:falsch@"))
    assert ask(server, 1.0) == (2.0, False)
    assert "refuses us" in troubles(caplog)[0]
    assert "falsch" not in caplog.text
    config = server.client.config("double")
    assert "falsch" not in str(config)
