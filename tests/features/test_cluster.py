"""A real cluster of three masters: one round trip, redirections, resharding, a master that dies, and its grammar."""

import importlib.util
import os
import signal
import socket
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import hiredis
import numpy as np
import pytest

from penstock.features import Column, FeatureView, Lookup, StoreMisconfigured, StoreUnavailable, open_store
from penstock.features.deleting import delete_view
from penstock.features.slots import masters, redirection, slot_of, split

OK, ABSENT, LOST = 0, 1, 5
ENTITIES = [b"%d" % i for i in range(60)]
WIDE = FeatureView(name="wide", entity="e", columns=[Column(name=f"c{i}", dtype="float32") for i in range(4)])
PAIRS = FeatureView(name="pairs", entity="e", layout="hash", columns=[Column(name="a", dtype="int64")])


def _load(name):
    spec = importlib.util.spec_from_file_location(f"feature_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load("servers")


@pytest.fixture(scope="module", params=servers.VERSIONS)
def cluster(request):
    with closing(servers.ClusterProcesses(request.param)) as cluster:
        yield cluster


@pytest.fixture
def store(cluster):
    """Row i of `WIDE` and of `PAIRS` holds i in every column."""
    with closing(open_store(cluster.url)) as store:
        values = np.arange(60)
        store.put(WIDE, ENTITIES, {f"c{i}": values.astype(np.float32) for i in range(4)})
        store.put(PAIRS, ENTITIES, {"a": values})
        yield store


def own(rows):
    """Entities whose rows came; asserts that none has another's."""
    for i in np.flatnonzero(rows.status == OK):
        assert (rows.values[i] == float(ENTITIES[i])).all()
    return set(np.flatnonzero(rows.status == OK).tolist())


def test_rows_and_hashes_come_from_every_master_in_their_order(store, cluster):
    wide, pairs, again = store.fetch([Lookup(WIDE, ENTITIES), Lookup(PAIRS, ENTITIES), Lookup(WIDE, [b"no", b"7"])], 2)
    assert own(wide) == own(pairs) == set(range(60))
    assert again.status.tolist() == [ABSENT, OK]
    assert again.values[1].tolist() == [7] * 4
    held = [server.client().dbsize() for server in cluster.servers]
    assert min(held) > 10


def test_a_view_is_deleted_from_every_master_and_the_others_stay(store):
    store.apply(WIDE)
    assert store.delete(WIDE, ["1", "2", "nobody"]) == 2
    assert delete_view(store, "wide") == 58
    wide, pairs = store.fetch([Lookup(WIDE, ENTITIES), Lookup(PAIRS, ENTITIES)], 2)
    assert own(wide) == set()
    assert own(pairs) == set(range(60))
    assert store.delete(PAIRS, ENTITIES) == 60


def test_a_look_up_is_one_write_to_each_master(store, cluster):
    store.fetch([Lookup(WIDE, ENTITIES)], 2)

    clients = [server.client(single_connection_client=True) for server in cluster.servers]
    before = [client.info("stats")["total_reads_processed"] for client in clients]
    for _ in range(10):
        store.fetch([Lookup(WIDE, ENTITIES), Lookup(PAIRS, ENTITIES)], 2)
    after = [client.info("stats")["total_reads_processed"] for client in clients]
    assert [last - first for first, last in zip(before, after, strict=True)] == [11, 11, 11]  # one is INFO's own


def test_the_newest_event_wins_on_every_master(store):
    times = np.full(60, time.time_ns() // 1_000_000 + 1000, np.int64)
    columns = {f"c{i}": np.full(60, 5, np.float32) for i in range(4)}
    assert store.put(WIDE, ENTITIES, columns, times) == 60
    assert store.put(WIDE, ENTITIES, {name: values + 1 for name, values in columns.items()}, times - 1) == 0
    assert (store.fetch([Lookup(WIDE, ENTITIES)], 2)[0].values == 5).all()
    assert store.put(WIDE, ENTITIES, {f"c{i}": np.arange(60, dtype="f4") for i in range(4)}, overwrite=True) == 60


def test_views_are_applied_and_found(store):
    store.apply(WIDE)
    assert store.view("wide") == WIDE
    assert store.views() == [WIDE]
    store.ping()


def test_a_slot_that_is_being_moved_and_then_was_moved_is_followed(store, cluster):
    """Half of its keys have gone (ASK); then it belongs to another master (MOVED)."""
    tag = slot_of(b"7")
    views = [WIDE, FeatureView(**WIDE.model_dump() | {"name": "second"})]
    store.put(views[1], [b"7"], {f"c{i}": np.full(1, 7, np.float32) for i in range(4)})
    giver, taker = moving(cluster, tag)
    try:
        giver.execute_command("MIGRATE", "127.0.0.1", port_of(taker), WIDE.key(b"7"), 0, 1000)
        for _ in range(3):
            found = store.fetch([Lookup(view, [b"7", b"8"]) for view in views], 2)
            assert [rows.status.tolist() for rows in found] == [[OK, OK], [OK, ABSENT]]
            assert all((rows.values[0] == 7).all() for rows in found)
        for key in giver.execute_command("CLUSTER", "GETKEYSINSLOT", tag, 100):
            giver.execute_command("MIGRATE", "127.0.0.1", port_of(taker), key, 0, 1000)
    finally:
        settle(cluster, tag, taker)
    assert own(store.fetch([Lookup(WIDE, ENTITIES)], 2)[0]) == set(range(60))
    assert store.put(WIDE, [b"7"], {f"c{i}": np.full(1, 7, np.float32) for i in range(4)}, overwrite=True) == 1


def moving(cluster, slot):
    """Mark a slot as on its way from who has it to another; clients of both."""
    giver = cluster.servers[slot * 3 // 16384]
    taker = next(server for server in cluster.servers if server is not giver)
    ids = {server.port: server.client().execute_command("CLUSTER", "MYID").decode() for server in (giver, taker)}
    taker.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[giver.port])
    giver.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[taker.port])
    return giver.client(), taker.client()


def port_of(client):
    return client.connection_pool.connection_kwargs["port"]


def settle(cluster, slot, taker):
    name = taker.execute_command("CLUSTER", "MYID").decode()
    for server in sorted(cluster.servers, key=lambda server: server.port != port_of(taker)):
        server.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)


