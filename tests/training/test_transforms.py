"""Fitting: the numbers are scikit-learn's, each step sees the output of those before, and bad data is named."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
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

from penstock.features.transforms import Transforms
from penstock.training import FitError, fit
from penstock.training.recipes import ImputeRecipe

NAMES = ("a", "b", "c")


def samples(missing=0.1, n=1001):
    """Skewed columns of different sizes, as served: float32 values held in float64."""
    rng = np.random.default_rng(3)
    x = rng.lognormal(size=(n, 3)) * [1, 1e-4, 1e5]
    x[rng.random(x.shape) < missing] = np.nan
    return x.astype(np.float32).astype(np.float64)


def only(recipe, x, names=NAMES):
    [step] = fit([recipe], x, names).steps
    return step


def served(transforms, x):
    return transforms.run(dict(zip(NAMES, x.T, strict=True)))


@pytest.mark.parametrize("strategy", ["mean", "median"])
def test_imputed_values_are_simple_imputers(strategy):
    x = samples()
    step = only({"op": "impute", "strategy": strategy}, x)
    assert step.columns == NAMES
    np.testing.assert_allclose(step.fill, SimpleImputer(strategy=strategy).fit(x).statistics_, rtol=1e-12)


def test_a_constant_is_imputed_where_there_are_no_values_too():
    x = np.array([[1, np.nan, 2]])
    assert only({"op": "impute", "strategy": "constant", "value": 7}, x).fill == (7, 7, 7)


def test_mean_and_scale_are_standard_scalers():
    for x in (samples(), load_breast_cancer().data.astype(np.float32).astype(np.float64)):
        names = tuple(f"f{j}" for j in range(x.shape[1]))
        step, scaler = only({"op": "standardize"}, x, names), StandardScaler().fit(x)
        np.testing.assert_allclose(step.mean, scaler.mean_, rtol=1e-12)
        np.testing.assert_allclose(step.scale, scaler.scale_, rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 5.0, np.float32(0.1), 1e20])
def test_a_constant_column_is_scaled_by_one_as_standard_scaler_does(value):
    x = np.full((100, 3), value, np.float64)
    step, scaler = only({"op": "standardize"}, x), StandardScaler().fit(x.astype(np.float32).astype(np.float64))
    assert step.scale == (1, 1, 1) == tuple(scaler.scale_)


def test_clip_bounds_are_numpys_quantiles():
    x = samples()
    step = only({"op": "clip", "quantiles": [0.05, 0.9]}, x)
    np.testing.assert_array_equal([step.low, step.high], np.nanquantile(x, [0.05, 0.9], axis=0))


@pytest.mark.parametrize("strategy", ["quantile", "uniform"])
def test_bins_are_k_bins_discretizers(strategy):
    x = samples(missing=0)
    x[:, 1] = np.round(x[:, 0])  # many ties: bins are merged
    x[:, 2] = 4  # constant: one bin
    linear = "quantile_method" not in inspect.signature(KBinsDiscretizer).parameters
    options = {} if linear else {"quantile_method": "averaged_inverted_cdf"}
    bins = KBinsDiscretizer(8, encode="ordinal", strategy=strategy, **options)
    with pytest.warns(UserWarning, match=r"constant|too small"):
        bins.fit(x)
    step = only({"op": "bucketize", "bins": 8, "strategy": strategy}, x)
    for ours, theirs in zip(step.edges, bins.bin_edges_, strict=True):
        np.testing.assert_array_equal(ours, theirs[1:-1])
    np.testing.assert_array_equal(served(Transforms(steps=(step,)), x), bins.transform(x))


def test_categories_are_ordinal_encoders():
    x = np.random.default_rng(0).choice([3.0, -1, 0.5, 12], size=(50, 3))
    step = only({"op": "ordinal"}, x)
    for ours, theirs in zip(step.categories, OrdinalEncoder().fit(x).categories_, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert served(Transforms(steps=(step,)), np.array([[99.0, 3, -1]])).tolist() == [[-1, 2, 0]]


@pytest.mark.parametrize("clip", [True, False])
def test_min_and_max_are_min_max_scalers(clip):
    x = samples()
    x[:, 2] = 4  # constant
    scaler = MinMaxScaler((-1, 3), clip=clip).fit(x)
    step = only({"op": "min_max", "range": [-1, 3], "clip": clip}, x)
    np.testing.assert_array_equal(step.scale, scaler.scale_)
    np.testing.assert_array_equal(step.shift, scaler.min_)
    later = x * 1.5 - 1
    expected = scaler.transform(later.astype(np.float32).astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(served(Transforms(steps=(step,)), later), expected)


def categories(missing, n=400):
    """Few and many values, some of them rare, as float32."""
    rng = np.random.default_rng(5)
    x = np.column_stack([rng.integers(0, 4, n), rng.geometric(0.3, n) - 3.5, rng.choice([7.0, 8.0], n)])
    x[rng.random(x.shape) < missing] = np.nan
    return x


@pytest.mark.parametrize("missing", [0, 0.01, 0.2])
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"min_frequency": 12},
        {"min_frequency": 0.05},
        {"max_categories": 3},
        {"max_categories": 1},
        {"max_categories": 5, "min_frequency": 4},
    ],
)
@pytest.mark.parametrize(("unknown", "theirs"), [("ignore", "ignore"), ("infrequent", "infrequent_if_exist")])
def test_one_hot_is_one_hot_encoders(missing, limits, unknown, theirs):
    x = categories(missing)
    encoder = OneHotEncoder(handle_unknown=theirs, sparse_output=False, **limits).fit(x)
    transforms = fit([{"op": "one_hot", "unknown": unknown, **limits}], x, NAMES)
    assert transforms.output_columns(NAMES) == tuple(encoder.get_feature_names_out(NAMES))
    later = np.vstack([x, [[99, 99, 99], [0, -2.5, np.nan]]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # unknown categories are what is asked about
        expected = encoder.transform(later)
    np.testing.assert_array_equal(served(transforms, later), expected)


def test_missing_values_may_be_left_without_a_column():
    x = categories(0.2)
    [step] = fit([{"op": "one_hot", "missing": "ignore"}], x, NAMES).steps
    assert step.missing == ("ignore",) * 3


def test_columns_hash_with_seeds_of_their_names():
    step = only({"op": "hash", "columns": ["a", "c"], "buckets": 8}, samples())
    assert step.seeds == tuple(murmurhash3_32(name.encode(), positive=True) for name in ("a", "c"))
    assert only({"op": "hash", "columns": ["a"], "buckets": 8, "seeds": [3]}, samples()).seeds == (3,)


def test_what_learns_nothing_is_its_own_recipe():
    x = samples(missing=0)
    steps = [
        {"op": "ratio", "columns": ["a"], "by": ["b"]},
        {"op": "time_since", "columns": ["c"], "unit": "d"},
        {"op": "cyclical", "columns": ["b"], "period": 2.5, "keep": True},
        {"op": "standardize", "columns": ["a/b", "c"]},
        {"op": "function", "name": "twice", "columns": ["b"], "outputs": ["b2"]},
        {"op": "select", "columns": ["b2", "c", "a/b", "b_sin"]},
    ]
    functions = {"twice": lambda columns: {"b2": columns["b"] * 2}}
    transforms = fit(steps, x, NAMES, functions=functions, now=1e9)
    assert transforms.columns == NAMES
    assert transforms.output_columns(NAMES) == ("b2", "c", "a/b", "b_sin")
    out = transforms.run(dict(zip(NAMES, x.T, strict=True)), functions, now=1e9)
    np.testing.assert_allclose(out[:, 1:3].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(out[:, 1:3].std(axis=0), 1, atol=1e-4)
    np.testing.assert_array_equal(out[:, 0], (x[:, 1] * 2).astype(np.float32))


def test_a_column_transformer_is_equalled_by_names_and_to_the_bit():
    rng = np.random.default_rng(1)
    x = np.column_stack([rng.normal(size=300), rng.integers(0, 5, 300), rng.lognormal(size=300)])
    x = x.astype(np.float32).astype(np.float64)
    theirs = ColumnTransformer(
        [
            ("scaled", make_pipeline(SimpleImputer(), MinMaxScaler()), [0, 2]),
            ("kinds", OneHotEncoder(sparse_output=False, handle_unknown="ignore"), [1]),
        ]
    ).fit(x)
    theirs = make_pipeline(theirs, PolynomialFeatures(interaction_only=True, include_bias=False)).fit(x)
    wide = ["b_0.0", "b_1.0", "b_2.0", "b_3.0", "b_4.0"]
    recipe = [
        {"op": "impute", "columns": ["a", "c"], "strategy": "mean"},
        {"op": "min_max", "columns": ["a", "c"]},
        {"op": "one_hot", "columns": ["b"]},
        {"op": "interactions", "columns": ["a", "c", *wide]},
    ]
    np.testing.assert_array_equal(served(fit(recipe, x, NAMES), x), theirs.transform(x).astype(np.float32))


def test_a_whole_recipe_equals_the_pipeline_of_scikit_learn():
    x = samples()
    recipe = [{"op": "impute", "strategy": "median"}, {"op": "log1p"}, {"op": "standardize"}]
    pipeline = make_pipeline(SimpleImputer(strategy="median"), FunctionTransformer(np.log1p), StandardScaler())
    np.testing.assert_allclose(
        served(fit(recipe, x, NAMES), x), pipeline.fit_transform(x).astype(np.float32), rtol=1e-6, atol=1e-6
    )


def test_steps_are_fitted_on_the_output_of_those_before_them():
    x = np.array([[0.0], [np.nan], [4.0], [100.0]])
    recipe = [
        {"op": "clip", "columns": ["a"], "quantiles": [0, 0.5]},
        {"op": "impute", "columns": ["a"], "strategy": "mean"},
        {"op": "standardize", "columns": ["a"]},
        {"op": "bucketize", "columns": ["a"], "bins": 2, "strategy": "uniform"},
    ]
    clip, impute, standardize, bucketize = fit(recipe, x, ["a"]).steps
    assert clip.high == (4,)
    assert impute.fill == (8 / 3,)
    column = np.array([0, 8 / 3, 4, 4])
    np.testing.assert_allclose([standardize.mean[0], standardize.scale[0]], [column.mean(), column.std()], rtol=1e-15)
    np.testing.assert_allclose(bucketize.edges[0], [(2 - column.mean()) / column.std()], rtol=1e-14)


def test_every_value_seen_in_training_is_known_when_served():
    """0.1 is no float32: a fit to the unrounded values would never find it again."""
    x = np.array([[0.1, 0.2, 0.3], [0.7, 0.8, 0.9]])
    transforms = fit([{"op": "standardize"}, {"op": "ordinal"}], x, NAMES)
    assert served(transforms, x).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_only_the_columns_named_are_changed_and_the_matrix_never():
    x = samples()
    before = x.copy()
    out = served(fit([{"op": "impute", "columns": ["b"]}, {"op": "standardize", "columns": ["b"]}], x, NAMES), x)
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(out[:, [0, 2]], x[:, [0, 2]].astype(np.float32))
    assert not np.isnan(out[:, 1]).any()


def test_float32_and_recipe_objects_are_taken_too():
    x = samples()
    step = ImputeRecipe(op="impute", strategy="mean")
    assert fit([step], x.astype(np.float32), NAMES) == fit([{"op": "impute", "strategy": "mean"}], x, NAMES)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"op": "square"}, "step 1 of the transforms: there is no op 'square': it is one of impute, clip"),
        ({"op": "inpute"}, "there is no op 'inpute': did you mean 'impute'"),
        ({"columns": ["a"]}, r"step 1 of the transforms is \{op: ..., columns: \[...\]\}, not \{'columns'"),
        (
            {"op": "impute", "strategey": "mean"},
            r"step 1 .*\(impute\): there is no 'strategey': did you mean 'strategy'",
        ),
        ({"op": "impute", "columns": "a"}, "columns is a list of names, not 'a'"),
        ({"op": "hash"}, "buckets is missing"),
        ({"op": "log1p", "base": 2}, "base"),
        ({"op": "impute", "strategy": "constant"}, "go together"),
        ({"op": "impute", "strategy": "mode"}, "strategy"),
        ({"op": "clip", "quantiles": [0.1, 1.1]}, "quantiles"),
        ({"op": "clip", "quantiles": [0.9, 0.1]}, r"step 1 \(clip\).*low"),
        ({"op": "bucketize", "bins": 1}, "bins"),
        ({"op": "log1p", "columns": ["z"]}, r"step 1 \(log1p\) names 'z'.*'a', 'b', 'c'"),
        ({"op": "log1p", "columns": []}, r"step 1 \(log1p\).*columns"),
        ({"op": "min_max", "range": [1, 1]}, "the first must be the smaller"),
        ({"op": "one_hot", "min_frequency": 1.5}, "min_frequency"),
        ({"op": "one_hot", "max_categories": 0}, "max_categories"),
        ({"op": "hash", "buckets": 0}, "buckets"),
        ({"op": "hash", "buckets": 3, "seeds": [1]}, r"step 1 \(hash\).*seeds has 1 entries for 3"),
        ({"op": "cyclical", "period": -1}, r"step 1 \(cyclical\).*period"),
        ({"op": "ratio", "columns": ["a"], "by": ["z"]}, r"step 1 \(ratio\) names 'z'"),
        ({"op": "ratio", "columns": ["a"]}, "by"),
    ],
)
def test_a_recipe_that_cannot_be_fitted_is_refused_in_one_line(recipe, message):
    with pytest.raises(FitError, match=message) as caught:
        fit([recipe], samples(), NAMES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "op", "message"),
    [
        ([np.inf, 1], "standardize", "'b' has infinite values"),
        ([np.nan, np.nan], "impute", "'b' has no values"),
        ([-1, 3], "log1p", "'b' goes down to -1"),
    ],
)
def test_data_that_cannot_be_fitted_names_the_column(column, op, message):
    x = np.ones((2, 3))
    x[:, 1] = column
    with pytest.raises(FitError, match=message):
        fit([{"op": op}], x, NAMES)


def test_a_matrix_of_text_is_refused():
    with pytest.raises(FitError, match="not a number"):
        fit([], [["x", "y", "z"]], NAMES)


@pytest.mark.parametrize("shape", [(0, 3), (5, 2), (3,)])
def test_a_matrix_of_another_shape_is_refused(shape):
    with pytest.raises(FitError, match="the matrix is"):
        fit([], np.zeros(shape), NAMES)
