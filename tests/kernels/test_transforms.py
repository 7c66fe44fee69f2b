"""Transforms: the kernel equals its twin, and both equal scikit-learn and numpy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction import FeatureHasher
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
)
from sklearn.utils import murmurhash3_32

from penstock.kernels import transforms as kernel
from penstock.kernels.reference import transforms as reference

TWINS = pytest.mark.parametrize("transforms", [kernel, reference], ids=["kernel", "reference"])
quickly = settings(max_examples=80, deadline=None)
finite = st.floats(-1e6, 1e6, allow_subnormal=False)
ascending = st.lists(finite, min_size=0, max_size=8, unique=True).map(sorted)
changes = st.one_of(
    st.tuples(st.just("impute"), st.tuples(finite)),
    st.tuples(st.just("clip"), st.tuples(finite, finite).map(sorted)),
    st.tuples(st.just("standardize"), st.tuples(finite, st.floats(1e-3, 1e6))),
    st.tuples(st.just("bucketize"), ascending),
    st.tuples(st.just("ordinal"), st.tuples(st.integers(-3, 3), ascending).map(lambda t: [t[0], *t[1]])),
)

NOW = np.array([1.7e12])


def run(program, x, now=None):
    out = np.full((len(x), program.n_outputs), -7, np.float32)
    program.run(x, out, now)
    return out


@st.composite
def one_hots(draw):
    """Parameters of a group, some categories without a place and some that share one."""
    count, categories = draw(st.integers(1, 5)), draw(ascending)
    places = st.integers(0, count)
    return [count, draw(places), draw(places), *categories, *(draw(places) for _ in categories)]


@st.composite
def operation(draw, count):
    """One over any of `count` columns, and how many columns it makes."""
    column = st.integers(0, count - 1)
    pair = st.tuples(column, column)
    name = draw(st.sampled_from(["change", "product", "ratio", "weighted_sum", "since", "cyclical", "one_hot", "hash"]))
    if name == "change":
        name, p = draw(changes)
        return (name, draw(column), list(p)), 0
    if name == "since":
        units = st.lists(st.floats(1, 1e9), min_size=3, max_size=3)
        return ("time_since", draw(pair | st.tuples(column)), draw(units)), 0
    if name == "cyclical":
        return (name, draw(column), [draw(finite), draw(st.floats(1e-3, 1e6))]), 2
    if name == "one_hot":
        p = draw(one_hots())
        return (name, draw(column), p), p[0]
    if name == "hash":
        columns = draw(st.lists(column, min_size=1, max_size=3))
        seeds = draw(st.lists(st.integers(0, 2**32 - 1), min_size=len(columns), max_size=len(columns)))
        buckets = draw(st.integers(1, 6))
        return (name, tuple(columns), [buckets, draw(st.integers(0, 1)), *seeds]), buckets
    return (name, draw(pair), [draw(finite), draw(finite)] if name == "weighted_sum" else []), 1


@st.composite
def programs(draw):
    """A batch with NaN and infinities, operations over its columns in any order, and which columns come out."""
    n, k = draw(st.sampled_from([0, 1, 3, 127, 128, 129, 300])), draw(st.integers(1, 4))
    some = np.array(draw(st.lists(st.floats(width=32), min_size=8, max_size=8)), np.float32)
    x = np.resize(some, (n, k)) if n else np.empty((0, k), np.float32)
    chosen, count = [], k
    for _ in range(draw(st.integers(0, 8))):
        one, made = draw(operation(count))
        chosen.append(one)
        count += made
    every, any_of_them = st.none(), st.lists(st.integers(0, count - 1), min_size=1, max_size=2 * count)
    return x, chosen, draw(every | any_of_them)


@quickly
@given(programs(), st.booleans())
def test_kernel_equals_twin_to_the_bit(case, ticking):
    x, chosen, outputs = case
    now = NOW[0] + np.arange(len(x)) if ticking and len(x) else NOW
    ours, theirs = (twin.Program(x.shape[1], chosen, outputs) for twin in (kernel, reference))
    assert (ours.n_inputs, ours.n_outputs) == (theirs.n_inputs, theirs.n_outputs)
    np.testing.assert_array_equal(run(ours, x, now), run(theirs, x, now))
    exact, expected = np.empty((len(x), ours.n_outputs)), np.empty((len(x), ours.n_outputs))
    ours.run_exact(x.astype(np.float64), exact, now)
    theirs.run_exact(x.astype(np.float64), expected, now)
    np.testing.assert_array_equal(exact, expected)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(run(ours, x, now), exact.astype(np.float32))


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
def test_out_must_lie_apart_from_x(transforms):
    room = np.zeros((2, 10, 3), np.float32)
    program = transforms.Program(3, [("clip", 2, [-1, 1])])
    for x, out in [(room[0], room[0]), (room.reshape(20, 3)[:10], room.reshape(20, 3)[9:19])]:
        with pytest.raises(ValueError, match="memory of x"):
            program.run(x, out)
    program.run(room[0], room[1])
    program.run(room[1], room[0])


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


@TWINS
def test_new_columns_get_the_next_numbers_and_outputs_choose_among_all(transforms):
    x = np.array([[2.0, 3.0]], np.float32)
    steps = [("product", (0, 1), []), ("weighted_sum", (2, 0), [1, -1]), ("standardize", 0, [0, 0.5])]
    assert run(transforms.Program(2, steps), x).tolist() == [[4, 3, 6, 4]]
    assert run(transforms.Program(2, steps, [3, 3, 1]), x).tolist() == [[4, 4, 3]]


@TWINS
def test_a_change_is_seen_by_what_comes_after_it_and_not_by_what_was_made_before(transforms):
    x = np.array([[2.0]], np.float32)
    steps = [("product", (0, 0), []), ("standardize", 0, [0, 0.1]), ("product", (0, 0), [])]
    np.testing.assert_allclose(run(transforms.Program(1, steps), x), [[20, 4, 400]])


@TWINS
def test_a_ratio_with_nothing_below_is_missing(transforms):
    x = np.array([[1, 0], [0, 0], [-1, -0.0], [1, np.inf], [np.nan, 1], [1, 4]], np.float32)
    expected = [np.nan, np.nan, np.nan, 0, np.nan, 0.25]
    np.testing.assert_array_equal(run(transforms.Program(2, [("ratio", (0, 1), [])], [2]), x)[:, 0], expected)


@TWINS
def test_a_circle_closes_exactly(transforms):
    """Whole turns are exactly where they began, however many, and quarters are exact."""
    x = np.array([[0.0], [6], [12], [18], [24], [24e6], [-24], [1e30], [np.inf], [np.nan]], np.float32)
    got = run(transforms.Program(1, [("cyclical", 0, [0, 24])], [1, 2]), x)
    nan = [np.nan, np.nan]
    assert np.array_equal(got, [[0, 1], [1, 0], [0, -1], [-1, 0], [0, 1], [0, 1], [0, 1], [0, 1], nan, nan], True)


@TWINS
def test_time_since_is_by_the_clock_or_by_a_column(transforms):
    x = np.array([[10.0, 30.0], [np.nan, 7.0]], np.float32)  # seconds
    by_clock = transforms.Program(2, [("time_since", 0, [1000, 1, 60_000])], [0])
    assert by_clock.timed
    np.testing.assert_array_equal(run(by_clock, x, np.array([70_000.0])), [[1], [np.nan]])
    np.testing.assert_array_equal(run(by_clock, x[:1].repeat(2, 0), np.array([70e3, 130e3])), [[1], [2]])
    by_column = transforms.Program(2, [("time_since", (0, 1), [1000, 1000, 1000])], [0])
    assert not by_column.timed
    np.testing.assert_array_equal(run(by_column, x), [[20], [np.nan]])
    unread = transforms.Program(2, [("time_since", 0, [1, 1, 1])], [1])
    if transforms is kernel:  # what nobody asks for is not computed
        assert not unread.timed
    for now in (None, np.zeros(3)):
        with pytest.raises(ValueError, match="reads the clock"):
            run(by_clock, x, now)


@TWINS
def test_a_group_is_the_same_whether_written_at_once_or_column_by_column(transforms):
    x = np.array([[1.0], [2], [3], [np.nan], [-5]], np.float32)
    one_hot = ("one_hot", 0, [3, 3, 0, 1, 2, 3, 1, 2, 2])  # 2 and 3 share a place, and the missing have none
    at_once = run(transforms.Program(1, [one_hot], [1, 2, 3]), x)
    assert at_once.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]
    one_by_one = run(transforms.Program(1, [one_hot], [3, 2, 1]), x)
    assert one_by_one[:, ::-1].tolist() == at_once.tolist()
    both = run(transforms.Program(1, [one_hot, ("product", (1, 1), [])], [1, 2, 3, 4]), x)
    assert both.tolist() == [[*row, row[0]] for row in at_once.tolist()]


@pytest.mark.parametrize("k", [1, 70, 300])
def test_many_columns_that_are_needed_at_once_are_kept(k):
    """Registers shrink the block; every product needs two columns that others need again."""
    x = np.random.default_rng(k).normal(size=(150, k)).astype(np.float32)
    steps = [("product", (j, (j * 7 + 3) % k), []) for j in range(k)]
    ours, theirs = (run(twin.Program(k, steps), x) for twin in (kernel, reference))
    np.testing.assert_array_equal(ours, theirs)


def test_more_columns_at_once_than_can_be_kept_are_refused():
    steps = [("product", (j, 1999 - j), []) for j in range(1999, -1, -1)]
    with pytest.raises(ValueError, match=r"200\d columns are needed at once; at most 1024"):
        kernel.Program(2000, steps, range(2000, 4000))
    kernel.Program(5000, [("impute", j, [0]) for j in range(5000)])


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


@TWINS
def test_min_max_is_min_max_scalers(transforms):
    x = batch().astype(np.float64)
    scaler = MinMaxScaler((-1, 2)).fit(x)
    steps = [("min_max", j, [scaler.scale_[j], scaler.min_[j]]) for j in range(3)]
    np.testing.assert_array_equal(
        run(transforms.Program(3, steps), x.astype(np.float32)), scaler.transform(x).astype(np.float32)
    )


@TWINS
def test_one_hot_is_one_hot_encoders(transforms):
    seen = np.array([[3.0], [1.5], [-2], [7], [np.nan]])
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(seen)
    x = np.array([[1.5], [7], [2], [1e9], [-2], [3], [np.nan]])
    categories = [-2, 1.5, 3, 7]
    program = transforms.Program(1, [("one_hot", 0, [5, 0, 5, *categories, 1, 2, 3, 4])], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(run(program, x.astype(np.float32)), encoder.transform(x))


@TWINS
@pytest.mark.parametrize("signs", [True, False])
def test_hashing_is_feature_hashers(transforms, signs):
    x = batch(n=300, missing=0)
    x[0] = [0.0, -0.0, np.inf]
    hasher = FeatureHasher(16, input_type="string", alternate_sign=signs)
    expected = hasher.transform([[value.tobytes() for value in row + 0.0] for row in x.astype(np.float64)])
    program = transforms.Program(3, [("hash", (0, 1, 2), [16, int(signs), 0, 0, 0])], range(3, 19))
    np.testing.assert_array_equal(run(program, x), expected.toarray())
    assert not run(program, np.full((1, 3), np.nan, np.float32)).any()


@TWINS
def test_every_column_has_a_seed_of_its_own(transforms):
    x = np.arange(100, dtype=np.float32)[:, None]
    expected = np.zeros((100, 8))
    for row, value in enumerate(x[:, 0].astype(np.float64)):
        expected[row, abs(murmurhash3_32(value.tobytes(), 77)) % 8] = 1
    np.testing.assert_array_equal(run(transforms.Program(1, [("hash", (0,), [8, 0, 77])], range(1, 9)), x), expected)


@TWINS
@quickly
@given(st.binary(max_size=40), st.integers(0, 2**32 - 1))
def test_the_hash_is_scikit_learns(transforms, data, seed):
    assert transforms.murmur3_32(data, seed) == murmurhash3_32(data, seed, positive=True)
    assert transforms.murmur3_32(data) == murmurhash3_32(data, positive=True)


@TWINS
def test_products_are_polynomial_features(transforms):
    x = batch()
    pairs = [(0, 1), (0, 2), (1, 2)]
    program = transforms.Program(3, [("product", pair, []) for pair in pairs])
    features = PolynomialFeatures(2, interaction_only=True, include_bias=False)
    whole = x[~np.isnan(x).any(axis=1)]
    expected = features.fit_transform(whole.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(run(program, whole), expected)


@TWINS
def test_cyclical_is_numpys_sine_and_cosine(transforms):
    x = np.random.default_rng(2).uniform(-1e5, 1e5, (4000, 1))
    exact = np.empty((4000, 2))
    transforms.Program(1, [("cyclical", 0, [7, 86_400])], [1, 2]).run_exact(x, exact)
    angle = FunctionTransformer(lambda x: 2 * np.pi * (x - 7) / 86_400).transform(x)
    np.testing.assert_allclose(exact, np.hstack([np.sin(angle), np.cos(angle)]), rtol=0, atol=2e-15)
    assert np.abs(exact).max() <= 1


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
        ("min_max", 0, [np.nan, 0]),
        ("impute", (0, 1), [0]),
        ("impute", (), [0]),
        ("product", 0, []),
        ("product", (0, 2), []),
        ("ratio", (0, 1, 1), []),
        ("weighted_sum", (0, 1), [1]),
        ("weighted_sum", (0, 1), [1, np.inf]),
        ("time_since", (0, 1, 1), [1, 1, 1]),
        ("time_since", 0, [1, 0, 1]),
        ("cyclical", 0, [0, 0]),
        ("cyclical", 0, [np.nan, 1]),
        ("one_hot", 0, []),
        ("one_hot", 0, [0, 0, 0]),
        ("one_hot", 0, [2**16 + 1, 0, 0]),
        ("one_hot", 0, [2, 3, 0]),
        ("one_hot", 0, [2, 0, -1]),
        ("one_hot", 0, [2, 0, 0, 1]),
        ("one_hot", 0, [2, 0, 0, 1, 3]),
        ("one_hot", 0, [2, 0, 0, 1, 1.5]),
        ("one_hot", 0, [2, 0, 0, 2, 1, 1, 2]),
        ("one_hot", 0, [np.nan, 0, 0]),
        ("hash", (), [4, 1]),
        ("hash", (0,), [4, 1]),
        ("hash", (0,), [0, 1, 0]),
        ("hash", (0,), [2**16 + 1, 1, 0]),
        ("hash", (0,), [4, 2, 0]),
        ("hash", (0,), [4, 1, -1]),
        ("hash", (0,), [4, 1, 2**32]),
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
    for columns, outputs in [(0, None), (2, []), (2, [2]), (2, [-1])]:
        with pytest.raises(ValueError):
            transforms.Program(columns, [], outputs)


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
