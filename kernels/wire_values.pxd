"""What may be cimported of values: a matched request's numbers into buffers, its texts as objects."""

from libc.stdint cimport int64_t, uint8_t

from penstock.kernels._datatypes cimport Datatype
from penstock.kernels._wire cimport InputRef, Request
from penstock.kernels.wire_plan cimport Plan

cdef bint copy_contents(const InputRef* ref, Datatype target, uint8_t* out, int64_t stride) noexcept nogil
cdef void fill_numbers(Plan plan, const Request* request, int64_t row, uint8_t** buffers,
                       uint8_t* source) noexcept nogil
cdef list read_texts(const InputRef* ref)
