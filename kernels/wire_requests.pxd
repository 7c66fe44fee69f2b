"""What may be cimported of requests: a fresh one, its parts found in a body, and letting go of it."""

from libc.stdint cimport uint8_t

from penstock.kernels._wire cimport FaultCode, Request

cdef void init_request(Request* request) noexcept nogil
cdef void free_request(Request* request) noexcept nogil
cdef FaultCode parse_request(const uint8_t* data, size_t size, Request* request) noexcept nogil
