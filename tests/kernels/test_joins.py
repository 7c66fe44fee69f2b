"""Joins: the kernel equals its twin; each value is the caller's, else the row's, else the default, as the view says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels import joins as kernel
from penstock.kernels.reference import joins as reference

TWINS = pytest.mark.parametrize("joins", [kernel, reference], ids=["kernel", "reference"])
quickly = settings(max_examples=60, deadline=None)
OK, ABSENT, CORRUPT, SCHEMA, STALE, LOST, CACHED, COMPUTED = range(8)
FILL, TAKE = 1, 2
USUAL = np.array([TAKE | FILL, FILL, FILL, FILL, TAKE | FILL, 0, TAKE | FILL, TAKE | FILL], np.uint8)
NOW = 1_800_000_000_000


def test_the_twins_have_the_same_names():
    names = [name for name in dir(reference) if name.isupper() and name.startswith(("ROW_", "SOURCE_", "N_"))]
    shared = [name for name in names if hasattr(kernel, name)]
    assert len(shared) == len(names) - 4  # the first four statuses are those of kernels.rows
    assert all(getattr(kernel, name) == getattr(reference, name) for name in shared)
    assert (
        (kernel.FILL_DEFAULTS, kernel.TAKE_VALUES) == (reference.FILL_DEFAULTS, reference.TAKE_VALUES) == (FILL, TAKE)
    )


# values


def scattered(joins, arguments, out, source):
    out, source = out.copy(), source.copy()
    counts = np.full((len(arguments[3]), joins.N_SOURCES), 10, np.int64)
    return out, source, counts, joins.scatter(*arguments, out, source, counts)


@st.composite
def batches(draw):
    u, v, n, more = (draw(st.integers(low, 5)) for low in (0, 1, 0, 0))
    k = v + more
    number = st.floats(width=32)

    def array(strategy, dtype, *shape):
        size = int(np.prod(shape))
        return np.array(draw(st.lists(strategy, min_size=size, max_size=size)), dtype).reshape(shape)

    values, defaults = array(number, np.float32, u, v), array(number, np.float32, v)
    status, row_of = array(st.integers(0, 7), np.uint8, u), array(st.integers(-2, u - 1), np.int32, n)
    columns = np.array(draw(st.permutations(range(k)))[:v], np.int32)
    treatments = array(st.integers(0, 3), np.uint8, 8)
    out, source = array(number, np.float32, n, k), array(st.integers(0, 1), np.uint8, n, k)
    return (values, status, row_of, columns, defaults, treatments), out, source


@quickly
@given(batches())
def test_scatter_equals_its_twin_and_counts_every_value_once(batch):
    ours, theirs = (scattered(joins, *batch) for joins in (kernel, reference))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (ours[2].sum(axis=1) == 80 + len(batch[1])).all()


@TWINS
def test_a_value_is_the_callers_else_the_rows_else_the_default_else_missing(joins):
    nan = np.nan
    values = np.array([[1, nan, nan], [9, 9, 9]], np.float32)
    status = np.array([OK, CORRUPT], np.uint8)
    row_of = np.array([0, 1, -1, 0], np.int32)
    columns, defaults = np.array([2, 0, 1], np.int32), np.array([nan, 5, nan], np.float32)
    out, source = np.full((4, 4), 100, np.float32), np.zeros((4, 4), np.uint8)
    source[3, :] = joins.SOURCE_REQUEST
    counts = np.zeros((3, joins.N_SOURCES), np.int64)
    assert joins.scatter(values, status, row_of, columns, defaults, USUAL, out, source, counts) == 5
    missing = [5, nan, nan, 100]
    np.testing.assert_array_equal(out, [[5, nan, 1, 100], missing, missing, [100] * 4])
    store, default, none = joins.SOURCE_STORE, joins.SOURCE_DEFAULT, joins.SOURCE_MISSING
    assert source.tolist() == [[default, none, store, 0], *[[default, none, none, 0]] * 2, [1] * 4]
    assert counts[:, joins.SOURCE_REQUEST].tolist() == [1, 1, 1]
    assert counts[:, store].tolist() == [1, 0, 0]
    assert counts[:, default].tolist() == [0, 3, 0]
    assert counts[:, none].tolist() == [2, 0, 3]


@TWINS
def test_a_row_is_treated_by_its_status_and_its_source_told(joins):
    """Taken values say where from; a row that is not taken gives defaults, or nothing."""
    status = np.arange(8, dtype=np.uint8)
    treatments = USUAL.copy()
    out, source = np.zeros((8, 1), np.float32), np.zeros((8, 1), np.uint8)
    counts = np.zeros((1, joins.N_SOURCES), np.int64)
    rows = np.arange(8, dtype=np.int32)
    arguments = (np.full((8, 1), 3, np.float32), status, rows, np.zeros(1, np.int32), np.ones(1, np.float32))
    assert joins.scatter(*arguments, treatments, out, source, counts) == 1
    told = {OK: 2, ABSENT: 4, CORRUPT: 4, SCHEMA: 4, STALE: 6, LOST: 5, CACHED: 3, COMPUTED: 7}
    assert source[:, 0].tolist() == [told[one] for one in range(8)]
    np.testing.assert_array_equal(out[:, 0], [3, 1, 1, 1, 3, np.nan, 3, 3])
    treatments[STALE] = 0
    assert joins.scatter(*arguments, treatments, out, source, counts) == 2
    assert np.isnan(out[STALE, 0])
    assert source[STALE, 0] == joins.SOURCE_MISSING


@TWINS
def test_scatter_refuses_indices_and_shapes_that_do_not_fit(joins):
    good = {
        "values": np.zeros((2, 3), np.float32),
        "status": np.zeros(2, np.uint8),
        "row_of": np.zeros(4, np.int32),
        "columns": np.arange(3, dtype=np.int32),
        "defaults": np.zeros(3, np.float32),
        "treatments": USUAL,
        "out": np.zeros((4, 5), np.float32),
        "source": np.zeros((4, 5), np.uint8),
        "counts": np.zeros((3, 8), np.int64),
    }
    assert joins.scatter(*good.values()) == 0
    assert good["counts"][:, joins.SOURCE_STORE].tolist() == [4, 4, 4]
    for name, bad in [
        ("values", np.zeros((2, 2), np.float32)),
        ("status", np.zeros(1, np.uint8)),
        ("status", np.full(2, 8, np.uint8)),
        ("row_of", np.full(4, 2, np.int32)),
        ("row_of", np.zeros(3, np.int32)),
        ("columns", np.array([0, 1, 5], np.int32)),
        ("columns", np.array([0, 1, -1], np.int32)),
        ("defaults", np.zeros(4, np.float32)),
        ("treatments", np.zeros(7, np.uint8)),
        ("source", np.zeros((4, 4), np.uint8)),
        ("counts", np.zeros((3, 7), np.int64)),
    ]:
        with pytest.raises(ValueError):
            joins.scatter(*(good | {name: bad}).values())


# ages


def observed(joins, status, times, max_age_ms, bounds):
    status, statuses = status.copy(), np.zeros(joins.N_STATUSES, np.int64)
    bounds = np.array(bounds, np.int64)
    ages = np.zeros(len(bounds) + 2, np.int64)
    joins.observe(status, times, NOW, max_age_ms, statuses, bounds, ages)
    return status.tolist(), statuses.tolist(), ages.tolist()


@quickly
@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.one_of(st.integers(NOW - 10, NOW + 3), st.integers(-(2**63), 2**63 - 1))),
        max_size=8,
    ),
    st.integers(-1, 8),
    st.lists(st.integers(0, 12), unique=True, max_size=4).map(sorted),
)
def test_observe_equals_its_twin(rows, max_age_ms, bounds):
    status = np.array([one for one, _ in rows], np.uint8)
    times = np.array([time for _, time in rows], np.int64)
    if (times < 0).sum() > 1:  # sums of ages beyond 2^63 are not promised
        times = np.maximum(times, 1)
    assert observed(kernel, status, times, max_age_ms, bounds) == observed(reference, status, times, max_age_ms, bounds)


@TWINS
def test_rows_older_than_the_limit_are_stale_and_counted_so(joins):
    status = np.array([OK, OK, OK, ABSENT, CACHED, OK, LOST], np.uint8)
    times = np.array([NOW, NOW - 1000, NOW - 1001, 0, NOW - 5000, NOW + 99, 0], np.int64)
    marked, statuses, ages = observed(joins, status, times, 1000, [0, 1000, 2000])
    assert marked == [OK, OK, STALE, ABSENT, STALE, OK, LOST]
    assert statuses == [3, 1, 0, 0, 2, 1, 0, 0]
    assert ages == [2, 1, 1, 1, 0 + 1000 + 1001 + 5000]


@TWINS
def test_without_a_limit_nothing_is_stale_and_with_one_whatever_has_no_time(joins):
    status, times = np.array([OK, OK, CACHED, ABSENT], np.uint8), np.array([1, 0, 0, 0], np.int64)
    assert observed(joins, status, times, -1, [])[0] == [OK, OK, CACHED, ABSENT]
    marked, statuses, ages = observed(joins, status, times, 5, [])
    assert marked == [STALE, STALE, STALE, ABSENT]
    assert statuses == [0, 1, 0, 0, 3, 0, 0, 0]
    assert ages == [1, NOW - 1]  # what has no time has no age


@TWINS
def test_observe_refuses_what_does_not_fit(joins):
    good = [np.zeros(2, np.uint8), np.zeros(2, np.int64), NOW, 5, np.zeros(8, np.int64), np.zeros(3, np.int64)]
    joins.observe(*good, np.zeros(5, np.int64))
    for place, bad in [(0, np.full(2, 8, np.uint8)), (1, np.zeros(1, np.int64)), (4, np.zeros(7, np.int64))]:
        with pytest.raises(ValueError):
            joins.observe(*good[:place], bad, *good[place + 1 :], np.zeros(5, np.int64))
    with pytest.raises(ValueError):
        joins.observe(*good, np.zeros(4, np.int64))
