"""What an online store has acknowledged is in the history, whoever is killed, however often, and with a full disk."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from penstock.features import Column, FeatureView, InvalidData, RowsLost, StoreUnavailable, open_store
from penstock.features.errors import HistoryUnwritable
from penstock.features.ingest import ingest
from penstock.features.memory import MemoryStore
from penstock.features.offline import OfflineStore, join, recording
from penstock.features.offline.parts import LEFT_S
from penstock.features.offline.recording import Recorded

DAY = 86_400_000
START = (time.time_ns() // 1_000_000 // DAY - 20) * DAY  # a midnight of late
VIEW = FeatureView(name="activity", entity="id", columns=[Column(name="n", dtype="int64")], ttl_s=90 * 86400)
QUICK = (8,)  # seeds of the default run, here with two kills
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed not in QUICK else []) for seed in range(50)]


def table(rows=100, days=3):
    return pa.table({"id": range(rows), "n": range(rows), "at": [START + row % days * DAY for row in range(rows)]})


@pytest.fixture
def source(tmp_path):
    parquet.write_table(table(), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


@pytest.fixture
def offline(tmp_path):
    return OfflineStore(tmp_path / "history")


class Stopping(MemoryStore):
    """Fails at one write of rows, counted from 0, if told to."""

    stop, error, writes = -1, StoreUnavailable("away"), 0

    def prepare(self, *rows, **options):
        write = super().prepare(*rows, **options)

        def count_and_write():
            self.writes += 1
            if self.writes == self.stop + 1:
                raise self.error
            return write()

        return count_and_write


def recorded(offline):
    """Every n that the history has, with its event time."""
    files = offline.files(VIEW, START, START + 9 * DAY) if offline.root.is_dir() else []
    rows = pa.concat_tables([parquet.ParquetFile(file).read() for file in files]) if files else pa.table({"n": []})
    return sorted(rows["n"].to_pylist())


def leftovers(offline):
    return sorted(str(path) for path in offline.root.rglob(".*"))


# Marks ------------------------------------------------------------------------------------------------------------


def test_a_stopped_ingestion_that_is_resumed_leaves_no_row_out(source, offline):
    store = Stopping()
    store.stop = 8
    for stopped in (True, False):
        with recording(store, offline, VIEW) as both:
            if stopped:
                with pytest.raises(StoreUnavailable):
                    ingest(both, VIEW, source, 10, time_column="at", patience_s=0)
                continue
            assert recorded(offline) == list(range(80))
            report = ingest(both, VIEW, source, 10, time_column="at", resume=True)
    assert (report.resumed, report.rows) == (80, 20)  # the end of the first block had the mark move
    assert recorded(offline) == list(range(100))


def test_the_mark_moves_only_with_the_history_and_that_now_and_again(source, offline):
    """A killed process is one of which nothing but what it had written is left: what the mark says, the history has."""
    now, seen = [0.0], []

    class Watched(MemoryStore):
        def mark(self, job, new):
            now[0] += 1
            seen.append((int((new or b"100").split()[0]), len(recorded(offline))))
            return super().mark(job, new)

    both = Recorded(Watched(), offline, VIEW, every_s=3, clock=lambda: now[0])
    ingest(both, VIEW, source, 10, time_column="at")
    both.close()
    assert seen == [(0, 0)] * 3 + [(30, 30)] * 3 + [(60, 60)] * 3 + [(90, 90)] * 2 + [(100, 100)]


def test_marks_of_other_histories_and_of_none_are_others(source, offline, tmp_path):
    """Rows that an ingestion without history has done are not in it, and not passed over."""
    for first in (None, OfflineStore(tmp_path / "elsewhere")):
        store = Stopping()
        store.stop = 5
        with recording(store, first, VIEW) as into, pytest.raises(StoreUnavailable):
            ingest(into, VIEW, source, 10, time_column="at", patience_s=0)
        with recording(store, offline, VIEW) as both:
            assert ingest(both, VIEW, source, 10, time_column="at", resume=True).resumed == 0
        assert set(recorded(offline)) == set(range(100))


class Forgetful(Stopping):
    """A Redis that is restarted once and has lost its marks."""

    def mark(self, job, new):
        if self.writes == 5:
            self._marks.clear()
            self.writes += 1
        return super().mark(job, new)


@pytest.mark.parametrize("every_s", [0, 1000], ids=["each batch a commit", "no commit between"])
def test_rows_that_the_online_store_lost_are_written_again(source, offline, every_s):
    store = Forgetful()
    with recording(store, offline, VIEW, every_s=every_s) as both, pytest.raises(RowsLost):
        ingest(both, VIEW, source, 10, time_column="at")
    store._rows.clear()
    with recording(store, offline, VIEW) as both:
        assert ingest(both, VIEW, source, 10, time_column="at", resume=True).resumed == 0
    assert set(recorded(offline)) == set(range(100))
    assert store.get(VIEW, range(100)).status == ("ok",) * 100


# Created times ----------------------------------------------------------------------------------------------------


def test_a_back_fill_says_from_when_its_rows_were_known(offline, tmp_path):
    known = [str(np.datetime64(START + days * DAY, "ms")) for days in (2, 3)]
    rows = {"id": [1, 2], "n": [5, 6], "at": [START] * 2, "known": known}
    parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    with recording(MemoryStore(), offline, VIEW) as both:
        ingest(both, VIEW, tmp_path / "t.parquet", time_column="at", created_column="known")
    labels = {"id": [1, 2, 1, 2], "at": [START + 2 * DAY - 1, *[START + 2 * DAY] * 2, START + 3 * DAY]}
    got = join(labels, VIEW, offline, time="at")["n"].to_numpy()
    np.testing.assert_array_equal(got, [np.nan, np.nan, 5, 6])


def test_created_times_are_for_a_history_and_are_times(offline, tmp_path):
    rows = {"id": [1, 2], "n": [5, 6], "at": [START] * 2, "known": [START, -1]}
    parquet.write_table(pa.table(rows), tmp_path / "t.parquet")
    with pytest.raises(InvalidData, match="created times are for the history of features"):
        ingest(MemoryStore(), VIEW, tmp_path / "t.parquet", created_column="known")
    with (
        recording(MemoryStore(), offline, VIEW) as both,
        pytest.raises(InvalidData, match="created times, row 2: -1 ms since 1970 is not a time"),
    ):
        ingest(both, VIEW, tmp_path / "t.parquet", created_column="known")


# Full disks -------------------------------------------------------------------------------------------------------


@contextmanager
def full_after(size):
    """Files of this process grow to so many bytes and not beyond."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def run(store, source, offline, **options):
    with recording(store, offline, VIEW, every_s=0) as both:
        return ingest(both, VIEW, source, 10, time_column="at", **options)


