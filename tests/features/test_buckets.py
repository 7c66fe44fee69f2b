"""Aggregates over windows equal what is counted by hand over all events, whatever comes late, twice or out of order."""

import math
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features.aggregates import STEPS, Aggregates
from penstock.features.buckets import HEAD, IDENTITY, Event, State
from penstock.features.records import Damaged

HOUR, DAY = 3_600_000, 86_400_000
NOW = 1_800_000_000_000
OF = Aggregates.model_validate(
    {
        "columns": {
            f"{function}_{window}": {"function": function, "window": window, "of": of}
            for window in ("1h", "24h", "7d")
            for function, of in (
                ("count", ""),
                ("sum", "amount"),
                ("mean", "amount"),
                ("min", "amount"),
                ("max", "amount"),
                ("distinct", "shop"),
            )
        }
    }
)
NAMES = list(OF.columns)


def event(number, time_ms, amount=None, shop=None):
    numbers = {"": 1.0, "amount": amount}
    return Event((number, 0), time_ms, tuple(numbers[name] for name in OF.counted), (shop,))


def told(state, now_ms=NOW):
    return dict(zip(NAMES, state.values(now_ms), strict=True))


def taken(*events, now_ms=NOW, floor=(0, 0)):
    state = State(OF)
    state.take(events, floor, now_ms)
    return state


def by_hand(column, events, now_ms):
    """The value of a column over the events that its window has: whole buckets of a sixtieth."""
    window = column.window_ms
    first = (now_ms - window) // (window // STEPS) * (window // STEPS)
    within = [e for e in events if e.time_ms >= first]
    if column.function == "distinct":
        return float(len({e.values[0] for e in within} - {None}))
    numbers = [e.numbers[OF.counted.index(column.of)] for e in within]
    numbers = [number for number in numbers if number is not None and math.isfinite(number)]
    if column.function == "count":
        return float(len(numbers))
    if column.function == "sum":
        return float(sum(numbers))
    if not numbers:
        return math.nan
    return float({"mean": lambda x: sum(x) / len(x), "min": min, "max": max}[column.function](numbers))


AGES = st.integers(0, 8 * DAY) | st.integers(0, 2 * HOUR) | st.sampled_from([0, 1, HOUR, DAY, 7 * DAY, 7 * DAY + 1])
AMOUNTS = st.none() | st.integers(-1000, 1000).map(float) | st.sampled_from([math.nan, math.inf])  # sums are exact
EVENTS = st.lists(st.tuples(AGES, AMOUNTS, st.none() | st.sampled_from([b"a", b"b", b"c", b""])), max_size=30)


@settings(max_examples=150)
@given(drawn=EVENTS, data=st.data())
def test_values_are_those_counted_by_hand(drawn, data):
    """Events in parts, each part delivered again at will, states stored between, and read at any later time."""
    events = [event(i + 1, NOW - age, amount, shop) for i, (age, amount, shop) in enumerate(drawn)]
    order = data.draw(st.permutations(range(len(events))))
    state = State(OF)
    done = 0
    while done < len(order):
        part = [events[i] for i in order[done : done + data.draw(st.integers(1, 8))]]
        again = [events[i] for i in order[: data.draw(st.integers(0, done))]]
        result = state.take([*again, *part, *part], (0, 0), NOW)
        assert result.repeated == len(again) + len(part)
        done += len(part)
        state = State.decode(OF, b"key", state.encode(b"key"))
    accepted = [e for e in events if NOW - e.time_ms <= OF.late_ms]
    for later in (0, data.draw(st.integers(0, 8 * DAY))):
        now = NOW + later
        for name, value in told(state, now).items():
            expected = by_hand(OF.columns[name], accepted, now)
            assert value == expected or (math.isnan(value) and math.isnan(expected)), name


