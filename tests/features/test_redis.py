"""What is true of Redis alone: its keys and expiry, hostile contents, refusals, and every kind of outage."""

import os
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import redis

from penstock.features import (
    Column,
    FeatureView,
    InvalidView,
    Lookup,
    StoreMisconfigured,
    StoreUnavailable,
    open_store,
)
from penstock.features.nodes import Name
from penstock.features.redis import RedisStore

OK, ABSENT, CORRUPT, OTHER_SCHEMA = range(4)
LIMIT = 0.3  # seconds a call may take; it has 20 % more in these tests
ENTITIES = [b"%d" % i for i in range(64)]
WIDE = FeatureView(name="wide", entity="e", columns=[Column(name=f"c{i}", dtype="float32") for i in range(30)])


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def local(redis_url):
    with closing(open_store(redis_url)) as store:
        yield store


@pytest.fixture
def remote(proxy, local):
    """A store behind the proxy; row i of `WIDE` holds i in every column."""
    values = np.repeat(np.arange(64, dtype=np.float32), 30).reshape(64, 30)
    local.put(WIDE, ENTITIES, {f"c{i}": values[:, i] for i in range(30)})
    with closing(open_store(proxy.url)) as store:
        yield store


def fetch(store, view=WIDE, entities=ENTITIES, timeout_s=LIMIT):
    return store.fetch([Lookup(view, entities)], timeout_s)[0]


def assert_own_rows(rows, entities=ENTITIES):
    """No row but of its own entity."""
    for entity, values, status in zip(entities, rows.values, rows.status, strict=True):
        assert status == OK
        assert (values == float(entity)).all()


def assert_unavailable_in_time(store, **options):
    start = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        fetch(store, **options)
    assert time.monotonic() - start <= 1.2 * LIMIT
    return str(caught.value)


def eventually_well(store):
    """It answers again as soon as the breaker lets a probe through."""
    until = time.monotonic() + 5
    while True:
        try:
            return assert_own_rows(fetch(store))
        except StoreUnavailable:
            assert time.monotonic() < until
            time.sleep(0.05)


# Keys and contents ------------------------------------------------------------------------------------------------


def test_rows_and_hashes_stand_under_documented_keys_and_expire(local, client, view, table):
    local.put(view, [b"17", b"18", b"19"], table)
    key = b"fs:{17}:activity" if view.layout == "row" else b"features:17"
    assert client.exists(key)
    assert view.ttl_s - 5 <= client.ttl(key) <= view.ttl_s
    if view.layout == "hash":
        assert client.hgetall(key)[b"amount"] == b"150.5"
        assert b"count_7d" not in client.hgetall("features:19")  # null


def test_a_hash_that_others_wrote_is_read(local, client):
    """The article's layout and its example."""
    names = ("transaction_count_7d", "avg_transaction_amount", "days_since_registration")
    client.hset("features:42", mapping=dict(zip(names, ("42", "150.50", "365"), strict=True)))
    columns = [Column(name=name, dtype="float64") for name in names]
    view = FeatureView(name="article", entity="e", layout="hash", columns=columns)
    assert fetch(local, view, [b"42"]).values.tolist() == [[42.0, 150.5, 365.0]]


def test_a_row_under_another_entity_s_key_is_refused(local, client):
    local.put(WIDE, [b"1"], {f"c{i}": np.array([1.0]) for i in range(30)})
    client.rename(WIDE.key(b"1"), WIDE.key(b"2"))
    rows = fetch(local, entities=[b"2"])
    assert rows.status.tolist() == [CORRUPT]
    assert np.isnan(rows.values).all()


@pytest.mark.parametrize("junk", [b"", b"x", b"\x01" + b"\x00" * 200, b"\xff" * 1000])
def test_junk_under_a_key_is_a_corrupt_row_and_no_error(local, client, junk):
    client.set(WIDE.key(b"1"), junk)
    assert fetch(local, entities=[b"1"]).status.tolist() == [CORRUPT]


def test_a_key_of_the_wrong_type_is_an_absent_entity(local, client, view, table):
    local.put(view, [b"1", b"2", b"3"], table)
    client.delete(view.key(b"2"))
    client.sadd(view.key(b"2"), "x")
    assert fetch(local, view, [b"1", b"2", b"3"]).status.tolist() == [OK, ABSENT, OK]


