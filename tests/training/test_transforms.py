"""Fitting: the numbers are scikit-learn's, each step sees the output of those before, and bad data is named."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, KBinsDiscretizer, OrdinalEncoder, StandardScaler

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
    out = np.empty(x.shape, np.float32)
    transforms.program(NAMES).run(x.astype(np.float32), out)
    return out


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
        ({"op": "square"}, "square"),
        ({"op": "log1p", "base": 2}, "base"),
        ({"op": "impute", "strategy": "constant"}, "go together"),
        ({"op": "impute", "strategy": "mode"}, "strategy"),
        ({"op": "clip", "quantiles": [0.1, 1.1]}, "quantiles"),
        ({"op": "clip", "quantiles": [0.9, 0.1]}, r"step 1 \(clip\).*low"),
        ({"op": "bucketize", "bins": 1}, "bins"),
        ({"op": "log1p", "columns": ["z"]}, r"step 1 \(log1p\) names 'z'.*'a', 'b', 'c'"),
        ({"op": "log1p", "columns": []}, r"step 1 \(log1p\).*columns"),
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
