"""The point-in-time join against an oracle in plain Python, and everything that it must refuse."""

from __future__ import annotations

import math
import sys
import tempfile
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features import Column, FeatureError, FeatureView, InvalidData, InvalidView
from penstock.features.arrow import to_numbers
from penstock.features.memory import MemoryStore
from penstock.features.offline import OfflineStore, join
from penstock.features.store import Lookup

DAY = 86_400_000
NAN = float("nan")


def view(**fields):
    columns = [
        Column(name="count", dtype="int64", default=7),
        Column(name="a mount", dtype="float64"),
        Column(name='the "ratio"', dtype="float32", default=0.1),
        Column(name="days", dtype="int32"),
        Column(name="new", dtype="bool", default=1),
    ]
    return FeatureView(**{"name": "activity", "entity": "customer", "columns": columns, "ttl_s": 100} | fields)


def one(name="v", **fields):
    """A view of one column x."""
    given = {"name": name, "entity": "id", "columns": [Column(name="x", dtype="float64", default=-1)], "ttl_s": 100}
    return FeatureView(**given | fields)


def write(root, view, rows):
    """Rows of (id, x, event time, created time)."""
    ids, values, times, known = zip(*rows, strict=True) if rows else ((), (), (), ())
    table = {
        "id": pa.array(ids, pa.binary()),
        "x": np.array(values, float),
        "event_time": np.array(times, np.int64),
        "known": np.array(known, np.int64),
    }
    return OfflineStore(root).write(view, table, created="known")


def joined(root, view, labels, **options):
    """x for labels of (id, time)."""
    ids, times = zip(*labels, strict=True)
    frame = {"id": pa.array(ids, pa.binary()), "at": np.array(times, np.int64)}
    return join(frame, view, root, time="at", **options)["x"].to_pylist()


# The oracle -------------------------------------------------------------------------------------------------------

IDS = st.sampled_from([b"a", b"A", b"\x00", b"\xff\xfe", b"a\x00", b"'; --", b"b" * 40])
TIMES = st.one_of(
    st.integers(DAY - 3, DAY + 3),  # over midnight
    st.sampled_from([0, DAY + 99_999, DAY + 100_000, DAY + 100_001, DAY + 100_002, DAY + 100_003]),  # about the ttl
)
FLOATS = st.one_of(st.just(NAN), st.sampled_from([0.0, -0.0, 1e300, math.inf, 1 / 3]), st.floats(width=64))
VALUES = st.tuples(
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    FLOATS,
    st.floats(width=32),
    st.one_of(st.none(), st.integers(-(2**31), 2**31 - 1)),
    st.one_of(st.none(), st.booleans()),
)
POLICIES = st.sampled_from(["default", "nan"])


def oracle(rows, label, view, as_of_created):
    """Values of the newest row known at the label's time, None where there is none; the order of rows breaks ties."""
    (entity, now), best = label, None
    for order, (identifier, event, created, values) in enumerate(rows):
        if identifier != entity or event > now or event < now - view.ttl_s * 1000:
            continue
        if as_of_created and created > now:
            continue
        if best is None or (event, created, order) > best[0]:
            best = (event, created, order), values
    return None if best is None else best[1]


def served(view, values):
    """What a model sees of a row, by the rules as they are written down."""
    seen = []
    for column, value in zip(view.columns, values or [None] * len(view.columns), strict=True):
        with np.errstate(over="ignore"):
            x = np.float32(NAN) if value is None else np.dtype(column.dtype).type(value).astype(np.float32)
        if np.isnan(x) and view.on_missing == "default" and column.default is not None:
            x = np.float32(column.default)
        seen.append(x)
    return np.array(seen, np.float32)


def table_of(view, rows):
    columns = list(zip(*(values for *_, values in rows), strict=True)) or [()] * 5
    kinds = [pa.int64(), pa.float64(), pa.float32(), pa.int32(), pa.bool_()]
    table = {c.name: pa.array(v, k) for c, v, k in zip(view.columns, columns, kinds, strict=True)}
    table["customer"] = pa.array([row[0] for row in rows], pa.binary())
    table["event_time"] = pa.array([row[1] for row in rows], pa.int64())
    table["known"] = pa.array([row[2] for row in rows], pa.int64())
    return table


