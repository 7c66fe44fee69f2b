"""Streams and aggregates on a real cluster of three masters: each event counts once, whichever of them dies.

The masters keep an append-only file, synced before each answer, so that one that is killed and started again has lost
nothing it acknowledged. Each has a replica, which takes over in a failover that waits for it, or when the master is
killed; then by `replicas=1` it has all that counts.
"""

import contextlib
import importlib.util
import random
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from penstock.features import Column, FeatureView, Lookup, StoreUnavailable, open_store
from penstock.features.aggregating import AggregateWriter, writer_for
from penstock.features.commands import pack
from penstock.features.entries import Entry
from penstock.features.links import Link
from penstock.features.slots import in_full, sha1_of, slot_of
from penstock.features.streams import Consumer, Counts, Settings

NOW, HOUR = 1_800_000_000_000, 3_600_000
EVENTS = 1200
QUICK = (3,)  # seeds of the default run
SEEDS = [pytest.param(seed, marks=[] if seed in QUICK else [pytest.mark.slow]) for seed in range(30)]
PLAIN = FeatureView(name="activity", entity="id", columns=[Column(name="n", dtype="int64")])
COUNTED = {"columns": {"n": {"function": "count", "window": "7d"}}}
COUNTING = FeatureView.model_validate(PLAIN.model_dump() | {"aggregates": COUNTED})
SUMS = FeatureView.parse(
    {
        "name": "spending",
        "entity": "id",
        "columns": [{"name": "n_1h", "dtype": "int64"}, {"name": "sum_7d", "dtype": "float64"}],
        "aggregates": {
            "columns": {
                "n_1h": {"function": "count", "window": "1h"},
                "sum_7d": {"function": "sum", "of": "amount", "window": "7d"},
            }
        },
    }
)


