"""A stream into a store: what is delivered is written or buried before it is acknowledged, whoever dies meanwhile."""

import json
import socket
import threading
import time
import urllib.request
from contextlib import closing

import numpy as np
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from penstock.cli import app
from penstock.commands._stream_metrics import metered
from penstock.commands.streaming import in_words
from penstock.features import Column, FeatureView, Lookup, StoreMisconfigured, StoreUnavailable, open_store
from penstock.features.streams import Consumer, RowWriter, Settings
from penstock.server.address import Address

pytestmark = pytest.mark.every_server
VIEW = FeatureView(name="activity", entity="id", columns=[Column(name="n", dtype="int64")])
SINCE = time.time_ns() // 1_000_000 - 10_000


@pytest.fixture
def store(redis_url):
    with closing(open_store(redis_url)) as store:
        yield store


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def consumer(store):
    """Makes a consumer of the stream `events` in the group `g`."""

    def make(name="one", source=store, writer=None, **settings):
        settings = {"stream": "events", "group": "g", "dead": "events:dead", "time_field": "at"} | settings
        made = Settings(consumer=name, **settings)
        return Consumer(source, writer or RowWriter(store, VIEW, made.time_field), made)

    return make


class Dies:
    """A writer that ends before (or after) it has written."""

    def __init__(self, writer=None):
        self._writer = writer

    def write(self, entries, floor, counts):
        if self._writer:
            self._writer.write(entries, floor, counts)
        raise KeyError("killed")

    def rest(self):
        pass


def add(client, *events):
    """Events of (entity, n, ms from `SINCE` on, or what is no time)."""
    times = [SINCE + at if isinstance(at, int) else at for _, _, at in events]
    return [client.xadd("events", {"id": e, "n": n, "at": at}) for (e, n, _), at in zip(events, times, strict=True)]


def stored(store, *entities):
    rows = store.fetch([Lookup(VIEW, [b"%d" % entity for entity in entities])], 5)[0]
    return [None if np.isnan(value) else int(value) for value in rows.values[:, 0]]


def drain(consumer):
    consumer.run(threading.Event(), once=True)
    return consumer.counts


def pending(client):
    return client.xpending("events", "g")["pending"]


def test_entries_become_rows_and_are_acknowledged(store, client, consumer):
    add(client, *((i % 10, i, i) for i in range(100)))
    counts = drain(consumer(batch=7))
    assert (counts.read, counts.written, counts.older, counts.rejected) == (100, 100, 0, 0)
    assert stored(store, *range(10)) == list(range(90, 100))
    assert pending(client) == 0
    add(client, (3, 7, 1000))
    assert drain(consumer()).read == 1  # the group goes on where it was


def test_events_that_come_in_the_wrong_order_end_right(store, client, consumer):
    add(client, (1, 5, 50), (1, 6, 60), (1, 4, 40))
    assert drain(consumer(batch=1)).older == 1
    assert stored(store, 1) == [6]


def test_entries_whose_time_is_over_are_counted_and_acknowledged(store, client, consumer):
    add(client, (1, 1, -VIEW.ttl_s * 1000), (2, 2, 2))
    counts = drain(consumer())
    assert (counts.written, counts.over, counts.older, pending(client)) == (1, 1, 0, 0)
    assert stored(store, 1, 2) == [None, 2]


def test_what_was_delivered_to_one_that_died_is_taken_up_under_the_same_name(store, client, consumer):
    add(client, (1, 1, 1), (2, 2, 2))
    with pytest.raises(KeyError):
        drain(consumer(writer=Dies()))
    add(client, (1, 3, 3))
    assert (pending(client), stored(store, 1, 2)) == (2, [None, None])
    assert drain(consumer()).read == 3
    assert (pending(client), stored(store, 1, 2)) == (0, [3, 2])


