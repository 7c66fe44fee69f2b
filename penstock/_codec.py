"""Tensors as the protocol's raw bytes, and back.

Little-endian, row-major, no padding. BYTES elements each carry a 4-byte length in front. numpy has no bfloat16, so BF16
is read as float32 (exact) and written from float32 with rounding to nearest, ties to even. Whatever comes from the
other side is checked before use: a raw tensor must have exactly the size that its shape and datatype say.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.errors import InvalidRequest, ProtocolError

Array = npt.NDArray[Any]

# Datatypes whose elements numpy holds as they travel.
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES = (*DTYPES, "BF16", "BYTES")
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<I")


def datatype_of(array: Array) -> str:
    """The datatype under which `array` travels if nobody asked for another: BYTES for strings and objects."""
    if array.dtype.kind in "OSU":
        return "BYTES"
    try:
        return _NAMES[array.dtype.newbyteorder("<")]
    except KeyError:
        raise InvalidRequest("INVALID_ARGUMENT", f"an array of {array.dtype} has no datatype on the wire") from None


def encode(array: Array, datatype: str, name: str = "") -> bytes:
    """`array` as raw bytes of `datatype`; `name` is for messages.

    Numbers are converted where nothing but float precision can be lost: to any float type, and between integer types
    where each value fits.

    Raises:
        InvalidRequest: the values cannot be sent as that datatype.
    """
    dtype = DTYPES.get(datatype)
    if dtype is not None:
        if array.dtype is not dtype and array.dtype != dtype:
            array = _cast(array, dtype, name)
        return array.tobytes()
    if datatype == "BYTES":
        return encode_bytes(array.ravel().tolist(), name)
    if datatype == "BF16":
        return to_bfloat16(_cast(array, DTYPES["FP32"], name)).tobytes()
    raise InvalidRequest("INVALID_ARGUMENT", f"input '{name}' has the unknown datatype {datatype!r}")


def decode(raw: bytes, datatype: str, shape: Sequence[int], name: str = "") -> Array:
    """An array of `shape` from raw bytes, read-only where it can share their memory; BYTES are objects of `bytes`.

    Raises:
        ProtocolError: the bytes do not hold exactly such a tensor.
    """
    if min(shape, default=0) < 0:
        raise ProtocolError(f"output '{name}' came with the impossible shape {list(shape)}")
    count = math.prod(shape)
    if datatype == "BYTES":
        return decode_bytes(raw, count, name).reshape(shape)
    dtype = DTYPES["UINT16"] if datatype == "BF16" else DTYPES.get(datatype)
    if dtype is None:
        raise ProtocolError(f"output '{name}' came with the unknown datatype {datatype!r}")
    if len(raw) != count * dtype.itemsize:
        raise ProtocolError(f"output '{name}' {list(shape)} {datatype} came with {len(raw)} bytes")
    array: Array = np.frombuffer(raw, dtype).reshape(shape)
    return from_bfloat16(array) if datatype == "BF16" else array


def encode_bytes(elements: Iterable[Any], name: str = "") -> bytes:
    """Elements with their lengths in front; `str` is sent as UTF-8."""
    parts: list[bytes] = []
    for element in elements:
        data = element.encode() if isinstance(element, str) else element
        if not isinstance(data, bytes):
            kind = type(element).__name__
            raise InvalidRequest("INVALID_ARGUMENT", f"input '{name}' is BYTES: send str or bytes, not {kind}")
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def decode_bytes(raw: bytes, count: int, name: str = "") -> Array:
    """Exactly `count` elements as a 1-D array of `bytes` objects."""
    if count * _LENGTH.size > len(raw):
        raise ProtocolError(f"output '{name}' promised {count} BYTES elements in {len(raw)} bytes")
    array = np.empty(count, object)
    at = 0
    for i in range(count):
        start = at + _LENGTH.size
        if start > len(raw) or (at := start + _LENGTH.unpack_from(raw, at)[0]) > len(raw):
            raise ProtocolError(f"output '{name}' ends inside BYTES element {i}")
        array[i] = raw[start:at]
    if at != len(raw):
        raise ProtocolError(f"output '{name}' has {len(raw) - at} bytes after its last element")
    return array


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16, ties to even; NaN stays NaN, what is too large becomes infinite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).reshape(values.shape)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32)) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2")


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """The numbers that uint16 bit patterns of bfloat16 stand for; exact."""
    return np.left_shift(bits, 16, dtype=np.uint32, casting="unsafe", out=np.empty(bits.shape, np.uint32)).view(
        np.float32
    )


def _cast(array: Array, dtype: np.dtype[Any], name: str) -> Array:
    if dtype.kind == "f" and array.dtype.kind in "fiub":
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    if dtype.kind in "iu" and array.dtype.kind in "iub":
        cast: Array = array.astype(dtype)
        if np.array_equal(cast.astype(array.dtype), array) and np.array_equal(cast < 0, array < 0):
            return cast
        raise InvalidRequest("INVALID_ARGUMENT", f"input '{name}' has values that do not fit {_NAMES[dtype]}")
    raise InvalidRequest("INVALID_ARGUMENT", f"input '{name}' is {_NAMES[dtype]} and cannot be sent as {array.dtype}")
