"""The drift kernel against its twin in numpy and exact whole numbers, and against scipy."""

from __future__ import annotations

import threading
import time
import warnings
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import special, stats

from penstock.kernels import drift
from penstock.kernels.reference import drift as reference

TWINS = pytest.mark.parametrize("twin", [drift, reference], ids=["kernel", "reference"])
ROUNDING = 1e-12


@pytest.fixture
def rng():
    return np.random.default_rng(20_240_501)


# --- bin_counts -------------------------------------------------------------------------------------------------------


def offsets_of(*sizes):
    return np.cumsum([0, *sizes], dtype=np.int32)


def count(twin, x, edges, offsets):
    counts = np.zeros(len(edges) + 2 * (len(offsets) - 1), dtype=np.int64)
    twin.bin_counts(np.asarray(x, np.float32), np.asarray(edges, np.float32), offsets, counts)
    return counts.tolist()


@TWINS
def test_a_value_on_an_edge_falls_into_the_bin_on_its_left(twin):
    assert count(twin, [[1.0], [1.5], [2.0], [2.5], [0.5]], [1, 2], offsets_of(2)) == [2, 2, 1, 0]


@TWINS
def test_missing_values_have_a_counter_of_their_own_and_infinities_the_outer_bins(twin):
    assert count(twin, [[np.nan], [np.inf], [-np.inf], [np.nan]], [0], offsets_of(1)) == [1, 1, 2]


@TWINS
def test_a_column_without_edges_has_one_bin_and_the_missing_values(twin):
    assert count(twin, [[7.0, 1.0], [np.nan, np.nan]], [0], offsets_of(0, 1)) == [1, 1, 0, 1, 1]


@TWINS
def test_negative_zero_lies_on_an_edge_at_zero(twin):
    assert count(twin, [[-0.0], [0.0]], [0], offsets_of(1)) == [2, 0, 0]


@TWINS
def test_counts_are_added_to_what_was_counted_before(twin):
    counts = np.array([10, 20, 30], dtype=np.int64)
    twin.bin_counts(np.array([[1], [5]], np.float32), np.array([2], np.float32), offsets_of(1), counts)
    assert counts.tolist() == [11, 21, 30]


@st.composite
def batches(draw):
    """Batches whose values often lie on the edges, over columns with none to many edges."""
    numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
    columns = [sorted(set(draw(st.lists(numbers, max_size=40)))) for _ in range(draw(st.integers(0, 5)))]
    edges = np.array([e for column in columns for e in column], dtype=np.float32)
    special_values = st.sampled_from([*edges.tolist(), np.nan, np.inf, -np.inf, 0.0, -0.0])
    shape = (draw(st.integers(0, 12)), len(columns))
    x = draw(arrays.arrays(np.float32, shape, elements=st.floats(width=32) | special_values))
    return x, edges, offsets_of(*map(len, columns))


@given(batches())
@settings(max_examples=150, deadline=None)
def test_the_kernel_counts_as_its_twin_does(batch):
    assert count(drift, *batch) == count(reference, *batch)


def test_a_batch_large_enough_to_leave_the_gil_counts_the_same(rng):
    x = rng.standard_normal((1000, 30)).astype(np.float32)
    edges = np.sort(rng.standard_normal((30, 19)).astype(np.float32), axis=1).ravel()
    batch = (x, edges, offsets_of(*[19] * 30))
    assert count(drift, *batch) == count(reference, *batch)


