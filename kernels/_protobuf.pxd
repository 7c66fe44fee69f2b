"""Protobuf's grammar as inline functions: fields read through the checked cursor, fields written or counted.

Follows the wire format of protobuf (protobuf.dev/programming-guides/encoding): tags and lengths are varints of at most
five bytes, a length is below 2**31, groups are unknown to proto3 and refused. UTF-8 is checked by
the caller. May be cimported by every kernel.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from penstock.kernels._cursor cimport Cursor, left, read_bytes, read_part, read_u32, read_u64, read_varint


cdef struct Slice:           # bytes that lie in a body
    const uint8_t* data
    size_t size


cdef inline bint read_short_varint(Cursor* cursor, uint64_t limit, uint64_t* out) noexcept nogil:
    """A varint of at most five bytes and at most `limit`: tags and lengths."""
    cdef const uint8_t* start = cursor.at
    if not read_varint(cursor, out):
        return False
    return cursor.at - start <= 5 and out[0] <= limit


cdef inline bint read_tag(Cursor* cursor, uint32_t* field, uint32_t* wire_type) noexcept nogil:
    cdef uint64_t tag = 0
    if not read_short_varint(cursor, 0xFFFFFFFF, &tag):
        return False
    field[0] = <uint32_t>(tag >> 3)
    wire_type[0] = <uint32_t>(tag & 7)
    return field[0] != 0


cdef inline bint read_slice(Cursor* cursor, Slice* out) noexcept nogil:
    """A length-delimited value."""
    cdef uint64_t size = 0
    if not read_short_varint(cursor, 0x7FFFFFFF, &size):
        return False
    out.size = size
    return read_bytes(cursor, size, &out.data)


cdef inline bint read_message(Cursor* cursor, Cursor* part) noexcept nogil:
    cdef uint64_t size = 0
    return read_short_varint(cursor, 0x7FFFFFFF, &size) and read_part(cursor, size, part)


cdef inline bint skip_value(Cursor* cursor, uint32_t wire_type) noexcept nogil:
    """Step over a value of an unknown field."""
    cdef uint64_t number = 0
    cdef uint32_t word = 0
    cdef Slice slice
    if wire_type == 0:
        return read_varint(cursor, &number)
    if wire_type == 1:
        return read_u64(cursor, &number)
    if wire_type == 2:
        return read_slice(cursor, &slice)
    if wire_type == 5:
        return read_u32(cursor, &word)
    return False


cdef inline bint equals(const Slice* slice, const char* text, size_t size) noexcept nogil:
    return slice.size == size and (size == 0 or memcmp(slice.data, text, size) == 0)


cdef struct Writer:          # counts what is written, and writes it where there is memory
    uint8_t* at
    size_t size


cdef inline void put(Writer* writer, const void* data, size_t size) noexcept nogil:
    if writer.at != NULL and size:
        memcpy(writer.at, data, size)
        writer.at += size
    writer.size += size


cdef inline void put_varint(Writer* writer, uint64_t value) noexcept nogil:
    cdef uint8_t[10] digits
    cdef size_t count = 0
    while value >= 0x80:
        digits[count] = <uint8_t>(value | 0x80)
        value >>= 7
        count += 1
    digits[count] = <uint8_t>value
    put(writer, digits, count + 1)


cdef inline size_t varint_size(uint64_t value) noexcept nogil:
    cdef size_t count = 1
    while value >= 0x80:
        value >>= 7
        count += 1
    return count


cdef inline void put_field(Writer* writer, uint8_t tag, const void* data, size_t size) noexcept nogil:
    """A length-delimited field."""
    put(writer, &tag, 1)
    put_varint(writer, size)
    put(writer, data, size)
