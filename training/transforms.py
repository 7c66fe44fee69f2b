"""Fitting transforms: a recipe and a matrix of training data become `penstock.features.transforms.Transforms`.

A recipe is a list of steps, as Python dictionaries or read from YAML or JSON. They are fitted in order, each on the
output of those before it, which the serving kernel computes. Two rules make offline and online agree to the bit: the
matrix is rounded to float32 first, because that is what a served row holds, and everything after is float64. The fitted
numbers equal those of scikit-learn's SimpleImputer, StandardScaler, KBinsDiscretizer and OrdinalEncoder on the same
values: picked ones exactly, sums to a relative 1e-12. Missing (NaN) values are left out of every fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from penstock.features import transforms as fitted
from penstock.features.transforms import TransformError, Transforms, TransformSpec, first_of

Column = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]


class FitError(TransformError):
    """A recipe that cannot be read, or data that it cannot be fitted to."""


class StepRecipe(BaseModel):
    """One step to fit, over the columns named, or over all."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    op: str
    columns: tuple[str, ...] | None = None

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:
        """Fit to columns of present (non-NaN) values, each with at least one."""
        raise NotImplementedError


class ImputeRecipe(StepRecipe):
    """Fill missing values with the median or mean of the others, or with `value`."""

    op: Literal["impute"]
    strategy: Literal["median", "mean", "constant"] = "median"
    value: float | None = None

    @model_validator(mode="after")
    def _check(self) -> ImputeRecipe:
        if (self.strategy == "constant") != (self.value is not None):
            raise ValueError("strategy 'constant' and a value go together")
        return self

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:
        if self.value is not None:
            return fitted.Impute(columns=names, fill=(self.value,) * len(names))
        statistic = np.median if self.strategy == "median" else np.mean
        return fitted.Impute(columns=names, fill=tuple(float(statistic(x)) for x in columns))


class ClipRecipe(StepRecipe):
    """Clip at two quantiles, interpolated linearly as `numpy.quantile` does."""

    op: Literal["clip"]
    quantiles: tuple[Share, Share] = (0.01, 0.99)

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:
        low, high = zip(*(np.quantile(x, self.quantiles).tolist() for x in columns), strict=True)
        return fitted.Clip(columns=names, low=low, high=high)


class Log1pRecipe(StepRecipe):
    """ln(1 + x); training values must be above -1."""

    op: Literal["log1p"]

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:
        for name, x in zip(names, columns, strict=True):
            if x.min() <= -1:
                raise FitError(
                    f"log1p needs values above -1, but column {name!r} goes down to {x.min():g}; clip it first"
                )
        return fitted.Log1p(columns=names)


class StandardizeRecipe(StepRecipe):
    """Zero mean and unit variance, as StandardScaler; a constant column is only centred."""

    op: Literal["standardize"]

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:
        mean, scale = zip(*(mean_and_scale(x) for x in columns), strict=True)
        return fitted.Standardize(columns=names, mean=mean, scale=scale)


class BucketizeRecipe(StepRecipe):
    """Bins of equal frequency or equal width, as KBinsDiscretizer; bins narrower than 1e-8 are merged."""

    op: Literal["bucketize"]
    bins: int = Field(default=10, ge=2, le=65_536)
    strategy: Literal["quantile", "uniform"] = "quantile"

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:
        return fitted.Bucketize(columns=names, edges=tuple(self.edges(x) for x in columns))

    def edges(self, x: Column) -> tuple[float, ...]:
        """The inner edges, ascending: at most `bins` - 1."""
        if x.min() == x.max():
            return ()
        if self.strategy == "uniform":
            edges = np.linspace(x.min(), x.max(), self.bins + 1)
        else:
            edges = np.percentile(x, np.linspace(0, 100, self.bins + 1), method="averaged_inverted_cdf")
            edges = edges[np.ediff1d(edges, to_begin=np.inf) > 1e-8]
        return tuple(np.unique(edges[1:-1]).tolist())


class OrdinalRecipe(StepRecipe):
    """The index of each value among those seen, ascending, as OrdinalEncoder; `unknown` for any other."""

    op: Literal["ordinal"]
    unknown: float = -1.0

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:
        categories = tuple(tuple(np.unique(x).tolist()) for x in columns)
        return fitted.Ordinal(columns=names, categories=categories, unknown=self.unknown)


