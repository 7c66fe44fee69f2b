"""Aggregates of a stream as rows: each event counts once, whoever dies, and windows move on without events."""

import threading
from contextlib import closing

import numpy as np
import pytest
import redis
from pydantic import ValidationError

from penstock.features import (
    FeatureView,
    InvalidData,
    InvalidView,
    Lookup,
    SchemaChanged,
    StoreMisconfigured,
    open_store,
)
from penstock.features.aggregating import AggregateWriter, writer_for
from penstock.features.ingest import ingest
from penstock.features.memory import MemoryStore
from penstock.features.streams import Consumer, RowWriter, Settings

pytestmark = pytest.mark.every_server
NOW, HOUR = 1_800_000_000_000, 3_600_000
COLUMNS = {
    "n_1h": ("int64", {"function": "count", "window": "1h"}),
    "sum_24h": ("float64", {"function": "sum", "of": "amount", "window": "24h"}),
    "mean_24h": ("float32", {"function": "mean", "of": "amount", "window": "24h"}),
    "least_7d": ("float64", {"function": "min", "of": "amount", "window": "7d"}),
    "most_7d": ("float64", {"function": "max", "of": "amount", "window": "7d"}),
    "shops_7d": ("int32", {"function": "distinct", "of": "shop", "window": "7d"}),
    "paid_7d": ("int64", {"function": "count", "of": "amount", "window": "7d"}),
}


def definition(columns=COLUMNS, **more):
    return {
        "name": "spending",
        "entity": "id",
        "columns": [{"name": name, "dtype": dtype} for name, (dtype, _) in columns.items()],
        "aggregates": {"columns": {name: aggregate for name, (_, aggregate) in columns.items()}} | more,
    }


VIEW = FeatureView.parse(definition())


class Clock:
    now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(redis_url):
    with closing(open_store(redis_url)) as store:
        yield store


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def consumer(store, clock):
    def make(name="one", view=VIEW, writer=None, **settings):
        writer = writer or AggregateWriter(store, view, "at", clock)
        settings = Settings("events", "g", name, "dead", time_field="at", **settings)
        return Consumer(store, writer, settings)

    return make


def add(client, entity, at=NOW, **fields):
    return client.xadd("events", {"id": entity, "at": at} | fields)


def drain(consumer):
    consumer.run(threading.Event(), once=True)
    return consumer.counts


def stored(store, entity=1, view=VIEW):
    rows = store.fetch([Lookup(view, [b"%d" % entity])], 5)[0]
    assert rows.status.tolist() == [0]
    return dict(zip(view.column_names, rows.values[0].tolist(), strict=True))


def test_events_become_a_row_of_the_view(store, client, consumer):
    add(client, 1, amount=5, shop="a")
    add(client, 1, amount=7.5, shop="b", at=NOW - 2 * HOUR)
    add(client, 1, amount=100, shop="a", at=NOW - 48 * HOUR)
    add(client, 1, shop="c", at=NOW - 8 * 24 * HOUR)
    add(client, 1)
    add(client, 2, amount="", shop="")
    counts = drain(consumer(batch=2))
    assert (counts.written, counts.older, counts.repeated) == (5, 1, 0)
    expected = {
        "n_1h": 2,
        "sum_24h": 12.5,
        "mean_24h": 6.25,
        "least_7d": 5,
        "most_7d": 100,
        "shops_7d": 2,
        "paid_7d": 3,
    }
    assert stored(store) == expected
    nothing = stored(store, 2)
    assert (nothing["n_1h"], nothing["sum_24h"], nothing["shops_7d"]) == (1, 0, 0)
    assert all(np.isnan(nothing[name]) for name in ("mean_24h", "least_7d", "most_7d"))


def test_an_event_that_is_none_is_buried(client, consumer):
    add(client, 1, amount="much")
    counts = drain(consumer())
    assert (counts.rejected, counts.written) == (1, 0)
    assert b"'much' is not float64" in client.xrange("dead")[0][1][b"penstock:reason"]


class Dies:
    def __init__(self, writer):
        self._writer = writer

    def rest(self):
        pass

    def write(self, *words):
        self._writer.write(*words)
        raise KeyError("killed")


