"""Promises of every store, held over each of them and both layouts."""

import time

import numpy as np
import pytest

from penstock.features import (
    Column,
    FeatureStore,
    FeatureView,
    InvalidData,
    Lookup,
    SchemaChanged,
    StoreMisconfigured,
    UnknownView,
    open_store,
)
from penstock.features.memory import MemoryStore
from penstock.features.store import Written

ENTITIES = [b"17", b"a}:b", b"\x00\xff"]
NOW = time.time_ns() // 1_000_000
AGED = NOW - 1000 * np.array([3, 2, 1])
OK, ABSENT, CORRUPT, OTHER_SCHEMA = range(4)


def fetch(store, view, entities):
    return store.fetch([Lookup(view, entities)], timeout_s=5)[0]


def test_what_was_put_is_fetched(store, view, table, matrix):
    assert store.put(view, ENTITIES, table) == 3
    rows = fetch(store, view, ENTITIES)
    np.testing.assert_array_equal(rows.values, matrix)
    assert rows.status.tolist() == [OK] * 3


def test_event_times_are_kept_in_rows_and_default_to_now(store, view, table):
    before = time.time_ns() // 1_000_000
    store.put(view, ENTITIES, table)
    now = fetch(store, view, ENTITIES).event_times
    store.prepare(view, ENTITIES, table, np.array([*AGED[:2], 2**60]), overwrite=True)()
    given = fetch(store, view, ENTITIES).event_times
    if view.layout == "hash":  # it has no place for them
        assert now.tolist() == given.tolist() == [0, 0, 0]
    else:
        assert (now >= before).all()
        assert given.tolist() == [*AGED[:2], 2**60]


@pytest.mark.parametrize(
    "at",
    [[0, time.time_ns()], np.array([0, 2**63 + 5], np.uint64), np.array([0, "2999-01-01"], "M8[s]")],
    ids=["ns", "uint64", "far"],
)
def test_an_event_time_far_ahead_is_refused_for_nothing_would_replace_it(store, view, table, at):
    two = {name: array[:2] for name, array in table.items()}
    with pytest.raises(InvalidData, match=r"row 1: .* is more than a day ahead"):
        store.put(view, ENTITIES[:2], two, at)
    assert fetch(store, view, ENTITIES[:2]).status.tolist() == [ABSENT] * 2


def test_an_older_event_never_replaces_a_newer_one_and_of_equal_times_the_last_written_stays(
    store, view, table, matrix
):
    turned = {name: array[::-1] for name, array in table.items()}
    assert store.put(view, ENTITIES, table, AGED) == 3
    assert store.put(view, ENTITIES, turned, AGED + np.array([-1, 0, 1])) == 2
    kept = fetch(store, view, ENTITIES)
    np.testing.assert_array_equal(kept.values, [matrix[0], matrix[1], matrix[0]])
    assert kept.event_times.tolist() == ([*AGED + np.array([0, 0, 1])] if view.layout == "row" else [0, 0, 0])
    assert store.put(view, ENTITIES, table, AGED - 5000, overwrite=True) == 3
    np.testing.assert_array_equal(fetch(store, view, ENTITIES).values, matrix)
    assert store.put(view, ENTITIES, turned, AGED - 5000 + np.array([-1, 1, 0])) == 2


def test_of_an_entity_that_is_there_twice_the_newest_event_stays(store, view, table, matrix):
    for times, newest in (([5, 7, 6], 1), ([8, 8, 8], 2)):
        store.put(view, [b"one"] * 3, table, NOW - 10 + np.array(times))
        np.testing.assert_array_equal(fetch(store, view, [b"one"]).values, matrix[newest : newest + 1])


def test_what_was_prepared_is_written_when_called_and_as_often(store, view, table, matrix):
    write = store.prepare(view, ENTITIES, table, AGED)
    assert fetch(store, view, ENTITIES).status.tolist() == [ABSENT] * 3
    assert [write(), write()] == [Written(3), Written(3)]
    np.testing.assert_array_equal(fetch(store, view, ENTITIES).values, matrix)


def test_a_job_s_mark_is_given_back_when_it_is_replaced(store):
    assert store.marked("job") is None
    assert [store.mark("job", mark) for mark in (b"1", b"2", None)] == [None, b"1", None]
    assert store.marked("job") is None


def test_an_unknown_entity_is_absent_and_its_values_are_nan(store, view, table):
    store.put(view, ENTITIES, table)
    rows = fetch(store, view, [b"nobody", ENTITIES[0]])
    assert rows.status.tolist() == [ABSENT, OK]
    assert np.isnan(rows.values[0]).all()


