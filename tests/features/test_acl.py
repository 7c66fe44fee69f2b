"""The users of Redis' ACL that docs/reading.md shows: each may do what it is for, and no more than that."""

import re
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import redis

from penstock.features import Column, FeatureView, Lookup, StoreMisconfigured, open_store
from penstock.features.aggregating import writer_for
from penstock.features.computing import Computing
from penstock.features.dead_letters import dead_letters
from penstock.features.deleting import delete_view
from penstock.features.ingest import ingest
from penstock.features.stats import survey
from penstock.features.streams import Consumer, Settings

PAGE = (Path(__file__).parents[2] / "docs" / "reading.md").read_text("utf-8")
LINES = dict(re.findall(r"^ACL SETUSER (\w+) (.*)$", PAGE.replace("\\\n", " "), re.MULTILINE))
ELSEWHERE = {"ping", "select", "cluster|slots", "asking", "role"}  # on other kinds of Redis
ELSEWHERE |= {"wait", "strlen"}  # where the URL has replicas, and where states may be large

COLUMNS = [Column(name="n", dtype="int64"), Column(name="x", dtype="float32")]
ROWS = FeatureView(name="rows", entity="id", columns=COLUMNS, on_missing="compute", compute="f")
HASHES = ROWS.model_copy(update={"name": "hashes", "layout": "hash"})
SEEN = [f"d{i}" for i in range(4)]  # so many that states may be large, and Redis is asked how large they are
COUNTS = FeatureView(
    name="counts",
    entity="id",
    columns=[Column(name=name, dtype="int64") for name in ("n", *SEEN)],
    aggregates={
        "max_distinct": 10_000,
        "columns": {"n": {"function": "count", "window": "1h"}}
        | {name: {"function": "distinct", "of": name, "window": "1h"} for name in SEEN},
    },
)


@pytest.fixture
def admin(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client
        for name in LINES:
            client.acl_deluser(name)


@pytest.fixture
def opened(admin, redis_url):
    """Opens the store as one of the users."""

    @contextmanager
    def opened(name):
        admin.execute_command("ACL", "SETUSER", name, *LINES[name].replace(">PASSWORD", ">secret").split())
        with closing(open_store(redis_url.replace("unix://", f"unix://{name}:secret@"))) as store:
            admin.config_resetstat()
            yield store

    return opened


def granted(name):
    return {word[1:] for word in LINES[name].split() if word.startswith("+")}


def used(admin):
    """Commands that were called since the user came, those of scripts included; as ACLs name them."""
    return {name.removeprefix("cmdstat_").split("|")[0] for name in admin.info("commandstats")}


def test_there_are_three():
    assert list(LINES) == ["reader", "computing", "writer"]
    assert granted("reader") < granted("computing") < granted("writer")


def look_up(store):
    store.ping()
    store.definitions()
    store.view("rows")
    store.get("rows", ["1"])
    return store.fetch([Lookup(ROWS, [b"1"]), Lookup(HASHES, [b"1"])], 5)


def test_the_reader_may_look_up_and_nothing_else(opened, admin, redis_url):
    with closing(open_store(redis_url)) as store:
        store.apply([ROWS, HASHES])
    with opened("reader") as store:
        look_up(store)
        for attempt in (lambda: store.put(ROWS, ["1"], {"n": [1], "x": [1]}), lambda: store.apply(COUNTS)):
            with pytest.raises(StoreMisconfigured, match="permissions"):
                attempt()
        assert granted("reader") - ELSEWHERE - used(admin) == {"get"}, (
            "granted and not needed, but for get on a cluster"
        )


def test_who_computes_writes_back(opened, admin, redis_url):
    with closing(open_store(redis_url)) as store:
        store.apply([ROWS, HASHES])
    admin.set("features:3", "what somebody else keeps here")
    with opened("computing") as store:
        look_up(store)
        computing = Computing(
            store, {"f": lambda ids: {"n": [1, None][: len(ids)], "x": [2.0, 3.0][: len(ids)]}}, store_s=5
        )
        for view in (ROWS, HASHES):
            computing.fetch([Lookup(view, [b"1", b"2"]), Lookup(view, [b"3"])], 5)
        until = time.monotonic() + 10
        while not all((store.fetch([Lookup(v, [b"1", b"2", b"3"])], 5)[0].status == 0).all() for v in (ROWS, HASHES)):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert computing.counts.unwritten == 0
        assert granted("computing") - ELSEWHERE - used(admin) == {"get"}


def test_who_writes_may_do_all_that_the_commands_do(opened, admin, tmp_path):
    table = tmp_path / "rows.csv"
    table.write_text("id,n,x\n1,1,0.5\n2,,1\n")
    entry = {"id": "7", "n": "1", "x": "2"}
    with opened("writer") as store:
        store.apply([ROWS, HASHES, COUNTS])
        for view in (ROWS, HASHES):
            for overwrite in (False, True):
                ingest(store, view, table, overwrite=overwrite, resume=True)
        assert survey(store, store.views(), max_rows=10)[0].rows >= 0
        look_up(store)
        for view, bad in ((ROWS, {"id": "7", "n": "two"}), (COUNTS, {"id": ""})):
            for fields in (entry, bad):
                admin.xadd("activity", fields)
            settings = Settings(stream="activity", group=view.name, consumer="c", dead="activity:dead")
            consumer = Consumer(store, writer_for(store, view, None), settings)
            consumer.run(threading.Event(), once=True)
            assert consumer.counts.written
            consumer.lag()
            consumer.leave()
        assert len(dead_letters(store, "activity:dead", 10)) == 2
        admin.zadd("fs:due:counts", {"nobody": 0.0})
        writer_for(store, COUNTS, None).rest()
        assert store.delete(ROWS, ["1"]) + store.delete(HASHES, ["1"]) + store.delete(COUNTS, ["7"]) == 3
        delete_view(store, "rows")
        assert np.array_equal([view.name for view in store.views()], ["counts", "hashes"])
        told = used(admin)
    assert granted("writer") - ELSEWHERE - told == set(), "granted and not needed"
