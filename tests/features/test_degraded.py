"""Real Redis servers in real trouble: what is answered, what is refused and how, and that they are found well again."""

import contextlib
import importlib.util
import os
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from penstock.features import Column, FeatureView, Lookup, StoreUnavailable, open_store
from penstock.features.pace import BURST, PER_S, SPREAD

OK, ABSENT = 0, 1
VIEW = FeatureView(name="v", entity="e", columns=[Column(name="a", dtype="float32")])


def _load(name):
    spec = importlib.util.spec_from_file_location(f"feature_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load("servers")
LIMIT = 0.3


@pytest.fixture(params=servers.VERSIONS)
def server(request):
    name = next(name for name, path in servers.EXECUTABLES.items() if path == request.param)
    allowed = {} if name.startswith("redis-6.") else {"enable_debug_command": "yes"}  # before 7 it always is
    with closing(servers.RedisProcess(request.param, **allowed)) as server:
        yield server


@pytest.fixture
def store(server):
    with closing(open_store(server.url)) as store:
        put(store, 1)
        yield store


def put(store, value, view=VIEW, *, overwrite=True):
    return store.put(view, [b"1"], {"a": np.full(1, value, np.float32)}, overwrite=overwrite)


def assert_refused(store, why):
    """Whatever is written, by a plain command or by a script: it is an outage, to be waited for."""
    for view in (VIEW, FeatureView(**VIEW.model_dump() | {"layout": "hash"})):
        for overwrite in (True, False):
            with pytest.raises(StoreUnavailable, match=f"is unavailable: {why}"):
                put(store, 2, view, overwrite=overwrite)


def fetched(store):
    """The value of the row, or why there is none; never late."""
    started = time.monotonic()
    try:
        (rows,) = store.fetch([Lookup(VIEW, [b"1"])], LIMIT)
    except StoreUnavailable as error:
        return str(error)
    finally:
        assert time.monotonic() - started < 1.2 * LIMIT
    return rows.values[0, 0] if rows.status[0] == OK else None


def well_again(store, value=1):
    return servers.wait_until(lambda: fetched(store) == value)


def test_a_server_that_is_killed_and_started_again(server, store):
    server.kill()
    assert "unavailable" in fetched(store)
    with pytest.raises(StoreUnavailable):
        put(store, 2)
    server.start()
    servers.wait_until(lambda: fetched(store) is None)  # it kept nothing on disk
    put(store, 3)
    assert fetched(store) == 3


@pytest.mark.parametrize(
    "how", ["stopped", *(pytest.param(one, marks=pytest.mark.slow) for one in ("paused", "asleep"))]
)
def test_a_server_that_hangs_is_unavailable_in_time_and_then_at_once(server, store, how):
    if how == "stopped":
        os.kill(server.process.pid, signal.SIGSTOP)
    elif how == "paused":
        server.client().client_pause(3000)
    else:
        sleeper = threading.Thread(target=server.client().execute_command, args=("DEBUG", "SLEEP", "2.5"))
        sleeper.start()
        time.sleep(0.1)
    told = [fetched(store) for _ in range(7)]
    assert "did not answer in time" in told[0]
    assert "not asked again yet" in told[-1]
    if how == "stopped":
        os.kill(server.process.pid, signal.SIGCONT)
    elif how == "asleep":
        sleeper.join(10)
    well_again(store)


def test_a_server_that_is_full_answers_and_takes_nothing_more(server, store):
    client = server.client()
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    assert fetched(store) == 1
    assert_refused(store, "OOM")
    assert fetched(store) == 1
    client.config_set("maxmemory", 0)
    put(store, 2)
    assert fetched(store) == 2


def test_a_master_that_lacks_replicas_answers_and_takes_nothing(server, store):
    server.client().config_set("min-replicas-to-write", 1)
    assert_refused(store, "NOREPLICAS")
    assert fetched(store) == 1


def test_a_replica_answers_and_takes_nothing_and_without_its_master_says_so(server, store):
    with closing(servers.RedisProcess(server.executable, replicaof=f"127.0.0.1 {server.port}")) as replica:
        servers.wait_until(lambda: replica.client().info("replication")["master_link_status"] == "up")
        with closing(open_store(replica.url)) as copy:
            well_again(copy)
            assert_refused(copy, "READONLY")
            assert fetched(copy) == 1
            replica.client().config_set("replica-serve-stale-data", "no")
            server.kill()
            servers.wait_until(lambda: "MASTERDOWN" in str(fetched(copy)))
            server.start()
            servers.wait_until(lambda: fetched(copy) in (None, 1))  # as the master came back: before 7 with a dump


def test_a_server_that_is_loading_its_rows_is_unavailable_until_it_has_them(server, store):
    client = server.client()
    is_new = int(client.info("server")["redis_version"].split(".")[0]) > 6
    client.execute_command("DEBUG", "POPULATE", "6000" if is_new else "20000", "filler", "500")
    client.save()
    server.kill()
    with server.config.open("a") as config:
        config.write("save 3600 1\nkey-load-delay 100\n")
        if is_new:  # the others look up from loading every 2 MiB, and are late
            config.write("loading-process-events-interval-bytes 1024\n")
    server.start()
    seen = set()

    def loaded():
        seen.add(told := fetched(store))
        return told == 1

    servers.wait_until(loaded)
    assert any(("loading" if is_new else "in time") in str(told).lower() for told in seen), seen
    assert not any("refuses us" in str(told) for told in seen)


@pytest.mark.parametrize("how", ["comes back", "resets what it accepts", "closes what it answers"])
def test_neither_a_recovery_nor_a_flapping_server_makes_a_storm_of_connections(how, proxy):
    """Sixteen callers who hardly rest; connections are counted where they arrive."""
    ended, answered = threading.Event(), []
    with closing(open_store(proxy.url)) as store:
        put(store, 1)

        def ask():
            while not ended.wait(0.002):
                with contextlib.suppress(StoreUnavailable):
                    store.fetch([Lookup(VIEW, [b"1"])], LIMIT)
                    answered.append(time.monotonic())

        threads = [threading.Thread(target=ask) for _ in range(16)]
        for thread in threads:
            thread.start()
        servers.wait_until(lambda: len(answered) > 100)
        before, started = proxy.accepted, time.monotonic()
        if how == "comes back":
            proxy.refuse()
            time.sleep(1.0)
        else:
            proxy.mode, proxy.cut_after = "cut", 0 if how.startswith("resets") else 10_000
            proxy.cut_all()
            time.sleep(1.5)
        back = time.monotonic()
        proxy.restore()
        servers.wait_until(lambda: answered and answered[-1] > back + 0.2)
        took = time.monotonic() - started
        accepted = proxy.accepted - before
        ended.set()
        for thread in threads:
            thread.join(10)
    assert accepted <= BURST + PER_S * (1 + SPREAD) * took + 1, (accepted, took)
    if how == "comes back":
        assert accepted <= 2 * 16 + 4  # one each, and probes


def test_probes_of_a_fleet_do_not_come_all_at_once():
    from penstock.features.breaker import CONSECUTIVE, PROBE_S, Breaker

    first = []
    for _ in range(100):
        breaker = Breaker()
        for _ in range(CONSECUTIVE):
            breaker.record(breaker.admit(10.0), 10.0, ok=False)
        first.append(next(now for now in np.arange(10.0, 11.0, 0.001) if breaker.admit(now) is not None) - 10.0)
    assert min(first) >= 0.74 * PROBE_S
    assert max(first) <= 1.26 * PROBE_S
    assert np.ptp(first) > 0.3 * PROBE_S
