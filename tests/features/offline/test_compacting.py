"""Small files of history merged: the same answers before and after, whoever reads, writes or dies meanwhile."""

import errno
import fcntl
import os
import random
import resource
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from penstock.features import Column, FeatureView, InvalidData
from penstock.features.errors import HistoryUnwritable
from penstock.features.offline import OfflineStore, asof, compacting, join
from penstock.features.offline.compacting import compact
from penstock.features.offline.erasing import erase
from penstock.features.offline.parts import LEFT_S

DAY = 86_400_000
COLUMNS = [
    Column(name="n", dtype="int64", default=7),
    Column(name="x", dtype="float32"),
    Column(name="sure", dtype="bool"),
    Column(name="word", dtype="category", vocabulary=["a", "b"]),
    Column(name="city", dtype="string", max_bytes=10),
    Column(name="taste", dtype="vector", size=2),
]
VIEW = FeatureView(name="v", entity="id", columns=COLUMNS, ttl_s=2 * 86400, on_missing="nan")


def table(rows, chance):
    """Random rows of few entities at few times, so that many are alike in all of these."""
    return {
        "id": [f"e{chance.randrange(5)}" for _ in range(rows)],
        "n": [chance.choice([None, chance.randrange(2**62)]) for _ in range(rows)],
        "x": [chance.choice([None, chance.random()]) for _ in range(rows)],
        "sure": [chance.choice([None, True, False]) for _ in range(rows)],
        "word": [chance.choice([None, "a", "b", "unheard"]) for _ in range(rows)],
        "city": [chance.choice([None, "Łódź", ""]) for _ in range(rows)],
        "taste": [chance.choice([None, [1.0, chance.random()]]) for _ in range(rows)],
        "event_time": [DAY + chance.randrange(12) * DAY // 4 for _ in range(rows)],
        "known": [DAY + chance.randrange(12) * DAY // 4 for _ in range(rows)],
    }


def labels():
    times = range(0, 6 * DAY, DAY // 4)
    return {"id": [f"e{i}" for i in range(6) for _ in times], "at": [at for _ in range(6) for at in times]}


def answers(store, view=VIEW):
    return [join(labels(), view, store, time="at", as_of_created=known) for known in (True, False)]


def same(left, right):
    return [str(table.to_pylist()) for table in left] == [str(table.to_pylist()) for table in right]  # NaN is NaN


def files(store):
    return sorted((store.root / "v").glob("date=*/part-*.parquet"))


@pytest.fixture
def store(tmp_path):
    return OfflineStore(tmp_path / "history")


def written(store, writes=6, rows=40, seed=0):
    chance = random.Random(seed)
    for _ in range(writes):
        store.write(VIEW, table(rows, chance), created="known")
    return store


@pytest.mark.parametrize("seed", range(10))
def test_no_answer_changes_and_one_file_a_day_is_left(store, seed):
    chance = random.Random(seed)
    written(store, writes=chance.randrange(2, 9), rows=chance.randrange(1, 150), seed=seed)
    before, listed = answers(store), files(store)
    kinds = {str(parquet.read_schema(file).remove_metadata()) for file in listed}
    told = []
    report = compact(store, "v", progress=lambda *at: told.append(at))
    assert same(answers(store), before)
    days = {file.parent.name for file in listed}
    assert len(files(store)) == len(days) == report.files - report.merged + report.into
    assert (report.view, report.files) == ("v", len(listed))
    assert not told or told[-1][1] == 1.0
    assert {str(parquet.read_schema(file).remove_metadata()) for file in files(store)} == kinds
    again = compact(store, "v")
    assert (again.files, again.merged, again.rows) == (len(days), 0, 0)


def test_of_rows_written_twice_the_later_stays(store):
    for n in (1, 2, 3):
        store.write(VIEW, one("ada", n), created="known")
    store.write(VIEW, one("bob", 4), created="known")
    report = compact(store, "v")
    assert (report.rows, report.dropped, report.files, report.merged, report.into) == (4, 2, 4, 4, 1)
    assert report.bytes > report.bytes_after > 0
    [file] = files(store)
    rows = parquet.ParquetFile(file).read().to_pylist()
    assert [(row["id"], row["n"]) for row in rows] == [(b"ada", 3), (b"bob", 4)]


def one(entity, n, at=DAY, **more):
    row = {"id": entity, "n": n, "x": 1.0, "sure": True, "word": "a", "city": "x", "taste": [1.0, 2.0]} | more
    return {name: [value] for name, value in (row | {"event_time": at, "known": at}).items()}


def test_rows_of_another_time_of_knowing_all_stay(store):
    for known in (DAY, DAY + 1, DAY + 2):
        store.write(VIEW, one("ada", known) | {"known": [known]}, created="known")
    assert compact(store, "v").dropped == 0


def test_files_of_other_columns_are_not_mixed(store):
    wider = VIEW.model_copy(update={"columns": (*VIEW.columns, Column(name="new", dtype="float64"))})
    for n in range(2):
        store.write(VIEW, one("ada", n), created="known")
        store.write(wider, one("bob", n, new=0.1 * n), created="known")
    before = answers(store, wider)
    assert compact(store, "v").into == 2
    assert sorted(parquet.read_metadata(file).num_columns for file in files(store)) == [10, 11]
    assert same(answers(store, wider), before)


def test_large_files_are_left_alone(store, monkeypatch):
    written(store, writes=2, rows=2000)
    large = files(store)[0]
    written(store, writes=3, rows=5, seed=1)
    monkeypatch.setattr(compacting, "LARGE", large.stat().st_size)
    before = answers(store)
    compact(store, "v")
    assert large in files(store)
    assert same(answers(store), before)


def test_a_day_becomes_pieces_and_not_one_file_of_any_size(store, monkeypatch):
    for n in range(9):
        store.write(VIEW, one("ada", n, at=DAY + n), created="known")
    monkeypatch.setattr(compacting, "LARGE", 3 * files(store)[0].stat().st_size - 10)
    before = answers(store)
    assert compact(store, "v").into == len(files(store)) == 3
    assert same(answers(store), before)


def test_a_dry_run_tells_and_changes_nothing(store):
    written(store)
    before = {file: file.stat().st_ino for file in store.root.rglob("*")}
    report = compact(store, "v", dry_run=True)
    assert before == {file: file.stat().st_ino for file in store.root.rglob("*")}
    assert report.into < report.merged <= report.files == len(files(store))
    assert compact(store, "v").into == report.into


def test_what_is_written_meanwhile_stays(store, monkeypatch):
    written(store)
    merge = compacting._merge

    def with_a_write(folder, group):
        store.write(VIEW, one("eve", 5, at=3 * DAY), created="known")
        return merge(folder, group)

    monkeypatch.setattr(compacting, "_merge", with_a_write)
    compact(store, "v")
    assert b"eve" in {row for file in files(store) for row in parquet.ParquetFile(file).read(["id"])["id"].to_pylist()}


@pytest.mark.parametrize("opens", [False, True], ids=["before the schemas are read", "before the rows are read"])
def test_a_reader_whose_files_are_merged_under_it_reads_again(store, monkeypatch, opens):
    written(store)
    before, calls = answers(store), []
    name = "answers" if opens else "open_files"
    read = getattr(asof, name)

    def once_merged(*args, **options):
        if not calls:
            calls.append(1)
            compact(store, "v")
        return read(*args, **options)

    monkeypatch.setattr(asof, name, once_merged)
    assert same(answers(store), before)
    assert calls


def test_a_file_that_is_gone_for_good_is_told(store, monkeypatch):
    written(store)
    gone = files(store)[0].with_name("part-gone.parquet")
    monkeypatch.setattr(OfflineStore, "files", lambda *_: [gone])
    with pytest.raises(InvalidData, match=r"part-gone\.parquet: cannot be read"):
        answers(store)


KILLED = """
import os, pathlib, sys
from penstock.features.offline import OfflineStore
from penstock.features.offline.compacting import compact

left = int(sys.argv[2])

def counted(done):
    def instead(*args, **options):
        global left
        if (left := left - 1) < 0:
            os._exit(9)
        return done(*args, **options)
    return instead

pathlib.Path.rename, pathlib.Path.unlink = counted(pathlib.Path.rename), counted(pathlib.Path.unlink)
compact(OfflineStore(sys.argv[1]), "v")
"""


@pytest.mark.parametrize("after", [0, 1, 2, 3, 7, 8])
def test_killed_at_any_step_nothing_is_lost_and_the_next_one_goes_on(store, after):
    """A step is a file that appears or goes; the first is the first day's new one, while it is only staged."""
    written(store)
    before, listed = answers(store), files(store)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(store.root), str(after)], timeout=60, check=False)
    assert ended.returncode == 9
    assert (set(files(store)) == set(listed)) == (after == 0)
    assert same(answers(store), before)
    for lock in (store.root / "v").glob(".part-*.lock"):
        at = lock.stat().st_mtime - LEFT_S - 1
        os.utime(lock, (at, at))
    compact(store, "v")
    assert same(answers(store), before)
    assert len(files(store)) == len({file.parent for file in listed})
    assert not any(path.name.startswith(".") for path in store.root.rglob("*"))


def test_a_full_disk_leaves_the_history_as_it_was(store, monkeypatch):
    written(store)
    before, listed = answers(store), files(store)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(parquet.ParquetWriter, "write_table", full)
        with pytest.raises(HistoryUnwritable, match="No space left"):
            compact(store, "v")
    assert files(store) == listed
    assert not any(path.name.startswith(".") for path in store.root.rglob("*"))
    assert same(answers(store), before)


def test_a_file_that_cannot_be_read_is_named_and_nothing_is_merged(store):
    written(store)
    listed = files(store)
    listed[2].write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidData, match=f"{listed[2].name}: cannot be read"):
        compact(store, "v")
    assert files(store) == listed


