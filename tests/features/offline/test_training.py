"""A training set from file to file: whole or not at all, of any kind of table, and every mistake in one line."""

from __future__ import annotations

import resource

import pyarrow as pa
import pytest
from pyarrow import csv, feather, parquet

from penstock.features import Column, FeatureError, FeatureView, InvalidData
from penstock.features.offline import OfflineStore
from penstock.features.offline.training import join_file

VIEW = FeatureView(name="v", entity="id", columns=[Column(name="x", dtype="int64", default=-1)], ttl_s=100)
PAIRS = FeatureView(name="pairs", entity=("id", "shop"), columns=[Column(name="y", dtype="float64")])
LABELS = pa.table({"id": ["007", "8", "nobody"], "at": [1000, 2000, 3000], "fraud": [0, 1, 0]})


@pytest.fixture
def offline(tmp_path):
    store = OfflineStore(tmp_path / "history")
    store.write(VIEW, {"id": ["007", "8"], "x": [5, 6], "event_time": [0, 2001]}, created="event_time")
    rows = {"id": ["007"], "shop": [3], "y": [0.5], "event_time": [0]}
    store.write(PAIRS, rows, created="event_time")
    return store


def written(kind, folder, table=LABELS):
    path = folder / f"labels.{kind}"
    if kind == "parquet of many files":
        path = folder / "labels"
        path.mkdir()
        for row in range(table.num_rows):
            parquet.write_table(table.slice(row, 1), path / f"part.{row}.parquet")
    else:
        {"parquet": parquet.write_table, "csv": csv.write_csv, "arrow": feather.write_feather}[kind](table, path)
    return path


@pytest.mark.parametrize("kind", ["parquet", "csv", "arrow", "parquet of many files"])
def test_labels_of_every_kind_of_table_get_their_features(tmp_path, offline, kind):
    """Also of CSV ids are text, and so keep their zeros."""
    out, told = tmp_path / "training.parquet", []
    labels = written(kind, tmp_path)
    summary = join_file(labels, [VIEW], offline, out, time_column="at", progress=lambda *at: told.append(at))
    assert parquet.read_table(out).to_pydict() == LABELS.to_pydict() | {"x": [5, -1, -1]}
    assert (summary.labels, summary.features, summary.found, summary.out) == (3, 1, {"v": 1}, str(out))
    assert told[-1] == (1, pytest.approx(1 / 3))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["history", "training.parquet", labels.name])


def test_keys_may_have_other_names_in_the_labels(tmp_path, offline):
    table = LABELS.rename_columns(["customer", "at", "fraud"]).append_column("store", pa.array([3, 3, 3]))
    labels = written("csv", tmp_path, table)
    keys = {"id": "customer", "shop": "store"}
    summary = join_file(labels, [VIEW, PAIRS], offline, tmp_path / "t.parquet", time_column="at", keys=keys)
    assert summary.found == {"v": 1, "pairs": 1}
    assert parquet.read_table(tmp_path / "t.parquet")["y"].to_pylist()[0] == 0.5


SPENDING = FeatureView.parse(
    {
        "name": "spending",
        "entity": "id",
        "columns": [{"name": "spent_1h", "dtype": "float64", "default": 0}],
        "aggregates": {"columns": {"spent_1h": {"function": "sum", "of": "amount", "window": "1h"}}},
    }
)


def test_aggregates_come_from_a_file_of_events(tmp_path, offline):
    events = {"id": ["007", "007", "8"], "amount": [1.5, 2, 4], "then": [0, 500, 0], "came": [0, 1500, 1999]}
    csv.write_csv(pa.table(events), tmp_path / "events.csv")
    out, labels = tmp_path / "t.parquet", written("csv", tmp_path)
    options = {"time_column": "at", "events": {"spending": tmp_path / "events.csv"}, "event_time": "then"}
    summary = join_file(labels, [VIEW, SPENDING], offline, out, event_created="came", **options)
    assert (summary.found, summary.features) == ({"v": 1, "spending": 2}, 2)
    assert parquet.read_table(out)["spent_1h"].to_pylist() == [1.5, 4, 0]
    join_file(labels, [SPENDING], offline, out, **options)
    assert parquet.read_table(out)["spent_1h"].to_pylist() == [3.5, 4, 0]
    with pytest.raises(InvalidData, match="there is no file"):
        join_file(labels, [SPENDING], offline, out, events={"spending": tmp_path / "none.csv"})


@pytest.mark.parametrize("name", ["labels.parquet", "gone/t.parquet", "t.csv", "folder.parquet"])
def test_a_place_for_the_answer_that_is_none_is_told_before_the_work(tmp_path, offline, name):
    (tmp_path / "folder.parquet").mkdir()
    labels = written("parquet", tmp_path)
    with pytest.raises(
        InvalidData, match=r"has the labels|there is no folder .*gone|its name ends in|is a folder"
    ) as caught:
        join_file(labels, [], offline, tmp_path / name, time_column="at")
    assert name.split("/")[0] in str(caught.value)
    assert parquet.read_table(labels).equals(LABELS)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (LABELS.drop_columns(["id"]), "labels.parquet: no column 'id'; it has at, fraud"),
        (LABELS.drop_columns(["at"]), "labels.parquet: no column 'at'; it has id, fraud"),
        (LABELS.append_column("x", pa.array([1, 2, 3])), "column 'x' is both in .*labels.parquet and in view 'v'"),
    ],
)
def test_labels_that_do_not_fit_are_named(tmp_path, offline, table, told):
    labels = written("parquet", tmp_path, table)
    with pytest.raises(InvalidData, match=told):
        join_file(labels, [VIEW], offline, tmp_path / "t.parquet", time_column="at")
    assert not (tmp_path / "t.parquet").exists()


def test_a_full_disk_leaves_the_file_that_was_there_and_nothing_else(tmp_path, offline):
    labels, out = written("parquet", tmp_path), tmp_path / "t.parquet"
    out.write_bytes(b"what was there")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(FeatureError, match=r"t\.parquet: cannot be written: File too large$"):
            join_file(labels, [VIEW], offline, out, time_column="at")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["history", "labels.parquet", "t.parquet"]
