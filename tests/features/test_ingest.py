import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from penstock.features import Column, FeatureView, InvalidData, Lookup
from penstock.features.ingest import ingest
from penstock.features.memory import MemoryStore

VIEW = FeatureView(
    name="activity",
    entity="customer",
    columns=[
        Column(name="count", dtype="int64"),
        Column(name="amount", dtype="float64"),
        Column(name="new", dtype="bool"),
    ],
)
TABLE = pa.table(
    {
        "unused": ["a", "b", "c"],
        "new": [True, None, False],
        "customer": [17, 18, 19],
        "amount": [150.5, None, -1.0],
        "count": pa.array([42, None, 7], pa.int32()),
        "at": pa.array([0, 1_000, 1_700_000_000_123], pa.timestamp("ms", "UTC")),
    }
)
NAN = np.nan
MATRIX = np.array([[42, 150.5, 1], [NAN, NAN, NAN], [7, -1, 0]], np.float32)


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture(params=["parquet", "csv"])
def write(request, tmp_path):
    """Writes a table as a file of either kind."""

    def write(table):
        path = tmp_path / f"table.{request.param}"
        parquet.write_table(table, path) if request.param == "parquet" else csv.write_csv(table, path)
        return path

    return write


def fetch(store, *entities, view=VIEW):
    return store.fetch([Lookup(view, entities)], timeout_s=1)[0]


def replaced(name, values):
    return TABLE.set_column(TABLE.column_names.index(name), name, pa.array(values))


def test_every_row_of_a_file_is_written_with_its_nulls(store, write):
    report = ingest(store, VIEW, write(TABLE))
    assert (report.view, report.rows) == ("activity", 3)
    assert report.rows_per_s > 0
    np.testing.assert_array_equal(fetch(store, b"17", b"18", b"19").values, MATRIX)


def test_event_times_come_from_a_column(store, write):
    ingest(store, VIEW, write(TABLE), time_column="at")
    assert fetch(store, b"17", b"18", b"19").event_times.tolist() == [0, 1_000, 1_700_000_000_123]


@pytest.mark.parametrize(
    "times",
    [
        [0, 1_000, 1_700_000_000_123],
        ["1970-01-01T00:00:00Z", "1970-01-01T00:00:01Z", "2023-11-14T22:13:20.123Z"],
        ["1970-01-01 00:00:00", "1970-01-01 00:00:01", "2023-11-14 22:13:20.123"],
        pa.array([0, 1_000_000_000, 1_700_000_000_123_000_000], pa.timestamp("ns")),
    ],
)
def test_event_times_may_be_numbers_text_or_timestamps(store, tmp_path, times):
    parquet.write_table(replaced("at", times), tmp_path / "t.parquet")
    ingest(store, VIEW, tmp_path / "t.parquet", time_column="at")
    assert fetch(store, b"17", b"18", b"19").event_times.tolist() == [0, 1_000, 1_700_000_000_123]


def test_ids_may_be_text_and_are_kept_as_written(store, write):
    ingest(store, VIEW, write(replaced("customer", ["007", "é", "a b"])))
    assert fetch(store, b"007", "é".encode(), b"a b").status.tolist() == [0, 0, 0]


def test_ids_in_a_dictionary_column_and_whole_numbers_in_a_float_column_are_taken(store, write):
    table = replaced("customer", pa.array(["a", "b", "a"]).dictionary_encode())
    table = table.set_column(table.column_names.index("count"), "count", pa.array([1.0, None, 3.0]))
    ingest(store, VIEW, write(table))
    assert fetch(store, b"a").values[0, 0] == 3  # the later row of an entity stays


def test_progress_is_told_after_each_batch_and_ends_at_all(store, write):
    told = []
    ingest(store, VIEW, write(TABLE), 2, lambda rows, fraction: told.append((rows, fraction)))
    assert [rows for rows, _ in told] == [2, 3]
    assert told[-1][1] == 1.0


@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        ("amount", ["1.5", "2", "12,5"], "column 'amount', row 3: '12,5' is not double"),
        ("count", ["1", "many", "3"], "column 'count', row 2: 'many' is not int64"),
        ("count", [1.0, 2.0, 0.5], "column 'count', row 3: 0.5 does not fit int64"),
        ("new", [0, 1, 2], "column 'new', row 3: 2"),
        ("customer", ["a", None, "c"], "column 'customer', row 2: an entity id is missing"),
    ],
)
@pytest.mark.parametrize("batch_rows", [50_000, 1])
def test_a_bad_value_is_named_with_its_column_and_row(store, write, name, values, complaint, batch_rows):
    with pytest.raises(InvalidData) as caught:
        ingest(store, VIEW, write(replaced(name, values)), batch_rows)
    assert complaint in str(caught.value)


def test_a_missing_column_is_named_with_those_there_are(store, write):
    for name in ("customer", "amount"):
        with pytest.raises(InvalidData, match=f"no column '{name}'; it has unused"):
            ingest(store, VIEW, write(TABLE.drop_columns([name])))
    with pytest.raises(InvalidData, match="no column 'when'"):
        ingest(store, VIEW, write(TABLE), time_column="when")


@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        ("amount", [[1.0], [2.0], [3.0]], "list"),
        ("customer", [1.5, 2.5, 3.5], "entity ids are integers or text"),
        ("at", [1.5, 2.5, 3.5], "event times"),
        ("at", [0, None, 1], "row 2: an event time is missing"),
    ],
)
def test_a_column_of_a_useless_type_is_refused(store, tmp_path, name, values, complaint):
    parquet.write_table(replaced(name, values), tmp_path / "t.parquet")
    with pytest.raises(InvalidData, match=complaint):
        ingest(store, VIEW, tmp_path / "t.parquet", time_column="at")


def test_a_file_that_is_missing_damaged_or_of_another_kind_is_named(store, tmp_path):
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "empty.csv").write_bytes(b"")
    (tmp_path / "table.xlsx").write_bytes(b"")
    for name in ("missing.parquet", "missing.csv", "damaged.parquet", "empty.csv", "table.xlsx"):
        with pytest.raises(InvalidData, match=name) as caught:
            ingest(store, VIEW, tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_file_with_no_rows_writes_none(store, write):
    assert ingest(store, VIEW, write(TABLE.slice(0, 0))).rows == 0
