"""Fitted transforms as data: what was learnt in training, stored in a version as JSON, run over every batch.

Each step names its columns and holds the numbers fitted for each of them, in the same order. `Transforms.program`
compiles the steps for a batch whose columns have given names; from there on it is `kernels.transforms`. Nothing here is
code: a file of transforms can be read by anybody and can do no harm. Missing (NaN) stays missing but for `impute`.

Steps now keep number and names of the columns. A step that changes them later (one-hot, ratio) says so in `outputs`;
whoever sizes a batch after the transforms asks `Transforms.output_columns` and will not notice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from penstock.features.errors import FeatureError
from penstock.kernels.transforms import Operation, Program

Name = Annotated[str, StringConstraints(min_length=1)]
Numbers = tuple[float, ...]


class TransformError(FeatureError):
    """Transforms that cannot be read, or that do not fit the columns they should run on."""


class Step(BaseModel):
    """One fitted step over some columns; every other field has one entry for each of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    op: str
    columns: tuple[Name, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Step:
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("a column is named twice")
        for name in type(self).model_fields:
            field = getattr(self, name)
            if isinstance(field, tuple) and len(field) != len(self.columns):
                raise ValueError(f"{name} has {len(field)} entries for {len(self.columns)} columns")
        for column, numbers in zip(self.columns, self.parameters(), strict=True):
            check(self.op, column, numbers)
        return self

    def parameters(self) -> Iterable[Sequence[float]]:
        """For each column, the numbers that its kernel operation takes."""
        raise NotImplementedError

    def outputs(self, columns: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the columns after this step, given those before it."""
        return columns

    def operations(self, columns: tuple[str, ...]) -> Iterator[Operation]:
        """The kernel operations of this step over a batch with these columns."""
        for name, numbers in zip(self.columns, self.parameters(), strict=True):
            yield self.op, columns.index(name), numbers


def check(op: str, column: str, numbers: Sequence[float]) -> None:
    """Let the kernel judge the numbers of one column, in the words of the column's name."""
    try:
        Program(1, [(op, 0, numbers)])
    except ValueError as error:
        raise ValueError(str(error).replace("column 0", f"column {column!r}")) from None


class Impute(Step):
    """Missing values become `fill`."""

    op: Literal["impute"] = "impute"
    fill: Numbers

    def parameters(self) -> Iterable[Sequence[float]]:
        return zip(self.fill, strict=True)


class Clip(Step):
    """Values beyond `low` or `high` become these."""

    op: Literal["clip"] = "clip"
    low: Numbers
    high: Numbers

    def parameters(self) -> Iterable[Sequence[float]]:
        return zip(self.low, self.high, strict=True)


class Log1p(Step):
    """ln(1 + x); missing below -1."""

    op: Literal["log1p"] = "log1p"

    def parameters(self) -> Iterable[Sequence[float]]:
        return [()] * len(self.columns)


class Standardize(Step):
    """(x - mean) / scale."""

    op: Literal["standardize"] = "standardize"
    mean: Numbers
    scale: Numbers

    def parameters(self) -> Iterable[Sequence[float]]:
        return zip(self.mean, self.scale, strict=True)


class Bucketize(Step):
    """The number of `edges` (ascending) that are <= x, from 0 to the number of edges."""

    op: Literal["bucketize"] = "bucketize"
    edges: tuple[Numbers, ...]

    def parameters(self) -> Iterable[Sequence[float]]:
        return self.edges


class Ordinal(Step):
    """The index of x among `categories` (ascending), `unknown` for a value that training never saw."""

    op: Literal["ordinal"] = "ordinal"
    categories: tuple[Numbers, ...]
    unknown: float = -1.0

    def parameters(self) -> Iterable[Sequence[float]]:
        return ((self.unknown, *categories) for categories in self.categories)


TransformSpec = Annotated[Impute | Clip | Log1p | Standardize | Bucketize | Ordinal, Field(discriminator="op")]


class Transforms(BaseModel):
    """All steps of a version, in the order they run. As JSON this is the version's `transforms.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    steps: tuple[TransformSpec, ...] = ()

    @classmethod
    def from_json(cls, text: str | bytes) -> Transforms:
        """Read `transforms.json`.

        Raises:
            TransformError: not JSON, an unknown operation or format, or numbers that no step can have.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise TransformError(f"transforms cannot be read: {first_of(error)}") from error

    def to_json(self) -> str:
        """The text that `from_json` reads back to an equal object, every float exactly."""
        return self.model_dump_json(indent=1)

    def output_columns(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Names of the columns after all steps, given those of the batch.

        Raises:
            TransformError: a step needs a column that is not there at that point.
        """
        names = tuple(columns)
        for step in self.steps:
            require(step, names)
            names = step.outputs(names)
        return names

    def program(self, columns: Sequence[str]) -> Program:
        """Compile the steps for batches of these columns; columns that no step names are copied.

        Raises:
            TransformError: a step needs a column that is not there, or a name stands for two columns.
        """
        names = tuple(columns)
        if not names or len(set(names)) != len(names):
            raise TransformError(f"transforms need columns with names of their own, not {list(names)}")
        operations: list[Operation] = []
        for step in self.steps:
            require(step, names)
            operations += step.operations(names)
        return Program(len(names), operations)


def require(step: Step, names: tuple[str, ...]) -> None:
    """Refuse a step over columns that are not among `names`."""
    unknown = [name for name in step.columns if name not in names]
    if unknown:
        raise TransformError(
            f"the {step.op} step needs {', '.join(map(repr, unknown))}, which is not among the columns "
            f"{', '.join(map(repr, names))}; name columns of the batch, or fit the transforms again"
        )


def first_of(error: ValidationError) -> str:
    """The first complaint of pydantic in one line: where, and what."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else str(first["msg"])
