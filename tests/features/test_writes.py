"""The newest event wins, whatever the order and repetition of writes, and whatever stood there before."""

import time
from contextlib import closing

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features import Column, FeatureView, Lookup, open_store
from penstock.features.columns import check_table
from penstock.features.memory import MemoryStore
from penstock.features.store import Written
from penstock.features.writes import CALLS, KEYS_A_CALL, MOST_CALLS, write_requests

pytestmark = pytest.mark.every_server
OK, ABSENT = 0, 1
NOW = time.time_ns() // 1_000_000
TTL = 86_400_000  # ms: that of the views below
COLUMN = Column(name="a", dtype="float64")
ROWS = FeatureView(name="v", entity="e", columns=[COLUMN])
HASHES = FeatureView(name="v", entity="e", columns=[COLUMN], layout="hash")


@pytest.fixture
def store(redis_url):
    with closing(open_store(redis_url)) as store:
        yield store


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


def value(store, entity=b"1", view=ROWS):
    rows = store.fetch([Lookup(view, [entity])], timeout_s=5)[0]
    assert rows.status.tolist() == [OK]
    return rows.values[0, 0]


def put(store, after_ms, value, view=ROWS):
    return store.put(view, [b"1"], {"a": np.array([value])}, np.array([NOW + after_ms]))


TIMES = st.integers(-(2**53), 2**52) | st.integers(NOW - 3, NOW + 3) | st.sampled_from([NOW - 10 * TTL, NOW + 10 * TTL])
BATCH = st.lists(st.tuples(st.sampled_from([b"x", b"y", b"z"]), TIMES), min_size=1, max_size=8)


@settings(max_examples=60)
@given(batches=st.lists(BATCH, max_size=5), layout=st.sampled_from(["row", "hash"]))
def test_redis_and_the_dictionary_agree_on_every_order_of_writes(redis_server, batches, layout):
    view = {"row": ROWS, "hash": HASHES}[layout]
    with closing(open_store(redis_server)) as store, redis.Redis.from_url(redis_server) as client:
        client.flushall()
        memory = MemoryStore()
        for number, batch in enumerate(batches):
            entities, times = [entity for entity, _ in batch], np.array([time for _, time in batch])
            values = {"a": 100.0 * number + np.arange(len(batch))}
            written = [one.prepare(view, entities, values, times)() for one in (store, memory)]
            assert written[0] == written[1], times
        lookups = [Lookup(view, [b"x", b"y", b"z"])]
        found, expected = store.fetch(lookups, 5)[0], memory.fetch(lookups, 5)[0]
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.event_times, expected.event_times)


def test_a_row_that_cannot_be_read_gives_way_whatever_its_time(store, client):
    other = FeatureView(name="v", entity="e", columns=[Column(name="b", dtype="float64")])
    store.put(other, [b"1"], {"b": np.array([1.0])}, np.array([NOW + 1000]))
    assert put(store, 5, 7.0) == 1
    assert value(store) == 7
    for stored in (b"", b"short", b"\1" * 8):
        client.set(ROWS.key(b"1"), stored)
        assert put(store, 5, 8.0) == 1
        assert value(store) == 8


@pytest.mark.parametrize("view", [ROWS, HASHES], ids=["row", "hash"])
def test_a_key_of_another_kind_gives_way(store, client, view):
    key = view.key(b"1")
    client.delete(key)
    client.lpush(key, b"a list")
    assert put(store, 5, 7.0, view) == 1
    assert value(store, view=view) == 7


def test_a_hash_whose_event_time_is_no_number_gives_way(store, client):
    client.hset(HASHES.key(b"1"), mapping={"_ts:v": "yesterday", "a": "3"})
    assert put(store, -1, 7.0, HASHES) == 1
    assert value(store, view=HASHES) == 7


def test_a_hash_of_as_many_columns_as_a_view_may_have_is_written_and_emptied(store, client):
    names = [f"c{i}" for i in range(4096)]
    view = FeatureView(name="v", entity="e", columns=[Column(name=n, dtype="int32") for n in names], layout="hash")
    store.put(view, [b"1"], {name: np.array([7]) for name in names}, np.array([1]))
    assert client.hlen(view.key(b"1")) == 4097
    store.put(view, [b"1"], {name: np.array([np.nan]) for name in names}, np.array([2]))
    assert client.hgetall(view.key(b"1")) == {b"_ts:v": b"2"}


