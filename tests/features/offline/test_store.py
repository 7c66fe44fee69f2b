"""Writing history: whole files or none, where they belong, and values checked as the online store checks them."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from penstock.features import Column, FeatureView, InvalidData, InvalidView, Lookup, open_store
from penstock.features.ingest import ingest
from penstock.features.offline import OfflineStore, join, recording
from penstock.features.offline import store as module

DAY = 86_400_000


def view(**fields):
    columns = [Column(name="count", dtype="int64", default=0), Column(name="x", dtype="float32")]
    return FeatureView(**{"name": "activity", "entity": "customer", "columns": columns} | fields)


def table(rows=3, **more):
    return (
        {"customer": np.arange(rows), "count": np.arange(rows), "x": np.ones(rows, np.float32)}
        | {"event_time": np.arange(rows, dtype=np.int64) * DAY}
        | more
    )


@pytest.fixture(params=["redis", "memory"])
def store(request):
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "memory://"
    with closing(open_store(url)) as store:
        yield store


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_rows_lie_under_the_day_of_their_event_time_with_their_own_dtypes(tmp_path):
    values = {"x": np.array([0.5, np.nan, 2], np.float32), "count": np.ma.MaskedArray([2**62 + 1, 0, 3], [0, 1, 0])}
    assert OfflineStore(tmp_path).write(view(), table(**values), created="event_time") == 3
    days = [name.split("/")[1] for name in files(tmp_path)]
    assert days == ["date=1970-01-01", "date=1970-01-02", "date=1970-01-03"]
    rows = pa.concat_tables(parquet.ParquetFile(tmp_path / name).read() for name in files(tmp_path))
    assert rows.column_names == ["customer", "count", "x", "event_time", "created_time", "written"]
    assert rows["customer"].to_pylist() == [b"0", b"1", b"2"]
    assert rows["count"].to_pylist() == [2**62 + 1, None, 3]
    assert rows["x"].to_pylist() == [0.5, None, 2]
    assert (rows["x"].type, rows["created_time"].to_pylist()) == (pa.float32(), [0, DAY, 2 * DAY])


def test_other_tools_read_it(tmp_path):
    import duckdb

    OfflineStore(tmp_path).write(view(), table(), created="event_time")
    with duckdb.connect() as engine:
        found = engine.sql(f"SELECT date, count FROM read_parquet('{tmp_path}/activity/*/*.parquet') ORDER BY count")
        assert [(str(date), count) for date, count in found.fetchall()][2] == ("1970-01-03", 2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"count": [1, 2, 0.5]}, "column 'count', row 3: 0.5 does not fit int64"),
        ({"x": ["1", "no", "2"]}, "column 'x', row 2: 'no' is not float32"),
        ({"customer": ["a", None, "b"]}, "column 'customer', row 2: an entity id is missing"),
        ({"event_time": [1, 2, None]}, "column 'event_time', row 3: an event time is missing"),
        ({"event_time": [1, -2, 3]}, "row 2: -2 ms since 1970 is not a time between 1970 and 9999"),
        ({"event_time": [1, 2, 10**18]}, "row 3: 1000000000000000000 is more than a day ahead; event times are ms"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(tmp_path, change, told):
    with pytest.raises(InvalidData) as caught:
        OfflineStore(tmp_path).write(view(), table(**change))
    assert told in str(caught.value)
    assert files(tmp_path) == []


def test_a_missing_column_is_named(tmp_path):
    rows = table()
    del rows["x"]
    with pytest.raises(InvalidData, match="the rows of view 'activity': no column 'x'; it has customer, count"):
        OfflineStore(tmp_path).write(view(), rows)


@pytest.mark.parametrize("name", ["event_time", "Created_Time", "Customer", "COUNT"])
def test_columns_that_cannot_stand_beside_each_other_are_refused(tmp_path, name):
    twice = view(columns=[*view().columns, Column(name=name, dtype="int32")])
    with pytest.raises(InvalidView, match="cannot be kept offline"):
        OfflineStore(tmp_path).write(twice, {})


def test_many_tables_of_one_writer_make_one_file_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_HELD", 400)  # so that days are written out now and again
    store = OfflineStore(tmp_path)
    with store.writer(view()) as out:
        for _ in range(20):
            out.add(table())
        assert [name for name in files(tmp_path) if "/part-" in name] == []
    assert len(files(tmp_path)) == 3
    assert sum(parquet.ParquetFile(tmp_path / name).metadata.num_rows for name in files(tmp_path)) == out.rows == 60


def test_wide_rows_are_written_out_before_many_are_held(tmp_path, monkeypatch):
    """Rows of 4 KiB each: what is held is counted in bytes."""
    wide = view(columns=[Column(name="v", dtype="vector", size=1024)])
    monkeypatch.setattr(module, "MAX_HELD", 1 << 20)
    sizes = []
    write = module.Parts.write
    monkeypatch.setattr(module.Parts, "write", lambda *args: (sizes.append(args[2].nbytes), write(*args)))
    with OfflineStore(tmp_path).writer(wide) as out:
        for _ in range(20):
            ones = np.ones((100, 1024), np.float32)
            out.put([b"%d" % i for i in range(100)], {"v": ones}, np.full(100, DAY))
    assert sum(sizes) > 20 * 100 * 4096
    assert max(sizes) < (1 << 20) + 100 * 4200


def test_a_block_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_HELD", 1)

    def write():
        with OfflineStore(tmp_path).writer(view()) as out:
            out.add(table())
            out.add(table(count=[0.5, 1, 2]))

    with pytest.raises(InvalidData, match=r"row 4: 0\.5 does not fit"):
        write()
    assert files(tmp_path) == []


def test_a_writer_that_is_killed_leaves_nothing_that_is_read(tmp_path):
    program = f"""
