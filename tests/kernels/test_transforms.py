"""Transforms: the kernel equals its twin, and both equal scikit-learn and numpy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import KBinsDiscretizer, OrdinalEncoder, StandardScaler

from penstock.kernels import transforms as kernel
from penstock.kernels.reference import transforms as reference

TWINS = pytest.mark.parametrize("transforms", [kernel, reference], ids=["kernel", "reference"])
quickly = settings(max_examples=80, deadline=None)
finite = st.floats(-1e6, 1e6, allow_subnormal=False)
ascending = st.lists(finite, min_size=0, max_size=8, unique=True).map(sorted)
operations = st.one_of(
    st.tuples(st.just("impute"), st.tuples(finite)),
    st.tuples(st.just("clip"), st.tuples(finite, finite).map(sorted)),
    st.tuples(st.just("standardize"), st.tuples(finite, st.floats(1e-3, 1e6))),
    st.tuples(st.just("bucketize"), ascending),
    st.tuples(st.just("ordinal"), st.tuples(st.integers(-3, 3), ascending).map(lambda t: [t[0], *t[1]])),
)


def run(program, x):
    out = np.full(x.shape, -7, np.float32)
    program.run(x, out)
    return out


@st.composite
def programs(draw):
    """A batch, with NaN and infinities, and operations over its columns in any order."""
    n, k = draw(st.sampled_from([0, 1, 3, 255, 256, 257, 513])), draw(st.integers(1, 4))
    some = np.array(draw(st.lists(st.floats(width=32), min_size=8, max_size=8)), np.float32)
    x = np.resize(some, (n, k)) if n else np.empty((0, k), np.float32)
    chosen = draw(st.lists(st.tuples(operations, st.integers(0, k - 1)), max_size=8))
    return x, [(name, column, list(p)) for (name, p), column in chosen]


@quickly
@given(programs())
def test_kernel_equals_twin_to_the_bit(case):
    x, chosen = case
    ours, theirs = (twin.Program(x.shape[1], chosen) for twin in (kernel, reference))
    np.testing.assert_array_equal(run(ours, x), run(theirs, x))
    exact, expected = np.empty(x.shape), np.empty(x.shape)
    ours.run_exact(x.astype(np.float64), exact)
    theirs.run_exact(x.astype(np.float64), expected)
    np.testing.assert_array_equal(exact, expected)


@quickly
@given(st.lists(st.floats(width=32), min_size=1, max_size=600))
def test_log1p_is_numpys_to_the_last_place(values):
    x = np.array(values, np.float32)[:, None]
    ours, theirs = (run(twin.Program(1, [("log1p", 0, [])]), x) for twin in (kernel, reference))
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    np.testing.assert_array_max_ulp(np.nan_to_num(ours), np.nan_to_num(theirs), maxulp=1)
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(ours, np.log1p(x.astype(np.float64)).astype(np.float32), rtol=2e-7)


@TWINS
def test_out_may_be_x(transforms):
    x = np.random.default_rng(0).normal(size=(700, 5)).astype(np.float32)
    program = transforms.Program(5, [("clip", 2, [-1, 1]), ("standardize", 2, [0.5, 2]), ("impute", 4, [0])])
    expected = run(program, x)
    program.run(x, x)
    np.testing.assert_array_equal(x, expected)


@TWINS
def test_columns_without_operations_are_copied_exactly(transforms):
    x = np.array([[np.nan, np.inf, -0.0, 1e-45, 3.4e38]], np.float32)
    assert run(transforms.Program(5, []), x).tobytes() == x.tobytes()


@TWINS
def test_operations_of_a_column_run_in_the_order_given(transforms):
    x = np.array([[3.0]], np.float32)
    clip, scale = ("clip", 0, [0, 1]), ("standardize", 0, [0, 0.5])
    assert run(transforms.Program(1, [clip, scale]), x) == 2
    assert run(transforms.Program(1, [scale, clip]), x) == 1


@TWINS
def test_a_value_is_rounded_once_at_the_end(transforms):
    """1e8 + 1 is no float32: rounding between the two steps would give 0."""
    x = np.array([[1.0]], np.float32)
    steps = [("standardize", 0, [-1e8, 1]), ("standardize", 0, [1e8, 1])]
    assert run(transforms.Program(1, steps), x) == 1


@TWINS
def test_missing_stays_missing_but_for_impute(transforms):
    steps = [("clip", [0, 1]), ("log1p", []), ("standardize", [1, 2]), ("bucketize", [1, 2]), ("ordinal", [-1, 1, 2])]
    x = np.full((1, 6), np.nan, np.float32)
    program = transforms.Program(6, [(name, j, p) for j, (name, p) in enumerate(steps)] + [("impute", 5, [4])])
    np.testing.assert_array_equal(run(program, x), [[np.nan] * 5 + [4]])


# against scikit-learn and numpy


def batch(n=500, k=3, missing=0.1, seed=1):
    rng = np.random.default_rng(seed)
    x = rng.lognormal(size=(n, k)).astype(np.float32)
    x[rng.random((n, k)) < missing] = np.nan
    return x


@TWINS
@pytest.mark.parametrize("strategy", ["mean", "median"])
def test_impute_is_simple_imputers(transforms, strategy):
    x = batch().astype(np.float64)
    imputer = SimpleImputer(strategy=strategy).fit(x)
    program = transforms.Program(3, [("impute", j, [fill]) for j, fill in enumerate(imputer.statistics_)])
    np.testing.assert_array_equal(run(program, x.astype(np.float32)), imputer.transform(x).astype(np.float32))


@TWINS
def test_standardize_is_standard_scalers(transforms):
    x = batch().astype(np.float64)
    scaler = StandardScaler().fit(x)
    steps = [("standardize", j, [scaler.mean_[j], scaler.scale_[j]]) for j in range(3)]
    np.testing.assert_array_equal(
        run(transforms.Program(3, steps), x.astype(np.float32)), scaler.transform(x).astype(np.float32)
    )


@TWINS
def test_bucketize_is_k_bins_discretizers_and_digitize(transforms):
    x = batch(missing=0).astype(np.float64)
    bins = KBinsDiscretizer(7, encode="ordinal", strategy="uniform").fit(x)
    inner = [edges[1:-1] for edges in bins.bin_edges_]
    program = transforms.Program(3, [("bucketize", j, edges) for j, edges in enumerate(inner)])
    np.testing.assert_array_equal(run(program, x.astype(np.float32)), bins.transform(x))
    on_edges = np.array([[-np.inf], [0], [1], [1.5], [2], [np.inf]], np.float32)
    program = transforms.Program(1, [("bucketize", 0, [0, 1, 2])])
    np.testing.assert_array_equal(run(program, on_edges)[:, 0], np.digitize(on_edges[:, 0], [0, 1, 2]))


@TWINS
def test_ordinal_is_ordinal_encoders(transforms):
    seen = np.array([[3.0], [1.5], [-2], [7]])
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1).fit(seen)
    x = np.array([[1.5], [7], [2], [1e9], [-2], [3], [-9]])
    program = transforms.Program(1, [("ordinal", 0, [-1, *encoder.categories_[0]])])
    np.testing.assert_array_equal(run(program, x.astype(np.float32)), encoder.transform(x))
    nothing_known = transforms.Program(1, [("ordinal", 0, [-1])])
    assert (run(nothing_known, x.astype(np.float32)) == -1).all()


# refusals


@TWINS
@pytest.mark.parametrize(
    "operation",
    [
        ("square", 0, []),
        ("impute", 2, [0]),
        ("impute", -1, [0]),
        ("impute", 0, []),
        ("clip", 0, [1]),
        ("clip", 0, [2, 1]),
        ("clip", 0, [np.nan, 1]),
        ("log1p", 0, [1]),
        ("standardize", 0, [0, 0]),
        ("standardize", 0, [0, np.nan]),
        ("bucketize", 0, [1, 1]),
        ("bucketize", 0, [2, 1]),
        ("bucketize", 0, [np.nan]),
        ("ordinal", 0, []),
        ("ordinal", 0, [-1, 2, 1]),
    ],
)
def test_operations_that_cannot_run_are_refused(transforms, operation):
    with pytest.raises(ValueError):
        transforms.Program(2, [operation])


@TWINS
def test_batches_that_do_not_fit_are_refused(transforms):
    program = transforms.Program(3, [])
    for x, out in [((2, 2), (2, 2)), ((2, 3), (1, 3)), ((2, 3), (2, 4))]:
        with pytest.raises(ValueError):
            program.run(np.zeros(x, np.float32), np.zeros(out, np.float32))
    with pytest.raises(ValueError):
        transforms.Program(0, [])


def test_only_contiguous_float32_is_taken():
    program = kernel.Program(2, [])
    x = np.zeros((4, 2), np.float32)
    for wrong in (x.astype(np.float64), np.zeros((2, 4), np.float32).T):
        with pytest.raises(ValueError):
            program.run(wrong, x)


def test_one_program_serves_many_threads():
    program = kernel.Program(8, [("standardize", j, [j, 2]) for j in range(8)] + [("log1p", 0, [])])
    batches = [np.full((300, 8), i, np.float32) for i in range(32)]
    expected = [run(program, x) for x in batches]
    with ThreadPoolExecutor(4) as pool:
        for got, want in zip(pool.map(lambda x: run(program, x), batches), expected, strict=True):
            np.testing.assert_array_equal(got, want)
