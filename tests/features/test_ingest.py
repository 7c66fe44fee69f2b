import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, feather, parquet

from penstock.features import Column, FeatureView, InvalidData, Lookup, RowsLost, StoreUnavailable
from penstock.features.ingest import WAITING, ingest
from penstock.features.memory import MemoryStore
from penstock.features.tables import read_batches, read_table

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
    return MemoryStore(clock=lambda: 0)  # at which the time of no event is over


WRITERS = {"parquet": parquet.write_table, "csv": csv.write_csv, "feather": feather.write_feather}


@pytest.fixture(params=WRITERS)
def write(request, tmp_path):
    """Writes a table as a file of each kind."""

    def write(table):
        path = tmp_path / f"table.{request.param}"
        WRITERS[request.param](table, path)
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
        ("amount", ["1.5", "2", "12,5"], "column 'amount', row 3: '12,5' is not float64"),
        ("count", ["1", "many", "3"], "column 'count', row 2: 'many' is not int64"),
        ("count", ["1", "1e99999999999999999999", "3.0"], "row 2: '1e99999999999999999999' is not int64"),
        ("count", ["1", "2.0", "nan(1)"], "column 'count', row 3: 'nan(1)' is not int64"),
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
        (
            "at",
            ["2026-01-01T00:00:00Z", "2026-01-02", "2026-01-03T00:00:00Z"],
            r"row 2: '2026-01-02' is not a time \(ms",
        ),
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


PLACES = FeatureView(
    name="places",
    entity="country",
    columns=[
        Column(name="city", dtype="string", max_bytes=20),
        Column(name="number", dtype="int64"),
        Column(name="mean", dtype="float64"),
    ],
)


def test_in_a_csv_file_an_empty_field_is_null_and_words_for_nothing_are_so_among_numbers_only(store, tmp_path):
    (tmp_path / "t.csv").write_text("country,city,number,mean\nNA,null,NA,null\nb,,3,NaN\n")
    ingest(store, PLACES, tmp_path / "t.csv")
    found = store.get(PLACES, ["NA", "b"])
    assert found.status == ("ok", "ok")
    assert found["city"].tolist() == ["null", None]
    assert found["number"].tolist() == [None, 3]
    assert found["mean"].tolist() == [None, None]


def test_integers_stay_exact_beside_others_and_as_decimals(store, tmp_path):
    large = 9007199254740993
    (tmp_path / "t.csv").write_text(f"country,city,number,mean\na,x,{large},1\nb,y,1.0,1\n")
    ingest(store, PLACES, tmp_path / "t.csv")
    decimal = pa.array([large], pa.decimal128(38, 0))
    store.put_table(PLACES, pa.table({"country": ["c"], "city": ["z"], "mean": [1.0], "number": decimal}))
    assert store.get(PLACES, ["a", "b", "c"])["number"].tolist() == [large, 1, large]


def test_a_column_that_is_there_twice_is_refused(store, tmp_path):
    twice = pa.table([*TABLE.columns, TABLE["count"]], [*TABLE.column_names, "count"])
    for name, writer in WRITERS.items():
        writer(twice, tmp_path / f"t.{name}")
    for source in (twice, *(tmp_path / f"t.{name}" for name in WRITERS)):
        with pytest.raises(InvalidData, match="more than one column 'count'"):
            ingest(store, VIEW, source)
    with pytest.raises(InvalidData, match="more than one column 'count'"):
        store.put_table(VIEW, twice)


def test_a_file_with_no_rows_writes_none(store, write):
    assert ingest(store, VIEW, write(TABLE.slice(0, 0))).rows == 0


# Older events -----------------------------------------------------------------------------------------------------


def aged(days):
    """`TABLE` with other amounts, and every event so many days later."""
    times = [ms + days * 86_400_000 for ms in (0, 1_000, 1_500_000_000_123)]
    table = replaced("amount", [float(days)] * 3)
    return table.set_column(table.column_names.index("at"), "at", pa.array(times, pa.timestamp("ms", "UTC")))


def test_an_older_table_changes_nothing_and_one_ingested_again_only_itself(store, write):
    assert ingest(store, VIEW, write(aged(2)), time_column="at").older == 0
    report = ingest(store, VIEW, write(aged(1)), time_column="at")
    assert (report.rows, report.older) == (3, 3)
    assert fetch(store, b"17").values[0, 1] == 2
    assert ingest(store, VIEW, write(aged(2)), time_column="at").older == 0
    assert ingest(store, VIEW, write(aged(1)), time_column="at", overwrite=True).older == 0
    assert fetch(store, b"17").values[0, 1] == 1


