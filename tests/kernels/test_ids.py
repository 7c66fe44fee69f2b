"""Ids taken apart: the kernel equals its twin, and both the way in which ids of several parts are written and read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features import InvalidData
from penstock.features.entities import entity_key, entity_parts
from penstock.kernels import ids as kernel
from penstock.kernels.reference import ids as reference

TWINS = pytest.mark.parametrize("ids", [kernel, reference], ids=["kernel", "reference"])
quickly = settings(max_examples=200, deadline=None)
NASTY = st.text(alphabet="|\\a\n", max_size=8).map(str.encode) | st.binary(max_size=6)
PART = st.text(alphabet="|\\aé\n", min_size=1, max_size=4).map(str.encode) | st.binary(min_size=1, max_size=4)


def split(ids, n_parts, takes, given_ids, row_of=None):
    row_of = np.arange(len(given_ids), dtype=np.int32) if row_of is None else np.array(row_of, np.int32)
    out = np.full((len(takes), len(row_of)), 77, np.int32)
    taken, unfit = ids.Splitter(n_parts, takes).split(given_ids, row_of, out)
    return taken, unfit, out.tolist()


def test_the_twins_have_the_same_names():
    assert kernel.MAX_PARTS == reference.MAX_PARTS
    for ids in (kernel, reference):
        splitter = ids.Splitter(3, [[2], range(3)])
        assert (splitter.n_parts, splitter.takes) == (3, ((2,), (0, 1, 2)))


@st.composite
def cases(draw):
    n_parts = draw(st.integers(2, 4))
    places = st.permutations(range(n_parts))
    takes = [draw(places)[: draw(st.integers(1, n_parts))] for _ in range(draw(st.integers(1, 3)))]
    whole = st.lists(PART, min_size=n_parts, max_size=n_parts).map(entity_key)
    ids = draw(st.lists(whole | NASTY, max_size=6, unique=True))
    return n_parts, takes, ids, draw(st.lists(st.integers(-2, len(ids) - 1), max_size=8))


@quickly
@given(cases())
def test_the_kernel_equals_its_twin(case):
    assert split(kernel, *case) == split(reference, *case)


@quickly
@given(NASTY, st.integers(2, 4))
def test_unfit_is_just_what_is_no_id_of_so_many_parts(one, n_parts):
    taken, unfit, _ = split(kernel, n_parts, [[place] for place in range(n_parts)], [one])
    try:
        parts = entity_parts(one, n_parts)
    except InvalidData:
        assert (taken, unfit) == ([[]] * n_parts, [0])
    else:
        assert (taken, unfit) == ([[part] for part in parts], [])


@quickly
@given(st.lists(st.tuples(PART, PART, PART), max_size=6))
def test_what_is_taken_is_what_the_parts_alone_are_written_as(rows):
    takes = [[1], [2, 0], [0, 1, 2], [1, 2]]
    taken, unfit, places = split(kernel, 3, takes, [entity_key(row) for row in rows])
    assert unfit == []
    for take, ids, of_row in zip(takes, taken, places, strict=True):
        assert [ids[place] for place in of_row] == [entity_key([row[place] for place in take]) for row in rows]
        assert len(set(ids)) == len(ids)


@TWINS
def test_each_id_is_given_once_in_the_order_of_its_coming(ids):
    taken, unfit, places = split(ids, 2, [[0], [1], [1, 0]], [b"a|x", b"b|x", b"a|y", b"none"], [3, 0, 1, -1, 2, 2])
    assert taken == [[b"a", b"b"], [b"x", b"y"], [b"x|a", b"x|b", b"y|a"]]
    assert unfit == [3]
    assert places == [[-1, 0, 1, -1, 0, 0], [-1, 0, 0, -1, 1, 1], [-1, 0, 1, -1, 2, 2]]


@TWINS
def test_a_part_alone_has_no_backslashes_and_several_have_theirs(ids):
    (alone, pair), _, _ = split(ids, 3, [[0], [0, 2]], [b"a\\|b\\\\|c|d"])
    assert (alone, pair) == ([b"a|b\\"], [b"a\\|b\\\\|d"])


@TWINS
@pytest.mark.parametrize("one", [b"", b"a", b"a|", b"|a", b"a|b|c", b"a|b\\", b"|", b"\\|a", b"a||b"])
def test_ids_of_another_number_of_parts_or_with_an_empty_one_are_unfit(ids, one):
    assert split(ids, 2, [[0]], [one]) == ([[]], [0], [[-1]])


@TWINS
def test_nothing_in_gives_nothing(ids):
    assert split(ids, 2, [[0], [1]], []) == ([[], []], [], [[], []])
    assert split(ids, 2, [[1]], [], [-1]) == ([[]], [], [[-1]])


@TWINS
@pytest.mark.parametrize(
    ("n_parts", "takes"), [(1, [[0]]), (65, [[0]]), (2, []), (2, [[]]), (2, [[2]]), (2, [[-1]]), (2, [[0, 0]])]
)
def test_takes_that_cannot_be_are_refused(ids, n_parts, takes):
    with pytest.raises(ValueError):
        ids.Splitter(n_parts, takes)


@TWINS
def test_split_refuses_what_does_not_fit(ids):
    splitter, rows = ids.Splitter(2, [[0], [1]]), np.zeros(2, np.int32)
    for out in (np.zeros((1, 2), np.int32), np.zeros((2, 3), np.int32)):
        with pytest.raises(ValueError):
            splitter.split([b"a|b"], rows, out)
    with pytest.raises(ValueError):
        splitter.split([], rows, np.zeros((2, 2), np.int32))
    for wrong in ([None], ["a|b"], [5]):
        with pytest.raises(TypeError):
            splitter.split(wrong, rows, np.zeros((2, 2), np.int32))


def test_as_many_parts_as_there_may_be():
    """At its limit the kernel stays within its memory."""
    most = kernel.MAX_PARTS
    parts = [b"%d" % i for i in range(most)]
    backwards = list(reversed(range(most)))
    taken, unfit, _ = split(kernel, most, [backwards, [most - 1]], [b"|".join(parts), b"|".join([*parts, b"x"])])
    assert taken == [[b"|".join(reversed(parts))], [parts[-1]]]
    assert unfit == [1]