@given(drawn=EVENTS)
def test_a_window_has_every_event_of_its_length_and_at_most_a_sixtieth_more(drawn):
    state = taken(*(event(i + 1, NOW - age) for i, (age, _, _) in enumerate(drawn)))
    for name, value in told(state).items():
        column = OF.columns[name]
        if column.function == "count":
            window = column.window_ms
            assert value >= sum(age < window for age, _, _ in drawn)
            assert value <= sum(age <= window + window // STEPS for age, _, _ in drawn)


@given(drawn=EVENTS.filter(bool))
def test_between_the_changes_told_no_value_changes(drawn):
    state = taken(*(event(i + 1, NOW - age, amount, shop) for i, (age, amount, shop) in enumerate(drawn)))
    now = NOW
    for _ in range(300):
        change = state.changes_at(now)
        if change is None:
            assert all(value == 0 or math.isnan(value) for value in state.values(now))
            break
        assert change > now
        assert repr(state.values(change - 1)) == repr(state.values(now))
        now = change


def test_an_event_later_than_allowed_is_dropped_and_told():
    of = Aggregates.model_validate({"late_s": 60, "columns": {"n": {"function": "count", "window": "1h"}}})
    state = State(of)
    events = [Event((i, 0), NOW - age, (1.0,), ()) for i, age in enumerate([0, 59_999, 60_000, 60_001])]
    result = state.take(events, (0, 0), NOW)
    assert (result.counted, result.late, state.values(NOW)) == (3, 1, [3.0])
    assert state.take(events, (0, 0), NOW).repeated == 4


def test_an_event_ahead_of_the_clock_counts_as_of_now():
    state = taken(event(1, NOW + DAY, 5.0))
    assert told(state)["sum_1h"] == 5
    assert told(state, NOW + 2 * HOUR)["sum_1h"] == 0


def test_below_the_floor_nothing_counts_again_and_nothing_is_remembered():
    state = taken(*(event(i, NOW) for i in range(1, 101)), floor=(91, 0))
    assert len(state.taken) == 10
    late = state.take([event(i, NOW) for i in (1, 50, 90, 91, 100)], (0, 0), NOW)
    assert (late.repeated, late.counted) == (5, 0)
    assert state.floor == (91, 0)
    assert told(state)["count_1h"] == 100


def test_distinct_values_beyond_the_bound_push_out_those_seen_longest_ago():
    of = Aggregates.model_validate(
        {"max_distinct": 3, "columns": {"n": {"function": "distinct", "window": "1h", "of": "x"}}}
    )
    state = State(of)
    state.take([Event((i, 0), NOW - 10 + i, (), (b"%d" % i,)) for i in range(10)], (0, 0), NOW)
    assert state.values(NOW) == [3.0]
    state.take([Event((11, 0), NOW, (), (b"9",))], (0, 0), NOW)
    assert state.values(NOW) == [3.0]


def test_what_no_window_has_is_forgotten():
    state = taken(event(1, NOW, 1.0, b"a"))
    full = len(state.encode(b"k"))
    state.take([], (2, 0), NOW + 8 * DAY)
    assert state.changes_at(NOW + 8 * DAY) is None
    assert len(state.encode(b"k")) < full - 100


@given(data=st.data())
def test_damaged_bytes_are_no_state(data):
    whole = taken(event(1, NOW, 1.0, b"a"), event(2, NOW - DAY, 2.0)).encode(b"key")
    assert told(State.decode(OF, b"key", whole))["sum_7d"] == 3
    at = data.draw(st.integers(0, len(whole) - 1))
    for damaged in (whole[:at], whole + b"\0", whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]):
        with pytest.raises(Damaged):
            State.decode(OF, b"key", damaged)
    with pytest.raises(Damaged):
        State.decode(OF, b"another", whole)


@given(
    body=st.binary(max_size=100) | st.binary(min_size=16, max_size=40).map(lambda b: b + struct.pack("<I", 2**32 - 1)),
    form=st.sampled_from([1, 2]),
    whole=st.booleans(),
    about=st.integers(0, 100) | st.just(2**32 - 1),
)
def test_sealed_nonsense_is_damaged_or_a_state_and_takes_no_memory(body, form, whole, about):
    if form == 1:
        about = OF.digest
    elif whole:
        layout = OF.layout.encode()
        body, about = layout + body, len(layout)
    start = HEAD.pack(form, 0, 0, about, 7, 0)[:IDENTITY]
    sealed = start + struct.pack("<I", zlib.crc32(b"key" + start + body)) + body
    with suppress(Damaged):
        State.decode(OF, b"key", sealed).values(NOW)


def test_no_two_writings_begin_alike():
    state = taken(event(1, NOW))
    assert state.encode(b"k")[:16] != state.encode(b"k")[:16]
    assert State.decode(OF, b"k", state.encode(b"k")) == state


def test_a_state_is_full_with_more_ids_than_it_may_remember_until_its_floor_moves(monkeypatch):
    monkeypatch.setattr("penstock.features.buckets.MAX_TAKEN", 3)
    state = taken(*(event(number, NOW) for number in range(1, 4)))
    assert not state.is_full
    state.take([event(4, NOW)], (0, 0), NOW)
    assert state.is_full
    state.take([], (2, 0), NOW)
    assert not state.is_full


