"""`get` and `put` as people use them: numpy, lists, Arrow; every type there and back."""

import dataclasses
import time
from contextlib import closing

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features import Column, FeatureView, InvalidData, UnknownView, open_store
from penstock.features.reading import words_of

COLUMNS = [
    Column(name="n", dtype="int64"),
    Column(name="x", dtype="float64"),
    Column(name="sure", dtype="bool"),
    Column(name="word", dtype="category", vocabulary=["a", "b"], default="a"),
    Column(name="city", dtype="string", max_bytes=40),
    Column(name="taste", dtype="vector", size=2),
]
VIEW = FeatureView(name="v", entity=["customer", "shop"], columns=COLUMNS, ttl_s=10 * 365 * 86400)
ROWS = {
    "n": [2**53 + 1, None, -3],
    "x": [1e-300, np.nan, 0.1],
    "sure": [True, None, False],
    "word": ["b", None, "elsewhere"],
    "city": ["Zürich", None, ""],
    "taste": [[1.5, 2], None, [np.nan, 4]],
}
IDS = [("c", 1), ("c|1", "y"), ("d", b"\xff")]
TIMES = np.array(["2024-01-01T00:00:00.001", "2024-01-02", "2024-01-03"], "datetime64[ms]")


def plain(values):
    """A masked array as lists, None where all of a value is masked."""
    masks = np.ma.getmaskarray(values)
    told = [v.tolist() if hasattr(v, "tolist") else v for v in values.data]
    return [None if np.all(m) else v for v, m in zip(told, masks, strict=True)]


def test_what_is_put_in_lists_is_got_as_masked_arrays(store):
    store.apply(VIEW)
    assert store.put("v", IDS, ROWS, TIMES) == 3
    found = store.get("v", [*IDS, ("nobody", 0)])
    assert found.status == ("ok", "ok", "ok", "absent")
    assert found.event_times.tolist() == [*TIMES.astype(np.int64).tolist(), 0]
    assert list(found) == [column.name for column in COLUMNS]
    assert found["n"].dtype == np.int64
    assert plain(found["n"]) == [2**53 + 1, None, -3, None]
    assert plain(found["x"]) == [1e-300, None, 0.1, None]
    assert plain(found["sure"]) == [True, None, False, None]
    assert plain(found["word"]) == ["b", None, "", None]  # a word that the vocabulary does not have
    assert plain(found["city"]) == ["Zürich", None, "", None]
    assert found["taste"].shape == (4, 2)
    assert plain(found["taste"])[:2] == [[1.5, 2], None]
    assert list(store.get("v", IDS, ["x", "n"])) == ["x", "n"]


def test_a_category_is_told_in_the_words_that_a_model_reads(store):
    """As the matrix has it: defaults filled in, and the empty text where there is neither word nor default."""
    bare = Column(name="bare", dtype="category", vocabulary=["x", "y"])
    view = FeatureView(name="w", entity="id", columns=[COLUMNS[3], bare, COLUMNS[0]])
    words = ["b", None, "elsewhere"]
    store.put(view, ["1", "2", "3"], {"word": words, "bare": ["y", None, "elsewhere"], "n": [1, 2, 3]})
    found = store.get(view, ["1", "2", "3", "nobody"])
    assert found.words("word").tolist() == ["b", "a", "a", "a"]
    assert found.words("bare").tolist() == ["y", "", "", ""]
    matrix = found.matrix()
    for i, column in enumerate(view.columns[:2]):
        assert words_of(column, matrix[:, i]).tolist() == found.words(column.name).tolist()
    for name in ("n", "nothing"):
        with pytest.raises(InvalidData, match=f"has no category '{name}'"):
            found.words(name)


def test_what_was_got_can_be_put_back(store):
    store.apply(VIEW)
    store.put("v", IDS, ROWS, TIMES)
    found = store.get("v", IDS)
    other = VIEW.model_copy(update={"name": "w"})
    store.put(other, IDS, found, found.event_times)
    again = store.get(other, IDS)
    for name in found:
        assert repr(plain(again[name])) == repr(plain(found[name]))


