"""Arrow columns on their way into a store: entity ids, event times, and values as `columns.fit` takes them.

Text is read as what the column is (a CSV file has nothing else): numbers in decimal, vectors as JSON lists. Messages
count rows from `first_row`. Nothing here imports pyarrow before it is used.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.columns import AHEAD_MS, exact_number
from penstock.features.entities import entity_key
from penstock.features.errors import InvalidData
from penstock.features.schema import Column, FeatureView
from penstock.features.tables import load_pyarrow, require_columns

NO_NUMBER = ("NA", "N/A", "n/a", "#N/A", "NULL", "null")
NO_TIME = "is not a time (ms since 1970, or ISO 8601; with a zone in all rows or in none)"
EVENT_TIME = "event_time"  # the column of a table that holds event times, unless the view has one of that name


def to_array(array: Any, column: Column, first_row: int = 0) -> NDArray[Any]:
    """A column as `columns.fit` takes it."""
    if column.dtype == "vector":
        return to_vectors(array, column.name, first_row)
    if column.dtype in ("category", "string"):
        return to_texts(array, column.name, column.dtype)
    return to_numbers(array, column.name, column.dtype, first_row)


def from_table(view: FeatureView, table: Any) -> tuple[list[bytes], dict[str, NDArray[Any]], NDArray[np.int64] | None]:
    """Ids, columns and event times (None without a column `event_time`) of an Arrow table or what can become one."""
    pa = load_pyarrow()
    try:
        whole = pa.table(table)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise InvalidData(f"a {type(table).__name__} is no Arrow table") from error
    wanted = [*view.entity_keys, *view.column_names]
    timed = EVENT_TIME in whole.column_names and EVENT_TIME not in view.column_names
    wanted += [EVENT_TIME] * timed
    require_columns("the table", wanted, whole.column_names)
    arrays = {name: whole.column(name).combine_chunks() for name in wanted}
    entities = to_entities([arrays[key] for key in view.entity_keys], view.entity_keys)
    columns = {column.name: to_array(arrays[column.name], column) for column in view.columns}
    return entities, columns, to_times(arrays[EVENT_TIME], EVENT_TIME, 0) if timed else None


def to_entities(arrays: Sequence[Any], names: Sequence[str], first_row: int = 0) -> list[bytes]:
    """Entity ids as bytes, from one column for each of the entity's keys."""
    parts = [to_ids(array, name, first_row) for array, name in zip(arrays, names, strict=True)]
    return parts[0] if len(parts) == 1 else [entity_key(ids) for ids in zip(*parts, strict=True)]


def to_ids(array: Any, name: str, first_row: int) -> list[bytes]:
    """Entity ids as bytes: integers in decimal, text in UTF-8."""
    pa = load_pyarrow()
    kind = pa.types
    array = decoded(array)
    if array.null_count:
        raise InvalidData(f"column {name!r}, row {first_row + first_true(array.is_null())}: an entity id is missing")
    if kind.is_integer(array.type):
        return [b"%d" % value for value in array.to_pylist()]
    if is_text(array.type) or kind.is_binary(array.type):
        entities: list[bytes] = array.cast(pa.large_binary()).to_pylist()
        if b"" in entities:
            raise InvalidData(f"column {name!r}, row {first_row + entities.index(b'')}: an entity id is empty")
        return entities
    raise InvalidData(f"column {name!r} is {array.type}; entity ids are integers or text")


def decoded(array: Any) -> Any:
    """The values of a dictionary-encoded array, another array as it is."""
    pa = load_pyarrow()
    if not pa.types.is_dictionary(array.type):
        return array
    if pa.types.is_string_view(array.type.value_type):  # polars has them, and Arrow cannot decode them yet
        array = pa.DictionaryArray.from_arrays(array.indices, array.dictionary.cast(pa.large_string()))
    return array.dictionary_decode()


def to_numbers(array: Any, name: str, dtype: str, first_row: int) -> NDArray[Any]:
    """A column as numbers, masked where it is null; `dtype` tells how to read text."""
    pa = load_pyarrow()
    kind = pa.types
    array = decoded(array)
    if is_text(array.type):
        exact = pa.bool_() if dtype == "bool" else pa.int64()
        texts = array = _without_words(array)
        kinds = (pa.float64(),) if "float" in dtype else (exact, pa.float64())
        array = _parse(array, kinds, name, first_row, f"is not {dtype}")
        if kind.is_floating(array.type) and "int" in dtype:
            return _exactly(texts.to_pylist(), name, dtype, first_row)
    if kind.is_decimal(array.type) and "int" in dtype:
        return _from_decimal(array)
    if kind.is_decimal(array.type) or kind.is_null(array.type):
        array = array.cast(pa.float64())
    if kind.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if not (kind.is_integer(array.type) or kind.is_floating(array.type)):
        raise InvalidData(f"column {name!r} is {array.type}, which cannot become {dtype}")
    return _masked(array)


