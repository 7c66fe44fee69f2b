"""The steps of transforms, each as data: its columns, and the numbers that training found for them.

A step knows how it is compiled (`compile`, to operations of `kernels.transforms`) and with that which columns there are
after it. New columns are named as by scikit-learn's `get_feature_names_out` where there is such a thing. Missing (NaN)
stays missing but for impute, one-hot and hashing. docs/transforms.md has the table of all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import combinations, combinations_with_replacement
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from penstock.features.errors import TransformError
from penstock.features.layout import Layout

Name = Annotated[str, StringConstraints(min_length=1)]
Numbers = tuple[float, ...]
Unit = Literal["ms", "s", "min", "h", "d"]
MILLISECONDS = {"ms": 1, "s": 1_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
INFREQUENT = "infrequent_sklearn"


class Step(BaseModel):
    """One fitted step over some columns; the fields in `per_column` have one entry for each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    per_column: ClassVar[tuple[str, ...]] = ()

    op: str
    columns: tuple[Name, ...] = Field(min_length=1)

    @property
    def needs(self) -> tuple[str, ...]:
        """The columns that must be there, each once."""
        return tuple(dict.fromkeys(self.columns))

    def compile(self, layout: Layout) -> None:
        """Add this step's operations; its columns are there."""
        raise NotImplementedError

    def _check_columns(self) -> None:
        if len(self.needs) != len(self.columns):
            raise ValueError("a column is named twice")

    @model_validator(mode="after")
    def _check(self) -> Step:
        self._check_columns()
        for name in self.per_column:
            if len(getattr(self, name)) != len(self.columns):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.columns)} columns")
        try:
            self._try(Layout(self.needs))
        except (ValueError, TransformError) as error:
            raise ValueError(_by_name(str(error), self.needs)) from None
        return self

    def _try(self, layout: Layout) -> None:
        """Compile this step alone, so that the kernel judges its numbers."""
        self.compile(layout)
        layout.program()


def _by_name(text: str, names: Sequence[str]) -> str:
    """The kernel's complaint about column 0, about column 'age'."""
    return re.sub(r"\bcolumn (\d+)", lambda found: f"column {names[int(found[1])]!r}", text)


class _Elementwise(Step):
    """A step that changes its columns one by one."""

    def parameters(self) -> Iterable[Sequence[float]]:
        """For each column, the numbers that its kernel operation takes."""
        raise NotImplementedError

    def compile(self, layout: Layout) -> None:
        for name, numbers in zip(self.columns, self.parameters(), strict=True):
            layout.change(self.op, (name,), numbers)


class Impute(_Elementwise):
    """Missing values become `fill`."""

    per_column = ("fill",)
    op: Literal["impute"] = "impute"
    fill: Numbers

    def parameters(self) -> Iterable[Sequence[float]]:
        return zip(self.fill, strict=True)


class Clip(_Elementwise):
    """Values beyond `low` or `high` become these."""

    per_column = ("low", "high")
    op: Literal["clip"] = "clip"
    low: Numbers
    high: Numbers

    def parameters(self) -> Iterable[Sequence[float]]:
        return zip(self.low, self.high, strict=True)


class Log1p(_Elementwise):
    """ln(1 + x); missing below -1."""

    op: Literal["log1p"] = "log1p"

    def parameters(self) -> Iterable[Sequence[float]]:
        return [()] * len(self.columns)


class Standardize(_Elementwise):
    """(x - mean) / scale."""

    per_column = ("mean", "scale")
    op: Literal["standardize"] = "standardize"
    mean: Numbers
    scale: Numbers

    def parameters(self) -> Iterable[Sequence[float]]:
        return zip(self.mean, self.scale, strict=True)


class MinMax(_Elementwise):
    """x * scale + shift, and no further than `clip` where that is given."""

    per_column = ("scale", "shift")
    op: Literal["min_max"] = "min_max"
    scale: Numbers
    shift: Numbers
    clip: tuple[float, float] | None = None

    def parameters(self) -> Iterable[Sequence[float]]:
        return zip(self.scale, self.shift, strict=True)

    def compile(self, layout: Layout) -> None:
        super().compile(layout)
        for name in self.columns if self.clip is not None else ():
            layout.change("clip", (name,), self.clip or ())