@st.composite
def cases(draw):
    """Writes of rows, and labels, out of few ids and times, so that most of them meet."""
    ids = st.sampled_from(draw(st.lists(IDS, min_size=1, max_size=2)))
    times = st.sampled_from(draw(st.lists(TIMES, min_size=3, max_size=5, unique=True)))
    rows = st.lists(st.tuples(ids, times, times, VALUES), max_size=4)
    return draw(st.lists(rows, min_size=1, max_size=3)), draw(st.lists(st.tuples(ids, times), max_size=8))


@settings(max_examples=50)
@given(case=cases(), policy=POLICIES, as_of_created=st.booleans())
def test_equals_the_oracle(case, policy, as_of_created):
    """Ties, back-fills, nulls, NaN, infinities, odd ids, the edges of the ttl and of days, several writes."""
    compare(*case, policy, as_of_created)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=2000)
@given(case=cases(), policy=POLICIES, as_of_created=st.booleans())
def test_equals_the_oracle_again_and_again(case, policy, as_of_created):
    compare(*case, policy, as_of_created)


def compare(writes, labels, policy, as_of_created):
    activity = view(on_missing=policy)
    with tempfile.TemporaryDirectory() as root:
        store = OfflineStore(root)
        (store.root / "activity").mkdir()
        for rows in writes:
            assert store.write(activity, table_of(activity, rows), created="known") == len(rows)
        frame = pa.table(
            {
                "customer": pa.array([i for i, _ in labels], pa.binary()),
                "at": pa.array([t for _, t in labels], pa.int64()),
            }
        )
        got = join(frame, activity, store, time="at", as_of_created=as_of_created)
    assert got.column_names == ["customer", "at", *activity.column_names]
    assert got.select(["customer", "at"]).equals(frame)
    everything = [row for rows in writes for row in rows]
    for i, label in enumerate(labels):
        expected = served(activity, oracle(everything, label, activity, as_of_created))
        found = np.array([got[name][i].as_py() for name in activity.column_names], np.float32)
        assert found.tobytes() == expected.tobytes() or np.array_equal(found, expected, equal_nan=True), label


@settings(max_examples=15)
@given(
    rows=st.lists(VALUES, min_size=1, max_size=8),
    policy=POLICIES,
)
def test_gives_to_the_bit_what_the_online_store_would(rows, policy):
    activity = view(on_missing=policy)
    table = table_of(activity, [(b"%d" % i, 5, 5, values) for i, values in enumerate(rows)])
    entities = [b"%d" % i for i in range(len(rows))]
    online = MemoryStore()
    columns = {c.name: to_numbers(table[c.name], c.name, c.dtype, 1) for c in activity.columns}
    online.put(activity, entities, columns)
    (fetched,) = online.fetch([Lookup(activity, entities)], 1.0)
    with tempfile.TemporaryDirectory() as root:
        OfflineStore(root).write(activity, table, created="known")
        got = join(
            {"customer": entities, "at": [5] * len(rows)},
            activity.model_copy(update={"on_missing": "nan"}),
            root,
            time="at",
        )
    matrix = np.stack([got[name].to_numpy() for name in activity.column_names], axis=1)
    np.testing.assert_array_equal(matrix, fetched.values)


# The rules one by one ---------------------------------------------------------------------------------------------


def test_a_row_at_the_label_s_own_time_counts_and_one_a_millisecond_later_does_not(tmp_path):
    write(tmp_path, one(), [(b"e", 1, 1000, 0), (b"e", 2, 1001, 0)])
    assert joined(tmp_path, one(), [(b"e", 999), (b"e", 1000), (b"e", 1001)]) == [-1, 1, 2]


def test_a_row_as_old_as_the_ttl_counts_and_an_older_one_does_not(tmp_path):
    write(tmp_path, one(), [(b"e", 1, 1000, 0)])
    assert joined(tmp_path, one(), [(b"e", 101_000), (b"e", 101_001)]) == [1, -1]


def test_a_back_fill_does_not_leak_into_labels_from_before_it(tmp_path):
    """A correction of yesterday's value, written today, was unknown yesterday."""
    write(tmp_path, one(), [(b"e", 1, 1000, 1000), (b"e", 100, 1000, 50_000), (b"e", 2, 900, 60_000)])
    labels = [(b"e", 49_999), (b"e", 50_000), (b"e", 70_000)]
    assert joined(tmp_path, one(), labels) == [1, 100, 100]
    assert joined(tmp_path, one(), labels, as_of_created=False) == [100, 100, 100]


