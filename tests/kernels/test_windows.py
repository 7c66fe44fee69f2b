"""Windows: the kernel equals its twin, whatever comes when."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.kernels import windows as kernel
from penstock.kernels.reference import windows as reference

TWINS = pytest.mark.parametrize("windows", [kernel, reference], ids=["kernel", "reference"])
EDGES, OFFSETS = np.array([0, 1, 2, 0.5], np.float32), np.array([0, 3, 3, 4], np.int32)
VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 3.0, np.inf, -np.inf, np.nan])
STEP = st.tuples(st.floats(-100, 1000), st.lists(st.tuples(VALUES, VALUES, VALUES), max_size=4), st.booleans())


@given(window_s=st.floats(0.01, 300), steps=st.lists(STEP, max_size=12))
@settings(max_examples=200, deadline=None)
def test_kernel_and_twin_count_the_same_in_the_same_windows(window_s, steps):
    ours, twin = (m.Windows(EDGES, OFFSETS, window_s, 5.0) for m in (kernel, reference))
    assert (ours.columns, ours.window_s) == (twin.columns, twin.window_s)
    for now, rows, last in steps:
        batch = np.array(rows, np.float32).reshape(-1, 3)
        ours.add(batch, now)
        twin.add(batch, now)
        (start, *got), (other, *wanted) = (w.last(now) if last else w.current(now) for w in (ours, twin))
        assert start == other
        assert [got[0], got[1].tolist(), got[2]] == [wanted[0], wanted[1].tolist(), wanted[2]]


@TWINS
@pytest.mark.parametrize("window_s", [0, -1, float("nan")])
def test_a_window_without_length_is_refused(windows, window_s):
    with pytest.raises(ValueError, match="more than 0"):
        windows.Windows(EDGES, OFFSETS, window_s, 0)


@TWINS
@pytest.mark.parametrize("offsets", [[1, 4], [0, 3], [0, 3, 2, 4]])
def test_offsets_that_do_not_fit_the_edges_are_refused(windows, offsets):
    with pytest.raises(ValueError, match="offsets"):
        windows.Windows(EDGES, np.array(offsets, np.int32), 10, 0)


@TWINS
@pytest.mark.parametrize("x", [np.zeros((1, 2), np.float32), np.zeros((1, 3))])
def test_a_batch_of_another_kind_is_refused_and_nothing_is_counted(windows, x):
    watched = windows.Windows(EDGES, OFFSETS, 10, 0)
    with pytest.raises(ValueError):
        watched.add(x, 0)
    assert watched.current(0)[1] == 0
