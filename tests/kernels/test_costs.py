"""The cost model: kernel and twin learn the same line, numpy and scipy agree, and it stays sane whatever runs take."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls

from penstock.kernels import costs
from penstock.kernels.reference import costs as reference

TWINS = pytest.mark.parametrize("made", [costs.Cost, reference.Cost], ids=["kernel", "reference"])
RUNS = st.lists(st.tuples(st.integers(1, 4096), st.integers(0, 10**9)), max_size=30)


@given(curve=RUNS, runs=RUNS, asked=st.integers(1, 65536))
def test_kernel_and_twin_learn_the_same(curve, runs, asked):
    kernel, twin = costs.Cost(), reference.Cost()
    for rows, ns in curve:
        kernel.seed(rows, ns)
        twin.seed(rows, ns)
    for rows, ns in runs:
        kernel.learn(rows, ns)
        twin.learn(rows, ns)
        assert kernel.predict(rows) == pytest.approx(twin.predict(rows), rel=1e-4, abs=50)
    assert (kernel.runs, kernel.predict(asked) > 0) == (twin.runs, twin.predict(asked) > 0)


@TWINS
@given(runs=st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 10**9)), min_size=1, max_size=40))
def test_a_curve_is_fitted_as_scipy_fits_it(made, runs):
    cost = made()
    for rows, ns in runs:
        cost.seed(rows, ns)
    n, t = np.array(runs, float).T
    root = 1 / (n + 1)
    ridge = [[np.sqrt(1e-3 * (root**2).sum()), 0]]
    matrix = np.concatenate([np.stack([root, n * root], axis=1), ridge])
    (a, b), _ = nnls(matrix, np.append(t * root, 0))
    for rows in (1, 7, 64, 1000):
        assert cost.predict(rows) == pytest.approx(max(a + b * rows, 1), rel=1e-4, abs=50)


@TWINS
def test_nothing_is_known_before_anything_was_seen(made):
    cost = made()
    cost.learn(0, 100)
    cost.seed(0, 100)
    cost.learn(5, -1)
    assert (cost.predict(1), cost.predict(10**9), cost.runs, cost.error) == (0, 0, 0, 0.0)


@TWINS
@given(runs=st.lists(st.tuples(st.integers(1, 65536), st.integers(0, 10**12)), min_size=1, max_size=20))
def test_predictions_are_positive_and_grow_with_rows(made, runs):
    cost = made()
    for rows, ns in runs:
        cost.learn(rows, ns)
        predicted = [cost.predict(n) for n in (1, 2, 10, 1000, 1 << 40)]
        assert predicted[0] >= 1
        assert predicted == sorted(predicted)
        assert cost.fixed_ns >= 0
        assert cost.row_ns >= 0


@TWINS
def test_a_line_is_found_under_noise(made):
    cost, chance = made(), random.Random(1)
    for _ in range(300):
        rows = chance.choice([1, 2, 8, 64, 200])
        cost.learn(rows, int((10_000 + 500 * rows) * chance.uniform(0.95, 1.05)))
    assert cost.fixed_ns == pytest.approx(10_000, rel=0.1)
    assert cost.row_ns == pytest.approx(500, rel=0.1)
    assert cost.error < 0.06


@TWINS
def test_a_lone_size_tells_itself_and_as_much_a_row_for_others(made):
    cost = made()
    for _ in range(100):
        cost.learn(8, 8_000)
    assert cost.predict(8) == pytest.approx(8_000, rel=0.01)
    assert cost.predict(16) == pytest.approx(16_000, rel=0.15)


@TWINS
def test_the_curve_keeps_the_slope_where_callers_send_one_size_only(made):
    cost = made()
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        cost.seed(rows, 10_000 + 500 * rows)
    for _ in range(1000):
        cost.learn(16, 36_000)  # twice what the curve says
    assert cost.predict(16) == pytest.approx(36_000, rel=0.05)
    assert cost.predict(256) > 200_000
    assert cost.predict(1) > 9_000


@TWINS
def test_one_stall_moves_a_prediction_by_less_than_a_tenth_and_a_lasting_change_is_learnt(made):
    cost = made()
    for _ in range(200):
        cost.learn(4, 1_000)
    cost.learn(4, 50_000_000)
    assert cost.predict(4) < 1_100
    for _ in range(150):
        cost.learn(4, 10_000)
    assert cost.predict(4) == pytest.approx(10_000, rel=0.1)


@TWINS
def test_a_cold_start_is_forgotten_within_a_few_runs(made):
    cost = made()
    cost.learn(1, 80_000_000)
    for _ in range(12):
        cost.learn(1, 20_000)
    assert cost.predict(1) < 40_000


@TWINS
def test_many_slow_spells_do_not_wear_the_curve_away(made):
    """Each recovery forgets most of the curve; some of it must stay, or one size alone tells no fixed cost."""
    cost = made()
    for rows in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        cost.seed(rows, 100_000 + 100 * rows)
    for _ in range(200):
        for _ in range(8):
            cost.learn(4, 10**8)
        for _ in range(8):
            cost.learn(4, 100_400)
    for _ in range(300):
        cost.learn(4, 100_400)
    assert cost.predict(4) == pytest.approx(100_400, rel=0.05)
    assert cost.predict(256) < 1_000_000  # 125,600; without the curve it would be 64 times that of 4 rows


@TWINS
def test_the_error_is_the_mean_of_relative_errors(made):
    cost = made()
    for _ in range(100):
        cost.learn(1, 1_000)
    assert cost.error == pytest.approx(0, abs=0.02)
    for _ in range(400):
        cost.learn(1, 500)
        cost.learn(1, 1_500)
    assert cost.error == pytest.approx((500 / 1_500 + 500 / 500) / 2, rel=0.2)