def test_of_rows_with_one_event_time_the_last_created_counts_whenever_it_was_written(tmp_path):
    write(tmp_path, one(), [(b"e", 2, 1000, 900), (b"e", 1, 1000, 800)])
    assert joined(tmp_path, one(), [(b"e", 2000)]) == [2]


def test_of_rows_alike_in_both_times_the_last_written_counts(tmp_path):
    write(tmp_path, one(), [(b"e", 1, 1000, 1000), (b"e", 2, 1000, 1000)])
    assert joined(tmp_path, one(), [(b"e", 2000)]) == [2]
    write(tmp_path, one(), [(b"e", 3, 1000, 1000)])
    assert joined(tmp_path, one(), [(b"e", 2000)]) == [3]


def test_writing_the_same_rows_again_changes_nothing(tmp_path):
    rows = [(b"e", 1, 1000, 1000), (b"f", 2, 1000, 1000)]
    write(tmp_path, one(), rows)
    before = joined(tmp_path, one(), [(b"e", 2000), (b"f", 2000)])
    write(tmp_path, one(), rows)
    assert joined(tmp_path, one(), [(b"e", 2000), (b"f", 2000)]) == before


def test_times_of_every_kind_mean_the_same_moment(tmp_path):
    """Timestamps with and without a zone, datetimes, dates, ISO text and milliseconds; no zone is UTC."""
    noon = int(datetime(2026, 1, 2, 12, tzinfo=UTC).timestamp() * 1000)
    east = timezone(timedelta(hours=5, minutes=30))
    there = datetime(2026, 1, 2, 17, 30, tzinfo=east)
    write(tmp_path, one(), [(b"e", 1, noon, noon)])
    for at in (
        [noon],
        [there],
        [there.astimezone(UTC).replace(tzinfo=None)],
        ["2026-01-02T12:00:00"],
        ["2026-01-02T12:00:00Z"],
        ["2026-01-02T17:30:00+05:30"],
        np.array(["2026-01-02T12:00"], "datetime64[ns]"),
        pa.array([noon * 1000], pa.timestamp("us", "America/New_York")),
        np.array(["2026-01-02T12:00:00"], "datetime64[s]"),
    ):
        assert join({"id": ["e"], "at": at}, one(), tmp_path, time="at")["x"].to_pylist() == [1], at
    assert (
        join({"id": ["e"], "at": [there - timedelta(milliseconds=1)]}, one(), tmp_path, time="at")["x"][0].as_py() == -1
    )
    day = pa.array([datetime(2026, 1, 3, tzinfo=UTC).date()], pa.date32())
    slow = one(ttl_s=86400)
    assert join({"id": ["e"], "at": day}, slow, tmp_path, time="at")["x"].to_pylist() == [1]


class Stream:
    """A frame of polars, or of anybody else whose tables are Arrow streams."""

    def __init__(self, columns):
        self._table = pa.table(columns)

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.cast(_views(self._table.schema)).__arrow_c_stream__(requested_schema)


def _views(schema):
    """Texts as polars has them."""
    kinds = {pa.string(): pa.string_view()}
    return pa.schema([pa.field(field.name, kinds.get(field.type, field.type)) for field in schema])


@pytest.mark.parametrize("make", [pa.table, pd.DataFrame, dict, Stream], ids=["arrow", "pandas", "dict", "stream"])
def test_frames_of_every_kind_with_integer_or_text_ids(tmp_path, make):
    write(tmp_path, one(), [(b"17", 1, 1000, 0)])
    for ids in ([17, 18], ["17", "18"], pa.array(["17", "18"]).dictionary_encode()):
        held = ids.to_pandas() if make is pd.DataFrame and isinstance(ids, pa.Array) else ids
        got = join(make({"id": held, "at": [1000, 1000], "label": [0, 1]}), one(), tmp_path, time="at")
        assert got.column_names == ["id", "at", "label", "x"]
        assert got["x"].to_pylist() == [1, -1]
        assert got["x"].type == pa.float32()
    table = make({"id": ["18"], "x": [2.5], "event_time": [900]})
    assert OfflineStore(tmp_path).write(one(), table, created="event_time") == 1
    assert join(make({"id": ["18"], "at": [1000]}), one(), tmp_path, time="at")["x"].to_pylist() == [2.5]


