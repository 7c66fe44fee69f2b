"""Whether the answer to an inference is what was asked for: its outputs' names, datatypes and shapes, and their bytes.

Values are not looked at. About 0.1 microseconds for two outputs; nothing is allocated, and bytes are read through the
checked cursor.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from penstock.kernels._cursor cimport Cursor, cursor_over, left, read_varint
from penstock.kernels._protobuf cimport Slice, equals, read_message, read_slice, read_tag, skip_value

cdef enum:
    MAX_OUTPUTS = 64
    MAX_DIMENSIONS = 8
    ANY_SIZE = -1            # a dimension that is not looked at
    ALL_ROWS = -2            # one that must be as large as the request has rows

cdef enum Fit:
    FITS = 0
    FIT_MALFORMED = 1        # not an answer to an inference at all
    FIT_OUTPUTS = 2          # other outputs, or another number of them
    FIT_DATATYPE = 3
    FIT_SHAPE = 4
    FIT_BYTES = 5            # not as many bytes as datatype and shape say

cdef struct Output:          # what is expected of one
    const char* name
    size_t name_size
    const char* datatype
    size_t datatype_size
    size_t width             # bytes of an element; 0 where they vary
    int dimensions
    int64_t[MAX_DIMENSIONS] shape


cdef inline bint next_size(Output* found, const Output* expected, int64_t rows, uint64_t size) noexcept nogil:
    """Note one more dimension of `found`, whose `width` counts elements; False where it is not the expected one."""
    cdef int64_t wanted
    if found.dimensions >= expected.dimensions or size > <uint64_t>1 << 31:
        return False
    wanted = expected.shape[found.dimensions]
    found.dimensions += 1
    found.width = found.width * size if found.width < <size_t>1 << 31 else 0
    if found.width > <size_t>1 << 50:     # so that no product of it with an element's bytes wraps
        return False
    return wanted == ANY_SIZE or size == <uint64_t>(rows if wanted == ALL_ROWS else wanted)


cdef inline Fit fit_output(Cursor* part, const Output* expected, int64_t rows, uint64_t* elements) noexcept nogil:
    """One output of the answer; `elements` becomes how many it has."""
    cdef Slice name
    cdef Slice datatype
    cdef Slice packed
    cdef Cursor sizes
    cdef Output found
    cdef uint32_t field = 0
    cdef uint32_t kind = 0
    cdef uint64_t size = 0
    cdef bint shaped = True
    name.data, name.size, datatype.data, datatype.size = NULL, 0, NULL, 0
    found.dimensions, found.width = 0, 1
    while left(part):
        if not read_tag(part, &field, &kind):
            return FIT_MALFORMED
        if field == 1 and kind == 2:
            if not read_slice(part, &name):
                return FIT_MALFORMED
        elif field == 2 and kind == 2:
            if not read_slice(part, &datatype):
                return FIT_MALFORMED
        elif field == 3 and kind == 2:
            if not read_slice(part, &packed):
                return FIT_MALFORMED
            sizes = cursor_over(packed.data, packed.size)
            while left(&sizes):
                if not read_varint(&sizes, &size):
                    return FIT_MALFORMED
                shaped = next_size(&found, expected, rows, size) and shaped
        elif field == 3 and kind == 0:
            if not read_varint(part, &size):
                return FIT_MALFORMED
            shaped = next_size(&found, expected, rows, size) and shaped
        elif not skip_value(part, kind):
            return FIT_MALFORMED
    if not equals(&name, expected.name, expected.name_size):
        return FIT_OUTPUTS
    if not equals(&datatype, expected.datatype, expected.datatype_size):
        return FIT_DATATYPE
    elements[0] = found.width
    return FITS if shaped and found.dimensions == expected.dimensions else FIT_SHAPE


cdef inline Fit fit_answer(const Output* expected, int count, int64_t rows, const uint8_t* data,
                           size_t size) noexcept nogil:
    """A serialised ModelInferResponse against what is expected of it; `count` is at most MAX_OUTPUTS."""
    cdef Cursor cursor = cursor_over(data, size)
    cdef Cursor part
    cdef Slice raw
    cdef uint64_t[MAX_OUTPUTS] elements
    cdef size_t[MAX_OUTPUTS] sizes
    cdef uint32_t field = 0
    cdef uint32_t kind = 0
    cdef int outputs = 0
    cdef int raws = 0
    cdef int i
    cdef Fit fit
    while left(&cursor):
        if not read_tag(&cursor, &field, &kind):
            return FIT_MALFORMED
        if field == 5 and kind == 2:
            if not read_message(&cursor, &part):
                return FIT_MALFORMED
            if outputs == count:
                return FIT_OUTPUTS
            fit = fit_output(&part, &expected[outputs], rows, &elements[outputs])
            if fit != FITS:
                return fit
            outputs += 1
        elif field == 6 and kind == 2:
            if not read_slice(&cursor, &raw):
                return FIT_MALFORMED
            if raws == count:
                return FIT_BYTES
            sizes[raws] = raw.size
            raws += 1
        elif not skip_value(&cursor, kind):
            return FIT_MALFORMED
    if outputs != count:
        return FIT_OUTPUTS
    if raws == 0:            # typed contents, which are not looked at
        return FITS
    if raws != count:
        return FIT_BYTES
    for i in range(count):
        if expected[i].width and sizes[i] != elements[i] * expected[i].width:
            return FIT_BYTES
    return FITS