def test_a_hash_lives_as_long_as_its_view_says_from_when_it_was_written(store, client):
    put(store, 5, 7.0, HASHES)
    client.expire(HASHES.key(b"1"), 10)
    put(store, 4, 7.0, HASHES)  # an older one does not prolong it
    assert client.ttl(HASHES.key(b"1")) <= 10
    put(store, 5 - 10 * TTL, 7.0, HASHES.model_copy(update={"name": "w"}))
    assert client.ttl(HASHES.key(b"1")) > 86000


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_row_ends_its_ttl_after_its_event_however_late_it_was_written(store, client, overwrite):
    for after_ms in (-TTL // 2, 0, TTL // 2):
        assert store.put(ROWS, [b"1"], {"a": [7.0]}, [NOW + after_ms], overwrite=overwrite) == 1
        assert abs(client.pttl(ROWS.key(b"1")) + time.time() * 1000 - (NOW + after_ms + TTL)) < 500
    assert put(store, 0, 8.0) == 0  # an older one changes nothing
    assert value(store) == 7


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_row_that_is_over_is_not_kept_and_told_apart(store, client, overwrite):
    times = np.array([NOW, NOW - TTL - 5000, NOW - TTL + 600_000, 0, -5])
    columns = {"a": np.arange(5.0)}
    write = store.prepare(ROWS, [b"%d" % i for i in range(5)], columns, times, overwrite=overwrite)
    assert [write(), write()] == [Written(2, 3)] * 2
    assert client.dbsize() == 2


def test_a_row_that_is_over_takes_with_it_what_it_replaces(store, client):
    """A correction that came too late: what it corrects is no longer true either."""
    longer = ROWS.model_copy(update={"ttl_s": 10 * 86400})
    put(store, -3 * TTL, 7.0, longer)
    assert put(store, -2 * TTL, 8.0, longer) == 1
    assert store.prepare(ROWS, [b"1"], {"a": np.ones(1)}, np.array([NOW - 2 * TTL + 1]))() == Written(0, 1)
    assert client.dbsize() == 0


def test_rows_written_before_ends_were_those_of_events_are_read(store, client):
    """Earlier versions had them live for `ttl_s` after the write, whenever their event was."""
    key, old = ROWS.key(b"1"), np.array([NOW - 5 * TTL])
    [row] = ROWS.row_layout.pack([key], [np.array([3.0])], old, [None])
    client.set(key, row, ex=86400)
    assert value(store) == 3
    put(store, -4 * TTL, 4.0)  # over, but newer
    assert store.fetch([Lookup(ROWS, [b"1"])], 5)[0].status.tolist() == [ABSENT]


def test_a_server_without_the_script_is_brought_it_with_every_request(store, client):
    rows = CALLS * KEYS_A_CALL * 2 + 1
    entities = [b"%d" % i for i in range(rows)]
    for _ in range(2):
        client.script_flush()
        assert store.put(ROWS, entities, {"a": np.arange(rows, dtype=float)}) == rows
    assert value(store, entities[-1]) == rows - 1


@pytest.mark.parametrize("size", [1, 3, KEYS_A_CALL])
def test_a_call_has_as_many_keys_as_is_asked_for(size):
    """And a request as many rows as before, in at most `MOST_CALLS`."""
    rows = 3000
    table = check_table(ROWS, [b"%d" % i for i in range(rows)], {"a": np.zeros(rows)}, None)
    requests = list(write_requests(ROWS, table, overwrite=False, keys_a_call=size))
    calls = -(-rows // size)
    assert sum(len(request.commands) for request in requests) == calls
    commands = b"".join(command for request in requests for command in request.commands)
    at_once = min(CALLS * KEYS_A_CALL // size, MOST_CALLS)
    assert commands.count(b"EVAL\r\n") == len(requests) == -(-calls // at_once)
    assert commands.count(b"EVALSHA\r\n") == calls - len(requests)


def test_an_empty_table_asks_for_nothing(store):
    for overwrite in (False, True):
        assert store.put(ROWS, [], {"a": np.zeros(0)}, overwrite=overwrite) == 0
