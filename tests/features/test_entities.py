"""Ids of several parts: whatever the parts hold, no two are written alike, and all read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.features import InvalidData
from penstock.features.entities import entity_ids, entity_key, entity_parts, own_ids, united_keys

PARTS = st.lists(st.binary(min_size=1, max_size=6) | st.text("|\\a", min_size=1, max_size=5), min_size=1, max_size=4)


@given(PARTS)
def test_parts_read_back(parts):
    wanted = tuple(part.encode() if isinstance(part, str) else part for part in parts)
    assert entity_parts(entity_key(parts), len(parts)) == wanted


@given(PARTS, PARTS)
def test_no_two_lists_of_as_many_parts_are_written_alike(one, other):
    as_bytes = [[p.encode() if isinstance(p, str) else p for p in parts] for parts in (one, other)]
    if len(one) == len(other) and as_bytes[0] != as_bytes[1]:
        assert entity_key(one) != entity_key(other)


def test_the_form_is_parts_joined_by_bars():
    assert entity_key(["c42", 7]) == b"c42|7"
    assert entity_key(["a|b", "c\\"]) == b"a\\|b|c\\\\"
    assert entity_key(["a|b"]) == b"a|b"  # one key: the id as it is


def test_ids_are_taken_in_parts_or_joined():
    assert entity_ids([("c", 1), ["d", b"2"], "e|3", b"f|4"], 2) == [b"c|1", b"d|2", b"e|3", b"f|4"]
    assert entity_ids(["c", 1, ("d",), b"|"], 1) == [b"c", b"1", b"d", b"|"]


@pytest.mark.parametrize("ids", [["c"], ["a|b|c"], ["a|"], ["a|b\\"], [("a",)], [("a", "b", "c")], [("a", "")], [5]])
def test_ids_of_another_number_of_parts_are_refused(ids):
    with pytest.raises(InvalidData):
        entity_ids(ids, 2)


def test_the_keys_of_several_entities_are_united_in_the_order_of_their_coming():
    assert united_keys([("m", "c"), ("c",), ("d", "m")]) == ("m", "c", "d")
    assert united_keys([("c",), ("c",)]) == ("c",)
    assert united_keys([]) == ()


def test_an_entity_has_its_own_part_of_joined_ids():
    ids = [b"a|b|c", b"a", b"a\\|x|b|c"]
    assert own_ids(ids, ("x", "y", "z"), ("x",)) == [b"a", None, b"a|x"]
    assert own_ids(ids, ("x", "y", "z"), ("z", "x")) == [b"c|a", None, b"c|a\\|x"]
    assert own_ids([], ("x", "y"), ("y",)) == []


def test_a_float_is_nobody_s_id():
    with pytest.raises(InvalidData, match="not float"):
        entity_ids([1.5], 1)
