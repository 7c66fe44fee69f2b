"""Hashes of decimal text: the kernel equals its twin, and every number Python writes is read back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels import hashes as kernel
from penstock.kernels.reference import hashes as reference
from penstock.kernels.rows import ROW_ABSENT, ROW_CORRUPT, ROW_OK

TWINS = pytest.mark.parametrize("hashes", [kernel, reference], ids=["kernel", "reference"])
quickly = settings(max_examples=60, deadline=None)


def parsed(hashes, replies, k, whole=()):
    out, status = np.full((len(replies), k), -7, np.float32), np.full(len(replies), 77, np.uint8)
    hashes.parse_hashes(replies, np.isin(np.arange(k), whole).astype(np.uint8), out, status)
    return out, status


NUMBERS = (
    st.floats().map(repr)
    | st.integers(-(10**20), 10**20).map(str)
    | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**19, 2**64]).map(str)
    | st.decimals(allow_nan=False, allow_infinity=False, places=4).map(str)
    | st.from_regex(r"[+-]?[0-9.eE+_ ]{0,20}", fullmatch=True)
)
FIELDS = st.none() | NUMBERS.map(str.encode) | st.binary(max_size=6)


@quickly
@given(st.lists(st.lists(FIELDS, min_size=3, max_size=3), max_size=4))
def test_parsed_hashes_equal_their_twin(replies):
    ours, theirs = (parsed(hashes, replies, 3, whole=[0]) for hashes in (kernel, reference))
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


@TWINS
@quickly
@given(number=st.floats(allow_nan=False) | st.decimals(-1000, 1000, places=3).map(float))
def test_every_number_python_writes_is_read_back(hashes, number):
    with np.errstate(over="ignore"):
        assert parsed(hashes, [[repr(number).encode()]], 1)[0][0, 0] == np.float64(number).astype(np.float32)


@TWINS
@pytest.mark.parametrize(
    "text", [b"", b" 1", b"1 ", b"1\n", b"1_0", b"0x10", b"1,5", b".", b"-", b"1e", b"1\x002", b"true", b"1" * 513]
)
def test_text_that_is_no_number_is_missing(hashes, text):
    out, status = parsed(hashes, [[text]], 1)
    assert np.isnan(out[0, 0])
    assert status.tolist() == [ROW_OK]


@TWINS
@quickly
@given(
    number=st.integers(-(2**63), 2**63 - 1) | st.integers(2**53, 2**63 - 1).map(lambda n: n >> 39 << 39 | 1 << 38 | 1)
)
def test_a_whole_number_is_rounded_once_as_in_a_packed_row(hashes, number):
    """2^k + half a step + 1 is nearer to the next float32, which by way of a float64 it would not come to."""
    out, _ = parsed(hashes, [[b"%d" % number] * 2], 2, whole=[0])
    assert out[0, 0] == np.array([number]).astype(np.float32)[0]
    assert out[0, 1] == np.float64(number).astype(np.float32)


@TWINS
def test_hashes_absent_or_refused_by_the_store_are_statuses(hashes):
    out, status = parsed(hashes, [[None, None], [None, b"-2.50"], ValueError("WRONGTYPE"), [b"inf", b"1e400"]], 2)
    assert status.tolist() == [ROW_ABSENT, ROW_OK, ROW_CORRUPT, ROW_OK]
    np.testing.assert_array_equal(out, [[np.nan] * 2, [np.nan, -2.5], [np.nan] * 2, [np.inf, np.inf]])


@TWINS
def test_replies_of_another_width_are_refused(hashes):
    for replies, k in [([[b"1"]], 2), ([[b"1", b"2"]], 1), ([[]], 0)]:
        with pytest.raises(ValueError):
            parsed(hashes, replies, k)


# ---- Whole hashes --------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"c", b"ab", b"", b"\x00", b"a\x00"])


@quickly
@given(
    st.lists(st.none() | st.dictionaries(NAMES, st.binary(max_size=4)), max_size=4),
    st.lists(NAMES, max_size=6),
)
def test_what_is_picked_of_whole_hashes_is_what_hmget_replies(hashes, fields):
    replies = [None if one is None else [part for pair in one.items() for part in pair] for one in hashes]
    expected = [None if one is None else [one.get(field) for field in fields] for one in hashes]
    assert kernel.pick(replies, tuple(fields)) == reference.pick(replies, tuple(fields)) == expected


@TWINS
def test_what_is_no_list_of_pairs_is_refused_and_an_error_is_left(hashes):
    error = ValueError("WRONGTYPE")
    assert hashes.pick([error, []], (b"a",)) == [error, [None]]
    with pytest.raises(ValueError):
        hashes.pick([[b"a"]], (b"a",))


def test_a_whole_hash_with_something_odd_for_a_field_is_refused():
    with pytest.raises(ValueError, match="no field"):
        kernel.pick([[1, b"1"]], (b"a",))
    with pytest.raises(TypeError):
        kernel.pick([], ("a",))
