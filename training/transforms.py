"""Fitting transforms: a recipe and a matrix of training data become `penstock.features.transforms.Transforms`.

A recipe is a list of steps (`training/recipes.py`), as Python dictionaries or read from YAML or JSON. They are fitted
in order, each on the output of those before it, which the serving kernel computes. Two rules make offline and online
agree to the bit: the matrix is rounded to float32 first, because that is what a served row holds, and everything after
is float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from penstock.features.complaints import Grammar, complaint, meant
from penstock.features.functions import Function
from penstock.features.transforms import Step, Transforms, TransformSpec, clock, first_of
from penstock.training.recipes import KINDS, STEP, AnyRecipe, Column, FitError, Learnt, StepRecipe

SHAPES = {"columns": "a list of names", "by": "a list of names", "less": "a list of names"}


def fit(
    recipe: Sequence[Mapping[str, Any] | StepRecipe | Step],
    matrix: ArrayLike,
    columns: Sequence[str],
    *,
    functions: Mapping[str, Function] | None = None,
    now: ArrayLike | None = None,
) -> Transforms:
    """Fit the steps of `recipe`, in order.

    Args:
        recipe: steps such as ``{"op": "impute", "columns": ["age"], "strategy": "median"}``; without `columns`, all
            that are there.
        matrix: (n, k) numbers, at least one row; NaN is missing. Rounded to float32 first, as served rows are.
        columns: the k names.
        functions: those that the steps call, by name.
        now: where time is counted since the clock: milliseconds since 1970, one or (n,); the present if left out.

    Raises:
        FitError: a recipe that cannot be read, an unknown column, or a column with infinite or without any values.
        TransformError: a step that cannot be run: a name that is taken, a function that is not registered or failed.
    """
    before = names = tuple(columns)
    x, present = as_served(matrix, names), clock(now)
    steps: list[TransformSpec] = []
    for number, step in enumerate(parse(recipe), start=1):
        done = fit_step(step, number, x, names)
        one = Transforms(steps=(done,))
        compiled = one.compile(names, functions)
        out = np.empty((len(x), compiled.n_outputs))
        compiled.run_exact(x, out, present)
        x, names = out, one.output_columns(names)
        steps.append(done)
    return Transforms(columns=before, steps=tuple(steps))


def parse(recipe: Any) -> list[AnyRecipe]:
    """The steps of a recipe, plain data or made before, checked; raises `FitError` in one line."""
    if not isinstance(recipe, list | tuple):
        raise FitError("a recipe of transforms is a list of steps, each {op: ..., columns: [...]}")
    return [_parse_step(step, number) for number, step in enumerate(recipe, start=1)]


def _parse_step(step: Any, number: int) -> AnyRecipe:
    if isinstance(step, StepRecipe | Step):
        return STEP.validate_python(step)
    if not isinstance(step, Mapping) or not isinstance(step.get("op"), str):
        raise FitError(f"step {number} of the transforms is {{op: ..., columns: [...]}}, not {repr(step)[:60]}")
    kind = KINDS.get(step["op"])
    if kind is None:
        asked = meant(step["op"], list(KINDS)) or f"it is one of {', '.join(KINDS)}"
        raise FitError(f"step {number} of the transforms: there is no op {step['op']!r}: {asked}")
    try:
        return STEP.validate_python(dict(step))
    except ValidationError as error:
        told = complaint(error, step, Grammar({(): kind}, lists={}, shapes=SHAPES, tags=1))
        raise FitError(f"step {number} of the transforms ({step['op']}): {told}") from error


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
    """One step, fitted to its columns."""
    chosen = step.needs if isinstance(step, Step) else names if step.columns is None else step.columns
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise FitError(
            f"step {number} ({step.op}) names {unknown[0]!r}, which is not among {', '.join(map(repr, names))}"
        )
    if isinstance(step, Step):
        return step
    try:
        columns = [x[:, names.index(name)] for name in chosen]
        if not step.with_missing:
            columns = [present(x, name, step, number) for x, name in zip(columns, chosen, strict=True)]
        return step.fit(chosen, columns)
    except ValidationError as error:
        raise FitError(f"step {number} ({step.op}) cannot be fitted: {first_of(error)}") from error


def present(column: Column, name: str, step: Learnt, number: int) -> Column:
    """The values that are not missing; all that a fit looks at."""
    values = column[~np.isnan(column)]
    if np.isinf(values).any():
        raise FitError(f"step {number} ({step.op}) cannot be fitted: column {name!r} has infinite values; remove them")
    if len(values) == 0 and not (step.op == "impute" and step.value is not None):
        raise FitError(f"step {number} ({step.op}) cannot be fitted: column {name!r} has no values; leave it out")
    return values