def test_several_views_of_several_entities(tmp_path):
    shops = FeatureView(name="shops", entity="shop", columns=[Column(name="y", dtype="int32")], ttl_s=10)
    write(tmp_path, one(), [(b"e", 1, 1000, 0)])
    OfflineStore(tmp_path).write(shops, {"shop": [5], "y": [50], "event_time": [2000]}, created="event_time")
    frame = {"id": ["e", "e"], "shop": [5, 5], "at": [1500, 2500]}
    got = join(frame, [one(), shops], tmp_path, time="at")
    assert got["x"].to_pylist() == [1, 1]
    np.testing.assert_array_equal(got["y"].to_numpy(), [np.nan, 50])
    both = join(frame, [one(), one("w", entity="id")], _with(tmp_path, "w"), time="at", prefix=True)
    assert both.column_names[-2:] == ["v__x", "w__x"]


def _with(root, name):
    write(root, one(name), [(b"e", 9, 0, 0)])
    return root


def test_an_empty_frame_gives_an_empty_table_with_every_column(tmp_path):
    write(tmp_path, one(), [(b"e", 1, 1000, 0)])
    for frame in ({"id": [], "at": []}, pa.table({"id": pa.array([], pa.int64()), "at": pa.array([], pa.int64())})):
        got = join(frame, one(), tmp_path, time="at")
        assert (got.num_rows, got.column_names) == (0, ["id", "at", "x"])


def test_a_column_that_came_later_reads_as_null_in_older_files(tmp_path):
    write(tmp_path, one(), [(b"old", 1, 1000, 0)])
    wider = one(columns=[Column(name="x", dtype="float64", default=-1), Column(name="z", dtype="int32", default=5)])
    assert join({"id": ["old"], "at": [1000]}, wider, tmp_path, time="at")["z"].to_pylist() == [5]
    OfflineStore(tmp_path).write(wider, {"id": ["new"], "x": [2.0], "z": [6], "event_time": [0]}, created="event_time")
    got = join({"id": ["old", "new"], "at": [1000, 1000]}, wider, tmp_path, time="at")
    assert (got["x"].to_pylist(), got["z"].to_pylist()) == ([1, 2], [5, 6])


def test_only_days_that_labels_can_reach_are_read(tmp_path):
    write(tmp_path, one(), [(b"e", day, day * DAY, 0) for day in range(1, 6)])
    for day in (1, 5):
        (file,) = tmp_path.glob(f"v/date=1970-01-0{day + 1}/*.parquet")
        file.write_bytes(b"not Parquet")
    assert joined(tmp_path, one(ttl_s=86400), [(b"e", 4 * DAY), (b"e", 3 * DAY + 5)]) == [4, 3]


def test_a_folder_with_a_name_full_of_patterns(tmp_path):
    root = tmp_path / "it's [a] *?"
    write(root, one(), [(b"e", 1, 1000, 0)])
    assert joined(root, one(), [(b"e", 1000)]) == [1]


def test_it_spills_to_disk_rather_than_take_more_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("penstock.features.offline.asof.MEMORY", "64MB")
    rows = 200_000
    ids, times = np.arange(rows) % 50_000, np.arange(rows, dtype=np.int64)
    OfflineStore(tmp_path).write(one(), {"id": ids, "x": times, "event_time": times}, created="event_time")
    got = join({"id": ids, "at": times}, one(ttl_s=1000), tmp_path, time="at")
    np.testing.assert_array_equal(got["x"].to_numpy(), times)


# Refused ----------------------------------------------------------------------------------------------------------

FINE = {"id": ["e"], "at": [1000]}


