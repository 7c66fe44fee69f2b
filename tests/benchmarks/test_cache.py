"""The benchmark of the cache: what it calls hits are hits, and what it calls misses are misses."""

from __future__ import annotations

import shutil

import pytest
import redis

from penstock.benchmarks import cache, mixed
from penstock.benchmarks.cache import Onward, check, measured, measured_sharing, redis_server
from penstock.benchmarks.generators import Load, LoadFailed
from penstock.benchmarks.processes import NotBuilt, compiled


@pytest.fixture
def tools(tmp_path):
    """Skips where what drives and what is compared with cannot be had."""
    pytest.importorskip("penstock.kernels.load")
    if not shutil.which("h2load"):
        pytest.skip("h2load is not installed (nghttp2-client)")
    try:
        compiled("nghttp2_echo", tmp_path)
    except NotBuilt as error:
        pytest.skip(str(error))
    return tmp_path


class Phase:
    def __init__(self, count: int) -> None:
        self.count = count


class Counting:
    """A client of a server with these counts."""

    def __init__(self, **phases: int) -> None:
        self.phases = {name: Phase(count) for name, count in phases.items()}

    def statistics(self, model: str) -> list[Counting]:
        assert model == "m"
        return [self]


def test_requests_go_on_where_the_run_before_ended(monkeypatch):
    asked = []

    def drive(address, method, bodies, *, callers, requests, cores):
        asked.extend((bodies * requests)[:requests])
        return Load(requests, 1.0, 0.0)

    monkeypatch.setattr(cache, "PoolLoad", lambda connections: drive)
    onward = Onward()
    for requests in (3, 4, 6):
        onward("", "", [b"a", b"b", b"c", b"d", b"e"], callers=1, requests=requests)
    assert b"".join(asked) == b"abcdeabcdeabc"


def test_a_run_that_did_not_hit_or_miss_as_it_should_fails():
    check({"a": Counting(success=100, cache_hit=98)}, "m", {"a": "cache_hit"})
    with pytest.raises(LoadFailed, match="a: only 97% of the requests were counted as cache_hit"):
        check({"a": Counting(success=100, cache_hit=97)}, "m", {"a": "cache_hit"})


def test_its_redis_answers_and_ends_with_the_block(tmp_path):
    with redis_server(tmp_path) as url, redis.Redis.from_url(url) as client:
        while not (tmp_path / "answers.sock").exists():
            pass
        assert client.ping()
    with pytest.raises(redis.ConnectionError), redis.Redis.from_url(url) as client:
        client.ping()


def test_hits_and_unique_requests_are_what_they_are_called(tools, monkeypatch):
    monkeypatch.setattr(cache, "POOL", 1 << 16)
    hits, unique = measured(tools, 1, 0.1, pin=False)
    assert [*hits.rounds[0]] == ["cached", "echo"]
    assert [*unique.rounds[0]] == ["small", "off"]
    assert all(run.rate > 0 for outcome in (hits, unique) for run in outcome.rounds[0].values())


def test_shared_answers_are_found_or_run_as_they_are_called(tools, monkeypatch):
    monkeypatch.setattr(mixed, "LAYERS", 20)
    (tools / "registry").mkdir()
    shared = measured_sharing(tools, 1, 0.1, pin=False)
    assert [*shared.rounds[0]] == ["found", "never", "run"]
    assert all(run.p50_us > 0 for run in shared.rounds[0].values())