def _exactly(texts: Sequence[str | None], name: str, dtype: str, first_row: int) -> NDArray[np.object_]:
    """Texts that Arrow takes for floats as `exact_numbers`, which may find none there, as in nan(1)."""
    numbers = np.empty(len(texts), object)
    for i, text in enumerate(texts):
        try:
            numbers[i] = exact_number(text) if text else None
        except ValueError as error:
            raise InvalidData(f"column {name!r}, row {first_row + i}: {text!r} is not {dtype}") from error
    return numbers


def _masked(array: Any) -> NDArray[Any]:
    """Numbers of Arrow in their own dtype, masked where they are null: as floats with NaN integers would be rounded."""
    if not array.null_count:
        return np.asarray(array)
    return np.ma.MaskedArray(np.asarray(array.fill_null(0)), np.asarray(array.is_null()))


def _without_words(texts: Any) -> Any:
    """Null where a text says that there is no number; in columns of text the same words are words."""
    import pyarrow.compute as pc

    pa = load_pyarrow()
    if pa.types.is_string_view(texts.type):  # not yet known to the functions below
        texts = texts.cast(pa.large_string())
    none = pc.is_in(texts, value_set=pa.array(NO_NUMBER, texts.type))
    return pc.if_else(none, pa.scalar(None, texts.type), texts)


def _from_decimal(array: Any) -> NDArray[Any]:
    """Integers, which many databases write as decimals; where not all are, each for itself, for `fit` to refuse one."""
    pa = load_pyarrow()
    try:
        return _masked(array.cast(pa.int64()))
    except pa.ArrowInvalid:
        return np.array(array.to_pylist(), object)


def to_texts(array: Any, name: str, dtype: str) -> NDArray[np.object_]:
    """A column as text, None where it is null; integers in decimal."""
    pa = load_pyarrow()
    kind = pa.types
    array = decoded(array)
    if kind.is_integer(array.type) or kind.is_null(array.type):
        array = array.cast(pa.string())
    if not is_text(array.type):
        raise InvalidData(f"column {name!r} is {array.type}, which cannot become {dtype}")
    return np.array(array.to_pylist(), object)


def to_vectors(array: Any, name: str, first_row: int) -> NDArray[np.object_]:
    """A column of lists, or of JSON lists as text; each an array, or None where it is null."""
    kind = load_pyarrow().types
    listed = kind.is_list(array.type) or kind.is_large_list(array.type) or kind.is_fixed_size_list(array.type)
    if not (listed or is_text(array.type) or kind.is_null(array.type)):
        raise InvalidData(f"column {name!r} is {array.type}, which cannot become vector")
    vectors = np.empty(len(array), object)
    for i, value in enumerate(array.to_pylist()):
        try:
            vectors[i] = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError) as error:
            shown = value[:100]
            raise InvalidData(f"column {name!r}, row {first_row + i}: {shown!r} is not a JSON list") from error
    return vectors


def to_times(array: Any, name: str, first_row: int) -> NDArray[np.int64]:
    """Event times in ms since 1970 (UTC)."""
    pa = load_pyarrow()
    kind = pa.types
    if array.null_count:
        raise InvalidData(f"column {name!r}, row {first_row + first_true(array.is_null())}: an event time is missing")
    if is_text(array.type):
        zoned = pa.timestamp("ms", "UTC")
        array = _parse(array, (pa.int64(), pa.timestamp("ms"), zoned), name, first_row, NO_TIME)
    if kind.is_temporal(array.type):
        array = (
            array.cast(pa.timestamp("ms"), safe=False)
            if not _is_zoned(array.type)
            else array.cast(pa.timestamp("ms", array.type.tz), safe=False)
        )
    if not (kind.is_integer(array.type) or kind.is_timestamp(array.type)):
        raise InvalidData(f"column {name!r} is {array.type}; event times are timestamps, or integers in ms")
    times: NDArray[np.int64] = array.cast(pa.int64()).to_numpy(zero_copy_only=False)
    limit = time.time_ns() // 1_000_000 + AHEAD_MS
    if len(times) and times.max() > limit:
        i = int((times > limit).argmax())
        raise InvalidData(
            f"column {name!r}, row {first_row + i}: {times[i]} is more than a day ahead; event times are ms since 1970"
        )
    return times


def _parse(array: Any, types: tuple[Any, ...], name: str, first_row: int, told: str) -> Any:
    """Text as the first of `types` that all of it can be; else the message names the first bad value."""
    invalid = load_pyarrow().ArrowInvalid
    for kind in types:
        try:
            return array.cast(kind)
        except invalid:
            continue
    low, high = 0, len(array)  # the first bad value is in [low, high)
    while high - low > 1:
        middle = (low + high) // 2
        try:
            array.slice(low, middle - low).cast(types[-1])
            low = middle
        except invalid:
            high = middle
    raise InvalidData(f"column {name!r}, row {first_row + low}: {array[low].as_py()!r} {told}")


def first_true(mask: Any) -> int:
    """The first place where an Arrow array of booleans is true."""
    return int(mask.to_numpy(zero_copy_only=False).argmax())


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of its texts."""
    types = load_pyarrow().types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_zoned(kind: Any) -> bool:
    return bool(load_pyarrow().types.is_timestamp(kind) and kind.tz)