def test_rows_whose_time_is_over_are_not_kept_and_counted(write):
    now = 1_700_000_000_123
    store = MemoryStore(clock=lambda: now)
    report = ingest(store, VIEW, write(TABLE), time_column="at")
    assert (report.rows, report.kept, report.older, report.over) == (3, 1, 0, 2)
    assert np.isnan(fetch(store, b"17", b"18").values).all()
    now += VIEW.ttl_s * 1000
    assert fetch(store, b"19").event_times.tolist() == [1_700_000_000_123]
    assert ingest(store, VIEW, write(TABLE), time_column="at").over == 2
    now += 1
    assert ingest(store, VIEW, write(TABLE), time_column="at", overwrite=True).over == 3


def test_an_event_of_a_later_day_is_refused_since_it_would_win_for_years(store, write):
    late = [int(time.time() * 1e3), int(time.time() * 1e6), 0]
    with pytest.raises(InvalidData, match=r"column 'at', row 2: .* is more than a day ahead; event times are ms"):
        ingest(store, VIEW, write(replaced("at", late)), time_column="at")


@pytest.mark.parametrize("to", [lambda table: table, lambda table: table.to_reader(1), lambda table: table.to_pandas()])
def test_arrow_data_of_this_process_is_ingested_without_a_file(store, to):
    report = ingest(store, VIEW, to(TABLE), batch_rows=2, time_column="at")
    assert report.rows == 3
    np.testing.assert_array_equal(fetch(store, b"17", b"18", b"19").values, MATRIX)
    with pytest.raises(InvalidData, match="a dict is neither the path of a table nor Arrow data"):
        ingest(store, VIEW, {})
    with pytest.raises(InvalidData, match="the table: no column 'new'"):
        ingest(store, VIEW, to(TABLE.drop_columns(["new"])))


# Stopping and going on --------------------------------------------------------------------------------------------

LONG = pa.table(
    {"customer": range(100), "count": range(100), "amount": [0.5] * 100, "new": [True] * 100, "at": range(100)}
)


class Flaky(MemoryStore):
    """Fails as told before each write of rows."""

    def __init__(self, *failures):
        super().__init__()
        self.failures = list(failures)
        self.batches = []

    def prepare(self, view, entities, columns, event_times=None, *, overwrite=False):
        write = super().prepare(view, entities, columns, event_times, overwrite=overwrite)

        def fail_or_write():
            if self.failures and (failure := self.failures.pop(0)) is not None:
                raise failure
            self.batches.append(int(entities[0]))
            return write()

        return fail_or_write


AWAY = StoreUnavailable("away")


def test_a_stopped_ingestion_goes_on_after_what_was_acknowledged(write):
    store, path = Flaky(None, None, KeyError("killed")), write(LONG)
    with pytest.raises(KeyError):
        ingest(store, VIEW, path, batch_rows=10)
    assert store.batches == [0, 10]  # and none after the one that failed
    report = ingest(store, VIEW, path, batch_rows=7, resume=True)
    assert store.batches[2] == 20
    assert (report.resumed, report.rows) == (20, 80)
    assert fetch(store, *(b"%d" % i for i in range(100))).values[:, 0].tolist() == list(range(100))
    assert ingest(store, VIEW, path, resume=True).resumed == 0  # it was done


def test_without_being_asked_to_it_begins_anew(write):
    store, path = Flaky(None, KeyError("killed")), write(LONG)
    with pytest.raises(KeyError):
        ingest(store, VIEW, path, batch_rows=10)
    assert ingest(store, VIEW, path).resumed == 0


@pytest.mark.parametrize("change", ["rows", "time column", "view"])
def test_what_is_not_the_same_job_is_not_resumed(write, change):
    store, path = Flaky(None, KeyError("killed")), write(LONG)
    with pytest.raises(KeyError):
        ingest(store, VIEW, path, batch_rows=10)
    view = VIEW.model_copy(update={"name": "other"}) if change == "view" else VIEW
    path = write(LONG.slice(1)) if change == "rows" else path
    assert ingest(store, view, path, resume=True, time_column="at" if change == "time column" else None).resumed == 0


def test_a_mark_that_makes_no_sense_is_none(write, monkeypatch):
    store = MemoryStore()
    monkeypatch.setattr(store, "marked", lambda job: b"many rows")
    assert ingest(store, VIEW, write(LONG), resume=True).resumed == 0


