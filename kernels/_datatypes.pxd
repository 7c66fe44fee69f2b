"""Datatypes of the Open Inference Protocol: their codes, sizes, fields of typed contents, and single values of each.

Inline functions over one value, for the codec; texts (BYTES) have no size of their own. A few nanoseconds each.
"""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from penstock.kernels._cursor cimport Cursor, read_u32, read_u64, read_varint
from penstock.kernels._protobuf cimport Slice, equals

cdef enum Datatype:          # codes of the protocol's datatypes, in the order of wire.DATATYPES
    DT_NONE = 0
    DT_BOOL = 1
    DT_UINT8 = 2
    DT_UINT16 = 3
    DT_UINT32 = 4
    DT_UINT64 = 5
    DT_INT8 = 6
    DT_INT16 = 7
    DT_INT32 = 8
    DT_INT64 = 9
    DT_FP16 = 10
    DT_BF16 = 11
    DT_FP32 = 12
    DT_FP64 = 13
    DT_BYTES = 14


cdef inline int64_t item_size(Datatype code) noexcept nogil:
    """Bytes of one value: a hexadecimal digit for each code, the first one last; 0 for BYTES."""
    return <int64_t>(<uint64_t>0x084228421842110 >> (4 * <int>code) & 0xF)


cdef inline Datatype datatype_of(const Slice* name) noexcept nogil:
    """The code of a datatype's name; DT_NONE when there is none such."""
    if equals(name, b"FP32", 4):
        return DT_FP32
    if equals(name, b"BYTES", 5):
        return DT_BYTES
    if equals(name, b"INT64", 5):
        return DT_INT64
    if equals(name, b"FP64", 4):
        return DT_FP64
    if equals(name, b"INT32", 5):
        return DT_INT32
    if equals(name, b"BOOL", 4):
        return DT_BOOL
    if equals(name, b"UINT8", 5):
        return DT_UINT8
    if equals(name, b"UINT16", 6):
        return DT_UINT16
    if equals(name, b"UINT32", 6):
        return DT_UINT32
    if equals(name, b"UINT64", 6):
        return DT_UINT64
    if equals(name, b"INT8", 4):
        return DT_INT8
    if equals(name, b"INT16", 5):
        return DT_INT16
    if equals(name, b"FP16", 4):
        return DT_FP16
    if equals(name, b"BF16", 4):
        return DT_BF16
    return DT_NONE


cdef inline uint32_t contents_field(Datatype code) noexcept nogil:
    """The field of InferTensorContents that carries a datatype; 0 for those that travel raw only."""
    if code == DT_FP32:
        return 6
    if code == DT_FP64:
        return 7
    if code == DT_BYTES:
        return 8
    if code == DT_BOOL:
        return 1
    if code == DT_INT64:
        return 3
    if code == DT_UINT64:
        return 5
    if code == DT_INT8 or code == DT_INT16 or code == DT_INT32:
        return 2
    if code == DT_UINT8 or code == DT_UINT16 or code == DT_UINT32:
        return 4
    return 0


cdef inline uint32_t contents_wire_type(uint32_t field) noexcept nogil:
    """The wire type of one value in each field of InferTensorContents."""
    if field == 6:
        return 5
    if field == 7:
        return 1
    return 2 if field == 8 else 0


cdef inline float as_float(Datatype code, uint64_t bits) noexcept nogil:
    """A number of any datatype that a column takes, from its little-endian bits, rounded once."""
    cdef float single
    cdef double number
    if code == DT_FP32:
        memcpy(&single, &bits, 4)
        return single
    if code == DT_FP64:
        memcpy(&number, &bits, 8)
        return <float>number
    if code == DT_INT64:
        return <float><int64_t>bits
    if code == DT_INT32:
        return <float><int32_t>bits
    if code == DT_INT16:
        return <float><int16_t>bits
    if code == DT_INT8:
        return <float><int8_t>bits
    return <float>bits


cdef inline void store(Datatype code, Datatype target, uint64_t bits, uint8_t* out) noexcept nogil:
    """Write one value as it is, or rounded to float32 for a column."""
    cdef float single
    if target == code:
        memcpy(out, &bits, <size_t>item_size(code))
    else:
        single = as_float(code, bits)
        memcpy(out, &single, 4)


cdef inline bint in_range(Datatype code, uint64_t* bits) noexcept nogil:
    """Narrow a varint to its datatype; False where the value does not fit the narrow one."""
    cdef int32_t signed
    cdef uint32_t unsigned
    if code == DT_BOOL:
        bits[0] = bits[0] != 0
    elif code == DT_INT8 or code == DT_INT16 or code == DT_INT32:
        signed = <int32_t>bits[0]
        bits[0] = <uint64_t><int64_t>signed
        if code == DT_INT8:
            return -128 <= signed <= 127
        if code == DT_INT16:
            return -32768 <= signed <= 32767
    elif code == DT_UINT8 or code == DT_UINT16 or code == DT_UINT32:
        unsigned = <uint32_t>bits[0]
        bits[0] = unsigned
        if code == DT_UINT8:
            return unsigned <= 0xFF
        if code == DT_UINT16:
            return unsigned <= 0xFFFF
    return True


cdef inline bint read_number(Cursor* cursor, Datatype code, uint64_t* bits) noexcept nogil:
    """One value of the typed contents; False where it is cut short or does not fit its datatype."""
    cdef uint32_t word = 0
    if code == DT_FP32:
        if not read_u32(cursor, &word):
            return False
        bits[0] = word
        return True
    if code == DT_FP64:
        return read_u64(cursor, bits)
    return read_varint(cursor, bits) and in_range(code, bits)