def test_what_was_written_and_not_acknowledged_is_delivered_again_without_effect(store, client, consumer):
    add(client, (1, 1, 1), (2, 2, 2))
    with pytest.raises(KeyError):
        drain(consumer(writer=Dies(RowWriter(store, VIEW, "at"))))
    store.put(VIEW, [b"1"], {"n": np.array([9])}, np.array([SINCE + 9]))
    counts = drain(consumer())
    assert (counts.read, counts.written, counts.older) == (2, 1, 1)
    assert (pending(client), stored(store, 1, 2)) == (0, [9, 2])


def test_others_claim_what_one_that_died_left_behind(store, client, consumer):
    add(client, *((i, i, i) for i in range(5)))
    with pytest.raises(KeyError):
        drain(consumer("dead", writer=Dies()))
    heir = consumer("heir", claim_after_s=0.001, batch=2)
    heir.run(threading.Event(), once=True)
    while heir.counts.claimed < 5:
        heir.step()
    assert (pending(client), stored(store, *range(5))) == (0, list(range(5)))
    patient = consumer("patient", claim_after_s=60)
    assert drain(patient).claimed == 0


def test_an_entry_that_is_no_row_is_buried_with_its_reason_and_acknowledged(store, client, consumer):
    add(client, (1, 1, 1), (2, "two", 2), (3, 3, "soon"), (4, 4, 4))
    counts = drain(consumer(dead_entries=100))
    assert (counts.written, counts.rejected, pending(client)) == (2, 2, 0)
    assert stored(store, 1, 2, 3, 4) == [1, None, None, 4]
    first, second = (fields for _, fields in client.xrange("events:dead"))
    assert first[b"penstock:reason"] == b"field 'n': 'two' is not int64"
    assert first[b"penstock:stream"] == b"events"
    assert {name: first[name] for name in (b"id", b"n", b"at")} == {
        b"id": b"2",
        b"n": b"two",
        b"at": b"%d" % (SINCE + 2),
    }
    assert client.xrange("events", first[b"penstock:id"], first[b"penstock:id"])
    assert b"'at'" in second[b"penstock:reason"]


def test_the_dead_letter_stream_is_bounded(client, consumer):
    add(client, *((i, "bad", i) for i in range(1000)))
    assert drain(consumer(dead_entries=10)).rejected == 1000
    assert client.xlen("events:dead") <= 200  # Redis trims whole nodes of a hundred


def test_nothing_is_acknowledged_where_the_dead_letter_stream_cannot_be_written(client, consumer):
    add(client, (1, "bad", 1))
    client.set("events:dead", "not a stream")
    with pytest.raises(StoreMisconfigured, match="WRONGTYPE"):
        drain(consumer())
    assert pending(client) == 1


def test_entries_that_were_trimmed_before_they_could_be_read_again_are_counted(client, consumer):
    add(client, (1, 1, 1), (2, 2, 2))
    with pytest.raises(KeyError):
        drain(consumer(writer=Dies()))
    client.xtrim("events", 0)
    counts = drain(consumer())
    assert (counts.trimmed, counts.written, pending(client)) == (2, 0, 0)


def test_trimmed_entries_of_one_that_died_do_not_stay_pending(client, consumer):
    add(client, (1, 1, 1), (2, 2, 2))
    with pytest.raises(KeyError):
        drain(consumer("dead", writer=Dies()))
    client.xtrim("events", 0)
    heir = consumer("heir", claim_after_s=0.001)
    until = time.monotonic() + 5
    while pending(client):
        heir.step(0)
        assert time.monotonic() < until


def test_a_group_that_is_gone_is_made_anew_from_the_beginning(store, client, consumer):
    reader = consumer(start="$")
    drain(reader)
    add(client, (1, 1, 1))
    drain(reader)
    client.xgroup_destroy("events", "g")
    add(client, (2, 2, 2))
    drain(reader)  # makes it
    drain(reader)
    assert stored(store, 1, 2) == [1, 2]
    client.delete("events")
    drain(reader)
    add(client, (3, 3, 3))
    drain(reader)
    assert stored(store, 3) == [3]


def test_a_new_group_may_begin_with_what_comes_next(store, client, consumer):
    add(client, (1, 1, 1))
    reader = consumer(start="$")
    drain(reader)
    add(client, (2, 2, 2))
    drain(reader)
    assert stored(store, 1, 2) == [None, 2]


