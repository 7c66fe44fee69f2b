"""The history of a stream: on disk before entries are acknowledged, in few files, and there again after a kill."""

from __future__ import annotations

import fcntl
import json
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing

import numpy as np
import pytest
import redis
from pyarrow import parquet
from typer.testing import CliRunner

from penstock.cli import app
from penstock.features import Column, FeatureError, FeatureView, InvalidView, Lookup, open_store
from penstock.features.aggregating import writer_for
from penstock.features.offline import History, OfflineStore, join
from penstock.features.offline.erasing import erase
from penstock.features.streams import Consumer, Settings

VIEW = FeatureView(name="activity", entity="id", columns=[Column(name="n", dtype="int64")])
SPENDING = FeatureView.parse(
    {
        "name": "spending",
        "entity": "id",
        "columns": [{"name": "n_1h", "dtype": "int64"}],
        "aggregates": {"columns": {"n_1h": {"function": "count", "window": "1h"}}},
    }
)


def put(history, *rows):
    """Rows of (entity, n, event time)."""
    entities, numbers, times = zip(*rows, strict=True)
    history.put([b"%d" % e for e in entities], {"n": np.array(numbers)}, np.array(times, np.int64))


def parts(root):
    return sorted(root.rglob("part-*.parquet"))


def spools(root):
    return sorted(root.rglob(".spool-*"))


def known(root, *entities):
    """The newest values of entities in the history."""
    rows = [row for part in parts(root) for row in parquet.ParquetFile(part).read().to_pylist()]
    newest = {row["id"]: row["n"] for row in sorted(rows, key=lambda row: (row["event_time"], row["created_time"]))}
    return [newest.get(b"%d" % entity) for entity in entities]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_rows_appear_by_time_by_number_and_at_the_end(tmp_path):
    clock = Clock()
    with History(OfflineStore(tmp_path), VIEW, every_s=30, most_rows=3, clock=clock) as history:
        put(history, (1, 10, 1000))
        history.save()
        assert (history.rows, parts(tmp_path)) == (1, [])
        clock.now = 30
        history.save()
        assert known(tmp_path, 1) == [10]
        put(history, (1, 11, 2000), (2, 20, 1000), (3, 30, 1000))
        history.save()
        assert known(tmp_path, 1, 2, 3) == [11, 20, 30]
        put(history, (1, 12, 3000))
        clock.now = 40
        history.save()
        assert len(parts(tmp_path)) == 2
    assert known(tmp_path, 1, 2, 3) == [12, 20, 30]
    assert (history.rows, len(parts(tmp_path)), spools(tmp_path)) == (5, 3, [])


