"""Views that change: rows of former schemas read by name, whatever the schemas, and nothing else ever does."""

import time
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features import Column, FeatureView, InvalidView, Lookup, SchemaChanged, open_store
from penstock.features.evolution import kindred, unpack
from penstock.features.schema import MAX_FORMER, PLAIN, Former

OK, ABSENT, CORRUPT, SCHEMA = range(4)
WORDS = ("a", "b", "c", "d")


@st.composite
def columns(draw, name):
    dtype = draw(st.sampled_from((*PLAIN, "category", "string", "vector")))
    extra = {}
    if dtype == "category":
        extra["vocabulary"] = draw(st.lists(st.sampled_from(WORDS), min_size=1, unique=True))
        extra["default"] = draw(st.none() | st.sampled_from(extra["vocabulary"]))
    elif dtype == "string":
        extra["max_bytes"] = 20
    elif dtype == "vector":
        extra["size"] = draw(st.integers(1, 3))
    return Column(name=name, dtype=dtype, **extra)


@st.composite
def views(draw):
    names = draw(st.lists(st.sampled_from(("p", "q", "r", "s")), min_size=1, unique=True))
    return FeatureView(name="v", entity="e", columns=[draw(columns(name)) for name in names])


def value_of(column):
    if column.dtype == "category":
        return st.none() | st.sampled_from((*WORDS, "elsewhere"))
    if column.dtype == "string":
        return st.none() | st.text(st.characters(codec="utf-8"), max_size=5)
    if column.dtype == "vector":
        return st.none() | st.lists(st.floats(-9, 9, width=16), min_size=column.size, max_size=column.size)
    if column.dtype == "bool":
        return st.none() | st.booleans()
    return st.none() | st.integers(-1000, 1000)


@st.composite
def histories(draw):
    """Some versions of a view, and for each of them rows that were written under it."""
    versions = draw(st.lists(views(), min_size=1, max_size=4))
    tables = []
    for i, view in enumerate(versions):
        rows = draw(st.integers(0, 2))
        table = {c.name: draw(st.lists(value_of(c), min_size=rows, max_size=rows)) for c in view.columns}
        tables.append(([f"{i}-{row}" for row in range(rows)], table))
    return versions, tables


def told(column, value):
    """What a person reads of a value."""
    if column.dtype == "category" and value is not None:
        return value if value in column.vocabulary else ""
    return value


def expected(old, new, value):
    """What a person reads of a value written under the column `old`, None where it is missing."""
    if old is None or value is None or not kindred(old, new):
        return None
    if new.dtype == "category":
        return told(new, told(old, value) or "elsewhere")
    if new.dtype == "vector":
        return value if any(v == v for v in value) else None
    return value


def number(column, value):
    """What a model reads of it."""
    if column.dtype == "string":
        return []
    if value is None:
        return [np.nan] * column.width
    if column.dtype == "category":
        unknown = -1 if column.default is None else np.nan
        return [column.vocabulary.index(value) if value else unknown]
    return value if column.dtype == "vector" else [float(value)]


@settings(max_examples=150, deadline=None)
@given(histories())
def test_rows_of_every_former_schema_are_read_by_name(history):
    versions, tables = history
    with closing(open_store("memory://")) as store:
        for view, (ids, table) in zip(versions, tables, strict=True):
            store.apply(view, replace=True)
            store.put("v", ids, {name: as_column(view, name, values) for name, values in table.items()})
        now = store.view("v")
        for view, (ids, table) in zip(versions, tables, strict=True):
            found = store.get("v", ids)
            fetched = store.fetch([Lookup(now, [i.encode() for i in ids])], 1)[0]
            assert found.status == ("ok",) * len(ids)
            by_name = {column.name: column for column in view.columns}
            for i in range(len(ids)):
                rows = {c.name: expected(by_name.get(c.name), c, table.get(c.name, [None] * 9)[i]) for c in now.columns}
                assert {name: plain(values[i]) for name, values in found.items()} == rows
                numbers = [n for c in now.columns for n in number(c, rows[c.name])]
                np.testing.assert_array_equal(fetched.values[i], np.array(numbers, np.float32))
            with_defaults = np.where(np.isnan(fetched.values), now.defaults, fetched.values)
            np.testing.assert_array_equal(found.matrix(), with_defaults)


def changed_view(column, *former):
    return view(columns=[column], on_missing="nan", former=former)


def as_objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_what_a_model_sees_of_a_row_under_a_changed_column(store, change):
    """The same table of changes is held by the history (tests/features/offline/test_forms.py)."""
    old = changed_view(change.written)
    now = changed_view(change.read, Former(schema_id=old.schema_id, columns=old.columns))
    ids = [str(i) for i in range(len(change.values))]
    store.put(old, ids, {"x": as_objects(change.values)})
    rows = store.fetch([Lookup(now, [one.encode() for one in ids])], 1)[0]
    numbers = np.array(change.numbers, np.float32).reshape(len(ids), -1)
    np.testing.assert_array_equal(rows.values, numbers)