def test_an_event_delivered_again_counts_once(store, client, consumer, clock):
    for _ in range(10):
        add(client, 1, amount=1)
    with pytest.raises(KeyError):
        drain(consumer("dead", writer=Dies(AggregateWriter(store, VIEW, "at", clock)), batch=7))
    add(client, 1, amount=1)
    heir = consumer("heir", claim_after_s=0.001, batch=3)
    drain(heir)
    while heir.counts.read < 11:
        heir.step()
    assert (heir.counts.written, heir.counts.repeated) == (4, 7)
    assert stored(store)["sum_24h"] == 11


def test_one_that_comes_back_after_its_entries_were_claimed_counts_nothing_twice(store, client, consumer, clock):
    """It read an entry, slept, and writes it when others have counted and forgotten it."""

    class Sleeps(Dies):
        def write(self, *words):
            self.words = words
            raise KeyError("asleep")

    sleeper = Sleeps(AggregateWriter(store, VIEW, "at", clock))
    add(client, 1, amount=1)
    with pytest.raises(KeyError):
        drain(consumer("sleeper", writer=sleeper))
    heir = consumer("heir", claim_after_s=0.001)
    while heir.counts.read < 1:
        heir.step(0)
    add(client, 1, amount=1)
    drain(heir)  # moves the floor
    counts = heir.counts
    before = counts.repeated
    entries, floor, _ = sleeper.words
    sleeper._writer.write(entries, floor, counts)
    assert counts.repeated == before + 1
    assert stored(store)["sum_24h"] == 2


