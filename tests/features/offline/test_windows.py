"""Aggregates of a table of events as of any time: counted by hand, and as the real Redis had them at that moment."""

from __future__ import annotations

import math
import random
import threading
from contextlib import closing

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features import Column, FeatureView, InvalidData, InvalidView, Lookup, open_store
from penstock.features.aggregates import STEPS
from penstock.features.aggregating import AggregateWriter
from penstock.features.buckets import Event, State
from penstock.features.offline import Events, OfflineStore, join
from penstock.features.offline.windows import aggregates_as_of
from penstock.features.streams import Consumer, Settings

HOUR, DAY = 3_600_000, 86_400_000
NOW = 1_760_000_000_000
FUNCTIONS = (
    ("count", ""),
    ("count", "amount"),
    ("count", "shop"),
    ("sum", "amount"),
    ("mean", "amount"),
    ("min", "amount"),
    ("max", "amount"),
    ("distinct", "shop"),
)


def view(windows=("1h", "24h"), dtype="float64", **more):
    columns = {
        f"{function}_{of}_{window}": {"function": function, "window": window, "of": of}
        for window in windows
        for function, of in FUNCTIONS
    }
    return FeatureView.parse(
        {
            "name": "spending",
            "entity": "id",
            "columns": [{"name": name, "dtype": dtype} for name in reversed(columns)],  # in an order of their own
            "aggregates": {"columns": columns} | more,
        }
    )


def table(drawn):
    """Events of (entity, came, how much later than it happened, amount, shop)."""
    entities, came, late, amounts, shops = zip(*drawn, strict=True) if drawn else ((),) * 5
    return {
        "id": pa.array(entities, pa.string()),
        "came": np.array(came, np.int64),
        "at": np.array(came, np.int64) - np.array(late, np.int64),
        "amount": pa.array(amounts, pa.float64()),
        "shop": pa.array(shops, pa.string()),
    }


def asked(of, events, labels):
    """Rows of labels (entity, time): a dict by column, or None where there is none, and when each was merged."""
    ids, times = zip(*labels, strict=True)
    where = Events(table(events), time="at", created="came")
    rows = aggregates_as_of(of, where, pa.array(ids, pa.large_binary()), np.array(times, np.int64))
    told = [dict(zip(of.column_names, values, strict=True)) for values in rows.values.tolist()]
    present = rows.status == 0
    return [one if there else None for one, there in zip(told, present, strict=True)], rows.event_times.tolist()


# By hand ----------------------------------------------------------------------------------------------------------


