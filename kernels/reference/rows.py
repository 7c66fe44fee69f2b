"""What `kernels.rows` must equal, in struct, zlib and numpy. The layout is drawn at the head of rows.pyx."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROW_OK, ROW_ABSENT, ROW_CORRUPT, ROW_SCHEMA = 0, 1, 2, 3

HEADER = struct.Struct("<BBHIqII")  # format, flags, columns, schema id, event time, checksum, reserved
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in ("float32", "float64", "int64", "int32", "bool")}
SPEC = re.compile(
    r"category\[(?P<words>[1-9][0-9]{0,8})\](?P<missing>\??)|vector\[(?P<numbers>[1-9][0-9]{0,8})\]|(?P<plain>string|"
    + "|".join(DTYPES)
    + ")"
)
MAX_ROW_SIZE = HEADER.size + 8192 + 8 * 0xFFFF

crc32 = zlib.crc32


def crc_of_row(key: bytes, row: bytes) -> int:
    """The checksum of `row` under `key`: its own field counts as zero."""
    return zlib.crc32(key + row[:16] + bytes(4) + row[20:])


class Field:
    """One column: its kind, the words of a category or numbers of a vector, and its dtype as it is stored.

    What stands for a word that a category does not have is -1, or NaN where its dtype ends in a question mark.
    """

    def __init__(self, spec: str) -> None:
        found = SPEC.fullmatch(spec) if isinstance(spec, str) else None
        if found is None:
            raise ValueError(f"not a dtype: {spec!r}")
        self.kind = found["plain"] or ("category" if found["words"] else "vector")
        self.size = int(found["words"] or found["numbers"] or 0)
        self.unknown = np.float32(np.nan if found["missing"] else -1)
        self.width = {"vector": self.size, "string": 0}.get(self.kind, 1)
        base = {"category": "<i4", "string": "<u2", "vector": "<f4"}.get(self.kind) or DTYPES[self.kind]
        self.dtype = np.dtype(base)
        self.shape = (self.size,) if self.kind == "vector" else ()
        self.bytes = self.dtype.itemsize * max(self.width, 1)

    def encode(self, value: Any) -> bytes:
        """What stands in the column's place; null is zeros."""
        if value is None:
            return bytes(self.bytes)
        return np.array(len(value) if self.kind == "string" else value, self.dtype).tobytes()

    def numbers(self, value: Any) -> NDArray[np.float32]:
        """The numbers that a stored value gives, float32 (width,)."""
        if self.kind == "category" and not 0 <= value < self.size:
            value = self.unknown
        with np.errstate(over="ignore"):
            return np.asarray(value).astype(np.float32).reshape(-1)[: self.width]


