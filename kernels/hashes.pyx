"""Hashes of decimal text, one for each entity, as others write them to Redis: numbers of the fields that are wanted.

A hash comes in one of two forms: the values of the wanted fields in their order (HMGET), or whole, as fields and values
in turn (HGETALL), of which `pick` takes the wanted ones. Redis walks a small hash once for every field it is asked for,
so that the second form costs it a third where most fields are wanted.

Cost goal: 10 ns a value of up to 15 digits, and 10 ns to pick one from hashes whose fields stand in the same order.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from libc.math cimport NAN
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp

from penstock.kernels._cursor cimport Cursor, cursor_over, left, read_u8

from penstock.kernels import rows


cdef extern from "Python.h":
    double PyOS_string_to_double(const char* text, char** end, void* overflow) except? -1.0


cdef enum:
    MAX_TEXT = 512           # nothing longer is taken for a number
    EXACT_DIGITS = 15        # decimal integers of so many digits are exact in float64
    MOST_DIGITS = 19         # of an int64; so many of any kind fit uint64

cdef uint8_t ROW_OK = rows.ROW_OK
cdef uint8_t ROW_ABSENT = rows.ROW_ABSENT
cdef uint8_t ROW_CORRUPT = rows.ROW_CORRUPT


# Numbers -----------------------------------------------------------------------------------------------------------

cdef double[16] POWERS_OF_TEN
POWERS_OF_TEN[:] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15]


cdef inline bint parse_short(Cursor* cursor, double* out) noexcept nogil:
    """A plain decimal of at most 15 digits: integer and power of ten are exact, so one division rounds correctly."""
    cdef int64_t digits = 0
    cdef int n_digits = 0, n_decimals = 0
    cdef bint point = False, negative = False
    cdef uint8_t c = 0
    if left(cursor) and (cursor.at[0] == c'-' or cursor.at[0] == c'+'):
        read_u8(cursor, &c)
        negative = c == c'-'
    while read_u8(cursor, &c):
        if c'0' <= c <= c'9' and n_digits < EXACT_DIGITS:
            digits = digits * 10 + (c - c'0')
            n_digits += 1
            n_decimals += point
        elif c == c'.' and not point:
            point = True
        else:
            return False
    out[0] = <double>digits / POWERS_OF_TEN[n_decimals]
    if negative:
        out[0] = -out[0]
    return n_digits > 0


cdef float parse_number(bytes text) except? -1.0:
    """The number written in `text`, NaN where there is none."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(text)
    cdef char* start = PyBytes_AS_STRING(text)
    cdef char* end = NULL
    cdef Cursor cursor = cursor_over(<const uint8_t*>start, <size_t>size)
    cdef double value = 0
    if size > MAX_TEXT:
        return NAN
    if parse_short(&cursor, &value):
        return <float>value
    try:
        value = PyOS_string_to_double(start, &end, NULL)   # bytes end with a NUL of their own
    except ValueError:
        return NAN
    return <float>value if end == start + size else NAN


cdef inline bint parse_whole(Cursor* cursor, float* out) noexcept nogil:
    """A plain integer that int64 holds, rounded once: by way of a double it would be rounded twice beyond 2^53."""
    cdef uint64_t digits = 0
    cdef int n_digits = 0
    cdef bint negative = False
    cdef uint8_t c = 0
    if left(cursor) and (cursor.at[0] == c'-' or cursor.at[0] == c'+'):
        read_u8(cursor, &c)
        negative = c == c'-'
    while read_u8(cursor, &c):
        if not c'0' <= c <= c'9' or n_digits == MOST_DIGITS:
            return False
        digits = digits * 10 + (c - c'0')
        n_digits += 1
    if n_digits == 0 or digits > (<uint64_t>1 << 63) - 1 + negative:
        return False
    out[0] = -<float>digits if negative else <float>digits
    return True


cdef float parse_integer(bytes text) except? -1.0:
    """The same for a column of int64."""
    cdef Cursor cursor = cursor_over(<const uint8_t*>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
    cdef float value = 0
    return value if parse_whole(&cursor, &value) else parse_number(text)


cdef uint8_t parse_reply(object reply, const uint8_t[::1] whole, float[::1] out) except? 255:
    cdef Py_ssize_t j
    cdef uint8_t status = ROW_ABSENT
    if not isinstance(reply, (list, tuple)):
        out[:] = NAN
        return ROW_CORRUPT
    if len(reply) != out.shape[0]:
        raise ValueError(f"a reply has {len(reply)} fields; {out.shape[0]} were asked for")
    for j in range(out.shape[0]):
        if reply[j] is None:
            out[j] = NAN
        else:
            out[j] = parse_integer(reply[j]) if whole[j] else parse_number(reply[j])
            status = ROW_OK
    return status


def parse_hashes(
    replies, const uint8_t[::1] whole not None, float[:, ::1] out not None, uint8_t[::1] status not None
):
    cdef Py_ssize_t i, n = len(replies)
    if out.shape[0] != n or status.shape[0] != n or out.shape[1] == 0:
        raise ValueError(f"{n} replies need out of {n} rows and at least one column, and {n} statuses")
    if whole.shape[0] != out.shape[1]:
        raise ValueError(f"whole has {whole.shape[0]} columns, and out {out.shape[1]}")
    for i in range(n):
        status[i] = parse_reply(replies[i], whole, out[i])


# Whole hashes -----------------------------------------------------------------------------------------------------

cdef inline bint same(bytes a, bytes b) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(a)
    return size == PyBytes_GET_SIZE(b) and memcmp(PyBytes_AS_STRING(a), PyBytes_AS_STRING(b), <size_t>size) == 0


cdef Py_ssize_t place_of(bytes field, list pairs, Py_ssize_t start) except -2:
    """Where the value of a field stands, looking from the pair `start` on and round; -1 where the hash has none."""
    cdef Py_ssize_t k, at, n = len(pairs) // 2
    for k in range(n):
        at = start + k
        at = 2 * (at if at < n else at - n)
        if not PyBytes_Check(pairs[at]):
            raise ValueError("a hash's reply holds something that is no field")
        if same(<bytes>pairs[at], field):
            return at + 1
    return -1


cdef list picked(list pairs, tuple fields):
    cdef Py_ssize_t at, following = 0
    cdef list found = []
    if len(pairs) % 2:
        raise ValueError(f"a whole hash's reply has {len(pairs)} elements, which are no pairs")
    for field in fields:
        at = place_of(field, pairs, following)
        found.append(pairs[at] if at > 0 else None)
        if at > 0:
            following = (at + 1) // 2
    return found


def pick(replies, tuple fields not None):
    if not all(type(field) is bytes for field in fields):
        raise TypeError("fields are bytes")
    return [picked(<list>reply, fields) if type(reply) is list else reply for reply in replies]
