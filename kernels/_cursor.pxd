"""The checked cursor: the one way compiled code reads bytes it did not write.

A cursor is a half-open range of memory. Every reading function checks the range first and returns False (0) where the
bytes do not reach, leaving the cursor where it was; nothing is ever read past `end`. Sizes are 64-bit and compared with
what is left before they are used. May be cimported by every kernel; a call costs about a nanosecond.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef struct Cursor:
    const uint8_t* at    # next byte to read
    const uint8_t* end   # one past the last byte


cdef inline Cursor cursor_over(const uint8_t* data, size_t size) noexcept nogil:
    cdef Cursor cursor
    cursor.at = data
    cursor.end = data + size
    return cursor


cdef inline size_t left(const Cursor* cursor) noexcept nogil:
    """Bytes not yet read."""
    return <size_t>(cursor.end - cursor.at)


cdef inline bint read_bytes(Cursor* cursor, uint64_t size, const uint8_t** out) noexcept nogil:
    """Point `out` at the next `size` bytes and step over them."""
    if size > left(cursor):
        return False
    out[0] = cursor.at
    cursor.at += size
    return True


cdef inline bint read_part(Cursor* cursor, uint64_t size, Cursor* part) noexcept nogil:
    """Make `part` a cursor over the next `size` bytes and step over them."""
    if size > left(cursor):
        return False
    part.at = cursor.at
    part.end = cursor.at + size
    cursor.at += size
    return True


cdef inline bint read_u8(Cursor* cursor, uint8_t* out) noexcept nogil:
    if left(cursor) < 1:
        return False
    out[0] = cursor.at[0]
    cursor.at += 1
    return True


cdef inline bint read_u32(Cursor* cursor, uint32_t* out) noexcept nogil:
    """Four bytes, little-endian (as is every machine Penstock is built for)."""
    if left(cursor) < 4:
        return False
    memcpy(out, cursor.at, 4)
    cursor.at += 4
    return True


cdef inline bint read_u64(Cursor* cursor, uint64_t* out) noexcept nogil:
    """Eight bytes, little-endian."""
    if left(cursor) < 8:
        return False
    memcpy(out, cursor.at, 8)
    cursor.at += 8
    return True


cdef inline bint read_varint(Cursor* cursor, uint64_t* out) noexcept nogil:
    """A protobuf varint of at most ten bytes; bits over the 64th are dropped, as protobuf does."""
    cdef uint64_t value = 0
    cdef unsigned int shift = 0
    cdef const uint8_t* at = cursor.at
    cdef uint8_t byte
    while at < cursor.end and shift < 70:
        byte = at[0]
        at += 1
        value |= (<uint64_t>(byte & 0x7F)) << shift if shift < 64 else 0
        shift += 7
        if byte < 0x80:
            cursor.at = at
            out[0] = value
            return True
    return False