def _load(name):
    spec = importlib.util.spec_from_file_location(f"feature_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers, victims, walkthrough = _load("servers"), _load("victims"), _load("walkthrough")


class Cluster(servers.ClusterProcesses):
    """Three masters, each with a replica that takes over when it is asked to and never by itself."""

    def __init__(self, executable):
        options = {"appendonly": "yes", "appendfsync": "always", "cluster_replica_no_failover": "yes"}
        super().__init__(executable, **options)
        try:
            self.pairs = [(master, self.add()) for master in list(self.servers)]
            for master, replica in self.pairs:
                command(replica, "CLUSTER", "MEET", "127.0.0.1", master.port)
            self.wait()
            for master, replica in self.pairs:
                command(replica, "CLUSTER", "REPLICATE", name_of(master))
            for pair in self.pairs:
                self.in_step(pair)
        except BaseException:
            self.close()
            raise

    def masters(self):
        return [server for server in self.servers if replication(server)["role"] == "master"]

    def in_step(self, pair):
        """Master and replica, once the one takes the other for it and has sent it all."""

        def found():
            roles = {replication(server)["role"]: server for server in pair}
            joined = "slave" in roles and replication(roles["slave"])["master_link_status"] == "up"
            return (roles["master"], roles["slave"]) if joined and "master" in roles else None

        return servers.wait_until(found)

    def fail_over(self, pair, *, kill=False):
        """Have the replica take over: asked by its master, or without it, which is killed; who was the master."""
        master, replica = self.in_step(pair)
        if kill:
            master.kill()
        for _ in range(3):  # who voted a moment ago does not vote again, and Redis gives the failover up after 5 s
            command(replica, "CLUSTER", "FAILOVER", *(["TAKEOVER"] if kill else []))
            with contextlib.suppress(AssertionError):
                servers.wait_until(lambda: replication(replica)["role"] == "master", 6)
                return master
        raise AssertionError("the replica does not take over")

    def restart(self, server, after_s):
        server.kill()
        time.sleep(after_s)
        server.start()

    def clear(self):
        """Empty, in step, and without a failure."""
        self.wait()
        for pair in self.pairs:
            master, _ = self.in_step(pair)
            command(master, "FLUSHALL")

    def client(self):
        """A client of the test's own that knows about clusters."""
        return redis.RedisCluster("127.0.0.1", self.servers[0].port)


def command(server, *words):
    with server.client() as client:
        return client.execute_command(*words)


def name_of(server):
    return command(server, "CLUSTER", "MYID").decode()


def replication(server):
    with server.client() as client:
        return client.info("replication")


@pytest.fixture(scope="module", params=servers.VERSIONS)
def running(request):
    with closing(Cluster(request.param)) as cluster:
        yield cluster


@pytest.fixture
def cluster(running):
    running.clear()
    return running


@pytest.fixture
def store(cluster):
    with closing(open_store(f"{cluster.url}?replicas=1")) as store:
        yield store


def add(store, *fields, stream="events"):
    """Events, each a dict of fields."""
    words = [[str(word) for pair in one.items() for word in pair] for one in fields]
    store.request(*[pack(b"XADD", stream, b"*", *some) for some in words])


def consumer_of(store, view, stream="events", clock=lambda: NOW, **settings):
    settings = Settings(stream, "g", "one", "dead", time_field="at", **settings)
    writer = AggregateWriter(store, view, "at", clock) if view.aggregates else writer_for(store, view, "at")
    return Consumer(store, writer, settings)


def drain(consumer):
    consumer.run(threading.Event(), once=True)
    return consumer.counts


def stored(store, view, entities):
    """{entity: values} of the rows that are there."""
    (rows,) = store.fetch([Lookup(view, entities)], 5)
    return {
        entity: values
        for entity, values, status in zip(entities, rows.values.tolist(), rows.status.tolist(), strict=True)
        if status == 0
    }


def alike(entities, *values):
    return {entity: list(values) for entity in entities}


# Keys and commands --------------------------------------------------------------------------------------------------


@given(st.binary(min_size=1).filter(lambda entity: not entity.startswith(b"}")))
def test_the_row_and_the_state_of_an_entity_are_in_one_slot(entity):
    assert slot_of(SUMS.key(entity)) == slot_of(SUMS.key(entity) + b":state")


def test_events_are_aggregated_on_every_master(cluster, store):
    entities = [b"%d" % i for i in range(60)] + [b"{", b"a}b", b"{x}y", b"\xff}", b"a|b"]
    for _ in range(2):
        add(store, *({"id": repr(i), "at": NOW, "amount": i} for i in range(60)))
    for entity in entities[60:]:
        store.request(pack(b"XADD", b"events", b"*", b"id", entity, b"at", str(NOW), b"amount", b"7"))
    counts = drain(consumer_of(store, SUMS, batch=50))
    assert (counts.read, counts.written, counts.rejected) == (125, 125, 0)
    expected = {b"%d" % i: [2, 2 * i] for i in range(60)} | {entity: [1, 7] for entity in entities[60:]}
    assert stored(store, SUMS, entities) == expected
    for server in cluster.masters():
        with server.client() as client:
            assert len(client.keys("fs:{*}:spending:state")) > 10


def test_a_batch_is_two_writes_to_each_master_and_one_more_to_that_which_knows_what_is_due(store, monkeypatch):
    entries = [Entry(b"%d-0" % i, {b"id": b"%d" % (i % 60), b"at": b"%d" % NOW}) for i in range(120)]
    writer = AggregateWriter(store, SUMS, "at", lambda: NOW)
    writer.write(entries[:60], (0, 0), Counts())
    sent, send = Counter(), Link.send

    def counting(link, request, deadline):
        sent[link._socket.getpeername()] += 1
        send(link, request, deadline)

    monkeypatch.setattr(Link, "send", counting)
    writer.write(entries[60:], (0, 0), Counts())
    assert sorted(sent.values()) == [2, 2, 3]


def test_windows_move_on_without_events(store):
    now = NOW

    def clock():
        return now

    add(store, *({"id": i, "at": NOW, "amount": 5} for i in range(40)))
    reader = consumer_of(store, SUMS, clock=clock)
    drain(reader)
    entities = [b"%d" % i for i in range(40)]
    now = NOW + 2 * HOUR
    reader._writer.rest()
    assert stored(store, SUMS, entities) == alike(entities, 0, 5)
    now = NOW + 8 * 24 * HOUR
    reader._writer.rest()
    assert stored(store, SUMS, entities) == alike(entities, 0, 0)
    assert store.request(pack(b"ZCARD", b"fs:due:spending")) == [0]


def test_an_entity_that_has_no_slot_of_its_own_is_a_dead_letter_and_not_the_end(store):
    add(store, {"id": "}x", "at": NOW, "amount": 1}, {"id": "y", "at": NOW, "amount": 1})
    counts = drain(consumer_of(store, SUMS))
    assert (counts.written, counts.rejected) == (1, 1)
    ((_, fields),) = store.request(pack(b"XRANGE", b"dead", b"-", b"+"))[0]
    assert b"does not begin with '}'" in dict(zip(fields[::2], fields[1::2], strict=True))[b"penstock:reason"]


def test_a_value_of_another_kind_under_a_key_is_none(store):
    store.request(pack(b"XADD", b"k1", b"*", b"a", b"b"), pack(b"SET", b"k2", b"v"))
    assert store.values([b"k1", b"k2", b"k3"]) == [None, b"v", None]


def test_a_script_is_called_by_its_name_only_where_its_text_was_sent():
    commands = [[b"EVAL", b"return 1", b"0"], [b"EVALSHA", sha1_of(b"return 1"), b"0"], [b"EVALSHA", b"x"], [b"GET"]]
    assert in_full(commands) == [[b"EVAL", b"return 1", b"0"]] * 2 + [[b"EVALSHA", b"x"], [b"GET"]]


def test_rows_and_states_are_written_while_a_slot_is_moved_to_a_master_that_lacks_the_script(cluster, store):
    """Half of its keys have gone, and nobody remembers a script."""
    slot = slot_of(b"7")
    giver = next(one for one in cluster.masters() if owns(one, "{7}"))
    taker = next(one for one in cluster.masters() if one is not giver)
    others = [b"%d" % i for i in range(60) if slot_of(b"%d" % i) != slot]
    write_both(store, [b"7", *others], 1)
    ids = {one: name_of(one) for one in (giver, taker)}
    with giver.client() as old, taker.client() as new:
        new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[giver])
        old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[taker])
        try:
            for key in old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                old.execute_command("MIGRATE", "127.0.0.1", taker.port, key, 0, 1000)
            for value in (2, 3):
                for server in cluster.masters():
                    with server.client() as client:
                        client.script_flush()
                write_both(store, [b"7", *others], value)
        finally:
            for server in sorted(cluster.masters(), key=lambda one: one is not taker):
                with server.client() as client:
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[taker])
    write_both(store, [b"7", *others], 4)