@pytest.mark.parametrize("values", [10, 100])
def test_a_state_is_as_large_as_the_docs_say(values):
    """Windows x 61 x (8 + 28 x fields), 16 for each distinct value and each id, and a hundred bytes or two."""
    of = Aggregates.model_validate(OF.model_dump() | {"max_distinct": values})
    state = State(of)
    for number in range(61 * 3 * 4):
        window = of.windows[number % 3]
        at = NOW - window * (number // 3 % 61) // STEPS
        state.take([event(number, at, amount=number, shop=b"%d" % number)], (0, 0), NOW)
    told = 3 * 61 * (8 + 28 * 2) + 16 * values + 16 * 61 * 3 * 4
    assert told <= len(state.encode(b"key")) <= told + 200


# Other declarations -----------------------------------------------------------------------------------------------


def declared(*columns, **more):
    """An `Aggregates` of (function, of, window)."""
    named = {f"{f}_{of}_{window}": {"function": f, "of": of, "window": window} for f, of, window in columns}
    return Aggregates.model_validate({"columns": named} | more)


def events_of(of, drawn):
    """Events of (age, amount, shop) as that declaration takes them."""
    for i, (age, amount, shop) in enumerate(drawn):
        numbers = {"": 1.0, "amount": amount, "shop": 1.0 if shop else None}
        values = tuple(
            {"amount": None if amount is None else b"%g" % amount, "shop": shop or None}[n] for n in of.told_apart
        )
        yield Event((i + 1, 0), NOW - age, tuple(numbers[name] for name in of.counted), values)


FUNCTIONS = [
    ("count", ""),
    ("count", "amount"),
    ("count", "shop"),
    ("sum", "amount"),
    ("max", "amount"),
    ("distinct", "shop"),
    ("distinct", "amount"),
]
COLUMNS = st.tuples(st.sampled_from(FUNCTIONS), st.sampled_from(["1h", "24h", "7d"])).map(lambda c: (*c[0], c[1]))
DECLARED = st.lists(COLUMNS, min_size=1, max_size=8, unique=True)


@settings(max_examples=200)
@given(drawn=EVENTS, former=DECLARED, now=DECLARED)
def test_a_state_of_another_declaration_is_carried_over_as_far_as_both_have_it(drawn, former, now):
    """Columns of both go on as if nothing had changed; others are told to begin empty, and do."""
    old, new = declared(*former), declared(*now)
    ages = [event for event in drawn if event[0] <= min(old.late_ms, new.late_ms)]
    before, whole = State(old), State(new)
    before.take(events_of(old, ages), (3, 0), NOW)
    whole.take(events_of(new, ages), (3, 0), NOW)
    state = State.decode(new, b"key", before.encode(b"key"))
    assert (state.floor, state.taken) == (before.floor, before.taken)
    for (name, column), value, expected in zip(new.columns.items(), state.values(NOW), whole.values(NOW), strict=True):
        if new.begins_empty(column, old):
            assert value == 0 or math.isnan(value)
        elif column.function != "distinct" or column.window_ms <= old.windows[-1]:
            assert repr(value) == repr(expected), name
    again = state.take(events_of(new, ages), (0, 0), NOW)
    assert again.counted == 0
    assert State.decode(new, b"key", state.encode(b"key")) == state


def test_neither_order_nor_lateness_nor_a_bound_is_in_the_layout():
    one = declared(("count", "", "1h"), ("sum", "x", "24h"), late_s=5, max_distinct=7)
    other = declared(("mean", "x", "24h"), ("max", "x", "1h"), ("count", "", "24h"))
    assert one.layout == other.layout
    assert one.layout != declared(("count", "", "1h"), ("count", "x", "24h")).layout


def test_a_state_of_the_former_release_is_read_under_its_declaration(former_state):
    of, key, data = former_state
    state = State.decode(of, key, data)
    assert (state.floor, state.taken, state.values(NOW)) == ((2, 0), {(2, 0), (3, 7)}, [3.0, 7.5, 2.0])
    assert State.decode(of, key, state.encode(key)) == state
    with pytest.raises(Damaged):
        State.decode(declared(("count", "", "1h")), key, data)


def test_a_column_says_what_it_is():
    assert [str(column) for column in declared(("count", "", "1h"), ("sum", "x", "24h")).columns.values()] == [
        "count over 1h",
        "sum of x over 24h",
    ]
