"""Real sentinels, a master and a replica: planned and unplanned failovers, and what is said when nobody knows."""

import contextlib
import importlib.util
import os
import signal
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import redis

from penstock.features import Column, FeatureView, Lookup, StoreMisconfigured, StoreUnavailable, open_store
from penstock.features.commands import pack
from penstock.features.streams import Consumer, RowWriter, Settings

OK, ABSENT = 0, 1
VIEW = FeatureView(name="v", entity="e", columns=[Column(name="a", dtype="float32")])


def _load(name):
    spec = importlib.util.spec_from_file_location(f"feature_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers, walkthrough = _load("servers"), _load("walkthrough")


class Service:
    """A master, its replica, and a sentinel that watches them as "rows"; the URL also names one that is not there."""

    def __init__(self, executable):
        self.servers = [servers.RedisProcess(executable)]
        self.servers.append(servers.RedisProcess(executable, replicaof=f"127.0.0.1 {self.servers[0].port}"))
        self.sentinel = servers.RedisProcess(executable, "--sentinel")
        with self.sentinel.client() as client:
            client.sentinel_monitor("rows", "127.0.0.1", self.servers[0].port, 1)
            client.sentinel_set("rows", "down-after-milliseconds", 300)
            client.sentinel_set("rows", "failover-timeout", 2000)
        servers.wait_until(lambda: self.slaves() == 1)
        self.url = f"redis+sentinel://127.0.0.1:{servers.free_port()},127.0.0.1:{self.sentinel.port}/rows"

    def slaves(self):
        with self.sentinel.client() as client:
            master = client.sentinel_master("rows")
            return master["num-slaves"] if master["flags"] == "master" else 0

    def master(self):
        """The server that sentinel takes for the master."""
        with self.sentinel.client() as client:
            port = client.sentinel_get_master_addr_by_name("rows")[1]
        return next(server for server in self.servers if server.port == port)

    def has_copied(self):
        """Whether the replica has what the master has."""
        keys = [sorted(server.client().keys()) for server in self.servers]
        return keys[0] == keys[1] != []

    def fail_over(self):
        """Ask for the replica to be made the master; False where sentinel does not know enough of it yet."""
        with self.sentinel.client() as client, contextlib.suppress(redis.ResponseError):
            return client.execute_command("SENTINEL", "FAILOVER", "rows")

    def close(self):
        for server in (self.sentinel, *self.servers):
            server.close()


@pytest.fixture(params=servers.VERSIONS)
def service(request):
    with closing(Service(request.param)) as service:
        yield service


def put(store, value):
    store.put(VIEW, [b"1"], {"a": np.full(1, value, np.float32)})


def fetched(store):
    """The value of the row, or why there is none."""
    try:
        (rows,) = store.fetch([Lookup(VIEW, [b"1"])], 0.3)
    except StoreUnavailable as error:
        return str(error)
    return rows.values[0, 0] if rows.status[0] == OK else None


def written(store, value):
    try:
        put(store, value)
    except StoreUnavailable:
        return False
    return True


@contextlib.contextmanager
def consuming(store):
    """A consumer of the stream `events` that waits for entries."""
    stop = threading.Event()
    reader = Consumer(store, RowWriter(store, VIEW, None), Settings("events", "g", "c", "dead"))
    thread = threading.Thread(target=reader.run, args=(stop,))
    thread.start()
    try:
        yield reader
    finally:
        stop.set()
        thread.join(20)
    assert not thread.is_alive()


def test_the_master_is_found_by_its_service_and_followed_when_another_is_made_master(service):
    """By writers, readers, and a consumer that waits for entries meanwhile."""
    with closing(open_store(service.url)) as store, consuming(store) as reader:
        put(store, 1)
        assert fetched(store) == 1
        first = service.master()
        servers.wait_until(service.has_copied)
        servers.wait_until(lambda: first.client().info("clients")["blocked_clients"] == 1)
        servers.wait_until(service.fail_over)
        servers.wait_until(lambda: service.master() is not first)
        servers.wait_until(lambda: written(store, 2))
        assert fetched(store) == 2
        second = service.master()
        assert second.client().get(VIEW.key(b"1")) is not None
        second.client().xadd("events", {"e": 1, "a": 7})
        servers.wait_until(lambda: reader.counts.written == 1)
        assert fetched(store) == 7


def test_a_master_that_dies_is_left_for_the_next(service):
    with closing(open_store(service.url)) as store:
        put(store, 1)
        first = service.master()
        servers.wait_until(service.has_copied)
        first.kill()
        assert "unavailable" in str(fetched(store))
        servers.wait_until(lambda: fetched(store) == 1)
        servers.wait_until(lambda: written(store, 2))


def test_every_command_works_through_sentinel(service, tmp_path):
    with service.master().client() as client:
        walkthrough.walk(service.url, client, tmp_path)


def test_what_is_written_counts_once_as_many_replicas_have_it_as_the_url_says(service):
    replica = service.servers[1]
    with closing(open_store(f"{service.url}?replicas=1")) as store:
        servers.wait_until(lambda: written(store, 1))
        os.kill(replica.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(StoreUnavailable, match="is unavailable: 0 of 1 replicas have what was written"):
                store.write(pack(b"SET", b"k", b"v"), timeout_s=2.0)
            assert fetched(store) == 1
        finally:
            os.kill(replica.process.pid, signal.SIGCONT)
        servers.wait_until(lambda: written(store, 2))


@pytest.mark.parametrize("said", ["x", "-1", "", "101"])
def test_a_number_of_replicas_that_is_none_is_a_misconfiguration(said):
    with pytest.raises(StoreMisconfigured, match="expected a number up to 100") as caught:
        open_store(f"redis://:hunter2@h?replicas={said}")
    assert "hunter2" not in str(caught.value)


def test_a_socket_s_url_takes_the_option_too_and_a_url_that_is_none_is_a_misconfiguration():
    for url in ("unix:///run/redis.sock?replicas=1", "unix:///replicas=1/redis.sock"):
        with closing(open_store(url)) as store:
            assert store.name == url[len("unix://") :].removesuffix("?replicas=1")
    for url in ("redis://:hunter2@[h?replicas=1", "redis+sentinel://:hunter2@[h/rows"):
        with pytest.raises(StoreMisconfigured, match="this one is not") as caught:
            open_store(url)
        assert "hunter2" not in str(caught.value)


def test_a_replica_that_a_sentinel_takes_for_the_master_is_not_asked(service):
    """What happens in the moments of a failover, here for good: a sentinel that watches the wrong server."""
    replica = service.servers[1]
    with closing(servers.RedisProcess(servers.NEWEST, "--sentinel")) as wrong:
        wrong.client().sentinel_monitor("rows", "127.0.0.1", replica.port, 3)
        wrong.client().sentinel_set("rows", "down-after-milliseconds", 60_000)
        with closing(open_store(f"redis+sentinel://127.0.0.1:{wrong.port}/rows")) as store:
            assert "is not the master of rows" in fetched(store)


def test_a_service_that_nobody_watches_is_a_misconfiguration(service):
    with (
        closing(open_store(service.url.replace("/rows", "/cows"))) as store,
        pytest.raises(StoreMisconfigured, match=f"127.0.0.1:{service.sentinel.port} refuses us: it watches no 'co"),
    ):
        store.fetch([Lookup(VIEW, [b"1"])], 0.5)


def test_without_any_sentinel_it_is_unavailable():
    with closing(open_store(f"redis+sentinel://127.0.0.1:{servers.free_port()}/rows")) as store:
        assert "unavailable" in fetched(store)


@pytest.mark.parametrize("url", ["redis+sentinel://:hunter2@h", "redis+sentinel://:hunter2@h/s/x"])
def test_a_url_without_a_service_is_a_misconfiguration(url):
    with pytest.raises(StoreMisconfigured, match="name of Sentinel's service") as caught:
        open_store(url)
    assert "hunter2" not in str(caught.value)