@pytest.mark.parametrize(
    ("offsets", "counters", "message"),
    [
        ([0, 2], 6, "need 3 offsets"),
        ([0, 1, 3], 7, "from 0 to 2"),
        ([1, 1, 2], 6, "from 0 to 2"),
        ([0, 3, 2], 6, "must not fall"),
        ([0, 1, 2], 5, "need 6 counters"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_and_nothing_is_counted(offsets, counters, message):
    counts = np.zeros(counters, dtype=np.int64)
    with pytest.raises(ValueError, match=message):
        drift.bin_counts(
            np.ones((1, 2), np.float32), np.zeros(2, np.float32), np.array(offsets, dtype=np.int32), counts
        )
    assert not counts.any()


def test_other_dtypes_and_strides_are_refused():
    edges, offsets, counts = np.zeros(2, np.float32), offsets_of(1, 1), np.zeros(6, np.int64)
    with pytest.raises(ValueError, match="dtype"):
        drift.bin_counts(np.ones((1, 2)), edges, offsets, counts)
    with pytest.raises(ValueError, match="contiguous"):
        drift.bin_counts(np.ones((2, 3), np.float32).T[:, :2], edges, offsets, counts)


# --- ks_2samp ---------------------------------------------------------------------------------------------------------


def assert_equals_scipy(a, b):
    """Equal to 1e-12, unless scipy's own rounding made it give up its exact p-value: then it must be 1."""
    distance, p = drift.ks_2samp(a, b)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        expected = stats.ks_2samp(a, b)
    if warned:
        assert "Exact calculation unsuccessful" in str(warned[0].message)
    assert distance == pytest.approx(expected.statistic, abs=ROUNDING)
    assert p == pytest.approx(1 if warned else expected.pvalue, abs=ROUNDING, rel=ROUNDING)


SAMPLES = arrays.arrays(
    np.float64,
    st.integers(1, 40),
    elements=st.integers(-6, 6).map(float) | st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0]),
)


@given(SAMPLES, SAMPLES)
@settings(max_examples=200, deadline=None)
def test_ks_equals_scipy_on_small_samples_with_ties_zeros_and_infinities(a, b):
    assert_equals_scipy(a, b)


@given(SAMPLES, SAMPLES)
@settings(max_examples=60, deadline=None)
def test_the_exact_p_value_equals_a_count_of_paths_in_whole_numbers(a, b):
    assert drift.ks_2samp(a, b) == pytest.approx(reference.ks_2samp(a, b), abs=1e-14, rel=ROUNDING)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (2, 1), (1, 500), (3, 1000), (97, 1009), (600, 400), (512, 512)])
@pytest.mark.parametrize("shift", [0, 0.2, 3])
def test_ks_equals_scipy_on_unequal_sizes(rng, n, m, shift):
    assert_equals_scipy(rng.standard_normal(n), rng.standard_normal(m) + shift)


SHAPES = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy tails": lambda rng, n: rng.lognormal(0, 4, n),
    "few values": lambda rng, n: rng.integers(0, 5, n).astype(float),
    "cents": lambda rng, n: np.round(rng.exponential(50, n), 2),
    "constant": lambda _, n: np.ones(n),
    "infinite ends": lambda rng, n: rng.choice([-np.inf, -1.0, 0.5, np.inf], n),
    "whole range": lambda rng, n: rng.choice([-1.0, 1.0], n) * rng.uniform(0, 1.7e308, n),
    "denormal": lambda rng, n: rng.integers(-1000, 1000, n) * 5e-324,
}