def write_both(store, entities, value):
    """A row of the plain view and one more event of the aggregated one for each entity, and a look at them."""
    times = np.full(len(entities), time.time_ns() // 1_000_000 - 1000 + value, np.int64)
    assert store.put(PLAIN, entities, {"n": np.full(len(entities), value)}, times) == len(entities)
    entries = [Entry(b"%d-%d" % (value, i), {b"id": e, b"amount": b"1"}) for i, e in enumerate(entities)]
    counts = Counts()
    AggregateWriter(store, SUMS, None, lambda: HOUR).write(entries, (0, 0), counts)
    assert counts.written == len(entities)
    assert stored(store, PLAIN, entities) == alike(entities, value)
    assert stored(store, SUMS, entities) == alike(entities, value, value)


def owns(server, key):
    """Whether it is this master that has a key's slot."""
    with server.client() as client, contextlib.suppress(redis.ResponseError):
        client.exists(key)
        return True
    return False


# Failures -----------------------------------------------------------------------------------------------------------


def test_a_write_that_waits_for_replicas_follows_the_slot_from_a_master_that_was_demoted(cluster, store):
    """Who was demoted refuses to wait for replicas of its own."""
    pair = cluster.pairs[0]
    key = next(name for name in (f"k{i}" for i in range(1000)) if owns(cluster.in_step(pair)[0], name))
    store.write(pack(b"SET", key, b"before"))
    cluster.fail_over(pair)
    assert store.write(pack(b"SET", key, b"after")) == [b"OK"]
    assert store.values([key.encode()]) == [b"after"]


def test_one_that_waits_for_entries_follows_the_stream_to_its_next_master(cluster, store):
    pair = cluster.pairs[1]
    master, _ = cluster.in_step(pair)
    with master.client() as client:
        stream = next(name for name in (f"s{i}" for i in range(1000)) if owns(master, name))
        reader, stop = consumer_of(store, COUNTING, stream), threading.Event()
        thread = threading.Thread(target=reader.run, args=(stop,))
        thread.start()
        try:
            servers.wait_until(lambda: client.info("clients")["blocked_clients"] == 1)
            cluster.fail_over(pair)
            servers.wait_until(lambda: added(store, stream))
            servers.wait_until(lambda: reader.counts.written == 1)
        finally:
            stop.set()
            thread.join(20)
    assert not thread.is_alive()
    assert stored(store, COUNTING, [b"1"]) == {b"1": [1]}


def added(store, stream):
    with contextlib.suppress(StoreUnavailable):
        add(store, {"id": 1, "at": NOW, "n": 1}, stream=stream)
        return True
    return False


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("view", [COUNTING, pytest.param(PLAIN, marks=pytest.mark.slow)], ids=["counts", "rows"])
def test_nothing_is_lost_or_counted_twice_whoever_is_killed_meanwhile(cluster, store, view, seed):
    chance = random.Random(seed)
    now = time.time_ns() // 1_000_000
    events = [(chance.randrange(40), now - chance.randrange(10**6), row) for row in range(EVENTS)]
    store.apply(view)
    for start in range(0, EVENTS, 400):
        store.write(
            *(
                pack(b"XADD", b"events", f"{row + 1}-0", b"id", str(entity), b"at", str(at), b"n", str(row))
                for entity, at, row in events[start : start + 400]
            )
        )
    url = f"{cluster.url}?replicas=1"
    for _ in range(chance.randint(1, 3)):
        victim = victims.Victim("stream", url)
        victim.run_until(chance.randint(1, EVENTS // 50 // 3), chance.random() * 0.01)
        pair = chance.choice(cluster.pairs)
        match chance.choice(["restart", "fail over", "kill"]):
            case "restart":
                cluster.restart(cluster.in_step(pair)[0], chance.random())
            case "fail over":
                cluster.restart(cluster.fail_over(pair), chance.random())
            case "kill":
                master = cluster.fail_over(pair, kill=True)
                time.sleep(chance.random())
                master.start()
        assert victim.run_until(0, chance.random())
        victim.end(kill=True)
        cluster.wait()
    assert victims.Victim("stream", url, "once").end() == 0
    rows = stored(store, view, [b"%d" % i for i in range(40)])
    found = {int(entity): int(values[0]) for entity, values in rows.items()}
    if view is COUNTING:
        assert found == Counter(entity for entity, _, _ in events)
    else:
        assert found == {entity: n for entity, _, n in sorted(events, key=lambda event: (event[1], event[2]))}


# Commands -----------------------------------------------------------------------------------------------------------


def test_every_command_works_on_a_cluster(cluster, tmp_path):
    with cluster.client() as client:
        walkthrough.walk(cluster.url, client, tmp_path)