def test_arrow_tables_come_out_and_go_in(store):
    store.apply(VIEW)
    ids = [("c", 1), ("c|1", "y")]
    store.put("v", ids, {name: values[:2] for name, values in ROWS.items()}, TIMES[:2])
    table = store.get("v", ids).to_arrow()
    assert table.column_names == ["customer", "shop", "event_time", *VIEW.column_names]
    types = [pa.string()] * 2 + [pa.timestamp("ms", "UTC"), pa.int64(), pa.float64(), pa.bool_()]
    assert table.schema.types == [*types, pa.string(), pa.string(), pa.list_(pa.float32(), 2)]
    assert table.column("city").to_pylist() == ["Zürich", None]
    assert table.column("taste").to_pylist() == [[1.5, 2], None]
    other = VIEW.model_copy(update={"name": "w"})
    assert store.put_table(other, table) == 2
    assert store.get(other, ids).to_arrow() == table
    with pytest.raises(InvalidData, match=r"'n', row 0: .* may have been rounded"):
        store.put_table(other, table.to_pandas())  # which makes floats of integers beside nulls
    frame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    assert store.put_table(VIEW.model_copy(update={"name": "x"}), frame) == 2
    assert store.get(other, []).to_arrow().num_rows == 0


def test_words_and_ids_in_dictionaries_of_any_text_are_taken(store):
    """As polars and pandas have categories."""
    view = FeatureView(name="p", entity="id", columns=[COLUMNS[3]])
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        words, ids = (
            pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.uint32()), pa.array(texts, kind))
            for texts in (["a", "b"], ["x", "y"])
        )
        assert store.put_table(view, pa.table({"id": ids.take([0, 2, 2]), "word": words.take([0, 1, 2])})) == 3
        assert plain(store.get(view, ["y", "x"])["word"]) == ["b", "a"]


def test_ids_that_are_no_text_are_binary_in_arrow(store):
    store.put(VIEW, IDS, ROWS)
    table = store.get(VIEW, IDS).to_arrow()
    assert table.column("shop").to_pylist() == [b"1", b"y", b"\xff"]


def test_a_matrix_has_the_columns_that_were_asked_for_in_that_order(store):
    store.put(VIEW, IDS, ROWS, TIMES)
    whole, some = store.get(VIEW, IDS), store.get(VIEW, IDS, ["taste", "city", "n"])
    assert whole.feature_names == VIEW.feature_names
    assert some.feature_names == ("taste_0", "taste_1", "n")
    np.testing.assert_array_equal(some.matrix(), whole.matrix()[:, [4, 5, 0]])
    assert (whole.only([]).matrix().shape, store.get(VIEW, []).matrix().shape) == ((3, 0), (0, 6))


def test_a_matrix_says_how_old_rows_were_when_they_were_looked_up(store):
    """And treats them as the view says (tests/server/test_join.py compares every policy with a server's)."""
    fresh = VIEW.model_copy(update={"max_age_s": 3600, "on_stale": "nan", "ttl_s": 10**8})
    now = time.time_ns() // 10**6
    store.put(fresh, IDS, ROWS, [now, now, now - 3_700_000])
    found = store.get(fresh, IDS)
    assert found.looked_up_ms - now < 60_000
    assert np.isnan(found.matrix()).all(axis=1).tolist() == [False, False, True]
    later = dataclasses.replace(found, looked_up_ms=now + 3_600_001)
    assert np.isnan(later.matrix()).all()


def test_hashes_are_read_in_their_own_dtypes_too(store):
    columns = [Column(name="n", dtype="int64"), Column(name="x", dtype="float32"), Column(name="sure", dtype="bool")]
    view = FeatureView(name="h", entity="id", columns=columns, layout="hash")
    store.put(view, ["a", "b"], {"n": [2**53 + 1, None], "x": [0.1, None], "sure": [True, None]})
    found = store.get(view, ["a", "b", "nobody"])
    assert found["n"].dtype == np.int64
    assert plain(found["n"]) == [2**53 + 1, None, None]
    assert plain(found["x"]) == [np.float32(0.1), None, None]
    assert plain(found["sure"]) == [True, None, None]
    assert found.status[0] == "ok"
    assert found.status[2] == "absent"


