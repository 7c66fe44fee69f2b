"""Fitting from files: a recipe in YAML or JSON and a table become `transforms.json`.

The table is read as ingestion reads tables, so text that is no number is refused with its row, and an empty field is
missing. It is held in memory as float32, 4 bytes a value, as a served row is.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.arrow import to_numbers, to_times
from penstock.features.definitions import read_yaml
from penstock.features.errors import InvalidData
from penstock.features.functions import Function
from penstock.features.tables import column_names, read_batches, require_columns
from penstock.features.transforms import Transforms
from penstock.training.recipes import AnyRecipe, FitError
from penstock.training.transforms import fit, parse

BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Fitted:
    """Transforms, and how many rows they were fitted to."""

    transforms: Transforms
    rows: int


def read_recipe(path: Path) -> list[AnyRecipe]:
    """The steps in a YAML or JSON file, a list of `{op: ..., columns: [...]}`; raises `FitError` in one line."""
    try:
        data = read_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise FitError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FitError(f"{path}: not YAML: {error}") from error
    try:
        steps = parse(data)
    except FitError as error:
        raise FitError(f"{path}: {error}") from error
    if not steps:
        raise FitError(f"{path}: a recipe without steps")
    return steps


def fit_table(
    recipe: Sequence[AnyRecipe],
    table: Path,
    *,
    columns: Sequence[str] = (),
    time: str = "",
    functions: Mapping[str, Function] | None = None,
) -> Fitted:
    """Fit the steps of a recipe to the rows of a table.

    Args:
        recipe: the steps.
        table: a .parquet, .csv or Arrow file, or a folder or pattern of Parquet.
        columns: those that callers will send, or a view have, in order; all but `time` where none are named.
        time: column with the time of each row, for steps that count from now; the present where there is none.
        functions: those that the steps call, by name.

    Raises:
        InvalidData: the table cannot be read, a column holds what is not a number or is named twice.
        FitError, TransformError: as `fit`.
    """
    there = column_names(table)
    names = list(columns) or [name for name in there if name != time]
    require_columns(table, [*names, *([time] if time else [])], there)
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidData(f"column {twice!r} is named twice")
    try:
        matrix, now = _read(table, names, time)
    except InvalidData as error:
        hint = "" if columns else "; name the columns that callers will send (--columns)"
        raise InvalidData(f"{table}: {error}{hint}") from error
    fitted = fit(recipe, matrix, names, functions=functions, now=now)
    return Fitted(fitted, len(matrix))


def _read(table: Path, names: list[str], time: str) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    parts, times, first = [np.empty((0, len(names)), np.float32)], [np.empty(0, np.int64)], 1
    wanted = [*names, time] if time and time not in names else names
    for batch, _ in read_batches(table, wanted, BATCH_ROWS):
        numbers = [_numbers(batch.column(name), name, first) for name in names]
        parts.append(np.stack(numbers, axis=1))
        if time:
            times.append(to_times(batch.column(time), time, first))
        first += batch.num_rows
    return np.concatenate(parts), np.concatenate(times) if time else None


def _numbers(array: Any, name: str, first_row: int) -> NDArray[np.float32]:
    """One column as a served row has it, NaN where it is null."""
    values = to_numbers(array, name, "float64", first_row)
    with np.errstate(over="ignore"):
        return np.where(np.ma.getmaskarray(values), np.float32(np.nan), np.ma.getdata(values).astype(np.float32))


def write_transforms(transforms: Transforms, path: Path) -> None:
    """Write `transforms.json`, whole or not at all; raises `FitError` where it cannot be written."""
    staged = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        staged.write_text(transforms.to_json(), "utf-8")
        staged.replace(path)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise FitError(f"{path}: cannot be written: {error.strerror}") from error