def test_a_reply_larger_than_any_row_is_refused(local, client):
    client.set(WIDE.key(b"1"), b"x" * 10_000_000)
    with pytest.raises(StoreUnavailable, match="larger"):
        fetch(local, entities=[b"1"], timeout_s=5)
    assert fetch(local, entities=[b"2"]).status.tolist() == [ABSENT]


def test_a_bad_definition_is_named_and_hides_no_other(local, client, caplog):
    local.apply(WIDE)
    client.hset("fs:views", "bad", "{}")
    client.hset("fs:views", "other", WIDE.model_dump_json())
    client.hset("fs:views", b"\xff", b"\x00")
    assert local.views() == [WIDE]
    assert "view 'bad'" in caplog.text
    with pytest.raises(InvalidView, match="'bad'"):
        local.view("bad")
    with pytest.raises(InvalidView, match="is that of 'wide'"):
        local.view("other")


# Outages ----------------------------------------------------------------------------------------------------------


def test_a_black_hole_is_unavailable_within_the_time_limit_and_passes(remote, proxy):
    assert_own_rows(fetch(remote))
    proxy.mode = "black hole"
    assert "did not answer in time" in assert_unavailable_in_time(remote)
    proxy.restore()
    eventually_well(remote)


def test_a_store_that_drips_is_unavailable_within_the_time_limit(remote, proxy):
    assert_own_rows(fetch(remote))
    proxy.mode = "drip"
    assert_unavailable_in_time(remote)
    proxy.restore()
    eventually_well(remote)


def test_a_black_hole_before_the_first_connection_is_unavailable_in_time(remote, proxy):
    proxy.mode = "black hole"
    assert_unavailable_in_time(remote)


def test_a_refused_port_is_unavailable_at_once_and_named(remote, proxy):
    proxy.refuse()
    message = assert_unavailable_in_time(remote)
    assert f"127.0.0.1:{proxy.port}" in message
    proxy.restore()
    eventually_well(remote)


@pytest.mark.parametrize("size", [0, 1, 10, 3000])
def test_a_reply_cut_in_the_middle_is_unavailable_and_its_half_never_seen(remote, proxy, size):
    assert_own_rows(fetch(remote))
    proxy.mode, proxy.cut_after = "cut", size
    assert_unavailable_in_time(remote)
    proxy.restore()
    eventually_well(remote)
    assert_own_rows(fetch(remote, entities=ENTITIES[::-1]), ENTITIES[::-1])


def test_a_late_reply_is_never_given_to_the_next_caller(remote, proxy):
    """The fault behind CVE-2023-28858, in its synchronous form."""
    assert_own_rows(fetch(remote))
    proxy.mode = "drip"
    assert_unavailable_in_time(remote)
    proxy.restore()
    for start in range(0, 60, 7):
        own = ENTITIES[start : start + 3]
        assert_own_rows(fetch(remote, entities=own), own)


def test_a_stray_reply_is_unavailable_and_its_connection_discarded(remote, proxy):
    assert_own_rows(fetch(remote))
    proxy.mode, proxy.stray = "stray", b"*1\r\n$1\r\nx\r\n"
    assert_unavailable_in_time(remote)
    proxy.restore()
    eventually_well(remote)


def test_rows_of_other_entities_in_the_right_shape_are_refused_by_their_checksum(remote, proxy, client):
    wanted = client.mget([WIDE.key(b"1"), WIDE.key(b"2")])
    client.mset({WIDE.key(b"1"): wanted[1], WIDE.key(b"2"): wanted[0]})
    assert fetch(remote, entities=[b"1", b"2"]).status.tolist() == [CORRUPT, CORRUPT]


def test_a_restart_of_the_server_between_calls_is_not_noticed(remote, proxy):
    assert_own_rows(fetch(remote))
    proxy.cut_all()
    assert_own_rows(fetch(remote))


def test_after_five_failures_it_fails_at_once_until_a_probe_succeeds(remote, proxy):
    proxy.refuse()
    for _ in range(5):
        assert_unavailable_in_time(remote)
    accepted = proxy.accepted
    proxy.restore()
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match="not asked again yet"):
        fetch(remote)
    assert time.monotonic() - start < 0.05
    assert proxy.accepted == accepted
    eventually_well(remote)


def test_callers_in_a_hurry_do_not_close_the_store_to_others(remote, proxy):
    assert_own_rows(fetch(remote))
    for _ in range(20):
        with pytest.raises(StoreUnavailable, match="in time"):
            fetch(remote, timeout_s=0)
    assert_own_rows(fetch(remote))