def test_several_consumers_share_the_entries(store, client, consumer):
    add(client, *((i, i, i) for i in range(300)))
    readers = [consumer(f"c{i}", batch=10) for i in range(3)]
    threads = [threading.Thread(target=drain, args=(reader,)) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sum(reader.counts.read for reader in readers) == 300
    assert (pending(client), stored(store, *range(300))) == (0, list(range(300)))


def test_one_that_leaves_is_forgotten_unless_entries_are_pending(client, consumer):
    add(client, (1, 1, 1))
    with pytest.raises(KeyError):
        drain(failing := consumer("failing", writer=Dies()))
    failing.leave()
    leaving = consumer("leaving")
    drain(leaving)
    leaving.leave()
    assert [c["name"] for c in client.xinfo_consumers("events", "g")] == [b"failing"]


def test_the_lag_is_told(client, consumer):
    reader = consumer(batch=1)
    assert reader.lag().behind_ms == 0
    assert not client.exists("events")  # asking makes nothing
    drain(reader)
    for ms in (1000, 3000, 8000):
        client.xadd("events", {"id": 1, "n": 1, "at": 1}, id=f"{ms}-0")
    reader.step()
    lag = reader.lag()
    assert (lag.pending, lag.behind_ms) == (0, 7000)
    assert lag.entries in (None, 2)


def test_an_outage_is_waited_out(store, client, proxy, consumer):
    add(client, *((i, i, i) for i in range(20)))
    with closing(open_store(proxy.url)) as remote:
        reader = consumer(source=remote, batch=5)
        stop, steps = threading.Event(), []

        def told():
            steps.append(reader.counts.read)
            if len(steps) == 1:
                proxy.refuse()
            if stored(store, *range(20)) == list(range(20)) and pending(client) == 0:
                stop.set()

        thread = threading.Thread(target=reader.run, args=(stop,), kwargs={"told": told})
        thread.start()
        while not reader.counts.failures:
            assert not stop.wait(0.01)
        proxy.restore()
        thread.join(20)
        assert not thread.is_alive()
    assert reader.counts.written >= 20


def test_a_store_that_is_away_leaves_entries_pending_until_it_is_back(store, client, consumer):
    add(client, (1, 1, 1))

    class Away(RowWriter):
        failures = 2

        def write(self, entries, floor, counts):
            self.failures -= 1
            if self.failures >= 0:
                raise StoreUnavailable("away")
            return super().write(entries, floor, counts)

    reader = consumer(writer=Away(store, VIEW, "at"))
    counts = drain(reader)
    assert (counts.failures, counts.written, pending(client)) == (2, 1, 0)


def test_entries_that_are_too_large_together_are_taken_one_by_one(store, client, consumer, monkeypatch):
    monkeypatch.setattr("penstock.features.streams.MAX_REPLY", 1 << 16)
    for entity in range(4):
        client.xadd("events", {"id": entity, "n": entity, "at": SINCE, "other": "x" * 40_000})
    counts = drain(consumer(batch=4))
    assert counts.written == 4
    assert counts.failures >= 2
    assert stored(store, *range(4)) == [0, 1, 2, 3]
    assert pending(client) == 0


def test_a_refusal_ends_it(client, consumer):
    client.set("events", "not a stream")
    with pytest.raises(StoreMisconfigured, match="WRONGTYPE"):
        drain(consumer())


def test_the_command_consumes_until_nothing_is_left(redis_url, store, client):
    store.apply(VIEW)
    add(client, (1, 1, 1), (2, "two", 2))
    words = ["features", "stream", "activity", "--stream", "events", "--features", redis_url, "--time", "at", "--once"]
    found = CliRunner().invoke(app, [*words, "--json"])
    assert found.exit_code == 0, found.output
    counts = json.loads(found.stdout)
    assert (counts["read"], counts["written"], counts["rejected"]) == (2, 1, 1)
    assert client.xinfo_consumers("events", "penstock") == []
    assert "read 0 entries" in CliRunner().invoke(app, words).stdout


def test_the_command_reads_from_another_redis_if_told(redis_url, client, tmp_path):
    with closing(open_store(f"embedded://{tmp_path}")) as store:
        store.apply(VIEW)
        add(client, (1, 1, 1))
        words = ["features", "stream", "activity", "--stream", "events", "--from", redis_url, "--once"]
        found = CliRunner().invoke(app, [*words, "--features", f"embedded://{tmp_path}", "--group", "other"])
        assert found.exit_code == 0, found.output
        assert stored(store, 1) == [1]


# Dead letters -----------------------------------------------------------------------------------------------------


def test_a_dead_letter_comes_back_as_old_as_it_was_once_the_view_takes_it(store, client, consumer):
    client.xadd("events", {"id": 1, "n": "1.5"}, id=f"{SINCE}-0")
    client.xadd("events", {"id": 2, "n": "2.5"}, id=f"{SINCE + 1}-0")
    assert drain(consumer(time_field=None)).rejected == 2
    wider = FeatureView(name="activity", entity="id", columns=[Column(name="n", dtype="float64")])
    store.put(wider, ["2"], {"n": [9.0]}, [SINCE + 2])
    again = consumer(stream="events:dead", dead="events:deader", writer=RowWriter(store, wider, None))
    counts = drain(again)
    assert (counts.read, counts.written, counts.older, counts.rejected) == (2, 1, 1, 0)
    found = store.get(wider, ["1", "2"])
    assert found["n"].tolist() == [1.5, 9.0]
    assert found.event_times.tolist() == [SINCE, SINCE + 2]


def test_a_dead_letter_that_fails_again_keeps_where_it_first_came_from(client, consumer):
    [first] = add(client, (1, "bad", 1))
    drain(consumer())
    drain(consumer(stream="events:dead", dead="events:deader"))
    [(_, letter)] = client.xrange("events:deader")
    assert (letter[b"penstock:stream"], letter[b"penstock:id"]) == (b"events", first)
    assert letter[b"penstock:reason"] == b"field 'n': 'bad' is not int64"
    assert len(letter) == 6


def test_dead_letters_are_listed_the_last_first(redis_url, client, consumer):
    add(client, (1, "bad", 1), (2, 2, "soon"), (3, "worse", 1))
    drain(consumer())
    words = ["features", "dead-letters", "events:dead", "--from", redis_url]
    letters = json.loads(CliRunner().invoke(app, [*words, "--limit", "2", "--json"]).stdout)
    assert [letter["fields"]["id"] for letter in letters] == ["3", "2"]
    assert letters[0]["reason"] == "field 'n': 'worse' is not int64"
    assert (letters[0]["stream"], letters[0]["fields"]) == ("events", {"id": "3", "n": "worse", "at": str(SINCE + 1)})
    assert client.xrange("events", letters[0]["first_id"], letters[0]["first_id"])
    shown = CliRunner().invoke(app, words, env={"COLUMNS": "200"}).stdout
    assert "'bad' is not int64" in shown
    assert (
        "No dead letters" in CliRunner().invoke(app, ["features", "dead-letters", "none", "--from", redis_url]).stdout
    )
    refused = CliRunner().invoke(app, ["features", "dead-letters", "none", "--from", "memory://"])
    assert "a stream is in a Redis" in str(refused.exception)


def test_dead_letters_are_listed_however_large_and_under_whichever_ids(redis_url, client):
    for _ in range(18):
        client.xadd("events:dead", {"n": "x" * 1_000_000})
    client.xadd("events:dead", {"n": "bad"}, id="99999999999999999-1")
    words = ["features", "dead-letters", "events:dead", "--from", redis_url]
    letters = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert (len(letters), letters[0]["id"], letters[0]["time"]) == (19, "99999999999999999-1", None)
    assert "99999999999999999-1" in CliRunner().invoke(app, words, env={"COLUMNS": "200"}).stdout


# Watching ---------------------------------------------------------------------------------------------------------


def test_a_stream_that_was_not_there_is_told(client, consumer, caplog):
    drain(consumer(stream="evnets"))
    assert "there was no stream 'evnets' in /" in caplog.text
    add(client, (1, 1, 1))
    caplog.clear()
    drain(consumer())
    assert caplog.text == ""


def test_batches_retries_and_the_newest_event_are_counted(client, consumer):
    add(client, (1, 1, 1000), (2, 2, 3000), (3, 3, 2000))
    with pytest.raises(KeyError):
        drain(consumer(writer=Dies()))
    add(client, (1, 4, 2500))
    counts = drain(consumer(batch=2))
    assert (counts.read, counts.retried, counts.batches, counts.newest_ms) == (4, 3, 3, SINCE + 3000)


def test_unknown_words_are_counted_by_column(store, client, consumer):
    words = [Column(name="kind", dtype="category", vocabulary=["a", "b"]), Column(name="n", dtype="int64")]
    view = FeatureView(name="activity", entity="id", columns=words)
    for i, kind in enumerate(("a", "c", "", "d", "b")):
        client.xadd("events", {"id": i, "n": "bad" if i == 4 else i, "kind": kind, "at": 1})
    reader = consumer(writer=RowWriter(store, view, "at"))
    assert drain(reader).unknown == {"kind": 2}
    assert "2 unknown words in kind" in in_words(reader)


def test_a_consumer_is_scraped(client, proxy, consumer):
    with closing(open_store(proxy.url)) as remote:
        reader = consumer(source=remote, batch=2)
        with metered(reader, "activity", Address("127.0.0.1", 0)) as server:
            add(client, (1, 1, 5000), (2, "two", 2), (1, 3, 4000), (4, 4, 1), (5, 5, 1))
            reader.step()
            told = scraped_from(server)
            assert told["penstock_stream_read_total"] == 2
            assert told["penstock_stream_entries_total,written"] == 1
            assert told["penstock_stream_entries_total,rejected"] == 1
            assert told["penstock_stream_newest_event_seconds"] == pytest.approx((SINCE + 5000) / 1000, abs=1e-3)
            assert (told["penstock_stream_up"], told["penstock_stream_pending_entries"]) == (1, 0)
            assert told.get("penstock_stream_lag_entries", 3) == 3
            proxy.refuse()
            told = scraped_from(server)
            assert told["penstock_stream_up"] == 0
            assert "penstock_stream_lag_seconds" not in told
            assert told["penstock_stream_read_total"] == 2


def scraped_from(server):
    """Values by metric and, where there is one, the label beside those that all have."""
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    told = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            own = {"view": "activity", "stream": "events", "group": "g"}
            assert own.items() <= sample.labels.items()
            more = [value for name, value in sample.labels.items() if name not in own]
            told[",".join([sample.name, *more])] = sample.value
    return told


@pytest.mark.parametrize(
    ("address", "told"),
    [("9100", "is not HOST:PORT"), ("unix:/tmp/m", "is not HOST:PORT"), ("0.0.0.0:0", "say --allow-remote")],
)
def test_metrics_are_on_loopback_unless_something_else_is_meant(redis_url, store, address, told):
    store.apply(VIEW)
    words = ["features", "stream", "activity", "--stream", "events", "--features", redis_url, "--once"]
    refused = CliRunner().invoke(app, [*words, "--metrics", address])
    assert told in str(refused.exception)
    if told.endswith("remote"):
        assert CliRunner().invoke(app, [*words, "--metrics", address, "--allow-remote"]).exit_code == 0
    assert CliRunner().invoke(app, [*words, "--metrics", "127.0.0.1:0"]).exit_code == 0


def test_a_port_that_is_taken_is_told_in_one_line(redis_url, store):
    store.apply(VIEW)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["features", "stream", "activity", "--stream", "events", "--features", redis_url, "--once"]
        refused = CliRunner().invoke(app, [*words, "--metrics", f"127.0.0.1:{taken.getsockname()[1]}"])
    assert "cannot be listened on: Address already in use" in str(refused.exception)
