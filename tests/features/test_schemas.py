"""A version reads rows that were written after it was trained, under schemas that it learns from the store."""

from contextlib import closing

import numpy as np
import pytest

from penstock.features import Column, FeatureView, Lookup, StoreUnavailable, open_store
from penstock.features.schemas import AGAIN_S, KnownSchemas

OK, ABSENT, CORRUPT, SCHEMA = range(4)


def view(*names, **fields):
    return FeatureView(name="v", entity="e", columns=[Column(name=name, dtype="float32") for name in names], **fields)


class Counting:
    """A store that counts what it is asked for, or does not answer."""

    def __init__(self, store):
        self.store, self.name = store, store.name
        self.fetches = self.questions = 0
        self.mute = False

    def fetch(self, lookups, timeout_s):
        self.fetches += 1
        return self.store.fetch(lookups, timeout_s)

    def definitions(self, names, *, timeout_s):
        self.questions += 1
        if self.mute:
            raise StoreUnavailable("mute")
        return self.store.definitions(names, timeout_s=timeout_s)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def counting():
    with closing(open_store("memory://")) as store:
        yield Counting(store)


def test_rows_written_under_a_newer_schema_are_read_at_once_and_by_name(counting):
    trained = view("a", "b")
    counting.store.apply(trained)
    counting.store.put("v", ["old"], {"a": [1], "b": [2]})
    counting.store.apply(view("c", "b", "a"))
    counting.store.put("v", ["new"], {"a": [10], "b": [20], "c": [30]})
    known = KnownSchemas(counting)
    for _ in range(3):
        [rows] = known.fetch([Lookup(trained, [b"old", b"new", b"nobody"])], 1)
        assert rows.status.tolist() == [OK, OK, ABSENT]
        np.testing.assert_array_equal(rows.values, [[1, 2], [10, 20], [np.nan, np.nan]])
    assert (counting.questions, counting.fetches) == (1, 4)


def test_an_id_that_nobody_knows_stays_a_miss_and_is_asked_about_once_in_a_while(counting):
    counting.store.put(view("x"), ["1"], {"x": [1]})
    counting.store.apply(view("a"))
    clock = Clock()
    known = KnownSchemas(counting, clock=clock)
    for _ in range(5):
        assert known.fetch([Lookup(view("a"), [b"1"])], 1)[0].status.tolist() == [SCHEMA]
    assert counting.questions == 1
    clock.now += AGAIN_S
    known.fetch([Lookup(view("a"), [b"1"])], 1)
    assert (counting.questions, counting.fetches) == (2, 6)


def test_no_definition_another_entity_or_no_answer_leaves_a_miss(counting):
    counting.store.put(view("x"), ["1"], {"x": [1]})
    clock = Clock()
    known = KnownSchemas(counting, clock=clock)
    assert known.fetch([Lookup(view("a"), [b"1"])], 1)[0].status.tolist() == [SCHEMA]
    counting.store.apply(FeatureView(name="v", entity="other", columns=view("x").columns))
    clock.now += AGAIN_S
    assert known.fetch([Lookup(view("a"), [b"1"])], 1)[0].status.tolist() == [SCHEMA]
    counting.mute = True
    clock.now += AGAIN_S
    assert known.fetch([Lookup(view("a"), [b"1"])], 1)[0].status.tolist() == [SCHEMA]
    assert counting.questions == 3


def test_without_time_left_nothing_is_asked(counting):
    counting.store.put(view("x"), ["1"], {"x": [1]})
    assert KnownSchemas(counting).fetch([Lookup(view("a"), [b"1"])], 0.0)[0].status.tolist() == [SCHEMA]
    assert counting.questions == 0