def test_consumers_side_by_side_count_each_event_once(store, client, redis_url, clock):
    for number in range(2000):
        add(client, number % 3, amount=1)
    stores = [open_store(redis_url) for _ in range(3)]
    settings = [Settings("events", "g", f"c{i}", "dead", time_field="at", batch=20) for i in range(3)]
    readers = [
        Consumer(own, AggregateWriter(own, VIEW, "at", clock), how) for own, how in zip(stores, settings, strict=True)
    ]
    threads = [threading.Thread(target=drain, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for own in stores:
        own.close()
    assert sum(reader.counts.written for reader in readers) == 2000
    assert sum(stored(store, i)["sum_24h"] for i in range(3)) == 2000


def test_windows_move_on_without_events(store, client, consumer, clock):
    add(client, 1, amount=5, shop="a")
    reader = consumer()
    drain(reader)
    for hours, expected in ((0.9, 1), (1.1, 0)):
        clock.now = NOW + int(hours * HOUR)
        reader._writer.rest()
        assert stored(store)["n_1h"] == expected
    assert stored(store)["sum_24h"] == 5
    clock.now = NOW + 25 * HOUR
    reader._writer.rest()
    assert stored(store)["sum_24h"] == 0
    assert stored(store)["shops_7d"] == 1
    clock.now = NOW + 8 * 24 * HOUR
    reader._writer.rest()
    assert stored(store)["shops_7d"] == 0
    assert client.zcard("fs:due:spending") == 0


def test_an_entity_whose_state_has_expired_is_looked_at_no_more(store, client, consumer, clock):
    add(client, 1, amount=5)
    reader = consumer()
    drain(reader)
    assert client.ttl("fs:{1}:spending:state") > 7 * 86400
    client.delete("fs:{1}:spending:state", "fs:{1}:spending")
    clock.now = NOW + 2 * HOUR
    reader._writer.rest()
    assert client.zcard("fs:due:spending") == 0
    assert not client.exists("fs:{1}:spending:state", "fs:{1}:spending")


def test_many_entities_due_at_once_are_done_by_and_by(store, client, consumer, clock):
    pipeline = client.pipeline(transaction=False)
    for entity in range(2500):
        pipeline.xadd("events", {"id": entity, "at": NOW})
    pipeline.execute()
    reader = consumer()
    drain(reader)
    clock.now = NOW + 2 * HOUR
    for _ in range(3):
        reader._writer.rest()
    assert [stored(store, entity)["n_1h"] for entity in (0, 1234, 2499)] == [0, 0, 0]


MANY = {"n": ("int64", {"function": "count", "window": "1h"})} | {
    f"d{i}": ("int64", {"function": "distinct", "of": f"f{i}", "window": "1h"}) for i in range(4)
}


def test_states_that_are_too_large_together_are_read_in_parts(store, client, consumer, clock, monkeypatch):
    """Four `distinct` fields of eight entities: no reply is larger than it may be, and nothing is left out."""
    view = FeatureView.parse(definition(MANY))
    for turn in range(2):
        for entity in range(8):
            for n in range(60):
                add(client, entity, at=clock.now, **{f"f{i}": f"{n} {i} {turn}" for i in range(4)})
        counts = drain(reader := consumer(view=view))
        assert (counts.written, counts.failures, counts.rejected) == (480, 0, 0)
        size = client.strlen("fs:{1}:spending:state")
        monkeypatch.setattr("penstock.features.aggregating.MAX_REPLY", 5 * size)  # half of them
    assert [stored(store, entity, view)["d3"] for entity in range(8)] == [120] * 8
    clock.now = NOW + 2 * HOUR
    reader._writer.rest()
    assert [stored(store, entity, view)["d3"] for entity in range(8)] == [0] * 8


def test_states_that_turn_out_larger_than_the_declaration_has_them_are_read_in_parts(
    store, client, consumer, monkeypatch
):
    view = FeatureView.parse(definition(MANY))
    reader = consumer(view=view)
    for turn in range(2):
        for entity in range(8):
            add(client, entity, **{f"f{i}": f"{i} {turn}" for i in range(4)})
        counts = drain(reader)
        monkeypatch.setattr("penstock.features.aggregating.MAX_REPLY", 5 * client.strlen("fs:{1}:spending:state"))
    assert (counts.written, counts.rejected) == (16, 0)
    assert counts.failures > 0
    assert [stored(store, entity, view)["d3"] for entity in range(8)] == [2] * 8


def test_an_entity_with_too_many_entries_to_remember_is_refused_and_the_others_are_not(
    store, client, consumer, monkeypatch
):
    monkeypatch.setattr("penstock.features.buckets.MAX_TAKEN", 5)
    first = add(client, 2, amount=1)
    client.xgroup_create("events", "g", "0")
    client.xreadgroup("g", "stuck", {"events": ">"})  # and never acknowledges it
    for _ in range(7):
        add(client, 1, amount=1)
    add(client, 2, amount=1)
    counts = drain(consumer(batch=3))
    assert (counts.written, counts.rejected) == (5, 3)  # those of the batch with the sixth entry
    assert (stored(store, 1)["sum_24h"], stored(store, 2)["sum_24h"]) == (4, 1)
    [(_, dead), *_] = client.xrange("dead")
    assert b"entries of its entity wait for one before them" in dead[b"penstock:reason"]
    client.xack("events", "g", first)
    add(client, 1, amount=1)
    assert drain(consumer()).written == 1  # what was before is acknowledged, and need not be remembered
    assert stored(store, 1)["sum_24h"] == 5


def test_what_was_counted_before_an_entity_was_refused_is_no_dead_letter(store, client, consumer, clock, monkeypatch):
    monkeypatch.setattr("penstock.features.buckets.MAX_TAKEN", 5)
    first = add(client, 2, amount=1)
    client.xgroup_create("events", "g", "0")
    client.xreadgroup("g", "stuck", {"events": ">"})  # and does not acknowledge it yet
    for _ in range(7):
        add(client, 1, amount=1)
    with pytest.raises(KeyError):
        drain(consumer(writer=Dies(AggregateWriter(store, VIEW, "at", clock)), batch=3))
    client.xreadgroup("g", "one", {"events": ">"})  # delivered to the one that died, with the three
    assert drain(consumer()).rejected == 4
    client.xack("events", "g", first)
    add(client, 1, amount=1)
    drain(consumer())
    settings = Settings("dead", "g", "one", "deader", time_field="at")
    assert drain(Consumer(store, AggregateWriter(store, VIEW, "at", clock), settings)).written == 4
    assert stored(store, 1)["sum_24h"] == 8


def test_a_state_that_cannot_be_read_is_begun_anew(store, client, consumer, caplog):
    add(client, 1, amount=5)
    drain(consumer())
    client.setrange("fs:{1}:spending:state", 40, b"\xff\xff")
    add(client, 1, amount=7)
    drain(consumer())
    assert stored(store)["sum_24h"] == 7
    assert "begun anew" in caplog.text


def test_a_dead_letter_that_comes_back_counts_once_and_takes_nothing_from_the_stream(store, client, consumer, clock):
    """Whatever its group, however often; and what the stream still has in hand counts, too."""
    add(client, 1, amount="much")
    add(client, 1, amount=2)
    consumer(batch=1).step()
    with pytest.raises(KeyError):  # and the second one is in hand
        drain(consumer("slow", writer=Dies(AggregateWriter(store, VIEW, "at", clock)), batch=1))
    [(_, letter)] = client.xrange("dead")
    client.xadd("dead", letter | {"amount": 5})
    client.xadd("dead", letter | {"amount": 5})
    for group in ("one", "other"):
        settings = Settings("dead", group, "c", "deader", time_field="at")
        reader = Consumer(store, AggregateWriter(store, VIEW, "at", clock), settings)
        counts = drain(reader)
        assert (counts.written, counts.rejected) == ((1, 1) if group == "one" else (0, 1))
    assert stored(store)["sum_24h"] == 7
    heir = consumer("slow")
    assert drain(heir).repeated == 1
    add(client, 1, amount=1)
    drain(heir)
    assert stored(store)["sum_24h"] == 8


# Other declarations -----------------------------------------------------------------------------------------------

WIDER = COLUMNS | {
    "most_1h": ("float64", {"function": "max", "of": "amount", "window": "1h"}),
    "tips_24h": ("float64", {"function": "sum", "of": "tip", "window": "24h"}),
}


def test_a_column_more_loses_no_window_whoever_consumes_meanwhile(store, client, consumer):
    """A rolling restart: consumers with the former and the new declaration take turns on one entity."""
    wider = FeatureView.parse(definition(WIDER, late_s=7200))
    store.apply(VIEW)
    former = consumer("former", view=store.view("spending"))
    add(client, 1, amount=5, shop="a", tip=1)
    drain(former)
    assert store.apply(wider).breaks == []
    new = consumer("new", view=store.view("spending"))
    for i, reader in enumerate((new, former, new, former, new)):
        add(client, 1, amount=i, shop=f"b{i}", tip=1)
        drain(reader)
    found = stored(store, view=store.view("spending"))
    assert (found["n_1h"], found["sum_24h"], found["shops_7d"], found["most_1h"]) == (6, 15, 6, 5)
    assert found["tips_24h"] == 1  # what the former one took had no tips for it, and it let go of the others
    add(client, 1, tip=1)
    drain(new)
    assert stored(store, view=store.view("spending"))["tips_24h"] == 2


def test_what_is_dropped_goes_and_what_stays_is_as_it_was(store, client, consumer):
    add(client, 1, amount=5, shop="a")
    drain(consumer())
    kept = {name: COLUMNS[name] for name in ("sum_24h", "shops_7d")}
    narrow = FeatureView.parse(definition(kept, max_distinct=50))
    add(client, 1, amount=2, shop="b")
    drain(consumer(view=narrow))
    assert stored(store, view=narrow) == {"sum_24h": 7, "shops_7d": 2}


def test_a_state_of_the_former_release_goes_on(store, client, consumer, former_state):
    of, key, data = former_state
    dtypes = {"n_1h": "int64", "sum_24h": "float64", "shops_24h": "int32"}
    view = FeatureView.parse(
        definition() | {"columns": [{"name": n, "dtype": d} for n, d in dtypes.items()], "aggregates": of}
    )
    client.set(key, data)
    add(client, 1, amount=10, shop="a")
    counts = drain(consumer(view=view))
    assert counts.written == 1
    assert stored(store, view=view) == {"n_1h": 4, "sum_24h": 17.5, "shops_24h": 2}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"n_1h": ("int64", {"function": "count", "window": "24h"})}, "'n_1h': count over 1h becomes count over 24h"),
        (
            {"sum_24h": ("float64", {"function": "sum", "of": "tip", "window": "24h"})},
            "'sum_24h': sum of amount over 24h becomes sum of tip over 24h, which begins empty",
        ),
        (
            {"n_1h": ("int64", {"function": "count", "window": "2h"})},
            "'n_1h': count over 1h becomes count over 2h, which begins empty",
        ),
    ],
)
def test_a_plan_names_the_windows_that_are_lost(store, change, told):
    store.apply(VIEW)
    with pytest.raises(SchemaChanged, match=told):
        store.apply(FeatureView.parse(definition(COLUMNS | change)))
    assert store.apply(FeatureView.parse(definition(COLUMNS | change)), replace=True).breaks