def test_many_views_come_in_one_call_and_in_order(store, table, matrix, view):
    other = FeatureView(name="device", entity="device", columns=[Column(name="age", dtype="int32")])
    hashed = FeatureView(name="hashed", entity="device", columns=[Column(name="age", dtype="int32")], layout="hash")
    store.put(view, ENTITIES, table)
    store.put(other, [b"17"], {"age": np.array([5])})
    store.put(hashed, [b"d"], {"age": np.array([9])})
    lookups = [Lookup(other, [b"x", b"17"]), Lookup(hashed, [b"d"]), Lookup(view, []), Lookup(view, ENTITIES)]
    device, device_hash, nothing, activity = store.fetch(lookups, timeout_s=5)
    assert device.status.tolist() == [ABSENT, OK]
    assert device.values[1, 0] == 5
    assert device_hash.values.tolist() == [[9.0]]
    assert nothing.values.shape == (0, 5)
    np.testing.assert_array_equal(activity.values, matrix)


def test_nothing_asked_is_nothing_answered(store):
    assert store.fetch([], timeout_s=1) == []


def test_a_row_put_again_replaces_the_older_one_nulls_included(store, view, table, matrix):
    store.put(view, ENTITIES, table)
    again = {name: array[::-1] for name, array in table.items()}
    store.put(view, ENTITIES, again)
    np.testing.assert_array_equal(fetch(store, view, ENTITIES).values, matrix[::-1])


def test_rows_of_another_schema_are_never_read(store):
    def version(dtype):
        return FeatureView(name="v", entity="e", columns=[Column(name="a", dtype=dtype)])

    store.put(version("float32"), [b"1"], {"a": np.array([1.5])})
    rows = fetch(store, version("int32"), [b"1"])
    assert rows.status.tolist() == [OTHER_SCHEMA]
    assert np.isnan(rows.values).all()


def test_put_refuses_columns_that_are_missing_unknown_or_short(store, view, table):
    with pytest.raises(InvalidData, match="'amount' is missing"):
        store.put(view, ENTITIES, {name: array for name, array in table.items() if name != "amount"})
    with pytest.raises(InvalidData, match="'amuont' is not in the view"):
        store.put(view, ENTITIES, table | {"amuont": table["amount"]})
    with pytest.raises(InvalidData, match="'days' has shape"):
        store.put(view, ENTITIES, table | {"days": np.zeros(2)})
    with pytest.raises(InvalidData, match="event times"):
        store.put(view, ENTITIES, table, np.zeros(2, np.int64))
    with pytest.raises(InvalidData, match="row 1: an entity id of 0 bytes"):
        store.put(view, [b"a", b"", b"c"], table)


def test_views_are_found_by_name(store, view):
    assert store.views() == []
    other = FeatureView(name="a", entity="device", columns=[Column(name="age", dtype="int32")])
    store.apply(view)
    store.apply(other)
    assert store.views() == [other, view]
    assert store.view("activity") == view
    with pytest.raises(UnknownView, match="'activty'"):
        store.view("activty")


def test_policies_may_change_and_columns_only_by_replacing(store, view):
    store.apply(view)
    store.apply(view.model_copy(update={"ttl_s": 5}))
    assert store.view("activity").ttl_s == 5
    other = FeatureView(name="activity", entity="customer_id", columns=view.columns[:2], layout=view.layout)
    with pytest.raises(SchemaChanged, match="activity"):
        store.apply(other)
    store.apply(other, replace=True)
    kept = store.view("activity")
    assert kept.columns == other.columns
    assert [former.schema_id for former in kept.former] == ([view.schema_id] if view.layout == "row" else [])


def test_a_store_can_be_pinged_and_closed_twice(store):
    store.ping()
    store.close()
    store.close()


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://:hunter2@host/", "redis:/x"])
def test_a_url_of_no_known_kind_is_refused_without_showing_a_password(url):
    with pytest.raises(StoreMisconfigured, match="redis://") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


def test_who_takes_the_port_for_a_store_is_told_how_to_open_one():
    with pytest.raises(TypeError, match=r"opened by penstock\.features\.open_store\(url\)"):
        FeatureStore("redis://localhost:6379")


def test_in_memory_rows_end_their_ttl_after_their_event_and_hashes_after_they_were_written(view, table):
    now, ttl = NOW, view.ttl_s * 1000
    store = MemoryStore(clock=lambda: now)
    late = np.array([0, ttl // 2, ttl + 1])
    assert store.put(view, ENTITIES, table, now - late) == (2 if view.layout == "row" else 3)
    left = (
        [[OK, OK, ABSENT], [OK, ABSENT, ABSENT], [ABSENT] * 3]
        if view.layout == "row"
        else [[OK] * 3] * 2 + [[ABSENT] * 3]
    )
    for passed, expected in zip((ttl - ttl // 2, ttl, ttl + 1), left, strict=True):
        now = NOW + passed
        assert fetch(store, view, ENTITIES).status.tolist() == expected


def test_a_named_store_in_memory_is_the_same_for_all_and_an_unnamed_one_is_new():
    assert open_store("memory://shared") is open_store("memory://shared")
    assert open_store("memory://") is not open_store("memory://")