def test_a_row_is_known_from_when_it_was_written(tmp_path):
    before = time.time_ns() // 1_000_000
    with History(OfflineStore(tmp_path), VIEW) as history:
        put(history, (1, 10, before - 5000))
    labels = {"id": ["1", "1"], "event_time": [before - 1, time.time_ns() // 1_000_000]}
    assert np.isnan(join(labels, VIEW, tmp_path)["n"].to_numpy()).tolist() == [True, False]


def test_times_that_no_history_holds_are_left_out(tmp_path):
    with History(OfflineStore(tmp_path), VIEW) as history:
        put(history, (1, 10, -1), (2, 20, 5), (3, 30, 300_000_000_000_000))
        put(history, (1, 10, -1))
    assert (history.rows, known(tmp_path, 1, 2, 3)) == (1, [None, 20, None])


def test_the_spool_of_one_that_was_killed_is_published_by_the_next_and_that_of_one_that_runs_is_not(tmp_path):
    code = (
        "import os, sys, numpy as np\n"
        "from penstock.features import FeatureView\n"
        "from penstock.features.offline import History, OfflineStore\n"
        "history = History(OfflineStore(sys.argv[1]), FeatureView.parse(sys.argv[2].encode()))\n"
        "for n in range(3):\n"
        "    history.put([b'1', b'%d' % n], {'n': np.array([n, n])}, np.array([n, n], np.int64))\n"
        "    history.save()\n"
        "print('saved', flush=True); sys.stdin.read(); os._exit(0)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), VIEW.definition().decode()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "saved\n"
        with History(OfflineStore(tmp_path), VIEW):
            assert (parts(tmp_path), len(spools(tmp_path))) == ([], 2)
        other.kill()
    [spool] = spools(tmp_path)
    spool.write_bytes(spool.read_bytes()[:-5])  # a write that did not end
    wider = FeatureView(name="activity", entity="id", columns=[*VIEW.columns, Column(name="m", dtype="bool")])
    with History(OfflineStore(tmp_path), wider):
        assert known(tmp_path, 1, 0) == [1, 0]
    assert spools(tmp_path) == []


def test_what_is_erased_does_not_come_back_from_the_spool_of_one_that_was_killed(tmp_path):
    history = History(OfflineStore(tmp_path), VIEW)
    put(history, (1, 10, 1000), (2, 20, 1000))
    history.save()
    history._spool._file.close()  # as its process ends
    assert erase(OfflineStore(tmp_path), VIEW, [b"1"], dry_run=True) == 0
    assert erase(OfflineStore(tmp_path), VIEW, [b"1"]) == 1
    with History(OfflineStore(tmp_path), VIEW):
        assert known(tmp_path, 1, 2) == [None, 20]


def test_a_disk_that_is_full_is_told_in_one_line_and_nothing_saved_is_lost(tmp_path, monkeypatch):
    history = History(OfflineStore(tmp_path), VIEW, every_s=0)
    put(history, (1, 10, 1000))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("penstock.features.offline.parts.sync", full)
        with (
            pytest.raises(FeatureError, match=r"the history in .* cannot be written: No space left on device"),
            history,
        ):
            history.save()
    assert parts(tmp_path) == []
    with History(OfflineStore(tmp_path), VIEW):
        assert known(tmp_path, 1) == [10]
    assert spools(tmp_path) == []


def test_a_disk_that_is_full_under_the_spool_is_told_in_one_line_too(tmp_path):
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from penstock.features import FeatureError, FeatureView\n"
        "from penstock.features.offline import History, OfflineStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    with History(OfflineStore(sys.argv[1]), FeatureView.parse(sys.argv[2].encode())) as history:\n"
        "        for _ in range(20):\n"
        "            history.put([b'1'] * 500, {'n': np.arange(500)}, np.zeros(500, np.int64))\n"
        "            history.save()\n"
        "except FeatureError as error:\n"
        "    print(error)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), VIEW.definition().decode()]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout.count("\n"), told.stderr) == (0, 1, "")
    assert "cannot be written: File too large" in told.stdout


def test_a_spool_that_is_just_being_made_is_not_taken_for_one_that_was_left(tmp_path, monkeypatch):
    lock, others = fcntl.flock, iter([True])

    def late(file, how):
        if not how & fcntl.LOCK_NB and next(others, False):
            with History(OfflineStore(tmp_path), VIEW):
                """Another consumer starts at that moment."""
        return lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    history = History(OfflineStore(tmp_path), VIEW)
    put(history, (1, 10, 1000))
    history.save()
    assert len(spools(tmp_path)) == 1
    history._spool._file.close()  # as its process ends
    with History(OfflineStore(tmp_path), VIEW):
        assert known(tmp_path, 1) == [10]


def test_what_cannot_be_kept_is_refused_at_once(tmp_path):
    clash = FeatureView(name="v", entity="id", columns=[Column(name="event_time", dtype="int64")])
    with pytest.raises(InvalidView, match="cannot be kept offline"):
        History(OfflineStore(tmp_path), clash)
    (tmp_path / "file").touch()
    with pytest.raises(FeatureError, match="cannot be written"):
        History(OfflineStore(tmp_path / "file"), VIEW)


# Of a stream ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(redis_url):
    with closing(open_store(redis_url)) as store:
        yield store


@pytest.fixture
def client(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        yield client


def consumer(store, view, history, name="one"):
    settings = Settings("events", "g", name, "dead", time_field="at", batch=3)
    return Consumer(store, writer_for(store, view, "at", history), settings, history)


def test_rows_of_a_stream_are_history_older_ones_too(store, client, tmp_path):
    now = time.time_ns() // 1_000_000
    for entity, n, age in ((1, 10, 5), (2, 20, 5), (1, 9, 9), (1, "bad", 1), (1, 11, 2)):
        client.xadd("events", {"id": entity, "n": n, "at": now - age * 1000})
    with History(OfflineStore(tmp_path), VIEW) as history:
        reader = consumer(store, VIEW, history)
        reader.run(threading.Event(), once=True)
    assert (reader.counts.recorded, reader.counts.rejected, reader.counts.older) == (4, 1, 1)
    assert known(tmp_path, 1, 2) == [11, 20]
    labels = {"id": ["1", "1"], "event_time": [now - 6000, now - 4000]}
    assert join(labels, VIEW, tmp_path, as_of_created=False)["n"].to_pylist() == [9, 10]


def test_nothing_is_acknowledged_that_the_history_does_not_have(store, client, tmp_path, monkeypatch):
    client.xadd("events", {"id": 1, "n": 10, "at": 1})
    with History(OfflineStore(tmp_path), VIEW) as history:
        reader = consumer(store, VIEW, history)
        with monkeypatch.context() as patched:
            patched.setattr(History, "save", _refuse)
            with pytest.raises(FeatureError, match="full"):
                reader.run(threading.Event(), once=True)
        assert client.xlen("events") == 1
        again = consumer(store, VIEW, history)
        again.run(threading.Event(), once=True)
    assert client.xpending("events", "g")["pending"] == 0
    assert known(tmp_path, 1) == [10]


def _refuse(_):
    raise FeatureError("full")


def test_rows_of_aggregates_are_history_for_events_and_for_windows_that_move_on(store, client, tmp_path):
    class Now:
        now = time.time_ns() // 1_000_000 - 4 * 3_600_000

        def __call__(self):
            return self.now

    clock, asked, online = Now(), [], []
    start = clock.now
    with History(OfflineStore(tmp_path), SPENDING) as history:
        writer = writer_for(store, SPENDING, "at", history)
        writer._clock = clock
        reader = Consumer(store, writer, Settings("events", "g", "one", "dead", time_field="at"), history)
        for minutes in (0, 1, 30, 61, 62, 95, 130):
            clock.now = start + minutes * 60_000
            if minutes in (0, 1, 30, 95):
                client.xadd("events", {"id": 1, "at": clock.now})
            reader.run(threading.Event(), once=True)
            asked.append(clock.now)
            online.append(store.fetch([Lookup(SPENDING, [b"1"])], 5)[0].values[0, 0])
    labels = {"id": ["1"] * len(asked), "event_time": asked}
    told = join(labels, SPENDING, tmp_path, as_of_created=False)["n_1h"].to_pylist()
    assert told == online == [1, 2, 3, 2, 1, 1, 1]
    assert reader.counts.recorded == 7


def test_the_command_keeps_history(store, client, redis_url, tmp_path):
    store.apply(VIEW)
    now = time.time_ns() // 1_000_000
    client.xadd("events", {"id": 1, "n": 10, "at": now})
    words = ["features", "stream", "activity", "--stream", "events", "--features", redis_url, "--time", "at", "--once"]
    found = CliRunner().invoke(app, [*words, "--offline", str(tmp_path), "--json"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["recorded"] == 1
    assert known(tmp_path, 1) == [10]


VICTIM = """
import sys, threading
from penstock.features import open_store
from penstock.features.aggregating import writer_for
from penstock.features.offline import History, OfflineStore
from penstock.features.offline.erasing import erase
from penstock.features.streams import Consumer, Settings
store = open_store(sys.argv[1])
view = store.view("activity")
with History(OfflineStore(sys.argv[2]), view, every_s=0.02) as history:
    settings = Settings("events", "g", "one", "dead", time_field="at", batch=20)
    reader = Consumer(store, writer_for(store, view, "at", history), settings, history)
    reader.run(threading.Event(), once=True, told=lambda: print(".", flush=True))
"""


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 50))])
def test_a_consumer_killed_at_any_moment_loses_no_acknowledged_row_of_the_history(
    store, client, redis_url, tmp_path, seed
):
    drawn = random.Random(seed)
    store.apply(VIEW)
    pipeline = client.pipeline(transaction=False)
    rows = [(entity, n, 1_000_000 + n) for n in range(60) for entity in range(10)]
    for entity, n, at in rows:
        pipeline.xadd("events", {"id": entity, "n": n, "at": at})
    ids = pipeline.execute()
    command = [sys.executable, "-c", VICTIM, redis_url, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        for _ in range(drawn.randrange(1, 28)):
            victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
    delivered = ids.index(client.xinfo_groups("events")[0]["last-delivered-id"]) + 1
    pending = {entry["message_id"] for entry in client.xpending_range("events", "g", "-", "+", 1000)}
    acknowledged = [row for row, number in zip(rows[:delivered], ids, strict=False) if number not in pending]
    assert acknowledged
    with History(OfflineStore(tmp_path), VIEW):
        found = known(tmp_path, *range(10))
    for entity, n, _ in acknowledged:
        assert found[entity] is not None
        assert found[entity] >= n
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert known(tmp_path, *range(10)) == [59] * 10
    assert spools(tmp_path) == []
