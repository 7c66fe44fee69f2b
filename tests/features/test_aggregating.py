"""Aggregates of a stream as rows: each event counts once, whoever dies, and windows move on without events."""

import threading
from contextlib import closing

import numpy as np
import pytest
import redis
from pydantic import ValidationError

from penstock.features import FeatureView, InvalidData, InvalidView, Lookup, StoreMisconfigured, open_store
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


@pytest.mark.parametrize("damage", ["bytes", "declaration"])
def test_a_state_that_cannot_be_read_is_begun_anew(store, client, consumer, damage, caplog):
    add(client, 1, amount=5)
    drain(consumer())
    if damage == "bytes":
        client.setrange("fs:{1}:spending:state", 40, b"\xff\xff")
    else:
        other = definition(late_s=60)
        drain(consumer(view=FeatureView.parse(other)))
    add(client, 1, amount=7)
    drain(consumer())
    if damage == "bytes":
        assert stored(store)["sum_24h"] == 7
        assert "begun anew" in caplog.text


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
