"""Rows: the kernel equals its twin, both keep the promises, and nothing damaged or misplaced is ever decoded."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels import rows as kernel
from penstock.kernels.reference import rows as reference

NUMBERS_ONLY = ("float32", "float64", "int64", "int32", "bool")
DTYPES = (*NUMBERS_ONLY, "string", "category[3]", "category[300]?", "vector[1]", "vector[3]")
TWINS = pytest.mark.parametrize("rows", [kernel, reference], ids=["kernel", "reference"])
quickly = settings(max_examples=60, deadline=None)


def fetch(rows, layout, keys, packed):
    """What `unpack` writes over buffers full of rubbish."""
    n = len(packed)
    out = np.full((n, layout.width), -7, np.float32)
    times, status = np.full(n, -7, np.int64), np.full(n, 77, np.uint8)
    others = layout.unpack(keys, packed, out, times, status)
    assert others == (status == kernel.ROW_SCHEMA).sum()
    return out, times, status


def values_of(dtype: str) -> st.SearchStrategy:
    """Any value of a dtype, NaN, infinities and extremes included."""
    if dtype == "bool":
        return st.booleans()
    if dtype == "string":
        return st.binary(max_size=9)
    if dtype.startswith("category"):
        return st.integers(-1, words_of(dtype) - 1) | values_of("int32")
    if dtype.startswith("vector"):
        return st.tuples(*[st.floats(width=32)] * int(dtype[7:-1]))
    if dtype.startswith("float"):
        return st.floats(width=int(dtype[5:]))
    bits = int(dtype[3:])
    return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def column_of(dtype, values):
    """Values as `pack` takes them."""
    if dtype == "string":
        return values
    if dtype.startswith("vector"):
        return np.array(values, np.float32).reshape(len(values), int(dtype[7:-1]))
    return np.array(values, "int32" if dtype.startswith("category") else dtype)


def numbers_of(dtype, column):
    """What a column gives to a matrix, float32 [n, width]."""
    if dtype == "string":
        return np.empty((len(column), 0), np.float32)
    if dtype.startswith("category"):
        column = np.where((column >= 0) & (column < words_of(dtype)), column, np.nan if dtype.endswith("?") else -1)
    with np.errstate(over="ignore"):
        return column.astype(np.float32).reshape(len(column), -1 if len(column) else width_of(dtype))


def words_of(dtype):
    return int(dtype.rstrip("?")[9:-1])


def width_of(dtype):
    return int(dtype[7:-1]) if dtype.startswith("vector") else int(dtype != "string")


@st.composite
def tables(draw):
    """A schema with columns, masks, keys and times that fit it."""
    dtypes = draw(st.lists(st.sampled_from(DTYPES), min_size=1, max_size=20))
    n = draw(st.integers(0, 4))
    columns = [column_of(d, draw(st.lists(values_of(d), min_size=n, max_size=n))) for d in dtypes]
    mask = st.none() | st.lists(st.integers(0, 2), min_size=n, max_size=n).map(lambda m: np.array(m, np.uint8))
    nulls = [draw(mask) for _ in dtypes]
    keys = draw(st.lists(st.binary(max_size=40), min_size=n, max_size=n))
    times = draw(st.lists(values_of("int64"), min_size=n, max_size=n))
    return dtypes, keys, columns, np.array(times, np.int64), nulls


@quickly
@given(tables(), st.integers(0, 2**32 - 1))
def test_kernel_and_twin_pack_the_same_bytes_and_unpack_the_same_values(table, schema_id):
    dtypes, keys, columns, times, nulls = table
    layouts = {rows: rows.RowLayout(schema_id, dtypes) for rows in (kernel, reference)}
    packed = {rows: layout.pack(keys, columns, times, nulls) for rows, layout in layouts.items()}
    assert packed[kernel] == packed[reference]
    assert layouts[kernel].row_size == layouts[reference].row_size
    ours, theirs = (fetch(rows, layouts[rows], keys, packed[kernel]) for rows in (kernel, reference))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@TWINS
@quickly
@given(table=tables())
def test_what_is_packed_comes_back_as_float32(rows, table):
    dtypes, keys, columns, times, nulls = table
    layout = rows.RowLayout(9, dtypes)
    out, got_times, status = fetch(rows, layout, keys, layout.pack(keys, columns, times, nulls))
    np.testing.assert_array_equal(got_times, times)
    assert (status == rows.ROW_OK).all()
    parts = [numbers_of(dtype, column) for dtype, column in zip(dtypes, columns, strict=True)]
    for part, mask in zip(parts, nulls, strict=True):
        part[np.zeros(len(part), bool) if mask is None else mask != 0] = np.nan
    np.testing.assert_array_equal(out, np.concatenate(parts, axis=1))


@TWINS
def test_the_bytes_of_a_row_are_those_of_the_documented_layout(rows):
    layout = rows.RowLayout(0xDEADBEEF, ["float32", "bool", "int64", "float64", "int32"])
    columns = [np.array([v], d) for v, d in zip((1.5, True, -3, 2.25, 7), layout.dtypes, strict=True)]
    columns[3][0] = np.nan
    [row] = layout.pack([b"fs:{c1}:cards"], columns, np.array([1_700_000_000_123]), [None] * 5)
    body = bytes([0b01000]) + struct.pack("<f?qdi", 1.5, True, -3, 0.0, 7)
    header = struct.Struct("<BBHIqII")
    fields = (1, 0, 5, 0xDEADBEEF, 1_700_000_000_123)
    crc = zlib.crc32(b"fs:{c1}:cards" + header.pack(*fields, 0, 0) + body)
    assert row == header.pack(*fields, crc, 0) + body
    assert layout.row_size == len(row) == 24 + 1 + 25


@TWINS
def test_the_bytes_of_categories_vectors_and_strings(rows):
    layout = rows.RowLayout(1, ["string", "category[2]", "vector[2]", "string"])
    columns = [[b"ab"], np.array([1], np.int32), np.array([[0.5, np.nan]], np.float32), [b"xyz"]]
    [row] = layout.pack([b"k"], columns, np.array([5]), [None] * 4)
    assert row[24:] == bytes([0]) + struct.pack("<HiffH", 2, 1, 0.5, np.nan, 3) + b"abxyz"
    assert layout.row_size == len(row) - 5
    assert layout.width == 3
    nulls = [np.ones(1, bool)] * 4
    [row] = layout.pack([b"k"], columns, np.array([5]), nulls)
    assert row[24:] == bytes([0b1111]) + bytes(16)


@TWINS
def test_a_category_outside_its_vocabulary_is_unknown(rows):
    layout = rows.RowLayout(1, ["category[3]", "float32", "category[2]?", "category[2]"])
    indices = np.array([-(2**31), -1, 0, 2, 3, 2**31 - 1], np.int32)
    columns = [indices, np.zeros(6, np.float32), indices, indices]
    packed = layout.pack([b"k"] * 6, columns, np.zeros(6, np.int64), [None] * 4)
    out, _, status = fetch(rows, layout, [b"k"] * 6, packed)
    assert (status == rows.ROW_OK).all()
    assert out[:, 0].tolist() == [-1, -1, 0, 2, -1, -1]
    np.testing.assert_array_equal(out[:, 2], [np.nan, np.nan, 0, np.nan, np.nan, np.nan])
    assert out[:, 3].tolist() == [-1, -1, 0, -1, -1, -1]


@TWINS
def test_sealed_lengths_of_strings_that_do_not_add_up_are_refused(rows):
    layout = rows.RowLayout(1, ["string", "float32", "string"])
    [row] = layout.pack([b"k"], [[b"abc"], np.ones(1, np.float32), [b"de"]], np.array([1]), [None] * 3)
    at = 25
    lies = [row[:at] + struct.pack("<H", length) + row[at + 2 :] for length in (0, 2, 4, 5, 6, 65535)]
    lies += [row[:-1], row + b"x", row[:at] + struct.pack("<HfH", 65535, 1, 65535) + row[at + 8 :]]
    resealed = [reseal(b"k", lie) for lie in lies]
    assert (fetch(rows, layout, [b"k"] * len(lies), resealed)[2] == rows.ROW_CORRUPT).all()
    moved = row[:at] + struct.pack("<HfH", 1, 1, 4) + row[at + 8 :]  # the same sum: other texts, but sound bytes
    assert fetch(rows, layout, [b"k"], [reseal(b"k", moved)])[2].tolist() == [rows.ROW_OK]


@quickly
@given(st.binary(max_size=600), st.integers(0, 2**32 - 1))
def test_crc32_is_zlibs(data, start):
    assert kernel.crc32(data) == zlib.crc32(data)
    assert kernel.crc32(data, start) == zlib.crc32(data, start)


@TWINS
def test_any_changed_byte_of_a_row_is_refused(rows):
    layout = rows.RowLayout(3, ["float32", "float64", "int32", "bool"])
    columns = [np.array([5], d) for d in layout.dtypes]
    [row] = layout.pack([b"key"], columns, np.array([77]), [None] * 4)
    damaged = [row[:i] + bytes([row[i] ^ change]) + row[i + 1 :] for i in range(len(row)) for change in range(1, 256)]
    out, times, status = fetch(rows, layout, [b"key"] * len(damaged), damaged)
    assert (status == rows.ROW_CORRUPT).all()
    assert np.isnan(out).all()
    assert (times == 0).all()


@TWINS
def test_a_row_under_another_key_is_refused(rows):
    layout = rows.RowLayout(3, ["float32", "int64"])
    keys = [b"fs:{1}:v", b"fs:{2}:v", b"fs:{12}:v", b""]
    packed = layout.pack(keys, [np.arange(4, dtype=d) for d in layout.dtypes], np.arange(4), [None, None])
    for shift in (1, 2, 3):
        moved = packed[shift:] + packed[:shift]
        assert (fetch(rows, layout, keys, moved)[2] == rows.ROW_CORRUPT).all()
    assert (fetch(rows, layout, keys, packed)[2] == rows.ROW_OK).all()


@TWINS
def test_rows_cut_short_or_too_long_are_refused(rows):
    layout = rows.RowLayout(3, ["float32", "bool", "float64"])
    [row] = layout.pack([b"k"], [np.ones(1, d) for d in layout.dtypes], np.array([1]), [None] * 3)
    wrong = [row[:i] for i in range(len(row))] + [row + b"\0", row * 2, bytes(2_000_000)]
    assert (fetch(rows, layout, [b"k"] * len(wrong), wrong)[2] == rows.ROW_CORRUPT).all()


def reseal(key: bytes, row: bytes) -> bytes:
    """The row with a checksum that is right for what it now says."""
    return row[:16] + struct.pack("<I", reference.crc_of_row(key, row)) + row[20:]


@TWINS
def test_a_sealed_row_that_lies_about_its_size_is_never_read_past_its_end(rows):
    """Checksums are no secret: short bodies, other widths and unknown fields are refused on their own account."""
    layout = rows.RowLayout(3, ["float64"] * 9)
    [row] = layout.pack([b"k"], [np.ones(1)] * 9, np.array([1]), [None] * 9)
    lies = [row[:size] for size in range(24, len(row))] + [row + bytes(8)]
    lies += [row[:at] + b"\x7f" + row[at + 1 :] for at in (0, 1, 2, 3, 20, 23)]
    resealed = [reseal(b"k", lie) for lie in lies]
    out, _, status = fetch(rows, layout, [b"k"] * len(resealed), resealed)
    assert (status == rows.ROW_CORRUPT).all()
    assert np.isnan(out).all()


@quickly
@given(st.binary(max_size=80), st.booleans())
def test_kernel_and_twin_judge_arbitrary_bytes_alike(data, sealed):
    if sealed and len(data) >= 24:
        data = reseal(b"k", b"\x01\x00" + data[2:])
    dtypes = ["string", "int64", "category[2]", "vector[2]"] if len(data) % 2 else ["float32", "int64"]
    layouts = [rows.RowLayout(0, dtypes) for rows in (kernel, reference)]
    ours, theirs = (fetch(None, layout, [b"k"], [data]) for layout in layouts)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@TWINS
def test_absent_rows_and_other_schemas_are_told_apart(rows):
    old, new = rows.RowLayout(1, ["float32"]), rows.RowLayout(2, ["float32", "bool"])
    [row] = old.pack([b"k"], [np.ones(1, np.float32)], np.array([5]), [None])
    out, times, status = fetch(rows, new, [b"k", b"k"], [None, row])
    assert status.tolist() == [rows.ROW_ABSENT, rows.ROW_SCHEMA]
    assert np.isnan(out).all()
    assert times.tolist() == [0, 0]


@TWINS
def test_strided_columns_and_bool_masks_are_packed(rows):
    layout = rows.RowLayout(1, ["float32", "bool"])
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    masks = [np.array([True, False, False, True]), None]
    packed = layout.pack([b"k"] * 4, [table[:, 1], table[:, 0] > 3], np.arange(4), masks)
    out, _, _ = fetch(rows, layout, [b"k"] * 4, packed)
    np.testing.assert_array_equal(out, [[np.nan, 0], [4, 0], [7, 1], [np.nan, 1]])


@TWINS
def test_pack_and_unpack_refuse_what_does_not_fit(rows):
    layout = rows.RowLayout(1, ["float32"])
    column, times = np.zeros(2, np.float32), np.zeros(2, np.int64)
    for keys, columns, at, nulls in [
        ([b"a"], [column], times, [None]),
        ([b"a", b"b"], [], times, [None]),
        ([b"a", b"b"], [column], times, []),
        ([b"a", b"b"], [column.astype(np.float64)], times, [None]),
        ([b"a", b"b"], [column[:1]], times, [None]),
        ([b"a", b"b"], [column.reshape(1, 2)], times, [None]),
        ([b"a", b"b"], [column], times, [np.zeros(1, np.uint8)]),
    ]:
        with pytest.raises(ValueError):
            layout.pack(keys, columns, at, nulls)
    typed = rows.RowLayout(1, ["string", "category[2]", "vector[2]"])
    good = [[b"a", b"b"], np.zeros(2, np.int32), np.zeros((2, 2), np.float32)]
    assert len(typed.pack([b"a", b"b"], good, times, [None] * 3)) == 2
    for j, bad in [
        (0, [b"a"]),
        (0, (b"a", b"b")),
        (0, [b"a", "b"]),
        (0, [b"a", None]),
        (0, [b"a", bytes(65_536)]),
        (1, np.zeros(2, np.int64)),
        (2, np.zeros((2, 3), np.float32)),
        (2, np.zeros(2, np.float32)),
        (2, np.zeros((2, 2))),
    ]:
        with pytest.raises(ValueError):
            typed.pack([b"a", b"b"], [bad if i == j else one for i, one in enumerate(good)], times, [None] * 3)
    out, status = np.zeros((2, 1), np.float32), np.zeros(2, np.uint8)
    for keys, o, t, s in [
        ([b"a"], out, times, status),
        ([b"a", b"b"], out[:1], times, status),
        ([b"a", b"b"], np.zeros((2, 2), np.float32), times, status),
        ([b"a", b"b"], out, times[:1], status),
        ([b"a", b"b"], out, times, status[:1]),
    ]:
        with pytest.raises(ValueError):
            layout.unpack(keys, [None, None], o, t, s)


@TWINS
@pytest.mark.parametrize(
    "dtypes",
    [
        [],
        ["float16"],
        ["float32"] * 65_536,
        ["vector"],
        ["vector[0]"],
        ["vector[-1]"],
        ["vector[200000]"],
        ["vector[9999999999]"],
        ["category"],
        ["category[0]"],
        ["string[5]"],
        ["vector[2]?"],
        ["category?"],
        ["category[2]??"],
        ["float32[2]"],
        [None],
    ],
)
def test_layouts_that_cannot_be_are_refused(rows, dtypes):
    with pytest.raises(ValueError):
        rows.RowLayout(1, dtypes)


def test_only_bytes_are_taken_for_keys_and_rows():
    layout = kernel.RowLayout(1, ["float32"])
    for keys, packed in [(["k"], [None]), ([None], [None]), ([b"k"], ["row"]), ([b"k"], [bytearray(30)])]:
        with pytest.raises(TypeError):
            fetch(kernel, layout, keys, packed)
