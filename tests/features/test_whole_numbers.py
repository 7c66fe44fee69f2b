"""int64 stays whole on every way in, through and out, or is refused: never rounded to what a float64 can hold."""

from __future__ import annotations

import tempfile
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, feather, parquet

from penstock.features import Column, FeatureView, InvalidData, open_store
from penstock.features.arrow import to_numbers
from penstock.features.columns import as_array, fit
from penstock.features.entries import Entry, Form, decode
from penstock.features.evolution import succeed
from penstock.features.ingest import ingest
from penstock.features.offline import OfflineStore

COLUMN = Column(name="n", dtype="int64")
VIEW = FeatureView(name="v", entity="id", columns=[COLUMN])
EDGES = [0, 2**24, 2**31, 2**53, 2**60, 2**63 - 2]
INTEGERS = st.builds(
    lambda edge, off, sign: sign * (edge + off), st.sampled_from(EDGES), st.integers(-1, 1), st.sampled_from([-1, 1])
)
VALUES = st.lists(st.one_of(st.none(), INTEGERS, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=6)


def fitted(given):
    """What a column of these values is stored as, None where it is null."""
    values, nulls = fit(COLUMN, given, len(given))
    return [None if nulls is not None and nulls[i] else value for i, value in enumerate(values.tolist())]


def some(value, other):
    """The values with None as something else."""
    return [other if one is None else one for one in value]


@given(VALUES, st.sampled_from([None, float("nan"), pd.NA, np.float32("nan")]))
def test_lists_of_integers_and_of_whatever_is_null(values, null):
    assert fitted(as_array(some(values, null))) == values
    assert fitted(as_array(tuple(some(values, null)))) == values


@given(VALUES, st.sampled_from([1.0, 2.5e15, Decimal("7.0")]))
def test_a_whole_float_among_them_rounds_none_of_the_others(values, other):
    assert fitted(as_array([*values, other])) == [*values, int(other)]


@given(VALUES)
def test_frames_and_arrays_that_can_hold_null(values):
    assert fitted(as_array(pd.array(values, "Int64"))) == values
    assert fitted(as_array(pd.Series(values, dtype="Int64"))) == values
    masked = np.ma.MaskedArray(np.array(some(values, 0), np.int64), [value is None for value in values])
    assert fitted(masked) == values
    assert fitted(as_array(np.array(values, object))) == values


@given(VALUES)
def test_columns_of_arrow_nullable_decimal_or_text(values):
    texts = [None if value is None else str(value) for value in values]
    mixed = [None if text is None else f"{text}.0" if i % 2 else text for i, text in enumerate(texts)]
    decimals = pa.array([None if value is None else Decimal(value) for value in values], pa.decimal128(38, 3))
    for array in (pa.array(values, pa.int64()), pa.array(values, pa.int64()).dictionary_encode(), decimals):
        assert fitted(to_numbers(array, "n", "int64", 0)) == values
    for told in (texts, mixed, [None if text is None else f" {text}".strip() + "e0" for text in texts]):
        assert fitted(to_numbers(pa.array(told, pa.string()), "n", "int64", 0)) == values


@given(VALUES)
def test_entries_of_a_stream(values):
    for end in (b"", b".0"):
        texts = [b"" if value is None else b"%d%b" % (value, end if i % 2 else b"") for i, value in enumerate(values)]
        entries = [Entry(b"5-%d" % i, {b"id": b"1", b"n": text}) for i, text in enumerate(texts)]
        decoded = decode(Form(("id",), [COLUMN], None), entries, 10)
        assert decoded.rejected == []
        assert [value for rows in decoded.rows for value in rows.columns["n"].tolist()] == values


@settings(max_examples=15)
@given(values=VALUES, layout=st.sampled_from(["row", "hash"]))
def test_files_of_every_kind_through_a_store_and_out_again(values, layout):
    view = VIEW.model_copy(update={"layout": layout})
    table = pa.table({"id": [str(i) for i in range(len(values))], "n": pa.array(values, pa.int64())})
    with tempfile.TemporaryDirectory() as folder, closing(open_store("memory://")) as store:
        for kind, write in (
            ("parquet", parquet.write_table),
            ("csv", csv.write_csv),
            ("feather", feather.write_feather),
        ):
            write(table, f"{folder}/t.{kind}")
            ingest(store, view, Path(folder) / f"t.{kind}", overwrite=True)
            assert store.get(view, table["id"].to_pylist())["n"].tolist() == values
        store.put_table(view, table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get), overwrite=True)
        out = store.get(view, table["id"].to_pylist()).to_arrow()
        assert (out["n"].type, out["n"].to_pylist()) == (pa.int64(), values)
        history = OfflineStore(folder)
        history.write(view, out.drop_columns(["event_time"]).append_column("event_time", pa.array([5] * len(values))))
        [file] = history.files(view, 0, 5)
        assert parquet.ParquetFile(file).read()["n"].to_pylist() == values


