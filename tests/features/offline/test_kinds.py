"""Words, vectors, entities of several keys and freshness through the history, as the online store has them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from penstock.features import Column, FeatureView, InvalidData
from penstock.features.columns import check_table
from penstock.features.entities import entity_key
from penstock.features.offline import OfflineStore, join
from penstock.features.offline.tables import ids_of

NAN = float("nan")


def typed(**fields):
    columns = [
        Column(name="segment", dtype="category", vocabulary=("new", "vip"), default="new"),
        Column(name="city", dtype="string", max_bytes=20),
        Column(name="kind", dtype="category", vocabulary=("a", "b")),
        Column(name="taste", dtype="vector", size=3, default=0.5),
        Column(name="x", dtype="int64", default=9),
    ]
    return FeatureView(**{"name": "typed", "entity": "id", "columns": columns} | fields)


WORDS = st.one_of(st.none(), st.sampled_from(["new", "vip", "a", "b", "unheard"]))
NUMBERS = st.one_of(st.just(NAN), st.floats(width=32))
VECTORS = st.one_of(st.none(), st.lists(NUMBERS, min_size=3, max_size=3))


def unpacked(view, table):
    """What a packed row of the online store reads back as, float32 [n, width]."""
    keys, n = list(table.entities), len(table.entities)
    rows = view.row_layout.pack(keys, table.values, table.event_times, table.nulls)
    values = np.empty((n, view.width), np.float32)
    view.row_layout.unpack(keys, rows, values, np.empty(n, np.int64), np.empty(n, np.uint8))
    return values


@settings(max_examples=20)
@given(
    rows=st.lists(st.tuples(WORDS, WORDS, WORDS, VECTORS, st.one_of(st.none(), st.integers(-9, 9))), max_size=6),
    on_missing=st.sampled_from(["default", "nan"]),
)
def test_every_dtype_reads_as_the_online_store_reads_it(tmp_path_factory, rows, on_missing):
    view, nan = typed(on_missing=on_missing), typed(on_missing="nan")
    ids = [str(i) for i in range(len(rows))]
    columns = {name: np.empty(len(rows), object) for name in view.column_names}
    for i, row in enumerate(rows):
        for name, value in zip(view.column_names, row, strict=True):
            columns[name][i] = value
    numbers = [0 if row[4] is None else row[4] for row in rows]
    columns["x"] = np.ma.MaskedArray(np.array(numbers, np.int64), [row[4] is None for row in rows])
    times = np.zeros(len(rows), np.int64)
    offline = OfflineStore(tmp_path_factory.mktemp("history"))
    entities = [one.encode() for one in ids]
    online = unpacked(view, check_table(view, entities, columns, times))
    with offline.writer(view) as out:
        out.put(entities, columns, times)
    (offline.root / "typed").mkdir(exist_ok=True)
    frame = {"id": [*ids, "nobody"], "at": [0] * (len(rows) + 1)}
    got = join(frame, nan, offline, time="at", as_of_created=False)
    matrix = np.stack([got[name].to_numpy() for name in view.feature_names], axis=1)
    np.testing.assert_array_equal(matrix[:-1], online)
    got = join(frame, view, offline, time="at", as_of_created=False)
    filled = np.stack([got[name].to_numpy() for name in view.feature_names], axis=1)
    defaults = np.where(np.isnan(matrix), view.defaults, matrix) if on_missing == "default" else matrix
    np.testing.assert_array_equal(filled, defaults)


def test_words_and_texts_are_kept_as_they_are_so_that_a_vocabulary_may_grow(tmp_path):
    table = {"id": [1, 2], "segment": ["vip", "gold"], "city": ["Łódź", None], "kind": ["b", "c"]}
    table |= {"taste": [[1, 2, 3], None], "x": [1, 2], "event_time": [0, 0]}
    store = OfflineStore(tmp_path)
    store.write(typed(), table, created="event_time")
    (file,) = store.files(typed(), 0, 0)
    rows = parquet.ParquetFile(file).read().to_pydict()
    assert (rows["segment"], rows["city"], rows["taste"]) == (["vip", "gold"], ["Łódź", None], [[1, 2, 3], None])
    frame = {"id": [1, 2], "at": [0, 0]}
    assert join(frame, typed(), store, time="at")["segment"].to_pylist() == [1, 0]
    assert join(frame, typed(), store, time="at")["kind"].to_pylist() == [1, -1]
    columns = list(typed().columns)
    columns[0] = Column(name="segment", dtype="category", vocabulary=("gold", "new", "vip"), default="new")
    assert join(frame, typed(columns=columns), store, time="at")["segment"].to_pylist() == [2, 0]
    got = join(frame, typed(), store, time="at")
    assert got.column_names[2:] == ["segment", "kind", "taste_0", "taste_1", "taste_2", "x"]


PARTS = st.text(alphabet="a|\\é", min_size=1, max_size=4)


@given(rows=st.lists(st.tuples(PARTS, st.integers(0, 99), PARTS), max_size=5))
def test_ids_of_several_keys_are_joined_as_everywhere(rows):
    a, b, c = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [], [])
    table = pa.table({"a": pa.array(a, pa.string()), "b": pa.array(b, pa.int64()), "c": pa.array(c, pa.string())})
    assert ids_of(table, ("a", "b", "c"), "it").to_pylist() == [entity_key(row) for row in rows]


def test_an_entity_of_several_keys(tmp_path):
    view = FeatureView(name="pairs", entity=("c", "m"), columns=[Column(name="x", dtype="int32")])
    table = {"c": ["a", "a|b"], "m": ["b|c", "c"], "x": [1, 2], "event_time": [0, 0]}
    OfflineStore(tmp_path).write(view, table, created="event_time")
    got = join({"c": ["a|b", "a"], "m": ["c", "b|c"], "at": [0, 0]}, view, tmp_path, time="at")
    assert got["x"].to_pylist() == [2, 1]
    with pytest.raises(InvalidData, match="no column 'm'"):
        join({"c": ["a"], "at": [0]}, view, tmp_path, time="at")


@pytest.mark.parametrize("layout", [{}, {"layout": "hash", "time_field": "updated"}], ids=["row", "hash"])
@pytest.mark.parametrize(("policy", "old"), [("use", 3), ("default", 7), ("nan", NAN)])
def test_a_row_too_old_at_the_label_s_time_is_treated_as_the_view_says(tmp_path, policy, old, layout):
    columns = [Column(name="x", dtype="int32", default=7)]
    view = FeatureView(name="fresh", entity="id", columns=columns, max_age_s=10, on_stale=policy, **layout)
    OfflineStore(tmp_path).write(view, {"id": ["e"], "x": [3], "event_time": [1000]}, created="event_time")
    frame = {"id": ["e", "e", "nobody"], "at": [11_000, 11_001, 0]}
    np.testing.assert_array_equal(join(frame, view, tmp_path, time="at")["x"].to_numpy(), [3, old, 7])


def test_a_row_too_old_is_refused_where_serving_would_refuse_it(tmp_path):
    columns = [Column(name="x", dtype="int32", default=7)]
    view = FeatureView(name="fresh", entity="id", columns=columns, max_age_s=10, on_stale="error")
    OfflineStore(tmp_path).write(view, {"id": ["e"], "x": [3], "event_time": [1000]}, created="event_time")
    assert join({"id": ["e"], "at": [11_000]}, view, tmp_path, time="at")["x"].to_pylist() == [3]
    with pytest.raises(InvalidData, match="row 1: view 'fresh' had too old features of id 'e' at that time"):
        join({"id": ["e"], "at": [11_001]}, view, tmp_path, time="at")