@pytest.mark.parametrize("n", [9_999, 10_000, 10_001])
@pytest.mark.parametrize("shape", SHAPES)
def test_ks_equals_scipy_on_samples_of_every_shape(rng, shape, n):
    assert_equals_scipy(SHAPES[shape](rng, n), SHAPES[shape](rng, 10_000 if n == 10_000 else n // 3))


def test_ks_equals_scipy_at_a_half_in_the_effective_size(rng):
    assert_equals_scipy(rng.standard_normal(10_001), rng.standard_normal(10_001))
    assert_equals_scipy(rng.standard_normal(10_003), rng.standard_normal(10_003))


@pytest.mark.parametrize("shift", [0, 0.01, 0.1, 1, 100])
def test_ks_equals_scipy_from_equal_to_disjoint_samples(rng, shift):
    assert_equals_scipy(rng.standard_normal(4000), rng.standard_normal(4000) + shift)


def test_equal_samples_have_no_distance_in_any_order(rng):
    a = rng.standard_normal(1000)
    assert drift.ks_2samp(a, rng.permutation(a)) == (0.0, 1.0)


@TWINS
@pytest.mark.parametrize(("a", "b"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([1.0, 2.0], [1.0, np.nan])])
def test_empty_samples_and_missing_values_are_refused(twin, a, b):
    with pytest.raises(ValueError):
        twin.ks_2samp(np.array(a, dtype=float), np.array(b, dtype=float))


def test_the_samples_are_left_as_they_were(rng):
    a, b = rng.standard_normal(100), rng.standard_normal(100)
    kept = a.copy(), b.copy()
    a.flags.writeable = b.flags.writeable = False
    drift.ks_2samp(a, b)
    assert np.array_equal(a, kept[0])
    assert np.array_equal(b, kept[1])


def test_ks_of_10_000_against_10_000_is_at_least_5_times_faster_than_scipy(rng):
    """Rounds in turn, medians of five calls each, and the best round: a busy machine slows both or is luck."""
    a, b = rng.standard_normal(10_000), rng.standard_normal(10_000)

    def seconds(function):
        def once():
            start = time.perf_counter()
            function(a, b)
            return time.perf_counter() - start

        return median(once() for _ in range(5))

    assert max(seconds(stats.ks_2samp) / seconds(drift.ks_2samp) for _ in range(5)) >= 5


def test_counting_and_distances_run_in_many_threads_at_once(rng):
    a, b = rng.standard_normal(5000), rng.standard_normal(4000)
    expected, found = drift.ks_2samp(a, b), []
    threads = [threading.Thread(target=lambda: found.append(drift.ks_2samp(a, b))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# --- counts and shares ------------------------------------------------------------------------------------------------


COUNTS = st.integers(1, 30).flatmap(
    lambda bins: st.tuples(
        *[
            arrays.arrays(np.int64, bins, elements=st.integers(0, 10**9)).filter(lambda counts: counts.sum() > 0)
            for _ in range(2)
        ]
    )
)


@given(COUNTS)
@settings(max_examples=100, deadline=None)
def test_ks_counts_is_the_largest_difference_of_the_cumulative_shares(counts):
    assert drift.ks_counts(*counts) == pytest.approx(reference.ks_counts(*counts), abs=ROUNDING)


def test_ks_counts_equals_the_distance_of_the_binned_values(rng):
    a, b = rng.integers(0, 9, 500), rng.integers(2, 12, 300)
    counts = [np.bincount(x, minlength=12) for x in (a, b)]
    assert drift.ks_counts(*counts) == pytest.approx(stats.ks_2samp(a, b).statistic, abs=ROUNDING)


@pytest.mark.parametrize(
    ("a", "b", "message"), [([1], [1, 2], "same bins"), ([0, 0], [1, 2], "no counts"), ([1, -1], [1, 2], "negative")]
)
def test_counts_that_make_no_distribution_are_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        drift.ks_counts(np.array(a, dtype=np.int64), np.array(b, dtype=np.int64))


SHARES = st.integers(0, 40).flatmap(
    lambda bins: st.tuples(*[arrays.arrays(np.float64, bins, elements=st.floats(0, 1)) for _ in range(2)])
)


@TWINS
@given(shares=SHARES)
@settings(max_examples=100, deadline=None)
def test_kl_divergence_is_the_sum_of_scipys_relative_entropy(twin, shares):
    with np.errstate(all="ignore"):
        expected = special.rel_entr(*shares).sum()
        assert twin.kl_divergence(*shares) == pytest.approx(expected, abs=ROUNDING, rel=ROUNDING)


@pytest.mark.parametrize(("p", "q"), [(0.5, 0.0), (-0.1, 0.5), (0.5, -0.1), (0.0, -1.0), (0.0, 0.0), (np.nan, 1.0)])
def test_kl_divergence_treats_zeros_negative_and_missing_shares_as_scipy_does(p, q):
    p, q = np.array([p, 0.5]), np.array([q, 0.5])
    assert drift.kl_divergence(p, q) == pytest.approx(special.rel_entr(p, q).sum(), nan_ok=True)


@TWINS
@given(shares=SHARES.map(lambda shares: tuple(s + 1e-6 for s in shares)))
@settings(max_examples=100, deadline=None)
def test_psi_is_the_formula_in_numpy(twin, shares):
    p, q = shares
    assert twin.psi(p, q) == pytest.approx(float(((q - p) * np.log(q / p)).sum()), abs=ROUNDING, rel=ROUNDING)


@TWINS
def test_psi_of_a_bin_empty_on_one_side_is_infinite_and_on_both_sides_nothing(twin):
    assert twin.psi(np.array([0.0, 1.0]), np.array([0.5, 0.5])) == np.inf
    assert twin.psi(np.array([0.0, 1.0]), np.array([0.0, 1.0])) == 0


def test_different_numbers_of_bins_are_refused():
    for distance in (drift.kl_divergence, drift.psi):
        with pytest.raises(ValueError, match="same bins"):
            distance(np.ones(2), np.ones(3))


@TWINS
@pytest.mark.parametrize("x", [0, 1e-9, 0.04, 0.3, 0.5, 0.9, 1.17, 1.18, 1.19, 1.36, 2, 5, 15, 40])
def test_the_limit_of_the_p_value_is_kolmogorovs_distribution(twin, x):
    found = twin.ks_limit(x / np.sqrt(400 * 600 / 1000), 400, 600)
    assert found == pytest.approx(special.kolmogorov(x), abs=ROUNDING, rel=ROUNDING if twin is drift else 1e-9)


@pytest.mark.parametrize("p_value", [drift.ks_asymptotic, drift.ks_limit])
def test_a_p_value_of_large_samples_needs_two_of_them(p_value):
    with pytest.raises(ValueError, match="empty"):
        p_value(0.5, 0, 10)