@pytest.mark.parametrize(
    ("frame", "told"),
    [
        ({"at": [1]}, "the entity frame: no column 'id'; it has at"),
        ({"id": ["e"]}, "the entity frame: no column 'at'; it has id"),
        ({"id": ["e", None], "at": [1, 2]}, "column 'id', row 2: an entity id is missing"),
        ({"id": [""], "at": [1]}, "column 'id', row 1: an entity id of 0 bytes; it has 1 to 1024"),
        ({"id": [0.5], "at": [1]}, "column 'id' is double; entity ids are integers or text"),
        ({"id": ["e"], "at": [None]}, "column 'at', row 1: an event time is missing"),
        ({"id": ["e"], "at": [1.5]}, "column 'at' is double; event times are timestamps, or integers in ms"),
        ({"id": ["e"], "at": ["soon"]}, "column 'at', row 1: 'soon' is not a time"),
        ({"id": ["e"], "at": [-1]}, "column 'at', row 1: -1 ms since 1970 is not a time between 1970 and 9999"),
        ({"id": ["e"], "at": [1_700_000_000 * 10**9]}, "is more than a day ahead"),
        ({**FINE, "x": [1]}, "column 'x' is both in the entity frame and in view 'v': join with prefix=True"),
        ({"id": ["e", "f"], "at": [1]}, "this is no table: "),
        ([1, 2], "a table is Arrow data, a frame of pandas or polars, or a dict of arrays, not list"),
    ],
)
def test_bad_frames_are_refused_in_one_line(tmp_path, frame, told):
    write(tmp_path, one(), [(b"e", 1, 1000, 0)])
    with pytest.raises(InvalidData) as caught:
        join(frame, one(), tmp_path, time="at")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_equal_names_of_two_views_are_refused_and_a_view_given_twice(tmp_path):
    with pytest.raises(InvalidData, match="column 'x' is both in view 'v' and in view 'w': join with prefix=True"):
        join(FINE, [one(), one("w")], tmp_path, time="at")
    with pytest.raises(InvalidView, match="joined once"):
        join(FINE, [one(), one()], tmp_path, time="at", prefix=True)


def test_a_view_without_history_is_named(tmp_path):
    with pytest.raises(InvalidData, match="there is no history of view 'v'"):
        join(FINE, one(), tmp_path, time="at")


def test_a_label_that_serving_would_refuse_is_named(tmp_path):
    strict = one(on_missing="error")
    write(tmp_path, strict, [(b"e", 1, 1000, 0)])
    frame = {"id": ["e", "nobody", "e"], "at": [1000, 1000, 5]}
    with pytest.raises(InvalidData, match="row 2: view 'v' had no features of id 'nobody' at that time, and of 1 more"):
        join(frame, strict, tmp_path, time="at")
    assert join({"id": ["e"], "at": [1000]}, strict, tmp_path, time="at")["x"].to_pylist() == [1]


def test_files_of_other_dtypes_or_of_strangers_are_named(tmp_path):
    write(tmp_path, one(), [(b"e", 1, 1000, 0)])
    changed = one(columns=[Column(name="x", dtype="bool")])
    with pytest.raises(InvalidData, match=r"part-.*parquet: column 'x' is double, and view 'v' says bool"):
        joined(tmp_path, changed, [(b"e", 1000)])
    (file,) = tmp_path.glob("v/*/*.parquet")
    pa.parquet.write_table(pa.table({"x": [1.0]}), file)
    with pytest.raises(InvalidData, match="it was not written as history of view 'v'"):
        joined(tmp_path, one(), [(b"e", 1000)])
    file.write_bytes(b"PAR1 and nothing more")
    with pytest.raises(InvalidData, match=r"part-.*parquet: cannot be read: "):
        joined(tmp_path, one(), [(b"e", 1000)])


def test_a_library_that_is_not_installed_is_named(tmp_path, monkeypatch):
    write(tmp_path, one(), [(b"e", 1, 1000, 0)])
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(FeatureError, match=r"the offline join needs DuckDB: pip install 'penstock\[offline\]'"):
        join(FINE, one(), tmp_path, time="at")


def test_categories_are_joined_as_words_where_the_model_reads_words(tmp_path):
    columns = [
        Column(name="plan", dtype="category", vocabulary=["free", "pro"], default="free"),
        Column(name="city", dtype="category", vocabulary=["Bern", "Genève"]),
        Column(name="n", dtype="int64"),
    ]
    words = FeatureView(name="v", entity="id", columns=columns)
    table = {"id": ["a", "b", "c"], "plan": ["pro", None, "team"], "city": ["Genève", None, "Rom"], "n": [1, 2, 3]}
    OfflineStore(tmp_path).write(words, table | {"event_time": [1, 1, 1]}, created="event_time")
    labels = {"id": ["a", "b", "c", "d"], "at": [5, 5, 5, 5]}
    told = join(labels, words, tmp_path, time="at", words=True)
    assert told["plan"].to_pylist() == ["pro", "free", "free", "free"]
    assert told["city"].to_pylist() == ["Genève", "", "", ""]
    assert told["n"].to_pylist()[:3] == [1, 2, 3]
    assert told["n"].type == pa.float32()
    assert join(labels, words, tmp_path, time="at")["plan"].to_pylist() == [1, 0, 0, 0]