def test_a_column_of_another_kind_reads_as_missing(store, other_kind):
    old = changed_view(other_kind.written)
    now = changed_view(other_kind.read, Former(schema_id=old.schema_id, columns=old.columns))
    store.put(old, ["1"], {"x": as_objects(other_kind.values)})
    assert np.isnan(store.fetch([Lookup(now, [b"1"])], 1)[0].values).all()


def as_column(view, name, values):
    column = next(c for c in view.columns if c.name == name)
    if column.dtype == "vector":
        array = np.empty(len(values), object)
        array[:] = [None if v is None else np.array(v) for v in values]
        return array
    return np.array(values, object)


def plain(value):
    if np.ma.is_masked(value) and np.all(np.ma.getmaskarray(value)):
        return None
    return value.tolist() if hasattr(value, "tolist") else value


def view(**fields):
    base = {"name": "v", "entity": "e", "columns": [Column(name="a", dtype="float32")]}
    return FeatureView(**base | fields)


def test_a_schema_that_nobody_knows_is_a_miss(store):
    store.put(view(columns=[Column(name="b", dtype="float32")]), ["1"], {"b": [1.5]})
    store.apply(view())
    assert store.get("v", ["1", "2"]).status == ("other schema", "absent")
    assert store.fetch([Lookup(store.view("v"), [b"1"])], 1)[0].status.tolist() == [SCHEMA]


def test_rows_of_another_entity_are_never_read(store):
    store.apply(view())
    store.put("v", ["1"], {"a": [1.5]})
    with pytest.raises(SchemaChanged, match="no row that is stored can be read"):
        store.apply(view(entity="other"))
    store.apply(view(entity="other"), replace=True)
    assert store.view("v").former == ()
    assert store.get("v", ["1"]).status == ("other schema",)


def test_in_format_1_an_entity_cannot_change_under_its_rows(store):
    store.apply(view(format=1))
    with pytest.raises(InvalidView, match="format 1"):
        store.apply(view(format=1, entity="other"), replace=True)
    store.apply(view(entity="other"), replace=True)


def test_rows_of_format_1_stay_readable(store):
    store.apply(view(format=1))
    store.put("v", ["1"], {"a": [1.5]})
    plan = store.apply(view())
    assert (plan.changes[0].kind, plan.breaks) == ("changed", [])
    assert store.get("v", ["1"])["a"].tolist() == [1.5]


def test_a_row_under_a_former_schema_is_judged_like_any_other(store):
    """A damaged row, or another key's, is corrupt under a former schema, too."""
    old, new = view(), view(columns=[*view().columns, Column(name="b", dtype="bool", default=1)])
    store.apply(old)
    store.put("v", ["1", "2"], {"a": [1.5, 2.5]})
    store.apply(new)
    now = store.view("v")
    one, two = store.stored(now, [b"1", b"2"])
    assert store.get("v", ["1"])["a"].tolist() == [1.5]
    out, times, status = np.empty((4, 2), np.float32), np.empty(4, np.int64), np.empty(4, np.uint8)
    damaged = bytes([*one[:28], one[28] ^ 1])
    keys = now.keys([b"1"] * 4)
    unpack(now, keys, [one, two, damaged, one[:-1]], out, times, status)
    assert status.tolist() == [OK, CORRUPT, CORRUPT, CORRUPT]
    np.testing.assert_array_equal(out, [[1.5, np.nan], *[[np.nan] * 2] * 3])


def test_former_schemas_are_kept_latest_first_and_not_without_end(store):
    for i in range(MAX_FORMER + 3):
        store.apply(view(columns=[Column(name="a", dtype="float32"), Column(name=f"c{i}", dtype="bool")]), replace=True)
    former = store.view("v").former
    assert len(former) == MAX_FORMER
    assert former[0].columns[1].name == f"c{MAX_FORMER + 1}"


def test_a_schema_that_comes_back_is_no_former_one(store):
    wide = view(columns=[*view().columns, Column(name="b", dtype="bool")])
    for one in (view(), wide, view(), wide):
        store.apply(one, replace=True)
    assert [f.schema_id for f in store.view("v").former] == [view().schema_id]


def test_a_newer_event_under_a_former_schema_is_not_overwritten_by_an_older_one(store):
    store.apply(view())
    now = time.time_ns() // 1_000_000
    store.put("v", ["1"], {"a": [2.0]}, [now - 2000])
    store.apply(view(columns=[*view().columns, Column(name="b", dtype="bool")]))
    assert store.put("v", ["1"], {"a": [1.0], "b": [True]}, [now - 3000]) == 0
    assert store.put("v", ["1"], {"a": [3.0], "b": [True]}, [now - 1000]) == 1
    assert store.get("v", ["1"])["a"].tolist() == [3.0]


def test_formers_survive_the_json_they_are_stored_as():
    one = view(former=[Former(schema_id=7, columns=view().columns)])
    assert FeatureView.parse(one.definition()) == one
