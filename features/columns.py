"""Columns on their way into a store: each array brought to its declared dtype without losing anything in silence.

NaN, None, and a masked element of a `numpy.ma` array, is null. A value that the dtype cannot hold (0.5 in an int64, 3e9
in an int32, 1e300 in a float32, 2 in a bool, a text longer than `max_bytes`, a vector of another size) is refused with
its place. float64 to float32 rounds, as everywhere. Integers stay whole: a float from 2**53 on (float32: 2**24) may be
one that was rounded on its way, so integer columns refuse it, and mixed values are taken each for itself. Categories
are given as words; one that the vocabulary does not have is unknown (-1). Cost: 0.2 µs a word or text, less for
numbers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penstock.features.entities import MAX_ENTITY
from penstock.features.errors import InvalidData
from penstock.features.schema import Column, FeatureView

AHEAD_MS = 86_400_000  # an event later than this from now is a mistake (of units, mostly), and would win for years
UNKNOWN = -1  # index of a word that the vocabulary does not have

Values = NDArray[Any] | list[bytes]
Nulls = NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True)
class Table:
    """Checked values of n entities, as `RowLayout.pack` takes them; `nulls[j]` is uint8 [n] (1 = null) or None.

    Column j is [n] of the view's dtype; a category int32 indices, a vector float32 [n, size], a string a list of bytes.
    """

    entities: Sequence[bytes]
    values: list[Values]
    nulls: list[Nulls]
    event_times: NDArray[np.int64]


def now_ms() -> int:
    """The present, ms since 1970."""
    return time.time_ns() // 1_000_000


def check_table(
    view: FeatureView,
    entities: Sequence[bytes],
    columns: Mapping[str, NDArray[Any]],
    event_times: NDArray[np.int64] | None,
) -> Table:
    """Everything `put` promises to check; raises `InvalidData` naming column and row."""
    rows = len(entities)
    for i, entity in enumerate(entities):
        if not 0 < len(entity) <= MAX_ENTITY:
            raise InvalidData(f"row {i}: an entity id of {len(entity)} bytes; it has 1 to {MAX_ENTITY}")
    different = set(columns) ^ set(view.column_names)
    if different:
        name = min(different)
        raise InvalidData(f"column {name!r} is {'missing' if name in view.column_names else 'not in the view'}")
    fitted = [fit(column, columns[column.name], rows) for column in view.columns]
    if event_times is None:
        event_times = np.full(rows, now_ms(), np.int64)
    if event_times.shape != (rows,):
        raise InvalidData(f"event times are {event_times.shape}; there are {rows} entities")
    times = np.ascontiguousarray(event_times, np.int64)
    return Table(entities, [values for values, _ in fitted], [nulls for _, nulls in fitted], times)


def as_array(values: ArrayLike) -> NDArray[Any]:
    """Values as one array, a masked one as it is; lists of text, or of what does not fit together, as objects."""
    if isinstance(values, np.ndarray):
        return values
    if not isinstance(getattr(values, "dtype", np.dtype(object)), np.dtype):
        return np.asarray(values, object)  # of pandas or polars, whose integers with nulls numpy would have as floats
    kinds = set(map(type, values)) if isinstance(values, list | tuple) else set()
    if any(issubclass(kind, str | bytes) for kind in kinds):
        return _objects(values)  # type: ignore[arg-type]  # numpy's own texts lose zero bytes at their end
    if len(kinds) > 1 and any(issubclass(kind, int | np.integer) for kind in kinds):
        return _objects(values)  # type: ignore[arg-type]  # one array of floats and integers would round these
    try:
        return np.asarray(values)
    except ValueError:
        return _objects(values)  # type: ignore[arg-type]  # what numpy complains about is a sequence


def _objects(values: Sequence[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), object)
    for i, value in enumerate(values):
        array[i] = value
    return array


def as_times(times: ArrayLike) -> NDArray[np.int64]:
    """Times as ms since 1970 (UTC), from datetimes or such numbers."""
    array = np.asarray(times)
    if array.dtype.kind == "M":
        if np.isnat(array).any():
            raise InvalidData(f"row {int(np.isnat(array).argmax())}: an event time is missing")
        array = array.astype("datetime64[ms]").astype(np.int64)
    if array.dtype.kind not in "iu" and array.size:
        raise InvalidData(f"event times are {array.dtype}; they are datetime64, or integers in ms since 1970")
    ahead = array > now_ms() + AHEAD_MS
    if ahead.any():
        i = int(ahead.argmax())
        raise InvalidData(f"row {i}: the event time {array.flat[i]} is more than a day ahead; it is in ms since 1970")
    return array.astype(np.int64)


def fit(column: Column, array: NDArray[Any], rows: int, *, first_row: int = 0) -> tuple[Values, Nulls]:
    """One column as it is stored, and which of its values are null; messages count rows from `first_row`."""
    data = np.ma.getdata(array)
    vectors = column.dtype == "vector" and data.ndim == 2
    if data.shape != ((rows, column.size) if vectors else (rows,)):
        raise InvalidData(f"column {column.name!r} has shape {data.shape}; there are {rows} entities")
    null = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else np.zeros_like(data, bool)
    ways = {"category": _fit_words, "string": _fit_texts, "vector": _fit_vectors}
    values, null = ways.get(column.dtype, _fit_numbers)(column, data, null, first_row)
    return values, null.astype(np.uint8) if null.any() else None


Mask = NDArray[np.bool_]


def _fit_numbers(column: Column, data: NDArray[Any], null: Mask, first_row: int) -> tuple[Values, Mask]:
    if data.dtype == object:
        null = null | np.array([_is_null(value) for value in data], bool)
        data = _from_objects(column, data, null, first_row)
    if data.dtype.kind not in "biuf":
        raise InvalidData(f"column {column.name!r} is {data.dtype}; it must be numeric to become {column.dtype}")
    if data.dtype.kind == "f":
        null = null | np.isnan(data)
    data = np.where(null, data.dtype.type(0), data) if null.any() else data
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.ascontiguousarray(data.astype(column.dtype))
        lost = lost_in_cast(data, values)
        unsure = _may_be_rounded(data) if values.dtype.kind == "i" else np.zeros_like(lost)
    if (wrong := lost | unsure).any():
        i = int(wrong.argmax())
        raise _no_fit(column, first_row + i, data[i], rounded=not lost[i])
    return values, null


def _from_objects(column: Column, data: NDArray[np.object_], null: Mask, first_row: int) -> NDArray[Any]:
    """Objects as one array, 0 where null. Each integer is taken for itself, lest it is made a float with the others."""
    given = [0 if n else value for value, n in zip(data.tolist(), null, strict=True)]
    if "float" in column.dtype:
        return np.array(given)
    for i, value in enumerate(given):
        if isinstance(value, float | np.floating | Decimal):
            if not (-(2**63) <= value < 2**63 and value == int(value)):
                raise _no_fit(column, first_row + i, value)
            if not isinstance(value, Decimal) and _may_be_rounded(np.asarray(value)):
                raise _no_fit(column, first_row + i, value, rounded=True)
            given[i] = int(value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise _no_fit(column, first_row + i, value)
    return np.array(given)


def _may_be_rounded(data: NDArray[Any]) -> Mask:
    """Where a float is so large that not every integer is one: whether it is what was meant, nobody can tell."""
    if data.dtype.kind != "f":
        return np.zeros(data.shape, bool)
    return np.asarray(np.abs(data) >= 2.0 ** (np.finfo(data.dtype).nmant + 1))


def _no_fit(column: Column, row: int, value: Any, *, rounded: bool = False) -> InvalidData:
    why = f"does not fit {column.dtype}"
    if rounded:
        why = f"is a float so large that it may have been rounded; {column.dtype} takes such numbers as integers only"
    return InvalidData(f"column {column.name!r}, row {row}: {value} {why}")


def _fit_vectors(column: Column, data: NDArray[Any], null: Mask, first_row: int) -> tuple[Values, Mask]:
    """Vectors in a matrix, or each as a list or array of its own; one without a single number is null."""
    size = column.size or 0
    if data.dtype == object:
        data = _numbers(column, data, null, first_row)
    if data.dtype.kind not in "biuf" or data.ndim == 1:
        raise InvalidData(f"column {column.name!r} is {data.dtype} {data.shape}; it holds vectors of {size} numbers")
    if null.any():
        data = np.where(null if null.ndim == 2 else null[:, None], np.nan, data)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(data.astype(np.float32))
    lost = (np.isinf(values) & np.isfinite(data.astype(np.float64))).any(axis=1)
    if lost.any():
        i = int(lost.argmax())
        raise InvalidData(f"column {column.name!r}, row {first_row + i}: a number does not fit float32")
    return values, np.asarray(np.isnan(values).all(axis=1))


def _numbers(column: Column, data: NDArray[Any], null: Mask, first_row: int) -> NDArray[np.float64]:
    """Vectors that came as objects in one matrix."""
    size = column.size or 0
    nothing = np.full(size, np.nan)
    rows = [nothing if np.all(n) or _is_null(value) else value for value, n in zip(data, null, strict=True)]
    for i, row in enumerate(rows):
        if _shape(row) != (size,):
            raise InvalidData(f"column {column.name!r}, row {first_row + i}: not a vector of {size} numbers")
    try:
        return np.array(rows, np.float64).reshape(-1, size)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidData(f"column {column.name!r} holds vectors of what is no number") from error


def _shape(value: Any) -> Any:
    """The shape of an array or a list; None for lists in a list that are not of one length."""
    try:
        return np.shape(value)
    except ValueError:
        return None


def _fit_texts(column: Column, data: NDArray[Any], null: Mask, first_row: int) -> tuple[Values, Mask]:
    texts = _texts(column, data, null, first_row)
    limit = column.max_bytes or 0
    encoded = [b"" if text is None else text.encode() for text in texts]
    for i, text in enumerate(encoded):
        if len(text) > limit:
            found = f"{len(text)} bytes; it has at most {limit}"
            raise InvalidData(f"column {column.name!r}, row {first_row + i}: a text of {found}")
    return encoded, np.array([text is None for text in texts], bool)


def _fit_words(column: Column, data: NDArray[Any], null: Mask, first_row: int) -> tuple[Values, Mask]:
    index: dict[str | None, int] = {word: i for i, word in enumerate(column.vocabulary)}
    texts = _texts(column, data, null, first_row)
    indices = np.array([index.get(text, UNKNOWN) for text in texts], np.int32)
    return indices, np.array([text is None for text in texts], bool)


def unknown_words(column: Column, values: Values, nulls: Nulls) -> int:
    """How many words of a category, as `fit` gives them, its vocabulary does not have; 0 for other columns."""
    if column.dtype != "category":
        return 0
    unknown = np.asarray(values) == UNKNOWN
    return int(np.count_nonzero(unknown if nulls is None else unknown & (nulls == 0)))


def _texts(column: Column, data: NDArray[Any], null: Mask, first_row: int) -> list[str | None]:
    """Each value as text, None where it is null."""
    if data.dtype.kind not in "OUST" and len(data):
        raise InvalidData(f"column {column.name!r} is {data.dtype}; a {column.dtype} is given as text")
    texts: list[str | None] = []
    for i, (value, masked) in enumerate(zip(data.tolist(), null, strict=True)):
        try:
            texts.append(None if masked or _is_null(value) else _text(value))
        except (TypeError, UnicodeError) as error:
            shown = repr(value)[:100]
            raise InvalidData(f"column {column.name!r}, row {first_row + i}: {shown} is not text") from error
    return texts


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        value.encode()
        return value
    raise TypeError


def _is_null(value: object) -> bool:
    """None, NaN, and the missing values of pandas."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating | Decimal) and bool(value != value)  # noqa: PLR0124 -- NaN