def test_a_store_that_is_away_for_a_moment_is_waited_for(write):
    store = Flaky(AWAY, AWAY, None, AWAY)
    assert ingest(store, VIEW, write(LONG), batch_rows=30).rows == 100
    assert store.batches == [0, 30, 60, 90]


def test_one_that_stays_away_is_not(write):
    seen = []
    with pytest.raises(StoreUnavailable, match="away"):
        ingest(Flaky(*[None] * 3, *[AWAY] * 99), VIEW, write(LONG), 30, lambda *at: seen.append(at), patience_s=0.1)
    assert [rows for rows, _ in seen] == [30, 60, 90]


def test_a_store_that_forgot_what_it_acknowledged_is_found_out(write):
    class Forgetful(Flaky):
        def mark(self, job, new):
            if len(self.batches) == 2:
                self._marks.clear()  # it came back without them
            return super().mark(job, new)

    store, path = Forgetful(), write(LONG)
    with pytest.raises(RowsLost, match="run it again with --resume"):
        ingest(store, VIEW, path, batch_rows=10)
    assert ingest(store, VIEW, path, resume=True).resumed == 0  # and none of what it forgot is passed over


def test_two_ingestions_of_one_file_at_once_find_each_other_out(write):
    path = write(LONG)

    class Joined(Flaky):
        def mark(self, job, new):
            if len(self.batches) == 3:
                self.batches.append("another")
                ingest(self, VIEW, path)
            return super().mark(job, new)

    with pytest.raises(RowsLost, match="ingested twice at once"):
        ingest(Joined(), VIEW, path, batch_rows=10)


def test_reading_does_not_run_ahead_of_writing_by_more_than_some_batches(write):
    begun, go = threading.Event(), threading.Event()

    class Slow(Flaky):
        prepared = 0

        def prepare(self, view, entities, *rest, **options):
            self.prepared += 1
            write = super().prepare(view, entities, *rest, **options)

            def slow():
                begun.set()
                assert go.wait(10)
                return write()

            return slow

    store = Slow()
    thread = threading.Thread(target=ingest, args=(store, VIEW, write(LONG), 1))
    thread.start()
    assert begun.wait(10)
    thread.join(0.2)
    assert store.prepared <= WAITING + 2
    go.set()
    thread.join(10)
    assert len(store.batches) == 100


@pytest.mark.parametrize("skip", [0, 1, 30, 31, 99, 100])
@pytest.mark.parametrize("kind", [*WRITERS, "memory"])
def test_any_number_of_rows_is_skipped_in_every_kind_of_table(tmp_path, kind, skip):
    source = LONG
    if kind != "memory":
        source = tmp_path / f"t.{kind}"
        options = {"parquet": {"row_group_size": 30}, "feather": {"chunksize": 30}}.get(kind, {})
        WRITERS[kind](LONG, source, **options)
    batches = list(read_batches(source, ["at", "customer"], 8, skip))
    assert [int(v) for batch, _ in batches for v in batch.column("customer").to_pylist()] == list(range(skip, 100))
    assert all(batch.num_rows <= 8 for batch, _ in batches)
    assert not batches or batches[-1][1] == 1


def test_unknown_words_are_counted_by_column(store, tmp_path):
    column = Column(name="kind", dtype="category", vocabulary=["a", "b"])
    view = FeatureView(name="v", entity="id", columns=[column, column.model_copy(update={"name": "sort"})])
    (tmp_path / "t.csv").write_text("id,kind,sort\n1,a,b\n2,c,a\n3,,b\n4,d,a\n5,c,b\n")
    assert ingest(store, view, tmp_path / "t.csv", batch_rows=2).unknown == {"kind": 3}


# Tables of many files -------------------------------------------------------------------------------------------------


def many(folder, name="part-{:05}-1f3c.snappy.parquet", table=LONG, rows=30):
    """The table as Spark writes it, with what else lies in such a folder."""
    folder.mkdir(parents=True)
    for number, start in enumerate(range(0, table.num_rows, rows)):
        parquet.write_table(table.slice(start, rows), folder / name.format(number), row_group_size=7)
        (folder / f".{name.format(number)}.crc").write_bytes(b"crc")
    for other in ("_SUCCESS", "_metadata.parquet", ".part-0.parquet"):
        (folder / other).write_bytes(b"not Parquet")
    return folder


def ids(source, skip=0):
    batches = list(read_batches(source, ["customer"], 8, skip))
    return [int(v) for batch, _ in batches for v in batch.column("customer").to_pylist()], batches


