"""An online store filled from the history has of each entity what the join finds now."""

from __future__ import annotations

import random
import time
from contextlib import closing

import numpy as np
import pytest

from penstock.features import Column, FeatureView, InvalidData, Lookup, StoreUnavailable, open_store
from penstock.features.memory import MemoryStore
from penstock.features.offline import OfflineStore, join
from penstock.features.offline.restoring import restore

NOW = time.time_ns() // 1_000_000
HOUR = 3_600_000
COLUMNS = [
    Column(name="n", dtype="int64", default=7),
    Column(name="x", dtype="float32"),
    Column(name="sure", dtype="bool"),
    Column(name="word", dtype="category", vocabulary=("a", "b")),
    Column(name="city", dtype="string", max_bytes=10),
    Column(name="taste", dtype="vector", size=2),
]
VIEW = FeatureView(name="v", entity="id", columns=COLUMNS, ttl_s=24 * 3600, on_missing="nan")


@pytest.fixture(params=["redis", "memory"])
def store(request):
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "memory://"
    with closing(open_store(url)) as store:
        store.apply(VIEW)
        yield store


@pytest.fixture
def offline(tmp_path):
    return OfflineStore(tmp_path)


def table(rows, chance):
    """Random rows of few entities, some with times that do not count any more, or not yet."""
    events = [NOW - chance.randrange(30 * HOUR) for _ in range(rows)]
    return {
        "id": [f"e{chance.randrange(40)}" for _ in range(rows)],
        "n": [chance.choice([None, chance.randrange(2**62)]) for _ in range(rows)],
        "x": [chance.choice([None, chance.random()]) for _ in range(rows)],
        "sure": [chance.choice([None, True, False]) for _ in range(rows)],
        "word": [chance.choice([None, "a", "b", "unheard"]) for _ in range(rows)],
        "city": [chance.choice([None, "Łódź", ""]) for _ in range(rows)],
        "taste": [chance.choice([None, [1.0, chance.random()]]) for _ in range(rows)],
        "event_time": events,
        "known": [min(event + chance.choice([0, 0, 60 * HOUR]), NOW + HOUR) for event in events],
    }


def seen(store, view, ids):
    return store.fetch([Lookup(view, [one.encode() for one in ids])], 5)[0]


def test_each_entity_gets_the_row_that_the_join_finds_now(store, offline):
    for seed in range(3):  # three writes, in files that overlap
        offline.write(VIEW, table(100, random.Random(seed)), created="known")
    told = []
    report = restore(store, VIEW, offline, now_ms=NOW, progress=lambda *at: told.append(at))
    ids = [f"e{i}" for i in range(41)]
    rows = seen(store, VIEW, ids)
    labels = join({"id": ids, "at": [NOW] * 41}, VIEW, offline, time="at")
    expected = np.stack([labels[name].to_numpy() for name in VIEW.feature_names], axis=1)
    np.testing.assert_array_equal(rows.values, expected)
    assert 30 < report.rows == int((rows.status == 0).sum()) <= 40
    assert (report.older, told[-1][0]) == (0, report.rows)
    assert set(store.get(VIEW, ids)["city"].tolist()) == {None, "Łódź", ""}


def test_again_changes_nothing_and_what_is_newer_stays(store, offline):
    columns = {column.name: [None] for column in COLUMNS}
    offline.write(VIEW, columns | {"id": ["a"], "n": [1], "event_time": [NOW - 5]}, created="event_time")
    offline.write(VIEW, columns | {"id": ["b"], "n": [2], "event_time": [NOW - 5]}, created="event_time")
    put = {name: np.array(values, object) for name, values in columns.items()} | {"n": np.array([9])}
    store.put(VIEW, ["b"], put, [NOW - 1])
    report = restore(store, VIEW, offline)
    assert (report.rows, report.older) == (2, 1)
    assert store.get(VIEW, ["a", "b"])["n"].tolist() == [1, 9]
    assert restore(store, VIEW, offline).rows == 2
    assert store.get(VIEW, ["a", "b"])["n"].tolist() == [1, 9]


def test_rows_of_other_forms_become_what_the_view_says_and_null_where_it_cannot_hold_them(store, offline):
    old = [
        Column(name="n", dtype="float64"),
        Column(name="x", dtype="float64"),
        Column(name="city", dtype="string", max_bytes=50),
    ]
    before = VIEW.model_copy(update={"columns": old})
    rows = {"id": ["a", "b"], "n": [3, 1.5], "x": [0.1, 1e300], "city": ["Bern", "a name too long"]}
    offline.write(before, rows | {"event_time": [NOW - 5] * 2}, created="event_time")
    restore(store, VIEW, offline)
    found = store.get(VIEW, ["a", "b"])
    assert found["n"].tolist() == [3, None]
    np.testing.assert_array_equal(found["x"], np.float32([0.1, 0]))
    assert found["x"].mask.tolist() == [False, True]
    assert found["city"].tolist() == ["Bern", None]
    assert found["sure"].tolist() == [None, None]


def test_an_entity_of_several_keys(offline):
    view = FeatureView(name="pairs", entity=("c", "m"), columns=[Column(name="x", dtype="int32")])
    rows = {"c": ["a", "a|b"], "m": ["b|c", "c"], "x": [1, 2], "event_time": [NOW - 5] * 2}
    offline.write(view, rows, created="event_time")
    store = MemoryStore()
    assert restore(store, view, offline).rows == 2
    assert store.get(view, [("a", "b|c"), ("a|b", "c")])["x"].tolist() == [1, 2]


def test_the_hash_layout(offline, redis_url):
    view = FeatureView(name="h", entity="id", columns=COLUMNS[:2], layout="hash")
    offline.write(view, {"id": ["a"], "n": [5], "x": [None], "event_time": [NOW - 5]}, created="event_time")
    with closing(open_store(redis_url)) as store:
        restore(store, view, offline)
        assert store.get(view, ["a"])["n"].tolist() == [5]


def test_what_cannot_be_restored_is_told(offline):
    with pytest.raises(InvalidData, match="there is no history of view 'v'"):
        restore(MemoryStore(), VIEW, offline)
    aggregates = {"columns": {"n": {"function": "count", "window": "7d"}}}
    counted = FeatureView.model_validate(
        {"name": "v", "entity": "id", "columns": COLUMNS[:1], "aggregates": aggregates}
    )
    with pytest.raises(InvalidData, match="is aggregated: the state of its windows is not in the history"):
        restore(MemoryStore(), counted, offline)
    (offline.root / "v").mkdir(parents=True)
    assert restore(MemoryStore(), VIEW, offline).rows == 0


def test_a_store_that_stays_away_ends_it(offline):
    class Away(MemoryStore):
        def prepare(self, *rows, **options):
            def fail():
                raise StoreUnavailable("away")

            return fail

    columns = {column.name: [None] for column in COLUMNS}
    offline.write(VIEW, columns | {"id": ["a"], "event_time": [NOW - 5]}, created="event_time")
    with pytest.raises(StoreUnavailable, match="away"):
        restore(Away(), VIEW, offline, patience_s=0)
