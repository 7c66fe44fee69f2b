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
MAX_ROW_SIZE = HEADER.size + 8192 + 8 * 0xFFFF
NUMBER = re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity|nan)", re.IGNORECASE)

crc32 = zlib.crc32


def crc_of_row(key: bytes, row: bytes) -> int:
    """The checksum of `row` under `key`: its own field counts as zero."""
    return zlib.crc32(key + row[:16] + bytes(4) + row[20:])


class RowLayout:
    """How the rows of one view are laid out."""

    def __init__(self, schema_id: int, dtypes: Sequence[str]) -> None:
        if not 1 <= len(dtypes) <= 0xFFFF or not set(dtypes) <= DTYPES.keys():
            raise ValueError(f"not a row: {dtypes}")
        if not 0 <= schema_id < 2**32:
            raise OverflowError(f"schema id {schema_id} is not a u32")
        self.schema_id = schema_id
        self.dtypes = tuple(dtypes)
        self.n_columns = len(dtypes)
        self.bitmap_size = (self.n_columns + 7) // 8
        self.row_size = HEADER.size + self.bitmap_size + sum(DTYPES[name].itemsize for name in dtypes)

    def pack(
        self,
        keys: Sequence[bytes],
        columns: Sequence[NDArray[Any]],
        event_times: NDArray[np.int64],
        nulls: Sequence[NDArray[np.uint8] | NDArray[np.bool_] | None],
    ) -> list[bytes]:
        """One packed row for each key."""
        n = len(event_times)
        if len(keys) != n or len(columns) != self.n_columns or len(nulls) != self.n_columns:
            raise ValueError("keys, columns, event times and nulls do not fit")
        for column, mask, name in zip(columns, nulls, self.dtypes, strict=True):
            if column.shape != (n,) or column.dtype != np.dtype(name) or (mask is not None and mask.shape != (n,)):
                raise ValueError(f"a column is not {name} ({n},)")
        masks = [
            (np.zeros(n, bool) if mask is None else mask.astype(bool)) | (column != column)  # noqa: PLR0124
            for column, mask in zip(columns, nulls, strict=True)
        ]
        return [
            self._pack_row(keys[i], int(event_times[i]), [c[i] for c in columns], [bool(m[i]) for m in masks])
            for i in range(n)
        ]

    def _pack_row(self, key: bytes, event_time: int, values: list[Any], null: list[bool]) -> bytes:
        bitmap = np.packbits(null, bitorder="little").tobytes()
        body = bitmap + b"".join(
            np.array(0 if is_null else value, DTYPES[name]).tobytes()
            for value, is_null, name in zip(values, null, self.dtypes, strict=True)
        )
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
    ) -> None:
        """Every row that is whole, ours and of this schema; NaN and a status for the others."""
        n = len(rows)
        if len(keys) != n or out.shape != (n, self.n_columns) or event_times.shape != (n,) or status.shape != (n,):
            raise ValueError("keys, rows, out, event times and status do not fit")
        for i, (key, row) in enumerate(zip(keys, rows, strict=True)):
            out[i], event_times[i] = np.nan, 0
            status[i] = self._status(key, row)
            if row is not None and status[i] == ROW_OK:
                out[i], event_times[i] = self._values(row), HEADER.unpack_from(row)[4]

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
        return ROW_OK if (n_columns, len(row)) == (self.n_columns, self.row_size) else ROW_CORRUPT

    def _values(self, row: bytes) -> NDArray[np.float32]:
        record = np.dtype([(str(j), DTYPES[name]) for j, name in enumerate(self.dtypes)])
        fields = np.frombuffer(row, record, count=1, offset=HEADER.size + self.bitmap_size)
        bitmap = np.frombuffer(row, np.uint8, count=self.bitmap_size, offset=HEADER.size)
        null = np.unpackbits(bitmap, bitorder="little")[: self.n_columns].astype(bool)
        with np.errstate(over="ignore"):
            values = np.array([fields[str(j)][0].astype(np.float32) for j in range(self.n_columns)], np.float32)
        return np.where(null, np.float32(np.nan), values)


def parse_number(text: bytes | None) -> float:
    """The number written in `text`, NaN where there is none."""
    if text is None or len(text) > 512 or not NUMBER.fullmatch(text):
        return float("nan")
    return float(text)


def parse_hashes(
    replies: Sequence[Sequence[bytes | None]], out: NDArray[np.float32], status: NDArray[np.uint8]
) -> None:
    """One HMGET reply for each row of `out`."""
    n, k = out.shape
    if len(replies) != n or status.shape != (n,) or k == 0:
        raise ValueError("replies, out and status do not fit")
    for i, reply in enumerate(replies):
        if not isinstance(reply, list | tuple):
            out[i], status[i] = np.nan, ROW_CORRUPT
            continue
        if len(reply) != k:
            raise ValueError(f"a reply has {len(reply)} fields; {k} were asked for")
        with np.errstate(over="ignore"):
            out[i] = np.array([parse_number(field) for field in reply]).astype(np.float32)
        status[i] = ROW_ABSENT if all(field is None for field in reply) else ROW_OK
