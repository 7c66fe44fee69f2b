"""What may be cimported of streams: beginning and ending one, and what its timer does."""

from libc.stdint cimport int32_t

from penstock.kernels._http2 cimport Connection, Stream

cdef Stream* new_stream(Connection* connection, int32_t number) noexcept nogil
cdef void end_stream(Stream* stream) noexcept nogil
cdef void on_stream_timer(Stream* stream) noexcept nogil
