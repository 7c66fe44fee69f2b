"""Ids of several entities, taken apart into those that each view is looked up by.

A row's id has one part for each key of the entities that a version joins, written as `features/entities.py` says:
joined by `|`, with a backslash before each `|` and backslash inside a part. A **take** says which of the parts one view
has as keys, in the view's order. What it gives is an id as that view's rows are named by: one part without its
backslashes, or several as they are written, joined again. Each is given once, however many ids it is a part of.

The GIL is held, for each part becomes an object. Cost goal: 50 ns for each id of 20 bytes, and as much for each take.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from penstock.kernels._cursor cimport Cursor, cursor_over, left, read_u8

cdef enum:
    MOST_PARTS = 64

MAX_PARTS = MOST_PARTS

cdef struct Part:
    Cursor written      # with its backslashes
    size_t size         # bytes without them

cdef struct Take:
    Py_ssize_t count
    bint whole          # every part in its place, so that what is taken is the id
    int[MOST_PARTS] places


# One id -----------------------------------------------------------------------------------------------------------

cdef inline bint read_part(Cursor* cursor, bint last, Part* part) noexcept nogil:
    """One part and the bar behind it, or the end behind the last; False where it is empty or ends otherwise."""
    cdef uint8_t byte = 0
    part.written.at = cursor.at
    part.size = 0
    while read_u8(cursor, &byte):
        if byte == c'|':
            part.written.end = cursor.at - 1
            return not last and part.size > 0
        if byte == c'\\' and not read_u8(cursor, &byte):
            return False
        part.size += 1
    part.written.end = cursor.at
    return last and part.size > 0


cdef inline bint read_parts(Cursor cursor, Part* parts, Py_ssize_t count) noexcept nogil:
    """The parts of an id; False where they are not just as many."""
    cdef Py_ssize_t i
    for i in range(count):
        if not read_part(&cursor, i == count - 1, &parts[i]):
            return False
    return True


cdef inline bytes plain(const Part* part):
    """A part without its backslashes."""
    if part.size == left(&part.written):
        return PyBytes_FromStringAndSize(<const char*>part.written.at, <Py_ssize_t>part.size)
    cdef bytes made = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>part.size)
    cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(made)
    cdef Cursor cursor = part.written
    cdef uint8_t byte = 0
    while read_u8(&cursor, &byte):
        if byte == c'\\':
            read_u8(&cursor, &byte)     # it is there, or the part had not been read
        out[0] = byte
        out += 1
    return made


cdef inline bytes joined(const Part* parts, const Take* take):
    """Several parts as they are written, with bars between them."""
    cdef Py_ssize_t i, size = take.count - 1
    for i in range(take.count):
        size += <Py_ssize_t>left(&parts[take.places[i]].written)
    cdef bytes made = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(made)
    cdef size_t length
    for i in range(take.count):
        if i > 0:
            out[0] = c'|'
            out += 1
        length = left(&parts[take.places[i]].written)
        memcpy(out, parts[take.places[i]].written.at, length)
        out += length
    return made


cdef inline Cursor over(bytes entity) except *:
    """A cursor over an id that the caller keeps alive."""
    if entity is None:
        raise TypeError("an id is None; ids are bytes")
    return cursor_over(<const uint8_t*>PyBytes_AS_STRING(entity), <size_t>PyBytes_GET_SIZE(entity))


cdef inline int32_t place_of(dict table, bytes entity, const Part* parts, const Take* take) except -2:
    """The place of what is taken of an id among all that was; it is added where it is new."""
    if take.whole:
        return table.setdefault(entity, len(table))
    return table.setdefault(plain(&parts[take.places[0]]) if take.count == 1 else joined(parts, take), len(table))


# Many -------------------------------------------------------------------------------------------------------------

@cython.final
cdef class Splitter:
    cdef readonly Py_ssize_t n_parts
    cdef readonly tuple takes
    cdef Take* of_view

    def __cinit__(self, Py_ssize_t n_parts, takes):
        self.n_parts = n_parts
        self.takes = tuple([tuple(take) for take in takes])
        if not 2 <= n_parts <= MOST_PARTS or not self.takes:
            raise ValueError(f"ids of 2 to {MOST_PARTS} parts are taken apart, by a take or more, not of {n_parts}")
        for take in self.takes:
            if not take or len(set(take)) < len(take) or not set(take) <= set(range(n_parts)):
                raise ValueError(f"a take is of one part or more, each once, of {n_parts}, not {take}")
        self.of_view = <Take*>malloc(<size_t>len(self.takes) * sizeof(Take))
        if self.of_view == NULL:
            raise MemoryError
        for t, take in enumerate(self.takes):
            self.of_view[<Py_ssize_t>t].count = len(take)
            self.of_view[<Py_ssize_t>t].whole = take == tuple(range(n_parts))
            for i, place in enumerate(take):
                self.of_view[<Py_ssize_t>t].places[<Py_ssize_t>i] = place

    def __dealloc__(self):
        free(self.of_view)

    def split(self, ids, const int32_t[::1] row_of not None, int32_t[:, ::1] out not None):
        cdef tuple held = tuple(ids)
        cdef Py_ssize_t u = len(held), n = row_of.shape[0], n_takes = len(self.takes)
        cdef Py_ssize_t i, t
        if out.shape[0] != n_takes or out.shape[1] != n:
            raise ValueError(f"out is ({out.shape[0]}, {out.shape[1]}); it must be ({n_takes}, {n})")
        for i in range(n):
            if row_of[i] >= u:
                raise ValueError(f"row_of[{i}] is {row_of[i]}, but there are {u} ids")
        cdef list tables = [{} for _ in range(n_takes)]
        cdef list unfit = []
        cdef Part[MOST_PARTS] parts
        cdef int32_t* places = <int32_t*>malloc(<size_t>(n_takes * u + 1) * sizeof(int32_t))
        if places == NULL:
            raise MemoryError
        try:
            for i in range(u):
                if read_parts(over(held[i]), parts, self.n_parts):
                    for t in range(n_takes):
                        places[t * u + i] = place_of(tables[t], held[i], parts, &self.of_view[t])
                    continue
                unfit.append(i)
                for t in range(n_takes):
                    places[t * u + i] = -1
            with nogil:
                for t in range(n_takes):
                    for i in range(n):
                        out[t, i] = places[t * u + row_of[i]] if row_of[i] >= 0 else -1
        finally:
            free(places)
        return [list(table) for table in tables], unfit