def test_a_field_that_becomes_a_number_is_counted_anew(store):
    counted = {"shops_1h": ("int64", {"function": "count", "of": "shop", "window": "1h"})}
    store.apply(FeatureView.parse(definition(counted)))
    summed = counted | {"sum_1h": ("float64", {"function": "sum", "of": "shop", "window": "1h"})}
    with pytest.raises(SchemaChanged, match="'shops_1h': its windows are lost, for of 'shop' numbers are counted"):
        store.apply(FeatureView.parse(definition(summed)))


def test_a_plan_tells_what_becomes_of_aggregates(store):
    store.apply(VIEW)
    change = store.plan(FeatureView.parse(definition(WIDER, late_s=7200, max_distinct=500))).changes[0]
    assert change.breaks == ("max_distinct 1000 becomes 500: more values are forgotten",)
    for line in (
        "late_s none -> 7200",
        "max_distinct 1000 -> 500",
        "most_1h: max of amount over 1h",
        "tips_24h: sum of tip over 24h, which begins empty",
    ):
        assert line in change.differences
    plain = VIEW.model_copy(update={"aggregates": None})
    assert store.plan(plain).changes[0].breaks == ("it is aggregated no more, and its windows are lost",)
    store.apply(plain, replace=True)
    assert "it becomes aggregated" in store.plan(VIEW).changes[0].breaks[0]
    assert "aggregates of 7 columns" in store.plan(VIEW).changes[0].differences


