"""History under a view that changed: read by the rule of stored rows, under the new view and under the old one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from penstock.features import Column, FeatureView, InvalidData
from penstock.features.offline import OfflineStore, join

NAN = np.nan


def view(*columns, **fields):
    return FeatureView(**{"name": "v", "entity": "id", "columns": columns, "on_missing": "nan"} | fields)


@pytest.fixture
def offline(tmp_path):
    return OfflineStore(tmp_path)


def write(offline, column, values, first=0):
    """A file of rows with ids from `first` on."""
    table = {"id": range(first, first + len(values)), "event_time": [0] * len(values)}
    array = np.empty(len(values), object)
    array[:] = values
    with offline.writer(view(column)) as out:
        ids = [b"%d" % i for i in table["id"]]
        out.put(ids, {"x": array}, np.zeros(len(values), np.int64), np.zeros(len(values), np.int64))


def read(offline, column, rows, first=0):
    """float32 [rows, width]."""
    wanted = view(column)
    got = join({"id": range(first, first + rows), "at": [0] * rows}, wanted, offline, time="at")
    return np.stack([got[name].to_numpy() for name in wanted.feature_names], axis=1)


def test_what_a_model_sees_of_a_row_under_a_changed_column(offline, change):
    """The same table of changes is held by the online store (tests/features/test_evolution.py)."""
    rows = len(change.values)
    expected = np.array(change.numbers, np.float32).reshape(rows, -1)
    write(offline, change.written, change.values)
    np.testing.assert_array_equal(read(offline, change.read, rows), expected)
    write(offline, change.read, [None], rows)  # and with a file in its new form beside it
    np.testing.assert_array_equal(read(offline, change.read, rows), expected)
    assert np.isnan(read(offline, change.read, 1, rows)).all()


def test_a_column_of_another_kind_is_refused(offline, other_kind):
    write(offline, other_kind.written, other_kind.values)
    with pytest.raises(InvalidData, match=r"column 'x'.* under a view of another name") as caught:
        read(offline, other_kind.read, 1)
    assert "\n" not in str(caught.value)


def test_the_step_of_the_guide_leaves_both_views_readable(offline):
    """A number that became wider, rows before and after, under the view that a served version keeps and the new one."""
    old, new = Column(name="x", dtype="float32", default=0), Column(name="x", dtype="float64", default=0)
    write(offline, old, [0.1, 1 / 3])
    write(offline, new, [0.1, 1e300], 2)
    for column in (old, new):
        np.testing.assert_array_equal(read(offline, column, 4)[:, 0], np.float32([0.1, 1 / 3, 0.1, np.inf]))


def test_all_forms_of_many_columns_at_once(offline):
    """Files that differ in some columns, or lack them, and in the order of columns."""
    columns = {"a": ["int32", "int64", "float64"], "b": ["bool", "float32", "int64"], "c": ["float32"] * 3}
    for i in range(3):
        listed = [Column(name=name, dtype=dtypes[i]) for name, dtypes in columns.items() if (name, i) != ("c", 1)]
        one = view(*(listed if i else listed[::-1]))
        table = {name: [i] if i < 2 or name != "b" else [7] for name in one.column_names}
        offline.write(one, table | {"id": [i], "event_time": [0]}, created="event_time")
    wanted = view(*(Column(name=name, dtype="float32") for name in columns))
    got = join({"id": [0, 1, 2, 3], "at": [0] * 4}, wanted, offline, time="at")
    assert got["a"].to_pylist()[:3] == [0, 1, 2]
    assert got["b"].to_pylist()[:3] == [0, 1, 7]
    np.testing.assert_array_equal(got["c"].to_numpy(), [0, NAN, 2, NAN])


def test_the_newest_row_counts_whatever_the_form_of_its_file(offline):
    for i, dtype in enumerate(["float64", "float32", "int64"]):
        one = view(Column(name="x", dtype=dtype))
        offline.write(one, {"id": ["e"], "x": [i], "event_time": [i]}, created="event_time")
    got = join({"id": ["e"] * 3, "at": [0, 1, 2]}, view(Column(name="x", dtype="float64")), offline, time="at")
    assert got["x"].to_pylist() == [0, 1, 2]


def test_a_file_of_strangers_is_named(offline):
    write(offline, Column(name="x", dtype="int64"), [1])
    (file,) = offline.root.glob("v/*/*.parquet")
    columns = {"id": pa.array(["0"]), "x": [1], "event_time": [0], "created_time": [0], "written": [0]}
    parquet.write_table(pa.table(columns), file)
    with pytest.raises(InvalidData, match=r"part-.*another kind of column 'id'; it was not written as history of view"):
        read(offline, Column(name="x", dtype="int64"), 1)
