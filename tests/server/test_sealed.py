"""A sealed answer is opened for that very request of that very version only, whatever happened to its bytes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.server.sealed import FORMAT, HEADER_BYTES, Answer, identity_of, name_of, seal, unseal

ONE, OTHER = identity_of("0.1.0", "m/1", "aa", "nowhere"), identity_of("0.1.0", "m/2", "aa", "nowhere")
answers = st.builds(
    Answer, st.binary(max_size=60), st.binary(max_size=60), st.integers(min_value=0, max_value=2**64 - 1)
)


@given(answers)
def test_what_was_sealed_is_opened_with_its_key(answer):
    value = seal(answer, ONE)
    assert unseal(value, answer.key, ONE) == answer
    assert len(value) == HEADER_BYTES + len(answer.key) + len(answer.reply)


@settings(max_examples=500)
@given(answers, st.data())
def test_a_changed_value_is_never_opened(answer, data):
    value = bytearray(seal(answer, ONE))
    at = data.draw(st.integers(0, len(value) - 1))
    change = data.draw(st.sampled_from(["flip", "cut", "drop", "insert", "append", "swap"]))
    if change == "flip":
        value[at] ^= 1 << data.draw(st.integers(0, 7))
    elif change == "cut":
        del value[at:]
    elif change == "drop":
        del value[at]
    elif change == "insert":
        value.insert(at, data.draw(st.integers(0, 255)))
    elif change == "append":
        value += data.draw(st.binary(min_size=1, max_size=9))
    else:
        value = value[at:] + value[:at]
    opened = unseal(bytes(value), answer.key, ONE)
    assert opened is None or bytes(value) == seal(answer, ONE)


@given(answers, st.binary(max_size=60))
def test_a_value_is_opened_for_no_other_request_and_for_no_other_version(answer, key):
    value = seal(answer, ONE)
    assert unseal(value, answer.key, OTHER) is None
    if key != answer.key:
        assert unseal(value, key, ONE) is None
        assert name_of(key, ONE) != name_of(answer.key, ONE)
    assert name_of(answer.key, ONE) != name_of(answer.key, OTHER)


@given(st.binary(max_size=200))
def test_junk_is_never_opened(junk):
    assert unseal(junk, b"key", ONE) is None


@pytest.mark.parametrize("sizes", [(0, 0), (3, 6), (2**32 - 1, 2**32 - 1), (2**32 - 1, 10), (4, 4)])
def test_sizes_that_lie_are_not_believed(sizes):
    value = seal(Answer(b"key", b"reply", 1), ONE)
    assert unseal(struct.pack("<BxxxIIQ", FORMAT, *sizes, 1) + value[20:], b"key", ONE) is None


def test_parts_of_an_identity_do_not_run_together():
    assert identity_of("a", "bc") != identity_of("ab", "c")
    assert len(ONE) == 32