@pytest.mark.parametrize(
    ("given", "row"),
    [
        (np.array([1.0, 2.0**53]), 1),
        (np.array([-(2.0**53), 1.0]), 0),
        (np.array([1, 2**24], np.float32), 1),
        (pd.Series([2**53 + 1, None]), 0),
        ([1, 1e18], 1),
        ([2**53 + 1, 2.0**53], 1),
    ],
    ids=["float64", "negative", "float32", "pandas", "list", "mixed"],
)
def test_a_float_that_may_have_been_rounded_is_refused_with_what_to_do(given, row):
    with pytest.raises(
        InvalidData, match=rf"'n', row {row}: .* may have been rounded; int64 takes such numbers as int"
    ):
        fitted(as_array(given))


@pytest.mark.parametrize(
    ("given", "row", "shown"),
    [
        ([2**53 + 1, 0.5], 1, "0.5"),
        ([1, None, 2**63], 2, "9223372036854775808"),
        ([2**53 + 1, float("inf")], 1, "inf"),
        ([-(2**63) - 1, 1], 0, "-9223372036854775809"),
        ([1, 2**80, None], 1, "1208925819614629174706176"),
        (to_numbers(pa.array(["9007199254740993", "9007199254740993.5"]), "n", "int64", 0), 1, "9007199254740993.5"),
        (to_numbers(pa.array(["1e3", "1e999999999"]), "n", "int64", 0), 1, r"1E\+999999999"),
        (to_numbers(pa.array([Decimal(9007199254740993), Decimal("0.5")]), "n", "int64", 0), 1, "0.5"),
    ],
)
def test_what_is_no_int64_is_named_and_not_its_neighbour(given, row, shown):
    with pytest.raises(InvalidData, match=rf"'n', row {row}: {shown}0* does not fit int64"):
        fitted(as_array(given))


def test_a_number_of_a_hash_reads_as_serving_reads_it(redis_url):
    import redis

    view = VIEW.model_copy(update={"layout": "hash"})
    texts = {"1": "9007199254740993", "2": "42.0", "3": "1e3", "4": "9007199254740993.0", "5": "0.5", "6": "nan"}
    with redis.Redis.from_url(redis_url) as client, closing(open_store(redis_url)) as store:
        for identifier, text in texts.items():
            client.hset(f"features:{identifier}", "n", text)
        assert store.get(view, list(texts))["n"].tolist() == [2**53 + 1, 42, 1000, 2**53 + 1, None, None]


def test_rows_of_a_column_that_was_a_float_read_as_integers_where_they_are_some():
    was = VIEW.model_copy(update={"columns": [Column(name="n", dtype="float64")]})
    now = succeed(was, VIEW)
    with closing(open_store("memory://")) as store:
        store.put(was, list("abcde"), {"n": [3.0, 0.5, 2.0**63, -(2.0**63), float("inf")]})
        assert store.get(now, list("abcde"))["n"].tolist() == [3, None, None, -(2**63), None]
