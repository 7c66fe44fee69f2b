"""Hashes that others write, and the event time that a view says they have."""

from contextlib import closing

import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from penstock.features import Column, FeatureView, Lookup, open_store
from penstock.features.hashes import FIRST_MS, LAST_MS, time_of

NOW = 1_767_225_600_000
COLUMNS = [Column(name="a", dtype="int64"), Column(name="b", dtype="float64")]
VIEW = FeatureView(name="h", entity="id", columns=COLUMNS, layout="hash", time_field="updated", max_age_s=60)


@pytest.fixture
def store(redis_url):
    with closing(open_store(redis_url)) as store:
        yield store


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.mark.parametrize("text", [b"%d" % NOW, b"%d.0" % NOW, b"%d.9" % NOW, b"1.7672256e12", b"+%d" % NOW])
def test_a_time_is_ms_since_1970_in_decimal(text):
    assert time_of(text) == NOW


@pytest.mark.parametrize(
    "text",
    [None, b"", b"now", b"2026-01-01T00:00:00Z", b"nan", b"inf", b"-1", b"0", b"1767225600", b"1" * 16, b"1" * 70_000],
)
def test_what_is_missing_no_number_or_of_another_unit_is_no_time(text):
    assert time_of(text) == 0


@given(st.one_of(st.binary(max_size=40), st.floats().map(lambda x: b"%r" % x)))
def test_whatever_stands_there_gives_a_time_or_none(text):
    assert time_of(text) == 0 or FIRST_MS <= time_of(text) <= LAST_MS


def test_numbers_and_times_of_hashes_that_others_write_are_read(store, client):
    client.hset("features:1", mapping={"a": 7, "b": "2.5", "updated": NOW})
    client.hset("features:2", mapping={"b": "2.5"})
    client.hset("features:3", mapping={"updated": NOW})
    client.set("features:4", "no hash")
    rows = store.fetch([Lookup(VIEW, [b"1", b"2", b"3", b"4", b"5"])], 5)[0]
    np.testing.assert_array_equal(rows.values, [[7, 2.5], [np.nan, 2.5]] + [[np.nan] * 2] * 3)
    assert rows.status.tolist() == [0, 0, 1, 1, 1]
    assert rows.event_times.tolist() == [NOW, 0, 0, 0, 0]
    found = store.get(VIEW, ["1", "2", "3", "4"])
    assert found.event_times.tolist() == [NOW, 0, 0, 0]
    assert found.status == ("ok", "ok", "absent", "corrupt")
    assert found["a"].tolist() == [7, None, None, None]


@pytest.mark.parametrize("url", ["redis", "memory"])
def test_what_we_write_there_has_its_time_in_the_view_s_field(url, redis_url):
    with closing(open_store(redis_url if url == "redis" else "memory://")) as store:
        assert store.put(VIEW, ["1"], {"a": [2**53 + 1], "b": [0.5]}, [NOW]) == 1
        assert store.put(VIEW, ["1"], {"a": [0], "b": [0]}, [NOW - 1]) == 0
        found = store.get(VIEW, ["1"])
        assert (found["a"].tolist(), found.event_times.tolist()) == ([2**53 + 1], [NOW])
        assert store.fetch([Lookup(VIEW, [b"1"])], 5)[0].event_times.tolist() == [NOW]
        plain = FeatureView(name="h", entity="id", columns=COLUMNS, layout="hash")
        assert store.fetch([Lookup(plain, [b"1"])], 5)[0].event_times.tolist() == [0]
        assert store.put(plain, ["1"], {"a": [1], "b": [1]}, [NOW - 1]) == 1  # another field has its times
