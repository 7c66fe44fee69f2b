"""Tables as they come (Arrow, pandas, polars, dictionaries of arrays), and their ids and times in the form used here.

An entity id is bytes, as in the online store: integers in decimal, text in UTF-8, the parts of several keys joined as
`entities.entity_key` joins them. A time is a whole number of
milliseconds since 1970 (UTC); what is finer is cut off, and times without a zone are taken as UTC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.arrow import decoded, first_true, is_text, to_times
from penstock.features.entities import MAX_ENTITY
from penstock.features.errors import FeatureError, InvalidData

DAY_MS = 86_400_000
LAST_MS = 253_402_300_799_999  # of the year 9999


def arrow() -> Any:
    """The pyarrow module; `FeatureError` where it is not installed."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise FeatureError("offline features need pyarrow: pip install 'penstock[offline]'") from error
    return pa


def as_table(frame: Any) -> Any:
    """An Arrow table of Arrow data, of a frame of pandas (without its index) or polars, or of a mapping of arrays.

    Raises:
        InvalidData: it is none of these, or its columns are no columns of one table.
    """
    pa = arrow()
    try:
        if isinstance(frame, pa.Table):
            return frame
        if isinstance(frame, pa.RecordBatch):
            return pa.Table.from_batches([frame])
        if isinstance(frame, Mapping):
            return pa.table({name: _array(values) for name, values in frame.items()})
        if hasattr(frame, "columns") and hasattr(frame, "index"):
            return pa.Table.from_pandas(frame, preserve_index=False)
        if hasattr(frame, "__arrow_c_stream__"):
            return pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InvalidData(f"this is no table: {' '.join(str(error).split())}") from error
    raise InvalidData(
        f"a table is Arrow data, a frame of pandas or polars, or a dict of arrays, not {type(frame).__name__}"
    )


def _array(values: Any) -> Any:
    """One column of a dictionary; a masked element of a `numpy.ma` array is null."""
    pa = arrow()
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, mask=np.ma.getmaskarray(values))
    return values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)


def column_of(table: Any, name: str, what: str) -> Any:
    """One column as a single Arrow array; `InvalidData` where the table has none or several of that name."""
    found = table.schema.get_all_field_indices(name)
    if len(found) != 1:
        listed = ", ".join(table.column_names[:20]) + (", ..." if table.num_columns > 20 else "")
        raise InvalidData(f"{what}: {'no' if not found else 'more than one'} column {name!r}; it has {listed}")
    column = table.column(found[0]).combine_chunks()
    if isinstance(column, arrow().ChunkedArray):  # an empty table, or one beyond 2 GiB of text
        return arrow().concat_arrays(column.chunks) if column.num_chunks else arrow().array([], column.type)
    return column


def ids_of(table: Any, keys: Sequence[str], what: str) -> Any:
    """The entity ids of a table's rows, of one key or several, as `to_ids` gives them."""
    arrow()
    import pyarrow.compute as pc

    parts = [to_ids(column_of(table, key, what), key) for key in keys]
    if len(parts) == 1:
        return parts[0]
    for mark in (b"\\", b"|"):
        parts = [pc.replace_substring(part, mark, b"\\" + mark) for part in parts]
    joined = pc.binary_join_element_wise(*parts, arrow().scalar(b"|", arrow().large_binary()))
    _check_sizes(joined, "|".join(keys))
    return joined


def to_ids(array: Any, name: str) -> Any:
    """Entity ids as an Arrow array of large_binary, about 20 ns each; messages count rows from 1.

    Raises:
        InvalidData: one is missing, empty or too long, or they are neither integers nor text.
    """
    pa = arrow()
    kind = pa.types
    array = decoded(array)
    if array.null_count:
        raise InvalidData(f"column {name!r}, row {first_true(array.is_null()) + 1}: an entity id is missing")
    if kind.is_integer(array.type):
        array = array.cast(pa.string())
    elif kind.is_null(array.type) and not len(array):
        array = array.cast(pa.binary())
    elif not (is_text(array.type) or _is_bytes(array.type)):
        raise InvalidData(f"column {name!r} is {array.type}; entity ids are integers or text")
    ids = array.cast(pa.large_binary())
    _check_sizes(ids, name)
    return ids


def _check_sizes(ids: Any, name: str) -> None:
    import pyarrow.compute as pc

    sizes = pc.binary_length(ids).to_numpy(zero_copy_only=False)
    wrong = (sizes < 1) | (sizes > MAX_ENTITY)
    if wrong.any():
        row = int(wrong.argmax())
        size = f"{sizes[row]} bytes; it has 1 to {MAX_ENTITY}"
        raise InvalidData(f"column {name!r}, row {row + 1}: an entity id of {size}")


def to_ms(array: Any, name: str) -> NDArray[np.int64]:
    """Times in ms since 1970 (UTC): timestamps, ISO 8601 text, or integers in ms.

    Raises:
        InvalidData: one is missing or no time, or lies before 1970 or after 9999 (seconds or nanoseconds, perhaps).
    """
    if not len(array):
        return np.empty(0, np.int64)
    times = to_times(array, name, 1)
    check_times(times, f"column {name!r}")
    return times


def check_times(times: NDArray[np.int64], what: str) -> None:
    """`InvalidData` where a time is not between 1970 and 9999."""
    wrong = (times < 0) | (times > LAST_MS)
    if wrong.any():
        row = int(wrong.argmax())
        raise InvalidData(f"{what}, row {row + 1}: {times[row]} ms since 1970 is not a time between 1970 and 9999")


def quoted(path: Path) -> str:
    """A file's name as DuckDB takes it in SQL: the name itself, and no pattern."""
    plain = "".join({"[": "[[]", "*": "[*]", "?": "[?]"}.get(letter, letter) for letter in str(path))
    return "'" + plain.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def _is_bytes(kind: Any) -> bool:
    types = arrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))