def lost_in_cast(data: NDArray[Any], values: NDArray[Any]) -> Mask:
    """Where the cast of `data` to `values` changed a value by more than rounding to a float."""
    if values.dtype.kind == "f":
        return np.asarray(np.isinf(values) & np.isfinite(data.astype(np.float64)))
    lost = np.asarray(values.astype(data.dtype) != data)
    if values.dtype.kind == "i" and data.dtype.kind == "f":  # a value past the end may saturate there and back
        limit = 2.0 ** (8 * values.dtype.itemsize - 1)
        lost |= (data >= limit) | (data < -limit)
    elif values.dtype.kind == "i":  # and an integer may wrap
        lost |= (values < 0) != (data < 0)
    return lost


def exact_numbers(texts: Sequence[str | bytes | None]) -> NDArray[np.object_]:
    """Numbers of an integer column that are not all written as integers (one is `1.0` or `1e3`), as `fit` takes them.

    Each is exact, an int or a Decimal; None where there is none, or NaN. Raises ValueError.
    """
    return _objects([exact_number(text) if text else None for text in texts])


def exact_number(text: str | bytes) -> int | Decimal | None:
    """The number that is written in decimal; None for NaN. Raises ValueError."""
    try:
        return int(text)
    except ValueError:
        number = float(text)  # raises where there is none
        if number != number:  # noqa: PLR0124 -- NaN
            return None
        try:
            return Decimal(text if isinstance(text, str) else text.decode())
        except InvalidOperation:  # an exponent of twenty digits
            raise ValueError(f"{text[:60]!r} is no number that an integer could be") from None


def to_text(values: Values) -> list[bytes]:
    """Each number as the shortest decimal that reads back to it in its dtype (at most 9 or 17 digits)."""
    if isinstance(values, list):
        return values
    if values.dtype.kind == "f":
        form = b"%.9g" if values.dtype == np.float32 else b"%.17g"
        return [form % value for value in values.tolist()]
    return [b"%d" % value for value in values.tolist()]
