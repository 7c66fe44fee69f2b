"""Which tensors a model takes, decided once from the estimator and a sample, and the same rows in both worlds.

Three forms exist. A **matrix**: one tensor `input`, FP32 [n, k], for estimators fitted on plain numbers; its columns
are named in the signature, so that callers and feature views can send them by name. **Columns**: one tensor [n, 1] for
each column, for pipelines that choose columns by name or read text; FP32, INT64 or BYTES by the sample's type.
**Joined**: such a pipeline behind a matrix, for its columns come from feature views. Whole numbers are FP32 as all
others, and a text is the number of its word in a category's vocabulary; the graph begins by taking the matrix apart and
putting words in place of their numbers (`graph.join_inputs`). So serving has nothing to do with texts.

Rows are compared *as served*: what the caller sends is float32, so the source model is asked about the same numbers,
rounded to float32 but held in the sample's own type. Comparing with unrounded rows would test the rounding of the
data instead of the conversion.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from penstock.converters.errors import BadSample
from penstock.features.reading import filled, numbers_of, words_of
from penstock.features.schema import Column

Kind = Literal["matrix", "columns", "joined"]
Feed = dict[str, NDArray[Any]]

MATRIX_INPUT = "input"


@dataclass(frozen=True)
class Inputs:
    """The form in which a model takes its rows.

    Attributes:
        kind: one matrix, one tensor a column, or one matrix in front of these.
        columns: names in the model's order.
        datatypes: of each column: FP32, INT64 or BYTES.
        named: the estimator was fitted on a frame and checks names.
        single: the sample held float32 only, so the source model is asked in float32 as well.
        categories: of the form `joined`, for each BYTES column the category that says which number a word has.
    """

    kind: Kind
    columns: tuple[str, ...]
    datatypes: tuple[str, ...]
    named: bool
    single: bool
    categories: Mapping[str, Column] = field(default_factory=dict)

    @property
    def is_matrix(self) -> bool:
        """Whether the graph takes one matrix of all columns."""
        return self.kind != "columns"

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns that are float32 when they are sent."""
        pairs = zip(self.columns, self.datatypes, strict=True)
        return self.columns if self.is_matrix else tuple(name for name, datatype in pairs if datatype == "FP32")

    def matrix(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        """`numbers` as float32 [n, k], words as theirs."""
        numbered = {name: pd.Series(self._numbered(frame, name), frame.index) for name in self.categories}
        return matrix_of(frame.assign(**numbered) if numbered else frame, self.numbers)

    def _numbered(self, frame: pd.DataFrame, name: str) -> NDArray[np.float32]:
        category = self.categories[name]
        words = np.ma.MaskedArray(frame[name].astype(str).to_numpy(dtype=object), False)
        return filled(category, numbers_of(category, words)[:, 0])

    def feed(self, frame: pd.DataFrame) -> Feed:
        """The rows as the graph's input tensors."""
        if self.is_matrix:
            return {MATRIX_INPUT: self.matrix(frame)}
        return {
            name: _column(frame[name], datatype).reshape(-1, 1)
            for name, datatype in zip(self.columns, self.datatypes, strict=True)
        }

    def served(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows with every float rounded to float32, in the types that the source model was given.

        A word that its category does not have is what it will be when served: the default, or the empty text.
        """
        told = {
            name: self._rounded(frame[name], datatype)
            for name, datatype in zip(self.columns, self.datatypes, strict=True)
        }
        told |= {name: words_of(category, self._numbered(frame, name)) for name, category in self.categories.items()}
        return pd.DataFrame(told, index=frame.index)

    def _rounded(self, column: pd.Series[Any], datatype: str) -> Any:
        if datatype in ("BYTES", "INT64"):
            return column
        single = column.to_numpy(dtype=np.float32, na_value=np.nan)
        return single if self.single else single.astype(np.float64)

    def notes(self, frame: pd.DataFrame) -> list[str]:
        """What being served costs: whole numbers that float32 cannot hold, and words that a category does not have."""
        lossy = [
            name
            for name in self.columns
            if self.is_matrix
            and frame[name].dtype.kind in "iu"
            and (frame[name].to_numpy(np.float32).astype(np.float64) != frame[name].to_numpy(np.float64)).any()
        ]
        told = []
        if lossy:
            what = "whole numbers beyond 16,777,216 are rounded to float32, as they will be when served"
            told.append(f"{what}: {', '.join(lossy)}")
        for name, category in self.categories.items():
            if unknown := int((~frame[name].isin([*category.vocabulary, ""])).sum()):
                told.append(
                    f"{unknown} words of column {name!r} are not in its vocabulary, as they will be when served"
                )
        return told

    def source_rows(self, served: pd.DataFrame) -> Any:
        """Served rows as the estimator was fitted: a frame where it knows names, else an array."""
        if self.named or self.kind != "matrix":
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
