"""The routing table: it finds what a dict finds, whatever bytes names are made of, and keeps its lanes alive."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.kernels.lanes import Lane
from penstock.kernels.routes import Routes
from penstock.kernels.wire import Plan

PLAN = Plan("m", "1", [("x", "FP32", (-1,), "tensor", False)], [("y", "FP32", (), False)])
LANES = [Lane(PLAN) for _ in range(3)]
NAMES = st.binary(max_size=3) | st.text("ab\0\xff", max_size=4).map(lambda text: text.encode("latin-1"))
KEYS = st.tuples(NAMES, NAMES)


@given(table=st.dictionaries(KEYS, st.sampled_from(LANES), max_size=40), asked=st.lists(KEYS, max_size=20))
def test_it_finds_what_a_dict_finds(table, asked):
    routes = Routes(table)
    for name, version in [*table, *asked]:
        assert routes.lookup(name, version) is table.get((name, version))


def test_an_empty_table_finds_nothing():
    routes = Routes({})
    assert routes.lookup(b"", b"") is None
    assert routes.lookup(b"fraud", b"1") is None


@pytest.mark.parametrize(
    "other", [(b"a\0b", b"c"), (b"a", b"b\0c"), (b"a\0b\0c", b""), (b"", b"a\0b\0c"), (b"a\0", b"b\0c"), (b"a", b"")]
)
def test_a_nul_in_a_name_moves_no_border(other):
    routes = Routes({(b"a\0b", b"c\0"): LANES[0], (b"ab", b"c"): LANES[1]})
    assert routes.lookup(*other) is None
    assert Routes({other: LANES[2], (b"a\0b", b"c\0"): LANES[0]}).lookup(*other) is LANES[2]


def test_a_name_that_begins_like_another_is_another():
    names = [b"fraud"[:size] for size in range(6)]
    routes = Routes({(name, b"1"): LANES[index % 3] for index, name in enumerate(names)})
    for index, name in enumerate(names):
        assert routes.lookup(name, b"1") is LANES[index % 3]
        assert routes.lookup(name, b"") is None
    assert routes.lookup(b"fraud1", b"") is None
    assert routes.lookup(b"fraud", b"11") is None


def test_five_thousand_entries_are_all_found_and_nothing_else():
    table = {(b"model-%d" % number, b"%d" % (number % 7)): LANES[number % 3] for number in range(5000)}
    routes = Routes(table)
    assert all(routes.lookup(*key) is lane for key, lane in table.items())
    assert not any(routes.lookup(name, version + b"0") for name, version in table)


def test_names_longer_than_any_buffer_are_told_apart():
    name = b"m" * 100_000
    routes = Routes({(name, b""): LANES[0], (name + b"m", b""): LANES[1]})
    assert routes.lookup(name, b"") is LANES[0]
    assert routes.lookup(name + b"m", b"") is LANES[1]
    assert routes.lookup(name[1:], b"") is None


def test_a_table_keeps_its_lanes_alive_and_lets_go_of_them_with_itself():
    class Watched(Lane):
        """A lane that can be watched."""

    lanes = {(b"m", b"%d" % number): Watched(PLAN) for number in range(50)}
    watched, routes = [weakref.ref(lane) for lane in lanes.values()], Routes(lanes)
    del lanes
    gc.collect()
    assert [routes.lookup(b"m", b"%d" % number) for number in range(50)] == [lane() for lane in watched]
    assert None not in [lane() for lane in watched]
    del routes
    gc.collect()
    assert {lane() for lane in watched} == {None}


def test_a_table_is_not_changed_with_the_dict_it_was_made_of():
    table = {(b"m", b""): LANES[0]}
    routes = Routes(table)
    table[b"m", b""] = LANES[1]
    table[b"n", b""] = LANES[1]
    assert routes.lookup(b"m", b"") is LANES[0]
    assert routes.lookup(b"n", b"") is None


@pytest.mark.parametrize(
    "table",
    [
        None,
        {(b"m", b""): None},
        {(b"m", b""): object()},
        {("m", b""): LANES[0]},
        {(None, b""): LANES[0]},
        {b"m": LANES[0]},
    ],
    ids=["no dict", "no lane", "something else", "text", "no name", "no version"],
)
def test_what_is_no_table_is_refused(table):
    with pytest.raises((TypeError, ValueError)):
        Routes(table)


def test_looking_up_something_else_than_bytes_is_refused():
    with pytest.raises(TypeError):
        Routes({}).lookup(None, b"")
    with pytest.raises(TypeError):
        Routes({}).lookup("m", b"")
