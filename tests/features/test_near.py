"""The near cache: answers as the store's, never older than it says, never larger, and hits through an outage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features import Column, FeatureView, Lookup, StoreUnavailable
from penstock.features.computing import Computing
from penstock.features.memory import MemoryStore
from penstock.features.near import NearCache

OK, ABSENT, LOST, CACHED, COMPUTED = 0, 1, 5, 6, 7
NUMBERS = FeatureView(name="n", entity="e", columns=[Column(name=c, dtype="float32") for c in "abc"])
HASHES = FeatureView(name="h", entity="e", layout="hash", columns=[Column(name="x", dtype="int64")])


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self):
        return self.now


class Counting:
    """A reader that remembers what was asked of it, and can be away."""

    def __init__(self, store):
        self.store = store
        self.asked = []
        self.away = False

    def fetch(self, lookups, timeout_s):
        self.asked.append([(lookup.view.name, [*lookup.entities]) for lookup in lookups])
        if self.away:
            raise StoreUnavailable("away")
        return self.store.fetch(lookups, timeout_s)


@pytest.fixture
def near():
    store = MemoryStore(clock=lambda: 0)
    for value in (1, 2):
        store.put(NUMBERS, [b"%d" % value], {c: np.full(1, value, np.float32) for c in "abc"}, np.array([1000 + value]))
        store.put(HASHES, [b"%d" % value], {"x": np.full(1, value)})
    cache = NearCache(Counting(store), 1 << 20, 5.0, Clock(), today=lambda: 0)
    cache.reader, cache.clock = cache._reader, cache._clock
    return cache


def test_a_row_is_fetched_once_and_comes_from_here_until_it_is_too_old(near):
    lookups = [Lookup(NUMBERS, [b"1", b"no", b"2"]), Lookup(HASHES, [b"2"])]
    first = near.fetch(lookups, 1)
    again = near.fetch(lookups, 1)
    assert [rows.status.tolist() for rows in first] == [[OK, ABSENT, OK], [OK]]
    assert [rows.status.tolist() for rows in again] == [[CACHED, ABSENT, CACHED], [CACHED]]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        np.testing.assert_array_equal(one.event_times, other.event_times)
    assert len(near.reader.asked) == 1
    near.clock.now = 4.999
    near.fetch(lookups, 1)
    assert len(near.reader.asked) == 1
    near.clock.now = 5.0
    assert near.fetch(lookups, 1)[0].status.tolist() == [OK, ABSENT, OK]
    assert (near.counts.hits, near.counts.misses, near.counts.expired) == (8, 8, 4)


def test_only_what_is_not_here_is_asked_for_and_the_order_is_kept(near):
    near.fetch([Lookup(NUMBERS, [b"1"])], 1)
    rows, hashes = near.fetch([Lookup(NUMBERS, [b"2", b"1", b"no"]), Lookup(HASHES, [b"1"])], 1)
    assert near.reader.asked[1] == [("n", [b"2", b"no"]), ("h", [b"1"])]
    assert rows.status.tolist() == [OK, CACHED, ABSENT]
    np.testing.assert_array_equal(rows.values[:2], [[2] * 3, [1] * 3])
    assert rows.event_times.tolist() == [1002, 1001, 0]
    assert hashes.values.tolist() == [[1]]


def test_while_the_store_is_away_rows_from_here_are_given_and_the_others_lost(near):
    near.fetch([Lookup(NUMBERS, [b"1"])], 1)
    near.reader.away = True
    rows = near.fetch([Lookup(NUMBERS, [b"1", b"2"])], 1)[0]
    assert rows.status.tolist() == [CACHED, LOST]
    assert rows.trouble == "away"
    assert np.isnan(rows.values[1]).all()
    with pytest.raises(StoreUnavailable):
        near.fetch([Lookup(NUMBERS, [b"2"])], 1)
    near.reader.away = False
    assert near.fetch([Lookup(NUMBERS, [b"2"])], 1)[0].status.tolist() == [OK]  # what was lost was not kept


def test_it_never_holds_more_than_it_may_and_the_oldest_go_first(near):
    near._limit = 2000
    for i in range(50):
        near.fetch([Lookup(NUMBERS, [b"x%d" % i])], 1)
        assert near.bytes <= 2000
    assert near.counts.evicted > 30
    asked = len(near.reader.asked)
    near.fetch([Lookup(NUMBERS, [b"x49"])], 1)
    assert len(near.reader.asked) == asked
    near.fetch([Lookup(NUMBERS, [b"x0"])], 1)
    assert len(near.reader.asked) == asked + 1
    near.fetch([Lookup(NUMBERS, [b"y%d" % i for i in range(100)])], 1)  # more than it could ever hold
    assert near.bytes <= 2000


@pytest.mark.parametrize("late", [1.0, 6.0])
def test_a_row_that_took_long_to_come_stays_no_longer_than_others(near, late):
    def slowly(lookups, timeout_s):
        rows = quick(lookups, timeout_s)
        near.reader.fetch = quick
        near.clock.now += 3.0
        near.fetch([Lookup(NUMBERS, [b"2"])], 1)  # who asks later is answered before
        near.clock.now += late
        return rows

    quick = near.reader.fetch
    near.reader.fetch = slowly
    near.fetch([Lookup(NUMBERS, [b"1"])], 1)
    near.clock.now += 1.0  # the first is 5 s old now, or 10
    assert near.fetch([Lookup(NUMBERS, [b"1"])], 1)[0].status.tolist() == [OK]


def test_a_row_leaves_when_its_time_is_over_and_takes_those_along_that_came_with_it():
    ttl, clock = NUMBERS.ttl_s * 1000, Clock()
    store = MemoryStore(clock=lambda: ttl + round(1000 * clock.now))
    columns = {c: np.ones(2, np.float32) for c in "abc"}
    store.put(NUMBERS, [b"short", b"long"], columns, np.array([2500, 90_000]))
    near = NearCache(Counting(store), 1 << 20, 5.0, clock, today=store._clock)
    asked = Lookup(NUMBERS, [b"short", b"long"])
    for now, status, calls in [
        (0, [OK, OK], 1),
        (2.499, [CACHED, CACHED], 1),
        (2.501, [ABSENT, OK], 2),
        (7.5, [ABSENT, CACHED], 2),
    ]:
        clock.now = now
        assert near.fetch([asked], 1)[0].status.tolist() == status
        assert len(near._reader.asked) == calls


def test_rows_that_a_store_keeps_for_longer_are_kept_here_as_others_are(near):
    """Those written by earlier versions, which lived from when they were written."""
    near._today = lambda: 10 * NUMBERS.ttl_s * 1000
    near.fetch([Lookup(NUMBERS, [b"1"])], 1)
    assert near.fetch([Lookup(NUMBERS, [b"1"])], 1)[0].status.tolist() == [CACHED]


def test_views_of_one_name_and_other_columns_share_nothing(near):
    other = FeatureView(name="n", entity="e", columns=[Column(name="z", dtype="float32")])
    near.fetch([Lookup(NUMBERS, [b"1"])], 1)
    assert near.fetch([Lookup(other, [b"1"])], 1)[0].values.shape == (1, 1)


def test_views_of_one_schema_and_other_defaults_each_get_their_own_answer():
    def view(default):
        word = Column(name="w", dtype="category", vocabulary=["a", "b"], default=default)
        return FeatureView(name="v", entity="e", columns=[word])

    store = MemoryStore()
    store.put(view(None), [b"1"], {"w": ["neither"]})
    cache = NearCache(store, 1 << 20, 5.0, Clock())
    for _ in range(2):
        for one, expected in ((view(None), -1), (view("b"), np.nan)):
            np.testing.assert_array_equal(cache.fetch([Lookup(one, [b"1"])], 1)[0].values, [[expected]])


def test_an_entity_that_one_view_lacks_is_still_computed_for_another():
    columns = [Column(name="a", dtype="float32")]
    plain = FeatureView(name="v", entity="e", columns=columns)
    computed = plain.model_copy(update={"on_missing": "compute", "compute": "f"})
    other = plain.model_copy(update={"on_missing": "compute", "compute": "g"})
    functions = {"f": lambda ids: {"a": [1.0] * len(ids)}, "g": lambda ids: {"a": [None] * len(ids)}}
    cache = NearCache(Computing(MemoryStore(), functions, store_s=10), 1 << 20, 5.0, Clock())
    found = [cache.fetch([Lookup(view, [b"1"])], 10)[0].status.tolist() for view in (plain, other, computed)]
    assert found == [[ABSENT], [ABSENT], [COMPUTED]]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.lists(st.integers(0, 9), unique=True, max_size=6), st.floats(0, 3)), max_size=30))
def test_whatever_is_asked_it_answers_as_the_store_did_within_the_age(steps):
    """The store's rows change all the time; each is a function of entity and time of writing."""
    clock, store = Clock(), MemoryStore()
    near = NearCache(store, 3000, 2.0, clock)
    for ids, passed in steps:
        clock.now += passed
        entities = [b"%d" % i for i in ids]
        stamp = np.full(10, clock.now, np.float32)
        columns = {"a": np.arange(10, dtype=np.float32), "b": stamp, "c": stamp}
        store.put(NUMBERS, [b"%d" % i for i in range(10)], columns)
        rows = near.fetch([Lookup(NUMBERS, entities)], 1)[0]
        assert rows.values[:, 0].tolist() == ids
        assert (clock.now - rows.values[:, 1] <= 2.001).all()
        assert near.bytes <= 3000
