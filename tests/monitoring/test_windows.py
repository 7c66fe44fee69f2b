"""Windows: they turn when `now` says so, lose nothing and add up exactly."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.monitoring import DriftCounter, Profile

FLAG = Profile.of(np.array([[0], [1]], np.float32), ["flag"])  # bins: below, 0, 1, above, missing


def rows(*values):
    return np.array([[value] for value in values], dtype=np.float32)


def counter():
    return DriftCounter(FLAG, window_s=10, now=100)


def test_before_a_window_is_complete_the_current_one_is_given_and_says_so():
    watched = counter()
    watched.add(rows(0, 1, 1), now=103)
    window = watched.last(now=109.9)
    assert (window.start, window.end, window.rows, window.complete) == (100, 110, 3, False)
    assert window.counts.tolist() == [0, 1, 2, 0, 0]


def test_a_window_is_complete_at_its_end():
    watched = counter()
    watched.add(rows(0), now=103)
    watched.add(rows(1, 1), now=110)
    window = watched.last(now=110)
    assert (window.start, window.end, window.rows, window.complete) == (100, 110, 1, True)
    assert watched.current(now=110).counts.tolist() == [0, 0, 2, 0, 0]


def test_periods_nobody_served_in_are_passed_over_and_later_windows_stay_on_the_grid():
    watched = counter()
    watched.add(rows(0), now=103)
    assert watched.last(now=178).end == 110
    watched.add(rows(1), now=178)
    assert watched.last(now=180).start == 170


def test_a_clock_set_back_counts_into_the_current_window():
    watched = counter()
    watched.add(rows(0), now=115)
    watched.add(rows(1), now=90)
    window = watched.last(now=95)
    assert (window.start, window.rows) == (110, 2)


def test_a_counter_that_saw_nothing_gives_an_empty_current_window():
    window = counter().last(now=500)
    assert (window.start, window.rows, window.complete) == (500, 0, False)
    assert not window.counts.any()


def test_a_window_given_out_is_not_touched_by_what_is_counted_later():
    watched = counter()
    window = watched.last(now=100)
    watched.add(rows(1), now=101)
    assert window.rows == 0
    with pytest.raises(ValueError, match="read-only"):
        window.counts[0] = 1


@pytest.mark.parametrize("matrix", [np.zeros((1, 2), np.float32), np.zeros((1, 1)), np.zeros(1, np.float32)])
def test_a_matrix_of_another_kind_is_refused_and_nothing_is_counted(matrix):
    watched = counter()
    with pytest.raises(ValueError):
        watched.add(matrix, now=100)
    assert watched.current(now=100).rows == 0


def test_an_empty_batch_counts_nothing():
    watched = counter()
    watched.add(np.empty((0, 1), np.float32), now=100)
    assert watched.current(now=100).rows == 0


BATCH = st.tuples(st.floats(0, 500), st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, np.nan]), max_size=5))


@given(st.lists(BATCH, max_size=12), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_windows_of_two_workers_add_up_to_what_one_would_have_counted(batches, cut):
    """Each batch at its own time; after every batch the three counters' windows are compared."""
    alone, first, second = counter(), counter(), counter()
    for i, (now, values) in enumerate(sorted(batches, key=lambda batch: batch[0])):
        matrix = rows(*values).reshape(-1, 1)
        alone.add(matrix, now)
        (first if i < cut else second).add(matrix, now)
        both = first.current(now) + second.current(now)
        expected = alone.current(now)
        assert both.counts.tolist() == expected.counts.tolist()
        assert (both.start, both.end, both.rows) == (expected.start, expected.end, expected.rows)


def test_two_periods_add_up_to_one_from_the_first_start_to_the_last_end():
    watched = counter()
    watched.add(rows(0), now=100)
    early = watched.last(now=110)
    watched.add(rows(1), now=111)
    total = early + watched.current(now=111)
    assert (total.start, total.end, total.rows, total.complete) == (100, 120, 2, False)
    assert total.counts.tolist() == [0, 1, 1, 0, 0]


def test_windows_over_different_bins_are_not_added():
    other = DriftCounter(Profile.of(np.array([[5]], np.float32), ["x"]), window_s=10, now=100)
    with pytest.raises(ValueError, match="cannot be added"):
        counter().current(now=100) + other.current(now=100)


@pytest.mark.parametrize("window_s", [0, -1, float("nan")])
def test_a_window_without_length_is_refused(window_s):
    with pytest.raises(ValueError, match="more than 0"):
        DriftCounter(FLAG, window_s=window_s, now=0)


def test_many_threads_lose_no_row():
    """Batches above and below the size at which the kernel leaves the GIL."""
    watched = counter()
    batches = [np.tile(rows(0, 1), (size, 1)) for size in (1, 3000)]
    barrier = threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(200):
            for batch in batches:
                watched.add(batch, now=100)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    window = watched.current(now=100)
    assert window.rows == 4 * 200 * 6002
    assert window.counts.tolist() == [0, window.rows // 2, window.rows // 2, 0, 0]


def test_a_very_large_batch_counts_as_its_parts_do():
    values = np.random.default_rng(3).integers(0, 3, (70_000, 1)).astype(np.float32)
    at_once, in_parts = counter(), counter()
    at_once.add(values, now=101)
    for part in np.array_split(values, 10):
        in_parts.add(np.ascontiguousarray(part), now=101)
    assert at_once.current(now=101).counts.tolist() == in_parts.current(now=101).counts.tolist()
    assert at_once.current(now=101).rows == 70_000