@pytest.mark.parametrize("how", ["killed", "hung"])
def test_a_master_that_dies_loses_its_own_rows_only_and_is_found_again(store, cluster, how):
    """Their reason is told; the others' rows come in time."""
    for server in cluster.servers:
        server.client().config_set("cluster-require-full-coverage", "no")
    assert own(store.fetch([Lookup(WIDE, ENTITIES)], 2)[0]) == set(range(60))
    victim = cluster.servers[2]
    if how == "killed":
        victim.kill()
    else:
        os.kill(victim.process.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            started = time.monotonic()
            (rows,) = store.fetch([Lookup(WIDE, ENTITIES)], 0.3)
            assert time.monotonic() - started < 0.36
            assert set(rows.status.tolist()) == {OK, LOST}
            assert own(rows)
            assert np.isnan(rows.values[rows.status == LOST]).all()
            assert str(victim.port) in rows.trouble
    finally:
        if how == "killed":
            victim.start()
        else:
            os.kill(victim.process.pid, signal.SIGCONT)
    cluster.wait()
    store.put(WIDE, ENTITIES, {f"c{i}": np.arange(60, dtype="f4") for i in range(4)}, overwrite=True)
    servers.wait_until(lambda: own(store.fetch([Lookup(WIDE, ENTITIES)], 1)[0]) == set(range(60)))


def test_without_any_node_it_is_unavailable_in_time_and_comes_back():
    port = servers.free_port()
    with closing(open_store(f"redis+cluster://127.0.0.1:{port}")) as store:
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match=str(port)):
            store.fetch([Lookup(WIDE, ENTITIES)], 0.3)
        assert time.monotonic() - started < 0.36


def test_who_has_little_time_does_not_wait_for_somebody_who_has_much():
    silent = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in silent)
    with closing(open_store(url)) as store:

        def wait_long():
            with pytest.raises(StoreUnavailable):
                store.views()

        patient = threading.Thread(target=wait_long)
        patient.start()
        silent[0].accept()[0].close()
        servers.wait_until(store._servers._refreshing.locked)
        started = time.monotonic()
        with pytest.raises(StoreUnavailable, match="in time"):
            store.fetch([Lookup(WIDE, ENTITIES)], 0.1)
        assert time.monotonic() - started < 0.3
        patient.join()
    for one in silent:
        one.close()


