"""The values of a matched request: numbers copied into batch buffers, texts made objects.

Each value is copied once, from the body into the tensor that the model reads. `match_request` has seen that they are as
many as the shape says and fit their datatype; they are read through the checked cursor all the same.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport NAN
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from penstock.kernels._cursor cimport Cursor, cursor_over, left, read_bytes, read_u32
from penstock.kernels._datatypes cimport (
    DT_BOOL, DT_BYTES, DT_FP32, DT_INT64, Datatype, contents_field, contents_wire_type, item_size, read_number, store,
)
from penstock.kernels._protobuf cimport Slice, read_message, read_slice, read_tag, skip_value
from penstock.kernels._wire cimport InputRef, Request
from penstock.kernels.wire_plan cimport KIND_COLUMN, KIND_MATRIX, KIND_TENSOR, Plan, Slot


cdef bint copy_contents(const InputRef* ref, Datatype target, uint8_t* out, int64_t stride) noexcept nogil:
    """Copy typed contents to `out`, a value every `stride` bytes; with `out` NULL only look whether all values fit."""
    cdef Cursor cursor = cursor_over(ref.contents.data, ref.contents.size)
    cdef Cursor values
    cdef uint32_t wanted = contents_field(ref.code)
    cdef uint32_t natural = contents_wire_type(wanted)
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef uint64_t bits = 0
    while left(&cursor):
        if not read_tag(&cursor, &field, &wire_type):
            return False
        if field != wanted or (wire_type != 2 and wire_type != natural):
            if not skip_value(&cursor, wire_type):
                return False
            continue
        if wire_type == 2:
            if not read_message(&cursor, &values):
                return False
        else:
            values = cursor
        while left(&values):
            if not read_number(&values, ref.code, &bits):
                return False
            if out != NULL:
                store(ref.code, target, bits, out)
                out += stride
            if wire_type != 2:
                cursor.at = values.at
                break
    return True


cdef void copy_raw_column(const InputRef* ref, uint8_t* out, int64_t stride) noexcept nogil:
    """Raw values of any number type to float32, one every `stride` bytes."""
    cdef Cursor cursor = cursor_over(ref.data.data, ref.data.size)
    cdef const uint8_t* item
    cdef int64_t size = item_size(ref.code)
    cdef uint64_t bits
    while read_bytes(&cursor, size, &item):
        bits = 0
        memcpy(&bits, item, <size_t>size)
        if ref.code == DT_BOOL:
            bits = bits != 0
        store(ref.code, DT_FP32, bits, out)
        out += stride


cdef void copy_tensor(const InputRef* ref, uint8_t* out) noexcept nogil:
    cdef size_t i
    if not ref.is_raw:
        copy_contents(ref, ref.code, out, item_size(ref.code))
        return
    if ref.data.size == 0:      # and there may be no memory at all
        return
    memcpy(out, ref.data.data, ref.data.size)
    if ref.code == DT_BOOL:
        for i in range(ref.data.size):
            out[i] = out[i] != 0


cdef inline bint sends(const Request* request, int slot) noexcept nogil:
    """Whether a matched request feeds a slot."""
    cdef int index
    for index in range(request.n_inputs):
        if request.inputs[index].slot == slot:
            return True
    return False


cdef void fill_numbers(Plan plan, const Request* request, int64_t row, uint8_t** buffers,
                       uint8_t* source) noexcept nogil:
    """Copy a matched request's numbers into the batch's buffers, from batch row `row` on.

    `source` is the batch's [rows, n_columns] map of where each value of the matrix came from, set to 1 (the request)
    where the caller sent it and 0 elsewhere, where the matrix holds NaN; NULL for a version without a matrix. Texts are
    left to `read_texts`.
    """
    cdef int index
    cdef int64_t i
    cdef int64_t width = plan.n_columns
    cdef const InputRef* ref
    cdef const Slot* slot
    cdef uint8_t* matrix = NULL
    cdef float* values
    if plan.matrix_slot >= 0:
        matrix = buffers[plan.slots[plan.matrix_slot].buffer]
        if not sends(request, plan.matrix_slot):
            values = <float*>matrix + row * width
            for i in range(request.rows * width):
                values[i] = NAN
            memset(source + row * width, 0, <size_t>(request.rows * width))
    for index in range(request.n_inputs):
        ref = &request.inputs[index]
        slot = &plan.slots[ref.slot]
        if slot.kind == KIND_MATRIX:
            copy_tensor(ref, matrix + row * width * 4)
            memset(source + row * width, 1, <size_t>(request.rows * width))
        elif slot.kind == KIND_TENSOR and ref.code != DT_BYTES:
            copy_tensor(ref, buffers[slot.buffer] + row * (ref.elements // request.rows) * item_size(ref.code))
    for index in range(request.n_inputs):
        ref = &request.inputs[index]
        slot = &plan.slots[ref.slot]
        if slot.kind != KIND_COLUMN:
            continue
        if ref.is_raw:
            copy_raw_column(ref, matrix + (row * width + slot.column) * 4, width * 4)
        else:
            copy_contents(ref, DT_FP32, matrix + (row * width + slot.column) * 4, width * 4)
        for i in range(request.rows):
            source[(row + i) * width + slot.column] = 1


cdef list read_texts(const InputRef* ref):
    """The values of a matched BYTES input, or of an INT64 entity id in decimal, as bytes objects."""
    cdef Cursor cursor
    cdef Slice text
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef list values = []
    if ref.code == DT_INT64:
        return [b"%d" % number for number in read_integers(ref)]
    if ref.is_raw:
        cursor = cursor_over(ref.data.data, ref.data.size)
        while left(&cursor) and read_u32(&cursor, &wire_type) and read_bytes(&cursor, wire_type, &text.data):
            values.append(PyBytes_FromStringAndSize(<const char*>text.data, wire_type))
        return values
    cursor = cursor_over(ref.contents.data, ref.contents.size)
    while left(&cursor) and read_tag(&cursor, &field, &wire_type):
        if field == 8 and wire_type == 2:
            if not read_slice(&cursor, &text):
                break
            values.append(PyBytes_FromStringAndSize(<const char*>text.data, text.size))
        elif not skip_value(&cursor, wire_type):
            break
    return values


cdef list read_integers(const InputRef* ref):
    """The values of a matched INT64 input."""
    cdef int64_t* numbers = <int64_t*>malloc(<size_t>ref.elements * 8 + 8)
    if numbers == NULL:
        raise MemoryError
    try:
        copy_tensor(ref, <uint8_t*>numbers)
        return [numbers[i] for i in range(ref.elements)]
    finally:
        free(numbers)