def test_text_of_hashes_that_is_no_such_number_is_null(redis_url):
    import redis

    columns = [Column(name=name, dtype=dtype) for name, dtype in (("n", "int32"), ("x", "float32"))]
    view = FeatureView(name="h", entity="id", columns=columns, layout="hash")
    with redis.Redis.from_url(redis_url) as client:
        client.hset("features:a", mapping={"n": "3000000000", "x": "one"})
        client.set("features:b", "no hash")
    with open_store(redis_url) as store:
        found = store.get(view, ["a", "b"])
    assert found.status == ("ok", "corrupt")
    assert [plain(found[name]) for name in found] == [[None, None]] * 2


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("n", ["1", "2", "3"], "must be numeric"),
        ("n", [1, 2, 2.5], "row 2: 2.5 does not fit int64"),
        ("word", [1, 2, 3], "'word' is int64; a category is given as text"),
        ("word", ["a", 2, None], "row 1: 2 is not text"),
        ("city", ["a" * 41, "b", "c"], "row 0: a text of 41 bytes; it has at most 40"),
        ("city", [b"\xff", "b", "c"], "row 0: .* is not text"),
        ("taste", [[1, 2], [1, 2, 3], None], "row 1: not a vector of 2 numbers"),
        ("taste", [[1, 2], ["x", "y"], None], "no number"),
        ("taste", [[1, 2], [1e300, 2], None], "row 1: a number does not fit float32"),
        ("taste", [1, 2, 3], "'taste' is int64 .3,.; it holds vectors of 2 numbers"),
        ("x", [1, 2], "there are 3 entities"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(store, name, values, told):
    with pytest.raises(InvalidData, match=told):
        store.put(VIEW, IDS, ROWS | {name: values})


def test_tables_that_do_not_fit_are_refused(store):
    with pytest.raises(InvalidData, match="no column 'shop'"):
        store.put_table(VIEW, pa.table({"customer": ["a"]}))
    with pytest.raises(InvalidData, match="no Arrow table"):
        store.put_table(VIEW, 5)


def test_a_view_or_column_that_nobody_declared_is_named(store):
    with pytest.raises(UnknownView, match="'v'"):
        store.get("v", ["a|b"])
    with pytest.raises(InvalidData, match="no column 'y'; it has n, x"):
        store.get(VIEW, IDS, ["y"])
    with pytest.raises(InvalidData, match=r"row 0: .*1 parts"):
        store.get(VIEW, [("a",)])


def test_pandas_columns_with_missing_values_are_taken(store):
    frame = pd.DataFrame({"n": pd.array([1, None], "Int64"), "word": pd.array(["a", None], "string")})
    view = FeatureView(name="p", entity="id", columns=[COLUMNS[0], COLUMNS[3]])
    store.put(view, ["a", "b"], frame)
    found = store.get(view, ["a", "b"])
    assert [plain(found[name]) for name in found] == [[1, None], ["a", None]]


def test_a_store_closes_at_the_end_of_its_block(redis_url):
    with open_store(redis_url) as store:
        store.ping()


TEXTS = st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=8), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=3))
def test_any_texts_come_back_whole_and_in_their_places(columns):
    n = min(len(values) for values in columns)
    view = FeatureView(
        name="t", entity="id", columns=[Column(name=str(j), dtype="string", max_bytes=40) for j in range(len(columns))]
    )
    ids = [str(i) for i in range(n)]
    with closing(open_store("memory://")) as store:
        store.put(view, ids, {str(j): np.array(values[:n], object) for j, values in enumerate(columns)})
        found = store.get(view, ids)
    assert [plain(found[str(j)]) for j in range(len(columns))] == [values[:n] for values in columns]
