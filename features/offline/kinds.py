"""Each dtype of a column as Arrow keeps it in a file, and as numbers for a matrix: the two ends of a value's way.

A category is kept as its word, so that a vocabulary that grows later reads older rows right; a word that it does not
have reads as online: missing where the column has a default, else -1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.arrow import to_array, to_texts
from penstock.features.columns import UNKNOWN, Nulls, Values, fit
from penstock.features.errors import InvalidData
from penstock.features.offline.tables import arrow
from penstock.features.reading import as_now
from penstock.features.schema import PLAIN, Column


def kind_of(column: Column) -> Any:
    """The Arrow type of a column in a file."""
    pa = arrow()
    if column.dtype in ("category", "string"):
        return pa.string()
    number = pa.from_numpy_dtype(np.dtype("float32" if column.dtype == "vector" else column.dtype))
    return pa.list_(pa.field("element", number)) if column.dtype == "vector" else number


def to_arrow(column: Column, values: Values, nulls: Nulls, given: NDArray[Any]) -> Any:
    """Values as `fit` gives them (and were given to it) as an Arrow array of n; nulls are masked."""
    pa = arrow()
    if column.dtype == "category":
        return pa.array(given, pa.string(), mask=_mask(given), from_pandas=True)
    mask = None if nulls is None else nulls.astype(bool)
    if column.dtype == "string":
        return pa.array(values, pa.binary(), mask=mask).cast(pa.string())
    if column.dtype == "vector":
        assert not isinstance(values, list)
        fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), column.size)
        return pa.array(fixed, mask=mask).cast(kind_of(column)) if mask is None else _masked(fixed, mask, column)
    return pa.array(values, mask=mask)


def _mask(given: NDArray[Any]) -> NDArray[np.bool_] | None:
    return np.ma.getmaskarray(given) if isinstance(given, np.ma.MaskedArray) else None


def _masked(fixed: Any, mask: NDArray[np.bool_], column: Column) -> Any:
    import pyarrow.compute as pc

    return pc.if_else(arrow().array(mask), None, fixed).cast(kind_of(column))


def to_numbers(column: Column, array: Any) -> NDArray[np.float32]:
    """float32 [n, width]: what a matrix has of a column of a file, NaN for null, as `RowLayout.unpack` gives it.

    Raises:
        InvalidData: vectors of another size.
    """
    n = len(array)
    if column.dtype == "vector":
        check_sizes(column, array)
        numbers = np.full((n, column.width), np.nan, np.float32)
        there = array.is_valid().to_numpy(zero_copy_only=False)
        numbers[there] = array.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.width)
        return numbers
    if column.dtype == "category":
        values, nulls = fit(column, to_texts(array, column.name, column.dtype), n)
        assert not isinstance(values, list)
        if column.default is not None:
            values = np.where(values == UNKNOWN, np.float32(np.nan), values)
    else:
        nulls = array.is_null().to_numpy(zero_copy_only=False)
        if arrow().types.is_boolean(array.type):
            array = array.cast("uint8")
        values = array.fill_null(0).to_numpy(zero_copy_only=False)
    assert not isinstance(values, list)
    with np.errstate(over="ignore"):  # 1e300 is inf, as it is online
        numbers = values.astype(np.float32)
    if nulls is not None:
        numbers[nulls.astype(bool)] = np.nan
    return numbers.reshape(n, 1)


def as_declared(column: Column, arrays: Sequence[Any], n: int) -> NDArray[Any]:
    """Values of n rows of a column, from each of the forms in which files have it, as `fit` takes them.

    Null is what no form has, and what the column cannot hold as it is declared now.
    """
    if column.dtype in PLAIN:
        numbers, null = np.zeros(n, column.dtype), np.ones(n, bool)
        for array in arrays:
            values = as_now(column, np.ma.asarray(to_array(array, column)))
            there = ~np.ma.getmaskarray(values)
            numbers[there], null[there] = values.data[there], False
        return np.ma.MaskedArray(numbers, null)
    if not arrays:
        return np.full(n, None, object)
    if column.dtype == "vector":
        check_sizes(column, arrays[0])
    given = to_array(arrays[0], column)
    if column.dtype == "string":
        given[[text is not None and len(text.encode()) > (column.max_bytes or 0) for text in given]] = None
    return given


def check_sizes(column: Column, array: Any) -> None:
    """`InvalidData` where a vector has another size than the column."""
    import pyarrow.compute as pc

    other = array.filter(pc.not_equal(pc.list_value_length(array), column.size))
    if len(other):
        raise InvalidData(
            f"column {column.name!r}: the history has vectors of {len(other[0])} numbers, and the view says "
            f"{column.size}; write its history again under a view of another name"
        )
