"""Fitted transforms as data: what was learnt in training, stored in a version as JSON, run over every batch.

`Transforms` is a list of steps (`features/steps.py`), each naming its columns. `compile` makes of it, for a batch whose
columns have given names, what runs: one program of `kernels.transforms`, or programs with registered functions between
them. `run` does the same to a frame, offline, to the bit. Nothing here is code: a file of transforms can be read by
anybody and can do no harm. Missing (NaN) stays missing but for impute, one-hot and hashing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import time
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from penstock.features.errors import TransformError
from penstock.features.functions import Call, Chain, Compiled, Function
from penstock.features.layout import Layout
from penstock.features.steps import (
    Bucketize,
    Clip,
    Cyclical,
    Difference,
    FunctionStep,
    Hash,
    Impute,
    Interactions,
    Log1p,
    MinMax,
    Name,
    OneHot,
    Ordinal,
    Ratio,
    Select,
    Standardize,
    Step,
    Time,
    TimeSince,
    TransformSpec,
)
from penstock.kernels.transforms import Program

__all__ = [
    "Bucketize",
    "Clip",
    "Cyclical",
    "Difference",
    "FunctionStep",
    "Hash",
    "Impute",
    "Interactions",
    "Log1p",
    "MinMax",
    "OneHot",
    "Ordinal",
    "Ratio",
    "Select",
    "Standardize",
    "Step",
    "Time",
    "TimeSince",
    "TransformError",
    "TransformSpec",
    "Transforms",
    "clock",
    "first_of",
]


class Transforms(BaseModel):
    """All steps of a version, in the order they run. As JSON this is the version's `transforms.json`.

    Attributes:
        format: 2; a file of format 1 has no `columns` and fewer kinds of steps.
        columns: names of the batch that they were fitted on, in order; empty where nobody said.
        steps: run in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1, 2] = 2
    columns: tuple[Name, ...] = ()
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

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the functions that must be registered."""
        return tuple(dict.fromkeys(step.name for step in self.steps if isinstance(step, FunctionStep)))

    def output_columns(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Names of the columns after all steps, given those of the batch.

        Raises:
            TransformError: a step needs a column that is not there at that point, or makes one that is.
        """
        layout = Layout(columns)
        for step in self.steps:
            _add(step, layout)
        return layout.names

    def program(self, columns: Sequence[str]) -> Program:
        """Compile steps without functions; see `compile`."""
        compiled = self.compile(columns)
        assert isinstance(compiled, Program)
        return compiled

    def compile(self, columns: Sequence[str], functions: Mapping[str, Function] | None = None) -> Compiled:
        """Compile the steps for batches of these columns; columns that no step names are copied.

        Args:
            columns: names of the batch.
            functions: those that are registered, by name.

        Returns:
            A program of the kernel, or a chain with the same face where functions are called.

        Raises:
            TransformError: a step needs a column that is not there or a function that is not registered, or a name
                stands for two columns.
        """
        names = tuple(columns)
        if not names or len(set(names)) != len(names):
            raise TransformError(f"transforms need columns with names of their own, not {list(names)}")
        stages: list[Program | Call] = []
        layout = Layout(names)
        for step in self.steps:
            if isinstance(step, FunctionStep):
                call, layout = _call(step, layout, functions or {}, stages)
                stages.append(call)
            else:
                _add(step, layout)
        if not stages:
            return _program(layout)
        if layout.changed:
            stages.append(_program(layout))
        return Chain(len(names), len(layout.names), stages)

    def run(
        self,
        frame: Any,
        functions: Mapping[str, Function] | None = None,
        now: ArrayLike | None = None,
    ) -> NDArray[np.float32]:
        """The same offline: what a server gives the model for these rows, to the bit.

        Args:
            frame: columns by name, [n] numbers each: a pandas frame, or a mapping. Rounded to float32 first, as served.
                Those named in `columns` are taken, or all where nobody said.
            functions: those that are registered, by name.
            now: where time is counted since the clock: milliseconds since 1970, one or [n]; the present if left out.

        Returns:
            (n, outputs) float32; `output_columns` has the names.

        Raises:
            TransformError: a column is not there or no numbers, or as `compile`.
        """
        names = self.columns or tuple(map(str, frame))
        matrix = _matrix(frame, names)
        compiled = self.compile(names, functions)
        out = np.empty((len(matrix), compiled.n_outputs), np.float32)
        compiled.run(matrix, out, clock(now))
        return out


def clock(now: ArrayLike | None = None) -> NDArray[np.float64]:
    """Times as a program takes them: milliseconds since 1970, [1] or [n]; the present where none are given."""
    return np.atleast_1d(np.array(time() * 1000 if now is None else now, np.float64))


def _call(
    step: FunctionStep, layout: Layout, functions: Mapping[str, Function], stages: list[Program | Call]
) -> tuple[Call, Layout]:
    """End the program that goes before a function, and begin the one that goes on behind it."""
    if step.name not in functions:
        raise TransformError(
            f"the transforms call the function {step.name!r}, which is not registered; functions are code, so whoever "
            f"runs them names them: functions: {{{step.name}: package.module:function}} in the settings of the server"
        )
    require(step, layout.names)
    if layout.changed:
        stages.append(_program(layout))
    names = layout.names
    places = tuple((name, names.index(name)) for name in step.columns)
    step.compile(layout)
    return Call(step.name, functions[step.name], places, step.outputs), Layout(layout.names)


def _add(step: Step, layout: Layout) -> None:
    require(step, layout.names)
    step.compile(layout)


def _program(layout: Layout) -> Program:
    try:
        return layout.program()
    except ValueError as error:
        raise TransformError(f"the transforms cannot be compiled: {error}") from error


def _matrix(frame: Any, names: Sequence[str]) -> NDArray[np.float32]:
    """The columns side by side, as the values that a served batch would hold."""
    missing = [name for name in names if name not in frame]
    if missing:
        raise TransformError(f"the frame has no column {missing[0]!r}, which the transforms run over")
    try:
        with np.errstate(over="ignore"):
            columns = [np.asarray(frame[name]).astype(np.float32) for name in names]
            return np.ascontiguousarray(np.stack(columns, axis=1))
    except (TypeError, ValueError) as error:
        raise TransformError(f"the frame holds what are not [n] numbers: {error}") from error


def require(step: Step, names: Sequence[str]) -> None:
    """Refuse a step over columns that are not among `names`."""
    there = set(names)
    unknown = [name for name in step.needs if name not in there]
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
