"""Hashes are read whole where most of their fields are wanted, by name where they are not, and give the same."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from penstock.features import Column, FeatureView, Lookup, open_store
from penstock.features.hashes import EVERY, MOST, Wholes
from penstock.kernels.rows import ROW_ABSENT, ROW_OK

FIELDS = (b"a", b"b")
VIEW = FeatureView(
    name="v", entity="id", layout="hash", columns=[Column(name=name, dtype="float64") for name in ("a", "b")]
)


def flat(fields):
    return [b"x"] * (2 * fields)


def test_the_first_entity_is_read_whole_and_all_where_hashes_are_small():
    wholes = Wholes()
    assert wholes.choose(FIELDS, 5) == 1
    wholes.learn(FIELDS, [flat(int(MOST * 2))])
    assert [wholes.choose(FIELDS, 5), wholes.choose(FIELDS, 0)] == [5, 0]
    assert wholes.choose((b"c",), 5) == 1  # views of other fields are judged apart


def test_large_hashes_are_read_by_name_and_looked_at_now_and_then():
    wholes = Wholes()
    assert wholes.choose(FIELDS, 5) == 1
    wholes.learn(FIELDS, [flat(int(MOST * 2) + 1)])
    assert [wholes.choose(FIELDS, 5) for _ in range(EVERY)] == [0] * (EVERY - 1) + [1]


def test_hashes_that_grow_are_read_by_name_from_then_on():
    wholes = Wholes()
    wholes.learn(FIELDS, [flat(2)])
    assert wholes.choose(FIELDS, 3) == 3
    wholes.learn(FIELDS, [flat(2), [], flat(100)])
    assert wholes.choose(FIELDS, 3) == 0


def test_absent_hashes_and_errors_say_nothing_and_a_failure_begins_anew():
    wholes = Wholes()
    wholes.learn(FIELDS, [flat(2)])
    wholes.learn(FIELDS, [[], redis.ResponseError("WRONGTYPE"), None])
    assert wholes.choose(FIELDS, 3) == 3
    wholes.forget()
    assert wholes.choose(FIELDS, 3) == 0


@pytest.fixture
def client(redis_server):
    with redis.Redis.from_url(redis_server) as client:
        client.flushdb()
        yield client


def calls(client, command):
    return client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"]


def test_redis_is_asked_as_was_learned(client, redis_server):
    for number in range(4):
        client.hset(f"features:{number}", mapping={"a": number, "b": -number, "other": 1})
    client.set("features:4", "no hash")
    before = {name: calls(client, name) for name in ("hmget", "hgetall")}
    with closing(open_store(redis_server)) as store:
        for _ in range(3):
            (rows,) = store.fetch([Lookup(VIEW, [b"%d" % number for number in range(6)])], 10)
            np.testing.assert_array_equal(rows.values, [[0, 0], [1, -1], [2, -2], [3, -3], [np.nan] * 2, [np.nan] * 2])
            assert rows.status.tolist() == [ROW_OK] * 4 + [ROW_ABSENT] * 2
    after = {name: calls(client, name) - count for name, count in before.items()}
    assert after == {"hmget": 5, "hgetall": 1 + 6 + 6}


VALUES = st.dictionaries(st.sampled_from(["a", "b", *"cdefgh"]), st.integers(-9, 9), max_size=8)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_both_ways_give_the_same(redis_server, hashes):
    with redis.Redis.from_url(redis_server) as client, closing(open_store(redis_server)) as store:
        client.flushdb()
        for number, mapping in enumerate(hashes):
            if mapping:
                client.hset(f"features:{number}", mapping=mapping)
        lookup = Lookup(VIEW, [b"%d" % number for number in range(len(hashes))])
        for _ in range(3):
            (rows,) = store.fetch([lookup], 10)
            wanted = [[one.get("a", np.nan), one.get("b", np.nan)] for one in hashes]
            np.testing.assert_array_equal(rows.values, np.array(wanted, np.float32))
            found = [ROW_OK if {"a", "b"} & one.keys() else ROW_ABSENT for one in hashes]
            assert rows.status.tolist() == found