def test_values_a_dtype_cannot_hold_are_null(store, client, consumer):
    add(client, 1, amount=1e308)
    add(client, 1, amount=1e308)
    drain(consumer())
    assert np.isnan(stored(store)["sum_24h"])
    assert np.isnan(stored(store)["mean_24h"])


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"n": ("int64", {"function": "sum", "of": "x", "window": "1h"})}, "a sum is float64 or float32, not int64"),
        ({"n": ("int64", {"function": "count", "window": "90"})}, "a window is a number and m, h or d"),
        ({"n": ("int64", {"function": "count", "window": "9999d"})}, "at most a year"),
        ({"n": ("float64", {"function": "mean", "window": "1h"})}, "mean is of a field"),
        ({"n": ("float64", {"function": "median", "of": "x", "window": "1h"})}, "function"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(columns, complaint):
    with pytest.raises(InvalidView, match=complaint):
        FeatureView.parse(definition(columns))


def test_every_column_is_an_aggregate_and_the_other_way_round():
    with pytest.raises(InvalidView, match="'n' is no aggregate"):
        FeatureView.parse(definition() | {"columns": [*definition()["columns"], {"name": "n", "dtype": "int64"}]})
    with pytest.raises(InvalidView, match="'n_1h' is an aggregate, but no column"):
        FeatureView.parse(definition() | {"columns": definition()["columns"][1:]})
    with pytest.raises(InvalidView, match="row layout"):
        FeatureView.parse(definition() | {"layout": "hash"})
    with pytest.raises(ValidationError):
        VIEW.model_validate(definition(max_distinct=0))


def test_tables_are_not_ingested_into_aggregates_nor_are_these_kept_in_memory(store, tmp_path):
    with pytest.raises(InvalidData, match="aggregated from a stream"):
        ingest(store, VIEW, tmp_path / "t.csv")
    with pytest.raises(StoreMisconfigured, match="kept in Redis"):
        writer_for(MemoryStore(), VIEW, None)
    plain = VIEW.model_copy(update={"aggregates": None})
    assert isinstance(writer_for(store, plain, None), RowWriter)