def test_a_full_disk_is_told_in_one_line_and_the_rows_are_kept_once_there_is_room(source, offline):
    store = MemoryStore()
    with full_after(200), pytest.raises(HistoryUnwritable) as caught:
        run(store, source, offline)
    assert str(caught.value) == f"the history in {offline.root / 'activity'} cannot be written: File too large"
    assert (recorded(offline), leftovers(offline)) == ([], [])
    assert run(store, source, offline, resume=True).resumed == 0
    assert set(recorded(offline)) == set(range(100))


def test_once_the_disk_refused_something_nothing_is_committed_though_there_is_room_again(offline):
    """Rows that were to be written when it was full are missing among the others."""
    rows = {"id": [1], "n": [5], "event_time": [START]}

    def write():
        with offline.writer(VIEW) as out:
            out.add(rows)
            with full_after(200), pytest.raises(HistoryUnwritable):
                out.commit()
            out.add(rows)

    with pytest.raises(HistoryUnwritable):
        write()
    assert (recorded(offline), leftovers(offline)) == ([], [])


# Killed -----------------------------------------------------------------------------------------------------------


def age(offline):
    """Have everything that is there lie there for a minute."""
    past = time.time() - LEFT_S - 1
    for path in offline.root.rglob("*"):
        os.utime(path, (past, past))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_table_is_recorded_in_full_whoever_is_killed_meanwhile(seed, redis_url, tmp_path):
    """SIGKILL at points drawn from a seed; both sides have every row in the end, and nothing lies about."""
    chance, offline = random.Random(seed), OfflineStore(tmp_path / "history")
    rows = 10_000
    events = {"id": [chance.randrange(3000) for _ in range(rows)], "n": list(range(rows))}
    events["at"] = [START + chance.randrange(5 * DAY) for _ in range(rows)]
    parquet.write_table(pa.table(events), tmp_path / "t.parquet", row_group_size=999)
    with closing(open_store(redis_url)) as store:
        store.apply(VIEW)
    command = [sys.executable, Path(__file__).with_name("recorder.py"), redis_url, tmp_path / "t.parquet", offline.root]
    for _ in range(chance.randint(1, 3)):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
            for _ in range(chance.randint(1, 30)):
                victim.stdout.readline()
            time.sleep(chance.random() * 0.02)
            victim.send_signal(signal.SIGKILL)
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    assert set(recorded(offline)) == set(range(rows))
    age(offline)
    with offline.writer(VIEW):
        assert leftovers(offline) == []


def test_what_somebody_is_writing_is_not_swept_away(offline):
    rows = {"id": [1], "n": [5], "event_time": [START]}
    with offline.writer(VIEW) as out, offline.writer(VIEW) as other:
        other.add(rows)
        other._flush(START // DAY)
        age(offline)
        out.add(rows)
        with offline.writer(VIEW):
            assert len(leftovers(offline)) == 2  # a lock and a file
    assert (recorded(offline), leftovers(offline)) == ([5, 5], [])
