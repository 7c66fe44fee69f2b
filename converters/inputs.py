"""Which tensors a model takes, decided once from the estimator and a sample, and the same rows in both worlds.

Two forms exist. A **matrix**: one tensor `input`, FP32 [n, k], for estimators fitted on plain numbers; its columns are
named in the signature, so that callers and feature views can send them by name. **Columns**: one tensor [n, 1] for
each column, for pipelines that choose columns by name or read text; FP32, INT64 or BYTES by the sample's type.

Rows are compared *as served*: what the caller sends is float32, so the source model is asked about the same numbers,
rounded to float32 but held in the sample's own type. Comparing with unrounded rows would test the rounding of the
data instead of the conversion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from penstock.converters.errors import BadSample

Kind = Literal["matrix", "columns"]
Feed = dict[str, NDArray[Any]]

MATRIX_INPUT = "input"


@dataclass(frozen=True)
class Inputs:
    """The form in which a model takes its rows.

    Attributes:
        kind: one matrix, or one tensor a column.
        columns: names in the model's order.
        datatypes: of each column: FP32, INT64 or BYTES.
        named: the estimator was fitted on a frame and checks names.
        single: the sample held float32 only, so the source model is asked in float32 as well.
    """

    kind: Kind
    columns: tuple[str, ...]
    datatypes: tuple[str, ...]
    named: bool
    single: bool

    def feed(self, frame: pd.DataFrame) -> Feed:
        """The rows as the graph's input tensors."""
        if self.kind == "matrix":
            return {MATRIX_INPUT: matrix_of(frame, self.columns)}
        return {
            name: _column(frame[name], datatype).reshape(-1, 1)
            for name, datatype in zip(self.columns, self.datatypes, strict=True)
        }

    def served(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows with every float rounded to float32, in the types that the source model was given."""
        return pd.DataFrame(
            {
                name: self._rounded(frame[name], datatype)
                for name, datatype in zip(self.columns, self.datatypes, strict=True)
            },
            index=frame.index,
        )

    def _rounded(self, column: pd.Series[Any], datatype: str) -> Any:
        if datatype == "BYTES" or (self.kind == "columns" and datatype == "INT64"):
            return column
        single = column.to_numpy(dtype=np.float32, na_value=np.nan)
        return single if self.single else single.astype(np.float64)

    def notes(self, frame: pd.DataFrame) -> list[str]:
        """What the move to float32 costs: whole numbers that it cannot hold."""
        lossy = [
            name
            for name in self.columns
            if self.kind == "matrix"
            and frame[name].dtype.kind in "iu"
            and (frame[name].to_numpy(np.float32).astype(np.float64) != frame[name].to_numpy(np.float64)).any()
        ]
        if not lossy:
            return []
        return [
            f"whole numbers beyond 16,777,216 are rounded to float32, as they will be when served: {', '.join(lossy)}"
        ]

    def source_rows(self, served: pd.DataFrame) -> Any:
        """Served rows as the estimator was fitted: a frame where it knows names, else an array."""
        if self.named or self.kind == "columns":
            return served
        return served.to_numpy()


def inputs_of(estimator: Any, frame: pd.DataFrame) -> Inputs:
    """Decide the form of `estimator`'s inputs from the sample `frame`.

    Raises:
        BadSample: columns are missing or too many, names are not text, or text has missing values.
    """
    if not frame.columns.is_unique:
        raise BadSample("two columns of the sample have the same name")
    if frame.empty:
        raise BadSample("the sample has no rows")
    columns = _model_columns(estimator, frame)
    datatypes = tuple(_datatype(frame[name]) for name in columns)
    by_name = any(_selects_by_name(part) for part in _parts(estimator))
    kind: Kind = "columns" if by_name or "BYTES" in datatypes else "matrix"
    return Inputs(
        kind=kind,
        columns=columns,
        datatypes=datatypes if kind == "columns" else ("FP32",) * len(columns),
        named=hasattr(estimator, "feature_names_in_"),
        single=all(frame[name].dtype == np.float32 for name in columns),
    )


def matrix_of(frame: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.float32]:
    """Columns of a frame as one C-contiguous float32 [n, k] matrix; missing values are NaN."""
    try:
        matrix = frame[list(columns)].to_numpy(dtype=np.float32, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise BadSample(f"the sample's columns are not all numbers: {error}") from error
    return np.ascontiguousarray(matrix)


def as_frame(rows: Any) -> pd.DataFrame:
    """Rows of a pandas frame, an Arrow table or a 2-D array as a frame; columns of an array are x0, x1, ..."""
    if isinstance(rows, pd.DataFrame):
        return rows
    if hasattr(rows, "to_pandas"):
        table: pd.DataFrame = rows.to_pandas()
        return table
    matrix = np.asarray(rows)
    if matrix.ndim != 2:
        raise BadSample(f"the sample has {matrix.ndim} dimensions: expected rows and columns")
    return pd.DataFrame(matrix, columns=[f"x{j}" for j in range(matrix.shape[1])])


def _model_columns(estimator: Any, frame: pd.DataFrame) -> tuple[str, ...]:
    """The sample's columns that the model reads, in the model's order."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is not None:
        missing = [str(name) for name in names if name not in frame.columns]
        if missing:
            raise BadSample(f"the sample lacks these columns of the model: {', '.join(missing)}")
        return tuple(str(name) for name in names)
    count = getattr(estimator, "n_features_in_", frame.shape[1])
    if count != frame.shape[1]:
        raise BadSample(
            f"the model takes {count} columns and the sample has {frame.shape[1]}; is the label among them? (--label)"
        )
    if not all(isinstance(name, str) for name in frame.columns):
        raise BadSample("the sample's columns need names: a header line, or text as column names")
    return tuple(frame.columns)


def _datatype(column: pd.Series[Any]) -> str:
    """The tensor datatype in which a column is sent."""
    dtype = column.dtype
    if pd.api.types.is_bool_dtype(dtype) or pd.api.types.is_integer_dtype(dtype):
        return "INT64" if not column.hasnans else "FP32"
    if pd.api.types.is_float_dtype(dtype):
        return "FP32"
    if isinstance(dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(dtype) or dtype.kind == "O":
        if column.isna().any():
            raise BadSample(f"text column {column.name!r} has missing values, which ONNX cannot hold: fill them first")
        return "BYTES"
    raise BadSample(f"column {column.name!r} has type {dtype}: expected numbers or text")


def _column(column: pd.Series[Any], datatype: str) -> NDArray[Any]:
    if datatype == "BYTES":
        return column.astype(str).to_numpy(dtype=object)
    if datatype == "INT64":
        return column.to_numpy(dtype=np.int64)
    return column.to_numpy(dtype=np.float32, na_value=np.nan)


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator and every estimator inside it, as fitted or as configured."""
    yield estimator
    if hasattr(estimator, "get_params"):
        yield from (part for part in estimator.get_params(deep=True).values() if hasattr(part, "get_params"))


def _selects_by_name(part: Any) -> bool:
    """Whether `part` is a ColumnTransformer that picks columns by their names."""
    transformers: Any = getattr(part, "transformers_", None) or getattr(part, "transformers", None) or ()
    for _name, _transformer, columns in transformers:
        chosen = [columns] if isinstance(columns, str) else columns
        if callable(chosen) or any(isinstance(one, str) for one in np.atleast_1d(np.asarray(chosen, dtype=object))):
            return True
    return False