class Bucketize(_Elementwise):
    """The number of `edges` (ascending) that are <= x, from 0 to the number of edges."""

    per_column = ("edges",)
    op: Literal["bucketize"] = "bucketize"
    edges: tuple[Numbers, ...]

    def parameters(self) -> Iterable[Sequence[float]]:
        return self.edges


class Ordinal(_Elementwise):
    """The index of x among `categories` (ascending), `unknown` for a value that training never saw."""

    per_column = ("categories",)
    op: Literal["ordinal"] = "ordinal"
    categories: tuple[Numbers, ...]
    unknown: float = -1.0

    def parameters(self) -> Iterable[Sequence[float]]:
        return ((self.unknown, *categories) for categories in self.categories)


class TimeSince(_Elementwise):
    """How long ago x was, in `unit`: the present less x, negative for what is yet to come.

    Columns count `of` since 1970. The present is the column `now`, which counts the same, or the clock of the run.
    """

    op: Literal["time_since"] = "time_since"
    of: Unit = "s"
    unit: Unit = "s"
    now: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.columns, self.now) if self.now else self.columns))

    def _check_columns(self) -> None:
        if len(self.needs) != len(self.columns) + bool(self.now):
            raise ValueError("a column is named twice")

    def compile(self, layout: Layout) -> None:
        of, unit = MILLISECONDS[self.of], MILLISECONDS[self.unit]
        for name in self.columns:
            if self.now:
                layout.change(self.op, (name, self.now), (of, of, unit))
            else:
                layout.change(self.op, (name,), (of, 1, unit))


class _Making(Step):
    """A step whose columns give way to those it makes, unless `keep` says that they stay."""

    keep: bool = False

    def compile(self, layout: Layout) -> None:
        self.make(layout)
        if not self.keep:
            layout.leave_out(self.columns)

    def make(self, layout: Layout) -> None:
        """Make the new columns."""
        raise NotImplementedError


class OneHot(_Making):
    """For each category a column that is 1 where x equals it, else 0; a value of no category has no 1.

    Attributes:
        categories: for each column, in the order of the new ones: each has one of its own, named as `color_3.0`.
        infrequent: for each column or for none; they share one, `color_infrequent_sklearn`.
        missing: for each column or for none, what a missing value gets: no 1, a column `color_nan`, or the infrequent.
        unknown: what any other value gets: no 1, or the column of the infrequent where there is one.
    """

    per_column = ("categories", "infrequent", "missing")
    op: Literal["one_hot"] = "one_hot"
    categories: tuple[Numbers, ...]
    infrequent: tuple[Numbers, ...] = ()
    missing: tuple[Literal["ignore", "column", "infrequent"], ...] = ()
    unknown: Literal["ignore", "infrequent"] = "ignore"

    @model_validator(mode="before")
    @classmethod
    def _for_each(cls, values: Any) -> Any:
        """What is given for no column is the same for each."""
        if not isinstance(values, dict):
            return values
        columns = values.get("columns")
        count = len(columns) if isinstance(columns, list | tuple) else 0
        defaults: dict[str, Any] = {"infrequent": ((),) * count, "missing": ("ignore",) * count}
        return values | {name: values.get(name) or default for name, default in defaults.items()}

    def make(self, layout: Layout) -> None:
        given = (self.columns, self.categories, self.infrequent, self.missing)
        for name, categories, infrequent, missing in zip(*given, strict=True):
            made = [f"{name}_{category}" for category in categories]
            made += [f"{name}_nan"] * (missing == "column")
            shared = len(made) + 1 if infrequent or missing == "infrequent" else 0
            made += [f"{name}_{INFREQUENT}"] * bool(shared)
            place = {category: i for i, category in enumerate(categories, start=1)} | dict.fromkeys(infrequent, shared)
            if len(place) != len(categories) + len(infrequent):
                raise TransformError(f"one_hot of column {name!r} has a category twice")
            of_missing = {"ignore": 0, "column": len(categories) + 1, "infrequent": shared}[missing]
            of_unknown = shared if self.unknown == "infrequent" else 0
            known = sorted(place)
            numbers = (len(made), of_unknown, of_missing, *known, *(place[category] for category in known))
            layout.make(self.op, (name,), numbers, made)