@pytest.mark.parametrize("skip", [0, 1, 30, 31, 60, 99, 100])
@pytest.mark.parametrize("kind", ["folder", "nested", "dask", "pattern", "pattern of folders"])
def test_a_folder_or_pattern_of_parquet_is_one_table(tmp_path, kind, skip):
    """In the order of the names, numbers by value; resumed anywhere, and the whole is told how much is read."""
    names = {"dask": "part.{}.parquet", "nested": "part-{}.parquet"}
    rows = 5 if kind == "dask" else 30
    folder = many(
        tmp_path / "rows.parquet" / ("a" if kind == "nested" else ""), names.get(kind, "p-{:05}.parquet"), rows=rows
    )
    source = {"pattern": folder / "*p*", "pattern of folders": tmp_path / "r*"}.get(kind, tmp_path / "rows.parquet")
    found, batches = ids(source, skip)
    assert found == list(range(skip, 100))
    assert all(batch.num_rows <= 8 for batch, _ in batches)
    assert [fraction for _, fraction in batches] == sorted(fraction for _, fraction in batches)
    assert not batches or batches[-1][1] == 1


def test_a_folder_is_ingested_and_resumed_and_known_again_only_as_it_was(tmp_path):
    store, folder = Flaky(None, None, KeyError("killed")), many(tmp_path / "rows.parquet")
    with pytest.raises(KeyError):
        ingest(store, VIEW, folder, batch_rows=10)
    report = ingest(store, VIEW, folder, batch_rows=10, resume=True)
    assert (report.resumed, report.rows) == (20, 80)
    store.failures = [None, KeyError("killed")]
    with pytest.raises(KeyError):
        ingest(store, VIEW, folder, batch_rows=10)
    parquet.write_table(LONG.slice(0, 1), folder / "part-00009.parquet")
    assert ingest(store, VIEW, folder, resume=True).resumed == 0


def test_files_of_one_folder_may_differ_in_what_the_view_makes_one_of(tmp_path, store):
    many(tmp_path / "t.parquet", rows=50)
    other = LONG.slice(0, 1).set_column(1, "count", pa.array([7.0])).append_column("more", pa.array([1]))
    parquet.write_table(other, tmp_path / "t.parquet" / "part-00009.parquet")
    assert ingest(store, VIEW, tmp_path / "t.parquet").rows == 101
    assert fetch(store, b"0").values[0, 0] == 7


def test_what_is_wrong_with_one_of_many_is_told_of_that_one_before_a_row_is_written(tmp_path, store):
    folder = many(tmp_path / "t.parquet")
    parquet.write_table(LONG.drop_columns(["new"]), folder / "part-00009.parquet")
    with pytest.raises(InvalidData, match=r"part-00009\.parquet: no column 'new'"):
        ingest(store, VIEW, folder)
    (folder / "part-00009.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(InvalidData, match=r"part-00009\.parquet: cannot be read"):
        ingest(store, VIEW, folder)
    assert fetch(store, b"0").status.tolist() == [1]  # absent
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidData, match=r"there is no Parquet file in the folder .*empty"):
        ingest(store, VIEW, tmp_path / "empty")
    with pytest.raises(InvalidData, match=r"no file is called .*none-\*\.parquet"):
        ingest(store, VIEW, tmp_path / "none-*.parquet")
    for name in "ab":
        csv.write_csv(TABLE, tmp_path / f"{name}.csv")
    with pytest.raises(InvalidData, match=r"a\.csv: a table of many files is Parquet"):
        ingest(store, VIEW, tmp_path / "*.csv")
    assert ingest(store, VIEW, tmp_path / "a*.csv").rows == 3


def test_a_file_whose_own_name_is_a_pattern_is_that_file(tmp_path, store):
    parquet.write_table(TABLE, tmp_path / "a[1].parquet")
    parquet.write_table(TABLE.slice(1), tmp_path / "a1.parquet")
    assert ingest(store, VIEW, tmp_path / "a[1].parquet").rows == 3


def test_a_whole_table_of_every_kind_keeps_ids_as_they_are_written(tmp_path):
    csv.write_csv(pa.table({"id": ["007", "8"], "at": ["2026-01-02", "2026-01-03"], "y": [1, 2]}), tmp_path / "t.csv")
    read = read_table(tmp_path / "t.csv", ["id", "nothing"])
    assert (read["id"].to_pylist(), read["y"].type) == (["007", "8"], pa.int64())
    feather.write_feather(LONG, tmp_path / "t.arrow")
    assert read_table(tmp_path / "t.arrow").equals(LONG)
    assert read_table(many(tmp_path / "t.parquet")).equals(LONG)
    with pytest.raises(InvalidData, match="there is no file"):
        read_table(tmp_path / "none.csv")