import os, numpy as np
from penstock.features import Column, FeatureView
from penstock.features.offline import OfflineStore, store
store.MAX_HELD = 1
view = FeatureView(name="activity", entity="customer", columns=[Column(name="count", dtype="int64")])
with OfflineStore({str(tmp_path)!r}).writer(view) as out:
    out.add({{"customer": np.arange(9), "count": np.arange(9), "event_time": np.arange(9)}})
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    store = OfflineStore(tmp_path)
    assert len(files(tmp_path)) == 2  # a lock and a file, which the next writer takes away after a minute
    assert store.files(view(), 0, DAY) == []


def test_what_the_online_store_took_is_recorded_and_nothing_else(tmp_path, store):
    """Rows known from now on, also those that the online store left out for a newer event; all else is the store's."""
    store.apply(view())
    columns = {"count": np.array([1, 2]), "x": np.ones(2, np.float32)}
    offline = OfflineStore(tmp_path)
    before = time.time_ns() // 1_000_000
    with recording(store, offline, view()) as both:
        assert both.put(view(), [b"a", b"b"], columns, before - 10 + np.array([5, 5])) == 2
        assert both.put(view(), [b"a", b"b"], columns, before - 10 + np.array([4, 6])) == 1
        both.prepare(view(), [b"never", b"written"], columns, before - 10 + np.array([7, 7]))
        assert both.views() == [view()]
        assert files(tmp_path) == []
    files_of_it = offline.files(view(), before - DAY, before)  # two where midnight is near
    rows = pa.concat_tables(parquet.ParquetFile(file).read() for file in files_of_it)
    assert sorted(time - before + 10 for time in rows["event_time"].to_pylist()) == [4, 5, 5, 6]
    assert before <= min(rows["created_time"].to_pylist())


def test_an_ingestion_that_fails_leaves_the_same_rows_on_both_sides(tmp_path, store):
    store.apply(view())
    now = time.time_ns() // 1_000_000
    rows = {"customer": [1, 2, 3], "count": [1.0, 2.0, 0.5], "x": [1.0, 1, 1], "at": [now] * 3}
    parquet.write_table(pa.table(rows), tmp_path / "rows.parquet")
    offline = OfflineStore(tmp_path / "history")

    def run():
        with recording(store, offline, view()) as both:
            ingest(both, view(), tmp_path / "rows.parquet", batch_rows=1, time_column="at")

    with pytest.raises(InvalidData, match=r"row 3: 0\.5 does not fit"):
        run()
    frame = {"customer": [1, 2, 3], "at": [now + 60_000] * 3}
    assert join(frame, view(), offline, time="at")["count"].to_pylist() == [1, 2, 0]
    (fetched,) = store.fetch([Lookup(view(), [b"1", b"2", b"3"])], 2.0)
    np.testing.assert_array_equal(fetched.values[:, 0], [1, 2, np.nan])
