"""Raw tensors survive the way out and back in every datatype, and no bytes from outside are believed unchecked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from penstock._codec import DATATYPES, DTYPES, datatype_of, decode, encode, from_bfloat16, to_bfloat16
from penstock.errors import InvalidRequest, ProtocolError

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


@pytest.mark.parametrize("datatype", sorted(DTYPES))
def test_numbers_come_back_as_they_were(datatype):
    @settings(max_examples=25, deadline=None)
    @given(hnp.arrays(DTYPES[datatype], SHAPES))
    def check(array):
        raw = encode(array, datatype)
        assert raw == array.tobytes()
        assert same(decode(raw, datatype, array.shape), array)
        assert datatype_of(array) == datatype

    check()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(object, SHAPES, elements=st.binary(max_size=9) | st.text(max_size=5)))
def test_bytes_come_back_as_bytes_and_text_as_utf8(array):
    back = decode(encode(array, "BYTES"), "BYTES", array.shape)
    assert back.shape == array.shape
    assert back.ravel().tolist() == [e.encode() if isinstance(e, str) else e for e in array.ravel().tolist()]
    assert datatype_of(array) == "BYTES"


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint16, SHAPES))
def test_every_bfloat16_is_exact_as_float32_and_comes_back_to_its_own_bits(bits):
    values = from_bfloat16(bits)
    assert values.dtype == np.float32
    expected = np.where(np.isnan(values), bits | 0x40, bits)
    assert np.array_equal(to_bfloat16(values), expected)
    assert same(decode(encode(values, "BF16"), "BF16", bits.shape), values)


@settings(max_examples=100, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_float32_is_rounded_to_the_nearest_bfloat16_ties_to_even(value):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.array([value], np.float32)
    with np.errstate(over="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert to_bfloat16(x)[0] == expected[0]


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        (np.array([1, 2], np.int64), "FP32"),
        (np.array([True, False]), "INT64"),
        (np.array([1.5], np.float64), "FP16"),
        (np.array([255], np.int64), "UINT8"),
        (np.array([2.0], np.float64), "BF16"),
        (np.array([1.5], ">f4"), "FP32"),
    ],
)
def test_numbers_are_converted_where_only_float_precision_can_be_lost(values, datatype):
    back = decode(encode(values, datatype), datatype, values.shape)
    assert np.array_equal(back.astype(np.float64), values.astype(np.float64))


@pytest.mark.parametrize(
    ("values", "datatype", "message"),
    [
        (np.array([256]), "UINT8", "do not fit UINT8"),
        (np.array([-1]), "UINT64", "do not fit UINT64"),
        (np.array([2**63], np.uint64), "INT64", "do not fit INT64"),
        (np.array([1.0]), "INT32", "cannot be sent as float64"),
        (np.array([1]), "BOOL", "cannot be sent as int64"),
        (np.array(["x"]), "FP32", "cannot be sent as <U1"),
        (np.array([1.0]), "BYTES", "send str or bytes, not float"),
        (np.array([1.0]), "FP8", "unknown datatype 'FP8'"),
    ],
)
def test_values_that_would_change_are_refused_by_name(values, datatype, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        encode(values, datatype, "amount")
    assert "'amount'" in caught.value.details


def test_an_array_without_a_datatype_is_refused():
    with pytest.raises(InvalidRequest, match="complex128"):
        datatype_of(np.zeros(1, complex))


@pytest.mark.parametrize(
    ("raw", "datatype", "shape"),
    [
        (b"\0" * 7, "FP32", (2,)),
        (b"\0" * 9, "FP32", (2,)),
        (b"", "FP32", (2**31, 2**31, 2**31)),
        (b"", "FP32", (-1,)),
        (b"\0", "FP8", (1,)),
        (b"", "BYTES", (2**40,)),
        (b"\1\0\0", "BYTES", (1,)),
        (b"\1\0\0\0", "BYTES", (1,)),
        (b"\xff\xff\xff\xff", "BYTES", (1,)),
        (b"\0\0\0\0x", "BYTES", (1,)),
        (b"\4\0\0\0abcd\1\0", "BYTES", (2,)),
    ],
)
def test_raw_contents_of_the_wrong_size_are_refused(raw, datatype, shape):
    with pytest.raises(ProtocolError, match="output 'score'"):
        decode(raw, datatype, shape, "score")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.sampled_from(DATATYPES), st.lists(st.integers(-1, 2**33), max_size=3))
def test_any_bytes_decode_or_are_refused(raw, datatype, shape):
    try:
        array = decode(raw, datatype, shape)
    except ProtocolError:
        return
    assert array.shape == tuple(shape)