def by_hand(of, events, entity, now):
    """The row of an entity at a time, from all events, and when it was merged; None where there is none."""
    known = [(came, came - late, amount, shop) for e, came, late, amount, shop in events if e == entity and came <= now]
    taken = [(min(at, came), amount, shop) for came, at, amount, shop in known if came - at <= of.aggregates.late_ms]
    merged = [came for came, *_ in known]
    for window in of.aggregates.windows:
        step = window // STEPS
        merged += [left for at, *_ in taken if (left := (at // step + 1) * step + window) <= now]
    if not merged or now - max(merged) > of.aggregates.keep_s * 1000:
        return None, 0
    return {name: value(column, of, taken, now) for name, column in of.aggregates.columns.items()}, max(merged)


def value(column, of, taken, now):
    step = column.window_ms // STEPS
    first = (now - column.window_ms) // step * step
    within = [(amount, shop or None) for at, amount, shop in taken if at >= first]
    if column.function == "distinct":
        return min(len({shop for _, shop in within} - {None}), of.aggregates.max_distinct)
    if column.function == "count" and column.of != "amount":
        return len([1 for _, shop in within if not column.of or shop])
    amounts = [amount for amount, _ in within if amount is not None and math.isfinite(amount)]
    if column.function == "count":
        return len(amounts)
    if column.function == "sum":
        return sum(amounts)
    return (
        {"mean": lambda x: sum(x) / len(x), "min": min, "max": max}[column.function](amounts) if amounts else math.nan
    )


ENTITIES = st.sampled_from(["a", "b", "c"])
AGES = st.integers(0, 40 * HOUR) | st.integers(0, 2 * HOUR) | st.sampled_from([0, 1, HOUR, DAY, DAY + 1])
LATE = st.sampled_from([0, 0, 0, 1, HOUR, 3 * HOUR]) | st.integers(-2 * HOUR, 30 * HOUR)
AMOUNTS = st.none() | st.integers(-1000, 1000).map(float) | st.sampled_from([math.nan, math.inf])  # sums are exact
SHOPS = st.sampled_from([None, "", "x", "y", "z", "w"])
EVENTS = st.lists(st.tuples(ENTITIES, AGES.map(lambda age: NOW - age), LATE, AMOUNTS, SHOPS), max_size=25)
LABELS = st.lists(st.tuples(ENTITIES | st.just("d"), AGES.map(lambda age: NOW + HOUR - age)), min_size=1, max_size=8)


@settings(max_examples=150)
@given(events=EVENTS, labels=LABELS, late_s=st.none() | st.sampled_from([0, 3600, 7200]), most=st.sampled_from([2, 9]))
def test_a_label_has_what_is_counted_by_hand_over_all_events(events, labels, late_s, most):
    of = view(late_s=late_s, max_distinct=most)
    rows, merged = asked(of, events, labels)
    for row, at, (entity, now) in zip(rows, merged, labels, strict=True):
        expected, when = by_hand(of, events, entity, now)
        assert at == when
        assert (row is None) == (expected is None)
        assert repr(row and {name: float(row[name]) for name in expected}) == repr(
            expected and {name: float(np.float32(number)) for name, number in expected.items()}
        )


def test_a_row_is_there_as_long_as_it_lives_and_no_longer():
    of = view(windows=("1h",))
    merged = (NOW // 60_000 + 1) * 60_000 + HOUR  # when its only bucket has left
    last = merged + of.aggregates.keep_s * 1000
    rows, at = asked(of, [("a", NOW, 0, 5.0, "x")], [("a", NOW - 1), ("a", NOW), ("a", last), ("a", last + 1)])
    assert [row and row["count__1h"] for row in rows] == [None, 1, 0, None]
    assert at == [0, NOW, merged, 0]


def test_an_event_too_late_makes_a_row_of_nothing():
    rows, _ = asked(view(late_s=60), [("a", NOW, HOUR, 5.0, "x")], [("a", NOW)])
    assert (rows[0]["count__24h"], rows[0]["sum_amount_24h"]) == (0, 0)


# As online --------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    drawn=st.lists(st.tuples(AGES, LATE, st.floats(-1e6, 1e6), SHOPS), min_size=1, max_size=30),
    sizes=st.lists(st.integers(1, 7), min_size=30, max_size=30),
)
def test_sums_have_the_bits_of_a_state_whatever_batches_it_was_fed_and_stored_between(drawn, sizes):
    of = view(dtype="float64").aggregates
    drawn = sorted(drawn, key=lambda event: -event[0])
    state, fed, done = State(of), [], 0
    for size in sizes:
        part = drawn[done : done + size]
        if not part:
            break
        now = NOW - part[-1][0]  # a batch is taken at once, when its last event has come
        for i, (_, late, amount, shop) in enumerate(part):
            numbers = {"": 1.0, "amount": amount, "shop": 1.0 if shop else None}
            values = (shop.encode() if shop else None,)
            fed.append(Event((done + i + 1, 0), now - late, tuple(numbers[name] for name in of.counted), values))
        state.take(fed[done:], (0, 0), now)
        done += len(part)
        state = State.decode(of, b"key", state.encode(b"key"))
    starts = np.repeat(np.cumsum([0, *sizes])[:-1], sizes)[:done]
    ends = [
        min(int(start) + size, len(drawn)) - 1 for start, size in zip(starts, np.repeat(sizes, sizes), strict=False)
    ]
    came = [NOW - drawn[end][0] for end in ends]
    events = [("a", now, late, amount, shop) for now, (_, late, amount, shop) in zip(came, drawn, strict=True)]
    rows, _ = asked(view(), events, [("a", NOW)])
    expected = dict(zip(of.columns, state.values(NOW), strict=True))
    assert repr(rows[0] and {n: rows[0][n] for n in expected}) == repr(
        {name: float(np.float32(number)) for name, number in expected.items()}
    )


class Clock:
    now = 0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("seed", range(3))
def test_a_label_has_what_redis_had_at_that_moment(redis_url, seed):
    """A consumer takes events as they come, some late and some ahead, and rows move on, until each is read."""
    drawn, clock, of = random.Random(seed), Clock(), view(windows=("1h", "24h", "7d"), late_s=5 * 3600, max_distinct=3)
    events, labels, now = [], [], NOW
    for _ in range(120):
        now += drawn.choice([1, 1000, 60_000, HOUR, 8 * HOUR])
        late = drawn.choice([0, 0, 0, 60_000, 4 * HOUR, 6 * HOUR, -HOUR])
        amount = drawn.choice([None, drawn.uniform(-1e6, 1e6), drawn.uniform(0, 1)])
        events.append((drawn.choice("ab"), now, late, amount, drawn.choice([None, "x", "y", "z", "w"])))
        if drawn.random() < 0.5:
            now += drawn.choice([2000, HOUR, 30 * HOUR])
            labels.append((drawn.choice("ab"), now))
    online, left = [], list(events)
    with closing(open_store(redis_url)) as store, redis.Redis.from_url(redis_url) as client:
        consumer = Consumer(
            store, AggregateWriter(store, of, "at", clock), Settings("events", "g", "one", "dead", time_field="at")
        )
        for entity, now in labels:
            while left and left[0][1] <= now:
                owner, came, late, amount, shop = left.pop(0)
                clock.now = came
                fields = {"amount": "" if amount is None else repr(amount), "shop": shop or ""}
                client.xadd("events", {"id": owner, "at": came - late} | fields)
                consumer.run(threading.Event(), once=True)
            clock.now = now
            consumer.run(threading.Event(), once=True)
            rows = store.fetch([Lookup(of, [entity.encode()])], 5)[0]
            online.append(
                dict(zip(of.column_names, rows.values[0].tolist(), strict=True)) if not rows.status[0] else None
            )
    rows, _ = asked(of, events, labels)
    assert [repr(row) for row in rows] == [repr(row) for row in online]
    assert sum(row is not None for row in rows) > 30


# Joined -----------------------------------------------------------------------------------------------------------


def small(**more):
    columns = {
        "n_1h": {"function": "count", "window": "1h"},
        "spent_1h": {"function": "sum", "window": "1h", "of": "amount"},
    }
    return FeatureView.parse(
        {
            "name": "spending",
            "entity": "id",
            "columns": [{"name": "n_1h", "dtype": "int32", "default": 0}, {"name": "spent_1h", "dtype": "float32"}],
            "aggregates": {"columns": columns},
        }
        | more
    )


def test_a_training_set_has_rows_of_a_history_and_aggregates_of_events(tmp_path):
    activity = FeatureView(name="activity", entity="id", columns=[Column(name="x", dtype="float64", default=-1)])
    history = {"id": [1, 2], "x": [5.0, 6.0], "event_time": [NOW, NOW]}
    OfflineStore(tmp_path).write(activity, history, created="event_time")
    purchases = pd.DataFrame({"id": [1, 1, 3], "amount": [2.5, np.nan, 9], "at": [NOW, NOW + 1, NOW]})
    labels = {"id": [2, 1, 1], "at": [NOW + 5, NOW, NOW + 5], "fraud": [0, 1, 0]}
    events = {"spending": Events(purchases, time="at")}
    joined = join(labels, [activity, small()], tmp_path, time="at", events=events).to_pydict()
    assert joined["x"] == [6, 5, 5]
    assert joined["n_1h"] == [0, 1, 2]
    assert repr(joined["spent_1h"]) == repr([math.nan, 2.5, 2.5])
    assert joined["fraud"] == [0, 1, 0]


def test_a_row_that_serving_would_call_stale_is_joined_as_serving_treats_it():
    of = small(max_age_s=60, on_stale="default")
    labels = {"id": [1, 1], "at": [NOW + 60_000, NOW + 60_001]}
    events = {"spending": Events({"id": [1], "amount": [2.5], "at": [NOW]}, time="at")}
    assert join(labels, of, time="at", events=events)["n_1h"].to_pylist() == [1, 0]


def test_events_of_several_keys_and_of_text_are_taken_as_a_stream_takes_them():
    of = small(entity=["id", "shop"])
    events = Events(
        {"id": ["7", "7"], "shop": ["a|b", "c"], "amount": ["1.5", ""], "event_time": ["1970-01-02", "1970-01-02"]}
    )
    labels = {"id": [7, 7, 7], "shop": ["a|b", "c", "d"], "event_time": [DAY, DAY, DAY]}
    joined = join(labels, of, events={"spending": events})
    assert (joined["n_1h"].to_pylist(), joined["spent_1h"].to_pylist()[:2]) == ([1, 1, 0], [1.5, 0])


def test_what_cannot_be_replayed_is_refused():
    good = {"id": [1], "amount": [1.0], "at": [NOW]}
    labels = {"id": [1], "at": [NOW]}

    def told(events, of=None, **more):
        return join(labels, of or small(), time="at", events={"spending": events}, **more)

    with pytest.raises(InvalidData, match="the events of view 'spending': no column 'amount'; it has id, at"):
        told(Events({"id": [1], "at": [NOW]}, time="at"))
    with pytest.raises(InvalidData, match="column 'amount', row 1: 'much' is not float64"):
        told(Events(good | {"amount": ["much"]}, time="at"))
    with pytest.raises(InvalidData, match="no column 'event_time'"):
        told(Events(good))
    with pytest.raises(InvalidData, match="'spendings', which is none of the views"):
        join(labels, small(), time="at", events={"spendings": Events(good)})
    plain = FeatureView(name="spending", entity="id", columns=[Column(name="x", dtype="float64")])
    with pytest.raises(InvalidView, match="has no aggregates"):
        told(Events(good, time="at"), plain)
