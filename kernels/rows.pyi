"""Packed feature rows: see the head of rows.pyx for the layout, and `reference/rows.py` for the same in Python."""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

ROW_OK: int
"""The row was found, belongs to its key and this layout, and was decoded."""
ROW_ABSENT: int
"""The store has no row under this key."""
ROW_CORRUPT: int
"""Wrong size, format or checksum (a damaged row, or another key's)."""
ROW_SCHEMA: int
"""A sound row of another schema id."""

def crc32(data: bytes, value: int = 0) -> int:
    """CRC-32 of `data`, going on from `value`; equal to `zlib.crc32`."""

@final
class RowLayout:
    """How the rows of one view are laid out. Immutable; safe to use from many threads.

    Args:
        schema_id: u32 that names columns and dtypes; rows of any other are refused.
        dtypes: of each column, in the view's order: float32, float64, int64, int32, bool, string, category[N] of N
            words, category[N]? whose unknown words are missing, or vector[N] of N numbers.

    Raises:
        ValueError: no columns, more than 65,535, an unknown dtype, or rows of more than 532,000 bytes.
        OverflowError: schema_id is not a u32.
    """

    @property
    def schema_id(self) -> int: ...
    @property
    def n_columns(self) -> int: ...
    @property
    def width(self) -> int:
        """Numbers of a decoded row: one for each column, N for a vector, none for a string."""
    @property
    def row_size(self) -> int:
        """Bytes of every row of this layout, without the texts of its strings."""
    @property
    def dtypes(self) -> tuple[str, ...]: ...
    def __new__(cls, schema_id: int, dtypes: Sequence[str]) -> RowLayout: ...
    def pack(
        self,
        keys: Sequence[bytes],
        columns: Sequence[NDArray[Any] | list[bytes]],
        event_times: NDArray[np.int64],
        nulls: Sequence[NDArray[np.uint8] | NDArray[np.bool_] | None],
    ) -> list[bytes]:
        """Rows ready for the store.

        Args:
            keys: n store keys; each row's checksum covers its own.
            columns: arrays of shape (n,), each of its column's own dtype, NaN being null; for a category int32 indices
                (n,), for a vector float32 (n, N), for a string a list of n bytes, at most 65,535 each.
            event_times: (n,) milliseconds since 1970.
            nulls: for each column a mask (n,), non-zero where the value is null, or None.

        Raises:
            ValueError: numbers, shapes or dtypes that do not fit the layout.
        """

    def unpack(
        self,
        keys: Sequence[bytes],
        rows: Sequence[bytes | None],
        out: NDArray[np.float32],
        event_times: NDArray[np.int64],
        status: NDArray[np.uint8],
    ) -> int:
        """Decode n rows, each against the key it was asked by; the GIL is released meanwhile.

        Args:
            keys: n store keys.
            rows: n packed rows as the store returned them, None where it had none.
            out: (n, width) C-contiguous; every value as float32 (rounded to nearest), NaN for null, -1 for a category's
                index outside its vocabulary (NaN where its dtype ends in a question mark).
            event_times: (n,) milliseconds since 1970.
            status: (n,) ROW_OK, ROW_ABSENT, ROW_CORRUPT or ROW_SCHEMA. Where it is not ROW_OK, `out` is NaN and the
                event time 0.

        Returns:
            How many rows are ROW_SCHEMA.

        Raises:
            ValueError: shapes or dtypes that do not fit. What is in the rows never raises.
        """
