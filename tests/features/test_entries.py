"""Entries of a stream become rows or are refused with a reason, each for itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.features import Column
from penstock.features.entries import AHEAD_MS, Entry, Form, decode

DTYPES = ("int64", "float64", "float32", "int32", "bool")
COLUMNS = [Column(name=dtype, dtype=dtype) for dtype in DTYPES]
NOW = 1_800_000_000_000


def entry(number=1, **fields):
    return Entry(b"%d-0" % number, {b"id": b"7"} | {name.encode(): text.encode() for name, text in fields.items()})


def row(*entries, time_field=None):
    decoded = decode(Form(("id",), COLUMNS, time_field), entries, NOW)
    assert decoded.rejected == []
    (rows,) = decoded.rows
    return rows


def reason(entry, time_field=None):
    decoded = decode(Form(("id",), COLUMNS, time_field), [entry], NOW)
    assert decoded.rows == []
    return decoded.rejected[0][1]


def test_texts_are_numbers_in_their_column_s_dtype_and_nothing_is_null():
    rows = row(
        entry(5, int64="9007199254740993", float64="-1e-3", float32="0.1", int32="7", bool="1", other="x"),
        entry(6, float64="", bool="False"),
    )
    assert rows.entities == [b"7", b"7"]
    assert rows.event_times.tolist() == [5, 6]
    assert rows.columns["int64"].tolist() == [9007199254740993, None]
    assert rows.columns["float64"].tolist() == [-1e-3, None]
    assert rows.columns["float32"].tolist() == [np.float32(0.1), None]
    assert rows.columns["int32"].tolist() == [7, None]
    assert rows.columns["bool"].tolist() == [True, False]
    assert {name: values.dtype.name for name, values in rows.columns.items()} == {name: name for name in DTYPES}


@pytest.mark.parametrize("other", ["1.0", "1e3", "nan", "0.5", "9" * 30])
def test_an_integer_is_exact_whatever_stands_in_the_entries_beside_it(other):
    entries = [entry(1, int64="9007199254740993"), entry(2, int64=other), entry(3, int64="-9223372036854775808")]
    decoded = decode(Form(("id",), COLUMNS, None), entries, NOW)
    found = [number for rows in decoded.rows for number in rows.columns["int64"].tolist()]
    assert found[0] == 9007199254740993
    assert found[-1] == -(2**63)
    assert len(decoded.rejected) == (other not in ("1.0", "1e3", "nan"))


@pytest.mark.parametrize("other", ["1.0", "nan", "2.0"])
def test_a_bool_may_be_written_as_a_number_whatever_stands_beside_it(other):
    entries = [entry(1, bool="0.0"), entry(2, bool=other), entry(3, bool="1")]
    decoded = decode(Form(("id",), COLUMNS, None), entries, NOW)
    found = [value for rows in decoded.rows for value in rows.columns["bool"].tolist()]
    assert found == {"1.0": [False, True, True], "nan": [False, None, True], "2.0": [False, True]}[other]
    assert len(decoded.rejected) == (other == "2.0")


@pytest.mark.parametrize("text", ["[1,[2]]", f"[1,1{'0' * 400}]", "[" * 100_000, "{}", '["a", 1]', "[[1, 2]]"])
def test_what_is_no_vector_is_a_dead_letter_and_ends_nobody(text):
    form = Form(("id",), [Column(name="x", dtype="vector", size=2)], None)
    decoded = decode(form, [entry(1, x=text), entry(2, x="[1, 2]")], NOW)
    assert [bad.id for bad, _ in decoded.rejected] == [b"1-0"]
    assert decoded.rows[0].columns["x"].tolist() == [[1, 2]]


def test_a_long_text_where_a_number_should_be_takes_no_memory_for_the_entries_beside_it():
    assert "...' is not int64" in reason(entry(int64="1" * 100_000))


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1700000000123", 1_700_000_000_123),
        ("-5", -5),
        ("1970-01-01T00:00:01Z", 1000),
        ("1970-01-01 01:00:00.250+01:00", 250),
        ("1970-01-02", 86_400_000),
        (str(NOW + AHEAD_MS), NOW + AHEAD_MS),
    ],
)
def test_event_times_are_ms_or_iso_8601(text, ms):
    assert row(entry(at=text), time_field="at").event_times.tolist() == [ms]


@pytest.mark.parametrize(
    "text", ["", "yesterday", "1e12", "--5", "9" * 30, "1700000000123000", str(NOW + AHEAD_MS + 1)]
)
def test_any_other_event_time_is_refused(text):
    assert "field 'at'" in reason(entry(at=text), "at")


def test_an_id_of_a_later_day_is_no_event_time():
    assert "more than a day ahead" in reason(entry(NOW + AHEAD_MS + 1))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"float64": "abc"}, "field 'float64': 'abc' is not float64"),
        ({"int64": "0.5"}, "column 'int64', row 0: 0.5 does not fit int64"),
        ({"int32": "3000000000"}, "does not fit int32"),
        ({"int64": "1e99999999999999999999"}, "field 'int64': '1e99999999999999999999' is not int64"),
        ({"bool": "1e-99999999999999999999"}, "is not bool"),
        ({"bool": "2"}, "does not fit bool"),
        ({"bool": "yes"}, "field 'bool': 'yes' is not bool"),
        ({"float32": "1e300"}, "does not fit float32"),
        ({"float64": "x" * 1000}, "..."),
        ({"id": ""}, "field 'id' is 0 bytes long"),
        ({"id": "e" * 1025}, "field 'id' is 1025 bytes long"),
        ({"float64": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")}, "is not float64"),
    ],
)
def test_a_bad_entry_is_refused_with_the_reason(fields, complaint):
    assert complaint in reason(entry(**fields))
    assert len(reason(entry(**fields))) < 200


@given(st.lists(st.booleans(), max_size=40))
def test_bad_entries_keep_no_good_one_back_and_order_stays(good):
    entries = [entry(i, int64=str(i) if fine else "bad") for i, fine in enumerate(good)]
    decoded = decode(Form(("id",), COLUMNS, None), entries, NOW)
    assert [int(v) for rows in decoded.rows for v in rows.columns["int64"]] == [
        i for i, fine in enumerate(good) if fine
    ]
    assert [e for e, _ in decoded.rejected] == [e for e, fine in zip(entries, good, strict=True) if not fine]


@given(st.dictionaries(st.sampled_from([b"id", b"at", *[d.encode() for d in DTYPES]]), st.binary(max_size=30)))
def test_whatever_stands_in_an_entry_it_is_a_row_or_refused(fields):
    decoded = decode(Form(("id",), COLUMNS, "at"), [Entry(b"5-0", fields)], NOW)
    assert len(decoded.rows) + len(decoded.rejected) == 1
