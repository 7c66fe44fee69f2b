"""Writing a `ModelInferResponse`: the answer to one call, cut out of its batch's outputs.

It is written in two passes by the same function: one counts the bytes, one puts them where the caller has made room.
"""

from libc.stdint cimport int64_t, uint64_t, uint8_t

from penstock.kernels._protobuf cimport Writer, put, put_field, put_varint, varint_size
from penstock.kernels._wire cimport Request
from penstock.kernels.wire_plan cimport Plan


cdef void put_number_parameter(Writer* writer, const char* key, size_t key_size, int64_t value) noexcept nogil:
    """One entry of `parameters` with an int64_param."""
    cdef uint8_t tag = 0x22
    cdef size_t inner = 1 + varint_size(<uint64_t>value)
    put(writer, &tag, 1)
    put_varint(writer, 2 + key_size + 2 + inner)
    put_field(writer, 0x0A, key, key_size)
    tag = 0x12
    put(writer, &tag, 1)
    put_varint(writer, inner)
    tag = 0x10
    put(writer, &tag, 1)
    put_varint(writer, <uint64_t>value)


cdef void put_output(Writer* writer, const OutputBlock* block, bint batched, int64_t rows) noexcept nogil:
    """The InferOutputTensor of one output: name, datatype and packed shape."""
    cdef size_t shape = varint_size(<uint64_t>rows) if batched else 0
    cdef uint8_t tag = 0x2A
    cdef int i
    for i in range(block.n_dims):
        shape += varint_size(<uint64_t>block.dims[i])
    put(writer, &tag, 1)
    put_varint(writer, block.head.size + 1 + varint_size(shape) + shape)
    put(writer, block.head.data, block.head.size)
    tag = 0x1A
    put(writer, &tag, 1)
    put_varint(writer, shape)
    if batched:
        put_varint(writer, <uint64_t>rows)
    for i in range(block.n_dims):
        put_varint(writer, <uint64_t>block.dims[i])


cdef size_t write_response(Plan plan, const Request* request, const OutputBlock* blocks, int64_t row,
                           const Timing* timing, uint8_t* out) noexcept nogil:
    """Write the answer to one call, whose rows begin at batch row `row`; with `out` NULL only count its bytes.

    `blocks` holds one entry per output of the plan; `timing` is NULL unless the caller asked for it.
    """
    cdef Writer writer
    cdef const OutputBlock* block
    cdef int index
    cdef int64_t first, last
    writer.at = out
    writer.size = 0
    put(&writer, plan.head.data, plan.head.size)
    if request.id.size:
        put_field(&writer, 0x1A, request.id.data, request.id.size)
    if timing != NULL:
        put_number_parameter(&writer, b"batch_rows", 10, timing.batch_rows)
        put_number_parameter(&writer, b"queue_us", 8, timing.queue_us)
        put_number_parameter(&writer, b"lookup_us", 9, timing.lookup_us)
        put_number_parameter(&writer, b"compute_us", 10, timing.compute_us)
    for index in range(plan.n_outputs):
        if request.wanted >> index & 1:
            put_output(&writer, &blocks[index], plan.batched, request.rows)
    for index in range(plan.n_outputs):
        if request.wanted >> index & 1:
            block = &blocks[index]
            first = row * block.item_bytes
            last = (row + request.rows) * block.item_bytes
            if block.offsets != NULL:
                first = block.offsets[first]
                last = block.offsets[last]
            put_field(&writer, 0x32, block.data + first, <size_t>(last - first))
    return writer.size
