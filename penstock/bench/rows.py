"""Rows to send, as columns by name: made up by the model's metadata, or read from a file.

Made-up rows all differ, since repeated ones flatter trees (the branch predictor learns them), caches and look-ups: a
seeded normal distribution for floats, 0 to 99 for integers, texts of eight hexadecimal digits.

Files: `.npz` with an array for each input; `.json` in perf_analyzer's form, {"data": [{"INPUT": [...]}, ...]}; `.csv`
and `.parquet` with a column for each input, or for each column of the model's matrix.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.bench.target import BenchFailed

Columns = dict[str, npt.NDArray[Any]]


def made_up(datatype: str, shape: tuple[int, ...], random: np.random.Generator) -> npt.NDArray[Any]:
    """An array to be sent as `datatype`."""
    if datatype == "BYTES":
        texts = np.array([f"{number:08x}" for number in random.integers(0, 2**32, int(np.prod(shape)))], object)
        return texts.reshape(shape)
    if datatype == "BOOL":
        return random.integers(0, 2, shape).astype(np.bool_)
    if datatype.startswith(("INT", "UINT")):
        return random.integers(0, 100, shape)
    return random.standard_normal(shape, dtype=np.float32)


def read(path: Path) -> Columns:
    """The arrays of a file, each with a row for each of its rows; raises BenchFailed."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BenchFailed(f"{path} is none of {', '.join(_READERS)}")
    try:
        columns = reader(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchFailed(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from None
    sizes = {len(column) for column in columns.values() if column.ndim}
    if len(sizes) != 1 or 0 in sizes:
        raise BenchFailed(f"{path} must hold columns that all have the same number of rows, and at least one row")
    return columns


def read_ids(path: Path) -> list[str]:
    """Entity ids, one on each line; raises BenchFailed."""
    try:
        ids = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise BenchFailed(f"{path} cannot be read: {error}") from None
    if not ids:
        raise BenchFailed(f"{path} holds no ids; put one on each line")
    return ids


def _read_npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: np.atleast_1d(array) for name, array in arrays.items()}


def _read_json(path: Path) -> Columns:
    """perf_analyzer's input data: a list of rows, each a value or {"content", "shape"} for each input."""
    data: list[Mapping[str, Any]] = json.loads(path.read_text())["data"]
    contents = {name: [_content(row[name]) for row in data] for name in data[0]}
    return {name: _array(values) for name, values in contents.items()}


def _content(value: Any) -> Any:
    if isinstance(value, dict):
        if "b64" in value:
            raise ValueError("base64 content is not taken; use .npz")
        return np.array(value["content"]).reshape(value.get("shape", -1)).tolist()
    return value


def _array(values: list[Any]) -> npt.NDArray[Any]:
    array = np.array(values)
    return array.astype(object) if array.dtype.kind == "U" else array


def _read_csv(path: Path) -> Columns:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    return {name: _column([row[name] for row in rows]) for name in rows[0]} if rows else {}


def _column(texts: list[str]) -> npt.NDArray[Any]:
    """Integers if all of them are, else numbers with NaN where nothing stands, else texts."""
    for convert in (int, lambda text: float(text) if text else float("nan")):
        try:
            return np.array([convert(text) for text in texts])
        except ValueError:
            continue
    return np.array(texts, object)


def _read_parquet(path: Path) -> Columns:
    from pyarrow import parquet

    table = parquet.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


_READERS: dict[str, Callable[[Path], Columns]] = {
    ".npz": _read_npz,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