def test_files_left_without_rows_by_an_erasure_are_merged_too(store):
    for entity in ("ada", "bob", "bob"):
        store.write(VIEW, one(entity, 1), created="known")
    erase(store, VIEW, [b"bob"])
    assert compact(store, "v").into == 1
    erase(store, VIEW, [b"ada"])
    store.write(VIEW, one("bob", 1), created="known")
    erase(store, VIEW, [b"bob"])
    compact(store, "v")
    [file] = files(store)
    assert parquet.read_metadata(file).num_rows == 0
    assert answers(store)[0]["n"].null_count == 0


def test_who_erases_and_who_compacts_take_turns(store):
    written(store)
    number = os.open(store.root / "v", os.O_RDONLY)
    held = []

    def tried(*_):
        with pytest.raises(BlockingIOError):
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(1)

    compact(store, "v", progress=tried)
    os.close(number)
    assert held


def test_a_view_without_history_is_told_with_those_that_have_one(store):
    with pytest.raises(InvalidData, match=r"there is no history in .*: no such folder"):
        compact(store, "v")
    written(store)
    with pytest.raises(InvalidData, match=r"there is no history of view 'w' in .*; it has v"):
        compact(store, "w")
    with pytest.raises(InvalidData, match="is no name of a view"):
        compact(store, "../v")
    (store.root / ".erasing-w" / "date=2026-01-01").mkdir(parents=True)
    assert store.names() == ["v"]


def test_many_files_are_read_with_few_handles(store):
    for n in range(300):
        store.write(VIEW, one("ada", n, at=DAY + n), created="known")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        before = answers(store)
        compact(store, "v")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert same(answers(store), before)
    assert len(files(store)) == 1


def test_rows_beyond_what_is_held_go_to_one_file_in_groups(store, monkeypatch):
    written(store, writes=3, rows=400)
    before = answers(store)
    monkeypatch.setattr(compacting, "MAX_HELD", 1)
    monkeypatch.setattr(asof, "CHUNK", 64)
    compact(store, "v")
    assert same(answers(store), before)
    assert pa.concat_tables(parquet.ParquetFile(file).read() for file in files(store)).num_rows > 100
