"""What a step of transforms is fitted by: recipes, as data, each with what it learns from the columns it names.

The fitted numbers equal those of scikit-learn's SimpleImputer, StandardScaler, MinMaxScaler, KBinsDiscretizer,
OrdinalEncoder and OneHotEncoder on the same values: picked ones exactly, sums to a relative 1e-12. Missing (NaN) values
are left out of every fit but one-hot's, which may give them a column. Steps that learn nothing (ratio, select and so
on) are their own recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from penstock.features import steps as fitted
from penstock.features.errors import TransformError
from penstock.features.steps import TransformSpec
from penstock.kernels.transforms import murmur3_32

Column = NDArray[np.float64]
Share = Annotated[float, Field(ge=0, le=1)]


class FitError(TransformError):
    """A recipe that cannot be read, or data that it cannot be fitted to."""


class StepRecipe(BaseModel):
    """One step to fit, over the columns named, or over all."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    with_missing: ClassVar[bool] = False
    """Whether it is fitted to all values, the missing among them."""

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


class MinMaxRecipe(StepRecipe):
    """From the least to the greatest value onto `range`, as MinMaxScaler; `clip` keeps later values inside it."""

    op: Literal["min_max"]
    range: tuple[float, float] = (0.0, 1.0)
    clip: bool = False

    @model_validator(mode="after")
    def _check(self) -> MinMaxRecipe:
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range goes from {self.range[0]} to {self.range[1]}; the first must be the smaller")
        return self

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:
        scale, shift = zip(*(self.scale_and_shift(x) for x in columns), strict=True)
        return fitted.MinMax(columns=names, scale=scale, shift=shift, clip=self.range if self.clip else None)

    def scale_and_shift(self, x: Column) -> tuple[float, float]:
        """A constant column is only moved."""
        low, high = self.range
        extent = x.max() - x.min()
        scale = (high - low) / (1.0 if extent < 10 * np.finfo(np.float64).eps else extent)
        return float(scale), float(low - x.min() * scale)


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


class OneHotRecipe(StepRecipe):
    """A column for each value seen, ascending, as OneHotEncoder.

    Attributes:
        min_frequency: values seen less often (a count, or a share of all rows) share one column.
        max_categories: of columns at most for each column, that of the infrequent among them.
        missing: a missing value is a value like any other ("auto"), or never gets a 1 ("ignore").
        unknown: a value that training never saw gets no 1, or the column of the infrequent where there is one.
        keep: whether the columns themselves stay.
    """

    with_missing: ClassVar[bool] = True
    op: Literal["one_hot"]
    min_frequency: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    max_categories: int | None = Field(default=None, ge=1)
    missing: Literal["auto", "ignore"] = "auto"
    unknown: Literal["ignore", "infrequent"] = "ignore"
    keep: bool = False

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:
        found = [self.split(x) for x in columns]
        categories, infrequent, missing = zip(*found, strict=True)
        return fitted.OneHot(
            columns=names,
            categories=categories,
            infrequent=infrequent,
            missing=missing,
            unknown=self.unknown,
            keep=self.keep,
        )

    def split(self, x: Column) -> tuple[fitted.Numbers, fitted.Numbers, Literal["ignore", "column", "infrequent"]]:
        """The categories with a column, those that share one, and what the missing get."""
        values, counts = np.unique(x[~np.isnan(x)] if self.missing == "ignore" else x, return_counts=True)
        rare = self.rare(counts, len(x))
        absent = np.isnan(values)
        frequent, shared = values[~rare & ~absent], values[rare & ~absent]
        of_missing: Literal["ignore", "column", "infrequent"] = "ignore"
        if absent.any():
            of_missing = "infrequent" if rare[absent].any() else "column"
        elif self.missing == "auto" and self.unknown == "infrequent" and len(shared):
            of_missing = "infrequent"  # a missing value is as unknown as any other
        return tuple(frequent.tolist()), tuple(shared.tolist()), of_missing

    def rare(self, counts: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
        """Which categories are infrequent, by scikit-learn's rule: of equally many, the first."""
        least = 0.0 if self.min_frequency is None else self.min_frequency
        rare: NDArray[np.bool_] = counts < (least * rows if isinstance(least, float) else least)
        columns = int((~rare).sum()) + 1
        if self.max_categories is not None and self.max_categories < columns:
            order = np.argsort(counts, kind="stable")
            rare[order[: len(counts) - (self.max_categories - 1)]] = True
        return rare


class HashRecipe(StepRecipe):
    """Feature hashing into `buckets` columns; every column's seed is the hash of its name unless seeds are given."""

    with_missing: ClassVar[bool] = True  # nothing is learnt
    op: Literal["hash"]
    buckets: int = Field(ge=1, le=65_536)
    signs: bool = True
    name: str = "hash"
    seeds: tuple[int, ...] | None = None
    keep: bool = False

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:  # noqa: ARG002
        seeds = tuple(murmur3_32(name.encode()) for name in names) if self.seeds is None else self.seeds
        return fitted.Hash(
            columns=names, buckets=self.buckets, seeds=seeds, signs=self.signs, name=self.name, keep=self.keep
        )


class CyclicalRecipe(StepRecipe):
    """Sine and cosine on a circle of `period`, beginning at `offset`; the same for all columns."""

    with_missing: ClassVar[bool] = True  # nothing is learnt
    op: Literal["cyclical"]
    period: float
    offset: float = 0.0
    keep: bool = False

    def fit(self, names: tuple[str, ...], columns: Sequence[Column]) -> TransformSpec:  # noqa: ARG002
        count = len(names)
        return fitted.Cyclical(
            columns=names, period=(self.period,) * count, offset=(self.offset,) * count, keep=self.keep
        )


Learnt = (
    ImputeRecipe
    | ClipRecipe
    | Log1pRecipe
    | StandardizeRecipe
    | MinMaxRecipe
    | BucketizeRecipe
    | OrdinalRecipe
    | OneHotRecipe
    | HashRecipe
    | CyclicalRecipe
)
Given = (
    fitted.Time
    | fitted.TimeSince
    | fitted.Ratio
    | fitted.Difference
    | fitted.Interactions
    | fitted.Select
    | fitted.FunctionStep
)
AnyRecipe = Annotated[Learnt | Given, Field(discriminator="op")]
STEP: TypeAdapter[AnyRecipe] = TypeAdapter(AnyRecipe)
KINDS = {get_args(kind.model_fields["op"].annotation)[0]: kind for kind in (*get_args(Learnt), *get_args(Given))}
"""What each `op` is a recipe of."""


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
