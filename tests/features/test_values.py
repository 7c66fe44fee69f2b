"""Values in a Redis: read with its clock, written with an expiry; reading and writing have a breaker each."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
import redis

from penstock.features.breaker import CONSECUTIVE
from penstock.features.errors import StoreMisconfigured, StoreUnavailable
from penstock.features.values import Values

WHAT = "the shared cache"


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def values(proxy):
    with closing(Values(proxy.url, WHAT)) as values:
        yield values


def test_what_is_written_is_read_with_redis_own_time(values, client):
    values.write({b"a": b"1", b"b": b"\0" * 70_000}, 5_000, 2)
    before = client.time()
    clock_us, found = values.read([b"a", b"none", b"b", b"a"], 2)
    assert found == [b"1", None, b"\0" * 70_000, b"1"]
    assert 0 <= clock_us - (before[0] * 1_000_000 + before[1]) < 10_000_000
    assert 4_000 < client.pttl("a") <= 5_000


def test_a_key_of_another_type_is_no_value_and_is_replaced(values, client):
    client.rpush("a", "x")
    assert values.read([b"a"], 2)[1] == [None]
    values.write({b"a": b"1"}, 5_000, 2)
    assert values.read([b"a"], 2)[1] == [b"1"]


@pytest.mark.parametrize("mode", ["black hole", "drip", "cut", "stray"])
def test_a_link_that_misbehaves_is_an_error_in_time(values, proxy, mode):
    proxy.mode, proxy.stray = mode, b"+OK\r\n"
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"the shared cache at 127\.0\.0\.1:"):
        values.read([b"a"], 0.2)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "reply",
    [
        b"*2\r\n$1\r\n1\r\n$1\r\nx\r\n*1\r\n$1\r\n1\r\n",
        b":1\r\n*1\r\n$-1\r\n",
        b"*2\r\n:1\r\n:1\r\n*2\r\n$-1\r\n$-1\r\n",
        b"*2\r\n:1\r\n:1\r\n*1\r\n:5\r\n",
        b"*2\r\n:1\r\n:1\r\n$1\r\nx\r\n",
    ],
)
def test_replies_of_another_shape_are_refused(values, monkeypatch, reply):
    import hiredis

    reader = hiredis.Reader()
    reader.feed(reply)
    monkeypatch.setattr(values._reading, "ask", lambda *_: [reader.gets(), reader.gets()])
    with pytest.raises(StoreUnavailable, match="shape"):
        values.read([b"a"], 2)


def test_values_that_are_too_large_altogether_are_refused(values, client, monkeypatch):
    monkeypatch.setattr("penstock.features.values.MAX_REPLY", 100_000)
    client.set("a", b"x" * 200_000)
    with pytest.raises(StoreUnavailable, match="larger"):
        values.read([b"a"], 2)


def test_even_hurried_reads_open_the_breaker_and_writes_have_another(values, proxy):
    proxy.mode = "black hole"
    for _ in range(CONSECUTIVE):
        with pytest.raises(StoreUnavailable, match="in time"):
            values.read([b"a"], 0.002)
    with pytest.raises(StoreUnavailable, match="failed a moment ago"):
        values.read([b"a"], 2)
    proxy.mode = "open"
    values.write({b"a": b"1"}, 1000, 2)


def test_a_redis_that_is_full_says_so(values, client):
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable, match="OOM"):
            values.write({b"a": b"1"}, 1000, 2)
        assert values.read([b"a"], 2)[1] == [None]
    finally:
        client.config_set("maxmemory", 0)


def test_a_url_that_cannot_be_used_is_told_without_its_password():
    for url in ("http://u:geheim@h", "redis://u:geheim@h?hue=7"):
        with pytest.raises(StoreMisconfigured) as caught:
            Values(url, WHAT)
        assert "geheim" not in str(caught.value)
