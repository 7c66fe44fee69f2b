"""Entities taken out of history: every row of theirs, no other, and never half a file."""

import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import parquet

from penstock.features import Column, FeatureView, InvalidData, entity_key
from penstock.features.offline import OfflineStore, join
from penstock.features.offline import erasing as module
from penstock.features.offline.erasing import erase, erase_view

DAY = 86_400_000
IDS = ["ada", "bob", "eve"]


def view(**fields):
    columns = [Column(name="n", dtype="int64"), Column(name="word", dtype="category", vocabulary=["a", "b"])]
    return FeatureView(**{"name": "v", "entity": "id", "columns": columns} | fields)


@pytest.fixture
def history(tmp_path):
    """Three days of three people, in two writes."""
    store = OfflineStore(tmp_path / "history")
    for write in range(2):
        rows = [(i, day, write) for day in range(1, 4) for i in IDS]
        table = {"id": [i for i, _, _ in rows], "n": [day for _, day, _ in rows], "word": ["a"] * len(rows)}
        store.write(view(), table | {"event_time": [day * DAY for _, day, _ in rows]})
    return store


def rows_of(store, entity):
    files = (store.root / "v").glob("date=*/part-*.parquet")
    return sum(table.column("id").to_pylist().count(entity) for table in map(read, files))


def read(file):
    with parquet.ParquetFile(file) as source:
        return source.read()


def test_every_row_of_the_entities_goes_and_no_other(history):
    before = sorted((history.root / "v").rglob("*"))
    assert erase(history, view(), [b"ada", b"nobody"], dry_run=True) == 6
    assert rows_of(history, b"ada") == 6
    seen = []
    assert erase(history, view(), [b"ada"], progress=lambda done, fraction: seen.append((done, fraction))) == 6
    assert seen[-1] == (6, 1.0)
    assert [rows_of(history, entity) for entity in (b"ada", b"bob", b"eve")] == [0, 6, 6]
    assert sorted((history.root / "v").rglob("*")) == before
    labels = {"id": ["ada", "bob"], "at": [4 * DAY] * 2}
    joined = join(labels, view(ttl_s=10 * 86400), history, time="at", as_of_created=False)
    assert np.isnan(joined["n"].to_pylist()).tolist() == [True, False]
    assert erase(history, view(), [b"ada"]) == 0


def test_a_file_without_them_is_not_touched_and_one_of_nothing_else_is_left_empty(history, tmp_path):
    alone = {"id": ["eve"], "n": [9], "word": ["b"], "event_time": [9 * DAY]}
    history.write(view(), alone)
    [last] = (history.root / "v").glob("date=1970-01-10/*.parquet")
    before = {file: file.stat().st_ino for file in (history.root / "v").rglob("*.parquet")}
    assert erase(history, view(), [b"eve"]) == 7
    assert read(last).num_rows == 0
    after = {file: file.stat().st_ino for file in (history.root / "v").rglob("*.parquet")}
    assert erase(history, view(), [b"eve"]) == 0
    assert after == {file: file.stat().st_ino for file in after}
    assert before.keys() == after.keys()
    assert join({"id": ["bob"], "at": [10 * DAY]}, view(), history, time="at").num_rows == 1


def test_the_rest_of_a_file_is_as_it_was(history):
    [file, *_] = sorted((history.root / "v").rglob("*.parquet"))
    before = read(file)
    erase(history, view(), [b"bob"])
    kept = pc.invert(pc.is_in(before["id"], pa.array([b"bob"], before["id"].type)))
    assert read(file) == before.filter(kept)
    assert read(file).schema.equals(before.schema, check_metadata=True)


def test_ids_of_several_parts_are_those_of_the_store(tmp_path):
    store, pairs = OfflineStore(tmp_path), view(entity=["id", "shop"])
    table = {"id": ["a", "a"], "shop": [7, 8], "n": [1, 2], "word": ["a", "a"], "event_time": [DAY, DAY]}
    store.write(pairs, table)
    assert erase(store, pairs, [entity_key(("a", 7))]) == 1


def test_stopped_before_a_file_is_whole_leaves_it_as_it_was(history, monkeypatch):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "sync", fails)
    with pytest.raises(OSError, match="space"):
        erase(history, view(), [b"ada"])
    assert rows_of(history, b"ada") == 6
    assert not list((history.root / "v").rglob(".*"))


def test_what_a_killed_one_has_left_is_taken_away_by_the_next(history):
    (history.root / ".erasing-v").mkdir()
    left = history.root / "v" / "date=1970-01-02" / ".erasing-part-1.parquet"
    left.write_bytes(b"half of it")
    assert erase(history, view(), [b"nobody"]) == 0
    assert not left.exists()
    erase_view(history, "v")
    assert list(history.root.iterdir()) == []


def test_what_a_killed_writer_has_left_goes_with_the_rows(history):
    """Nobody would ever read it, but it has rows of whoever is to be forgotten."""
    folder = history.root / "v"
    left = [folder / ".part-1.parquet.lock", folder / "date=1970-01-02" / ".part-1.parquet"]
    for path in left:
        path.write_bytes(b"")
        os.utime(path, (0, 0))
    erase(history, view(), [b"ada"])
    assert not any(path.exists() for path in left)


def test_two_who_erase_at_once_bring_back_nobody(history):
    threads = [threading.Thread(target=erase, args=(history, view(), [entity.encode()])) for entity in IDS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [rows_of(history, entity.encode()) for entity in IDS] == [0, 0, 0]


def test_the_history_of_a_view_goes_as_a_whole(history):
    history.write(view(name="w"), {"id": ["ada"], "n": [1], "word": ["a"], "event_time": [DAY]})
    assert erase_view(history, "v", dry_run=True) == 18
    assert erase_view(history, "v") == 18
    assert [path.name for path in history.root.iterdir()] == ["w"]
    assert erase_view(history, "v") == 0


@pytest.mark.parametrize("strange", ["notes.txt", "date=1970-01-02/notes.txt", "src/date=1970-01-02/part-1.parquet"])
def test_a_folder_with_what_is_no_history_stays_as_it_is(history, strange):
    """Whoever names the wrong folder must not lose what happens to be called as the view."""
    file = history.root / "v" / strange
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("somebody's")
    for dry_run in (True, False):
        with pytest.raises(InvalidData, match=f"{strange.partition('/date')[0]}.* is no history of a view"):
            erase_view(history, "v", dry_run=dry_run)
    assert file.read_text() == "somebody's"
    assert erase(history, view(), [b"ada"], dry_run=True)


def test_a_history_that_is_not_there_and_a_damaged_file_are_named(history, tmp_path):
    with pytest.raises(InvalidData, match=r"no history in .*nothing"):
        erase(OfflineStore(tmp_path / "nothing"), view(), [b"ada"])
    with pytest.raises(InvalidData, match="no name of a view"):
        erase_view(history, "../v")
    [file, *_] = sorted((history.root / "v").rglob("*.parquet"))
    file.write_bytes(b"PAR1 nothing")
    with pytest.raises(InvalidData, match=file.name) as caught:
        erase(history, view(), [b"ada"])
    assert "\n" not in str(caught.value)