class RowLayout:
    """How the rows of one view are laid out."""

    def __init__(self, schema_id: int, dtypes: Sequence[str]) -> None:
        if not 1 <= len(dtypes) <= 0xFFFF:
            raise ValueError(f"not a row: {dtypes}")
        if not 0 <= schema_id < 2**32:
            raise OverflowError(f"schema id {schema_id} is not a u32")
        self.schema_id = schema_id
        self.dtypes = tuple(dtypes)
        self.fields = [Field(spec) for spec in self.dtypes]
        self.n_columns = len(dtypes)
        self.width = sum(field.width for field in self.fields)
        self.bitmap_size = (self.n_columns + 7) // 8
        self.row_size = HEADER.size + self.bitmap_size + sum(field.bytes for field in self.fields)
        if self.row_size > MAX_ROW_SIZE:
            raise ValueError(f"a row of {self.row_size} bytes")

    def pack(
        self,
        keys: Sequence[bytes],
        columns: Sequence[NDArray[Any] | list[bytes]],
        event_times: NDArray[np.int64],
        nulls: Sequence[NDArray[np.uint8] | NDArray[np.bool_] | None],
    ) -> list[bytes]:
        """One packed row for each key."""
        n = len(event_times)
        if len(keys) != n or len(columns) != self.n_columns or len(nulls) != self.n_columns:
            raise ValueError("keys, columns, event times and nulls do not fit")
        for column, mask, field in zip(columns, nulls, self.fields, strict=True):
            if not self._fits(column, field, n) or (mask is not None and mask.shape != (n,)):
                raise ValueError(f"a column is not {field.kind} ({n},)")
        pairs = list(zip(columns, nulls, strict=True))
        return [
            self._pack_row(keys[i], int(event_times[i]), [self._value(*pair, i) for pair in pairs]) for i in range(n)
        ]

    @staticmethod
    def _fits(column: Any, field: Field, n: int) -> bool:
        if field.kind == "string":
            texts = type(column) is list and len(column) == n
            return texts and all(isinstance(text, bytes) and len(text) <= 0xFFFF for text in column)
        return bool(column.shape == (n, *field.shape) and column.dtype == field.dtype.newbyteorder("="))

    @staticmethod
    def _value(column: Any, mask: Any, i: int) -> Any:
        """Value i, None where it is null: masked, or a NaN that stands alone."""
        value = column[i]
        alone = isinstance(value, np.floating) and np.isnan(value)
        return None if alone or (mask is not None and mask[i]) else value

    def _pack_row(self, key: bytes, event_time: int, values: list[Any]) -> bytes:
        bitmap = np.packbits([value is None for value in values], bitorder="little").tobytes()
        places = b"".join(field.encode(value) for field, value in zip(self.fields, values, strict=True))
        body = bitmap + places + b"".join(value for value in values if isinstance(value, bytes))
        if HEADER.size + len(body) > MAX_ROW_SIZE:
            raise ValueError("a row is too long")
        unsealed = HEADER.pack(1, 0, self.n_columns, self.schema_id, event_time, 0, 0) + body
        crc = crc_of_row(key, unsealed)
        return HEADER.pack(1, 0, self.n_columns, self.schema_id, event_time, crc, 0) + body

    def unpack(
        self,
        keys: Sequence[bytes],
        rows: Sequence[bytes | None],
        out: NDArray[np.float32],
        event_times: NDArray[np.int64],
        status: NDArray[np.uint8],
    ) -> int:
        """Every row that is whole, ours and of this schema; NaN and a status for others, and how many have another."""
        n = len(rows)
        if len(keys) != n or out.shape != (n, self.width) or event_times.shape != (n,) or status.shape != (n,):
            raise ValueError("keys, rows, out, event times and status do not fit")
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            out[i], event_times[i] = np.nan, 0
            status[i] = self._status(key, row)
            if row is not None and status[i] == ROW_OK:
                out[i], event_times[i] = self._numbers(row), HEADER.unpack_from(row)[4]
        return int((status == ROW_SCHEMA).sum())

    def _status(self, key: bytes, row: bytes | None) -> int:
        if row is None:
            return ROW_ABSENT
        if not HEADER.size <= len(row) <= MAX_ROW_SIZE:
            return ROW_CORRUPT
        version, flags, n_columns, schema_id, _, crc, reserved = HEADER.unpack_from(row)
        if (version, flags, reserved) != (1, 0, 0) or crc != crc_of_row(key, row):
            return ROW_CORRUPT
        if schema_id != self.schema_id:
            return ROW_SCHEMA
        if n_columns != self.n_columns or len(row) < self.row_size:
            return ROW_CORRUPT
        values = self._values(row)
        texts = sum(int(value) for field, value in zip(self.fields, values, strict=True) if field.kind == "string")
        return ROW_OK if len(row) == self.row_size + texts else ROW_CORRUPT

    def _values(self, row: bytes) -> list[Any]:
        """What stands in the places of the columns."""
        record = np.dtype([(str(j), field.dtype, field.shape) for j, field in enumerate(self.fields)])
        found = np.frombuffer(row, record, count=1, offset=HEADER.size + self.bitmap_size)[0]
        return [found[str(j)] for j in range(self.n_columns)]

    def _numbers(self, row: bytes) -> NDArray[np.float32]:
        bitmap = np.frombuffer(row, np.uint8, count=self.bitmap_size, offset=HEADER.size)
        null = np.unpackbits(bitmap, bitorder="little")[: self.n_columns].astype(bool)
        parts = [
            np.full(field.width, np.nan, np.float32) if is_null else field.numbers(value)
            for field, value, is_null in zip(self.fields, self._values(row), null, strict=True)
        ]
        return np.concatenate(parts)