class Hash(_Making):
    """Feature hashing: each column adds 1 to one of `buckets` columns, or -1 where `signs` are on and its hash says so.

    The hash is MurmurHash3_x86_32 of the value's eight bytes (a little-endian float64), begun with the column's seed;
    its absolute value modulo `buckets` is the column, its sign the sign. Columns are `hash_0`, ... by the `name`.
    """

    per_column = ("seeds",)
    op: Literal["hash"] = "hash"
    buckets: int = Field(ge=1, le=65_536)
    seeds: tuple[int, ...]
    signs: bool = True
    name: Name = "hash"

    def make(self, layout: Layout) -> None:
        made = [f"{self.name}_{i}" for i in range(self.buckets)]
        layout.make(self.op, self.columns, (self.buckets, self.signs, *self.seeds), made)


class Cyclical(_Making):
    """Where x stands in a circle: sine and cosine of (x - offset) / period turns, as `hour_sin` and `hour_cos`."""

    per_column = ("period", "offset")
    op: Literal["cyclical"] = "cyclical"
    period: Numbers
    offset: Numbers

    def make(self, layout: Layout) -> None:
        for name, period, offset in zip(self.columns, self.period, self.offset, strict=True):
            layout.make(self.op, (name,), (offset, period), (f"{name}_sin", f"{name}_cos"))


class Time(_Making):
    """A time of two columns, such as whole days since 1970 and seconds of the day: `name`, milliseconds since 1970.

    Two, because a float32 of all the milliseconds is off by up to 65 s. The sum is float64 until the last step.
    """

    op: Literal["time"] = "time"
    columns: tuple[Name, Name]
    units: tuple[Unit, Unit] = ("d", "s")
    name: Name

    def make(self, layout: Layout) -> None:
        layout.make("weighted_sum", self.columns, [MILLISECONDS[unit] for unit in self.units], (self.name,))


class _Pairs(Step):
    """A step that makes a column of each of its columns and the one beside it; all stay."""

    def _check_columns(self) -> None:
        """Ratios of one column to several are ratios of different names."""


class Ratio(_Pairs):
    """x over the column in `by`, as `a/b`; missing where that is 0."""

    per_column = ("by",)
    op: Literal["ratio"] = "ratio"
    by: tuple[Name, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.columns, *self.by)))

    def compile(self, layout: Layout) -> None:
        for a, b in zip(self.columns, self.by, strict=True):
            layout.make(self.op, (a, b), (), (f"{a}/{b}",))


class Difference(_Pairs):
    """x less the column in `less`, as `a-b`."""

    per_column = ("less",)
    op: Literal["difference"] = "difference"
    less: tuple[Name, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.columns, *self.less)))

    def compile(self, layout: Layout) -> None:
        for a, b in zip(self.columns, self.less, strict=True):
            layout.make("weighted_sum", (a, b), (1, -1), (f"{a}-{b}",))


class Interactions(Step):
    """The product of every two columns, as `a b`; with `squares` also of each with itself, as `a^2`. All stay."""

    op: Literal["interactions"] = "interactions"
    squares: bool = False

    def compile(self, layout: Layout) -> None:
        pairs = combinations_with_replacement if self.squares else combinations
        for a, b in pairs(self.columns, 2):  # a step of too many is ended by the layout
            layout.make("product", (a, b), (), (f"{a}^2" if a == b else f"{a} {b}",))


class Select(Step):
    """These columns and no others, in this order."""

    op: Literal["select"] = "select"

    def compile(self, layout: Layout) -> None:
        layout.select(self.columns)


class FunctionStep(Step):
    """A Python function that whoever runs the transforms has registered under `name`; it makes `outputs`. All stay.

    Nothing of the function is stored but its name: a file of transforms holds no code and names none to be imported.
    """

    op: Literal["function"] = "function"
    name: Name
    outputs: tuple[Name, ...] = Field(min_length=1)

    def compile(self, layout: Layout) -> None:
        layout.add(self.outputs)

    def _try(self, layout: Layout) -> None:
        """There is nothing for the kernel to judge."""
        self.compile(layout)


TransformSpec = Annotated[
    Impute
    | Clip
    | Log1p
    | Standardize
    | MinMax
    | Bucketize
    | Ordinal
    | OneHot
    | Hash
    | Cyclical
    | Time
    | TimeSince
    | Ratio
    | Difference
    | Interactions
    | Select
    | FunctionStep,
    Field(discriminator="op"),
]