def test_a_server_that_is_no_cluster_is_a_misconfiguration(redis_url, proxy):
    with closing(open_store(f"redis+cluster://127.0.0.1:{proxy.port}")) as store, pytest.raises(StoreMisconfigured):
        store.fetch([Lookup(WIDE, ENTITIES)], 1)


@pytest.mark.parametrize("url", ["redis+cluster://", "redis+cluster://a,,b", "redis+cluster://:hunter2@a:x,b"])
def test_a_url_with_a_mistake_is_a_misconfiguration_that_shows_no_password(url):
    with pytest.raises(StoreMisconfigured) as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)


# Grammar ------------------------------------------------------------------------------------------------------------


def test_slots_are_those_of_the_specification(cluster):
    """The published check value, and the server's own opinion."""
    assert slot_of(b"123456789") == 0x31C3
    with cluster.servers[0].client() as client:
        for key in (b"fs:{17}:wide", b"features:17", b"{}x", b"a{b", b"{a}{b}", b"x{}{y}", b"}{a}", b"", b"\xff{\x00}"):
            assert client.execute_command("CLUSTER", "KEYSLOT", key) == slot_of(key), key


def test_redirections_are_read_and_nothing_else_is_taken_for_one():
    here = ("asked", 1)
    assert redirection(hiredis.ReplyError("MOVED 7 host:2"), here).address == ("host", 2)
    assert redirection(hiredis.ReplyError("ASK 7 ::1:2"), here).address == ("::1", 2)
    assert redirection(hiredis.ReplyError("ASK 7 host:2"), here).once
    assert redirection(hiredis.ReplyError("MOVED 7 :2"), here).address == ("asked", 2)
    for text in ("MOVED 7 host", "MOVED 16384 h:2", "MOVED 7 h:0", "MOVED 7 h:70000", "MOVED x h:2", "ERR MOVED 7 h:2"):
        assert redirection(hiredis.ReplyError(text), here) is None
    assert redirection(b"MOVED 7 host:2", here) is None


def test_what_is_not_well_formed_in_a_list_of_slots_is_left_out():
    good = [0, 5, [b"h", 1, b"id"], [b"replica", 2, b"id"]]
    bad = [
        [5, 0, [b"h", 1]],
        [0, 16384, [b"h", 1]],
        [0, 5],
        [0, 5, [b"h", 0]],
        [0, 5, [b"?", 1]],
        7,
        [b"0", 5, [b"h", 1]],
    ]
    assert masters([good, *bad, [6, 7, [None, 3, b"id"]]], ("asked", 9)) == [(0, 5, ("h", 1)), (6, 7, ("asked", 3))]
    assert masters(b"?", ("asked", 9)) == []
    assert split(b"*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n") == [[b"PING"], [b"GET", b"k"]]


# Last, for it leaves the cluster with other masters ---------------------------------------------------------------


def test_a_replica_that_takes_over_is_found_without_being_named(store, cluster):
    """A failover: the old master's slots are the replica's from now on."""
    master, node = cluster.servers[1], cluster.add()
    with node.client() as replica, master.client() as old:
        replica.execute_command("CLUSTER", "MEET", "127.0.0.1", master.port)
        cluster.wait()
        replica.execute_command("CLUSTER", "REPLICATE", old.execute_command("CLUSTER", "MYID").decode())
        servers.wait_until(lambda: replica.info("replication").get("master_link_status") == "up")
        replica.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
        servers.wait_until(lambda: replica.info("replication")["role"] == "master")
    servers.wait_until(lambda: own(store.fetch([Lookup(WIDE, ENTITIES)], 1)[0]) == set(range(60)))
    columns = {f"c{i}": np.arange(60, dtype="f4") for i in range(4)}
    assert store.put(WIDE, ENTITIES, columns, overwrite=True) == 60
    master.kill()
    servers.wait_until(lambda: own(store.fetch([Lookup(WIDE, ENTITIES)], 1)[0]) == set(range(60)))
