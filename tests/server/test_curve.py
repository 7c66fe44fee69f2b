"""The measured curve and the cap that follows from it, without clock or model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.server.curve import NEAR_PEAK, Curve, measure, sizes_to

MS = 1_000_000


def test_sizes_double_up_to_the_largest_batch():
    assert sizes_to(1) == [1]
    assert sizes_to(8) == [1, 2, 4, 8]
    assert sizes_to(100) == [1, 2, 4, 8, 16, 32, 64, 100]


@pytest.mark.parametrize(
    ("ns", "cap"),
    [
        ((100, 110, 120, 140), 8),  # still growing
        ((100, 200, 400, 800), 1),  # flat: the smallest, whose calls are answered soonest
        ((100, 120, 200, 500), 4),  # a peak
        ((100, 103, 203, 402), 4),  # within 2 % of it
    ],
)
def test_the_cap_is_the_smallest_size_within_2_percent_of_the_most_rows_a_second(ns, cap):
    assert Curve((1, 2, 4, 8), ns).cap(8) == cap


def test_the_cap_never_exceeds_what_the_operator_allows():
    assert Curve((1, 2, 4, 8), (100, 110, 120, 140)).cap(4) == 4


def test_a_curve_that_was_cut_short_while_rates_grew_caps_nothing():
    assert Curve((1, 2), (100, 110), whole=False).cap(256) == 256
    assert Curve((1, 2), (100, 200), whole=False).cap(256) == 1
    assert Curve(reason="no rows").cap(256) == 256


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=9))
def test_no_size_is_more_than_2_percent_better_than_the_cap(ns):
    curve = Curve(tuple(1 << i for i in range(len(ns))), tuple(ns))
    rates = {rows: rows / ns for rows, ns in zip(curve.rows, curve.ns, strict=True)}
    assert rates[curve.cap(1 << 20)] >= NEAR_PEAK * max(rates.values())


class Model:
    """A run that takes what it is said to; keeps what was run."""

    def __init__(self, ns) -> None:
        self.ns = ns
        self.ran: list[int] = []

    def __call__(self, rows: int) -> int:
        self.ran.append(rows)
        return self.ns(rows)


def test_every_size_is_measured_in_turn():
    model = Model(lambda rows: 1000 + 10 * rows)
    curve = measure(model, [1, 2, 4], MS)
    assert curve == Curve((1, 2, 4), (1010, 1020, 1040))
    assert model.ran[:8] == [1, 1, 1, 1, 2, 2, 4, 4]
    assert model.ran[8:14] == [1, 2, 4, 1, 2, 4]


def test_one_slow_run_tells_nothing():
    stalls = iter([0, 0, 50_000])
    curve = measure(Model(lambda rows: 100 * rows + next(stalls, 0)), [1, 2], MS)
    assert curve.ns == (100, 200)


@given(row_ns=st.integers(1, 10 * MS), budget=st.integers(1, 50 * MS))
def test_the_budget_is_kept_but_for_the_first_size(row_ns, budget):
    model = Model(lambda rows: rows * row_ns)
    curve = measure(model, sizes_to(256), budget)
    assert curve.rows[:1] == (1,)
    assert curve.whole == (len(curve.rows) == 9)
    assert row_ns * sum(model.ran) <= max(budget, 4 * row_ns)