def test_many_threads_never_get_each_other_s_rows_while_connections_break(remote, proxy):
    wrong, answered, ended = [], [], threading.Event()

    def ask(seed):
        rng = np.random.default_rng(seed)
        while not ended.is_set():
            own = [ENTITIES[i] for i in rng.permutation(64)[:5]]
            try:
                assert_own_rows(fetch(remote, entities=own), own)
                answered.append(1)
            except StoreUnavailable:
                pass
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for i in range(20):
        proxy.mode, proxy.cut_after = "cut" if i % 2 else "open", 17 * i
        time.sleep(0.02)
        proxy.cut_all()
    proxy.restore()
    time.sleep(0.1)
    ended.set()
    for thread in threads:
        thread.join(10)
    assert answered
    assert not wrong
    eventually_well(remote)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_talk_on_its_parent_s_connections(remote):
    assert_own_rows(fetch(remote))
    child = os.fork()
    if child == 0:
        try:
            assert_own_rows(fetch(remote, timeout_s=5))
            os._exit(0)
        finally:
            os._exit(1)
    assert_own_rows(fetch(remote))
    assert os.waitpid(child, 0)[1] == 0
    assert_own_rows(fetch(remote))


def test_a_host_that_cannot_be_resolved_is_unavailable_in_time():
    with closing(open_store("redis://no-such-host.invalid:6379")) as store:
        assert "no-such-host.invalid:6379" in assert_unavailable_in_time(store)


# Refusals ---------------------------------------------------------------------------------------------------------


def test_a_wrong_password_is_a_misconfiguration_and_never_shown(local, client, redis_url):
    client.acl_setuser("reader", enabled=True, passwords=["+right"], keys=["fs:*"], categories=["+@read"])
    try:
        path = redis_url.removeprefix("unix://")
        with closing(open_store(f"unix://reader:hunter2@{path}")) as store:
            with pytest.raises(StoreMisconfigured, match="invalid username-password") as caught:
                fetch(store)
            assert "hunter2" not in repr(caught.value)
        with closing(open_store(f"unix://reader:right@{path}")) as store:
            assert fetch(store).status.tolist() == [ABSENT] * 64
            with pytest.raises(StoreMisconfigured, match="permissions"):
                store.apply(WIDE)
    finally:
        client.acl_deluser("reader")


def test_a_user_who_may_not_see_how_new_a_hash_is_does_not_replace_it(local, client, redis_url):
    view = FeatureView(name="v", entity="e", columns=[Column(name="a", dtype="float64")], layout="hash")
    local.put(view, [b"1"], {"a": np.array([1.0])}, np.array([5]))
    client.acl_setuser("writer", enabled=True, passwords=["+right"], keys=["*"], commands=["+@all", "-hget"])
    refused = pytest.raises(StoreMisconfigured)
    try:
        with closing(open_store(redis_url.replace("unix://", "unix://writer:right@"))) as store, refused:
            store.put(view, [b"1"], {"a": np.array([2.0])}, np.array([4]))
    finally:
        client.acl_deluser("writer")
    assert fetch(local, view, [b"1"]).values.tolist() == [[1.0]]


def test_speaking_tls_to_a_server_without_it_is_a_misconfiguration_or_an_outage(proxy):
    refused = pytest.raises((StoreMisconfigured, StoreUnavailable), match=str(proxy.port))
    with closing(open_store(proxy.url.replace("redis:", "rediss:"))) as store, refused:
        fetch(store)


def test_a_database_that_does_not_exist_is_a_misconfiguration(redis_url):
    with closing(open_store(f"{redis_url}?db=9999")) as store, pytest.raises(StoreMisconfigured, match="out of range"):
        fetch(store)


@pytest.mark.parametrize("url", ["redis://h:hunter2x/", "redis://:hunter2@h/?colour=red", "redis://:hunter2@h/?db=x"])
def test_a_url_with_a_mistake_is_a_misconfiguration_that_shows_no_password(url):
    with pytest.raises(StoreMisconfigured) as caught:
        RedisStore(url)
    assert "hunter2" not in str(caught.value)


def test_a_server_that_is_still_loading_is_unavailable_and_not_misconfigured():
    for text in ("LOADING Redis is loading", "OOM command not allowed", "MASTERDOWN link is down"):
        assert isinstance(Name("the feature store", "x").refusal(text), StoreUnavailable)
    for text in ("NOPERM no permissions", "MOVED 1 host:1", "ERR unknown command"):
        assert isinstance(Name("the feature store", "x").refusal(text), StoreMisconfigured)
