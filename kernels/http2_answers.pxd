"""What may be cimported of answers: sending one message by message, ending it with a status, refusing a request."""

from libc.stdint cimport uint8_t, uint32_t

from penstock.kernels._http2 cimport Chunk, Stream

cdef void send_chunk(Stream* stream, Chunk* chunk, uint8_t* data, size_t size, bint compressed,
                     int encoding) noexcept nogil
cdef void drop_chunk(Stream* stream) noexcept nogil
cdef void end_with(Stream* stream, int status, const char* message, size_t size, const uint8_t* trailing,
                   size_t trailing_size) noexcept nogil
cdef void refuse(Stream* stream, int status, const char* message) noexcept nogil
cdef void refuse_size(Stream* stream, const char* form, size_t size) noexcept nogil
cdef void refuse_over_budget(Stream* stream) noexcept nogil
cdef void refuse_encoding(Stream* stream) noexcept nogil
cdef void refuse_http(Stream* stream, const char* status) noexcept nogil
cdef void reset(Stream* stream, uint32_t code) noexcept nogil