AnyRecipe = Annotated[
    ImputeRecipe | ClipRecipe | Log1pRecipe | StandardizeRecipe | BucketizeRecipe | OrdinalRecipe,
    Field(discriminator="op"),
]
RECIPE: TypeAdapter[list[AnyRecipe]] = TypeAdapter(list[AnyRecipe])


def mean_and_scale(x: Column) -> tuple[float, float]:
    """Mean and standard deviation by the corrected two-pass algorithm (Chan, Golub and LeVeque, 1983).

    A column whose variance is within the algorithm's own error of zero is constant, and its scale 1.
    """
    mean = x.sum() / len(x)
    deviation = x - mean
    variance = ((deviation**2).sum() - deviation.sum() ** 2 / len(x)) / len(x)
    eps = np.finfo(np.float64).eps
    constant = variance <= len(x) * eps * variance + (len(x) * mean * eps) ** 2
    return float(mean), 1.0 if constant else float(np.sqrt(variance))


def fit(recipe: Sequence[Mapping[str, Any] | StepRecipe], matrix: ArrayLike, columns: Sequence[str]) -> Transforms:
    """Fit the steps of `recipe`, in order.

    Args:
        recipe: steps such as ``{"op": "impute", "columns": ["age"], "strategy": "median"}``; without `columns`, all.
        matrix: (n, k) numbers, at least one row; NaN is missing. Rounded to float32 first, as served rows are.
        columns: the k names.

    Raises:
        FitError: a recipe that cannot be read, an unknown column, or a column with infinite or without any values.
    """
    names = tuple(columns)
    x = as_served(matrix, names)
    steps: list[TransformSpec] = []
    for number, step in enumerate(parse(recipe), start=1):
        done = fit_step(step, number, x, names)
        Transforms(steps=(done,)).program(names).run_exact(x, x)
        steps.append(done)
    return Transforms(steps=tuple(steps))


def parse(recipe: Sequence[Mapping[str, Any] | StepRecipe]) -> list[AnyRecipe]:
    """The steps of a recipe, checked."""
    try:
        return RECIPE.validate_python(list(recipe))
    except ValidationError as error:
        raise FitError(f"the recipe of the transforms cannot be read: {first_of(error)}") from error


def as_served(matrix: ArrayLike, names: tuple[str, ...]) -> NDArray[np.float64]:
    """A copy of the matrix as the values that a served batch would hold, in float64."""
    try:
        with np.errstate(over="ignore"):
            x = np.asarray(matrix).astype(np.float32).astype(np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise FitError(f"the matrix holds what is not a number: {error}; transforms are fitted to numbers") from error
    if x.ndim != 2 or x.shape[1] != len(names) or len(x) == 0 or len(set(names)) != len(names):
        raise FitError(
            f"the matrix is {x.shape}; fitting needs at least one row and {len(names)} columns, each name once"
        )
    return x


def fit_step(step: AnyRecipe, number: int, x: NDArray[np.float64], names: tuple[str, ...]) -> TransformSpec:
    """One step, fitted to the present values of its columns."""
    chosen = names if step.columns is None else step.columns
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise FitError(
            f"step {number} ({step.op}) names {unknown[0]!r}, which is not among {', '.join(map(repr, names))}"
        )
    try:
        return step.fit(chosen, [present(x[:, names.index(name)], name, step, number) for name in chosen])
    except ValidationError as error:
        raise FitError(f"step {number} ({step.op}) cannot be fitted: {first_of(error)}") from error


def present(column: Column, name: str, step: AnyRecipe, number: int) -> Column:
    """The values that are not missing; all that a fit looks at."""
    values = column[~np.isnan(column)]
    if np.isinf(values).any():
        raise FitError(f"step {number} ({step.op}) cannot be fitted: column {name!r} has infinite values; remove them")
    if len(values) == 0 and not (step.op == "impute" and step.value is not None):
        raise FitError(f"step {number} ({step.op}) cannot be fitted: column {name!r} has no values; leave it out")
    return values
