"""What may be cimported of connections: opening and leaving them, bytes in and out, the end of those that are lost."""

from libc.stdint cimport int64_t, uint32_t

from penstock.kernels._load cimport Thread, Wire
from penstock.kernels._nghttp2 cimport nghttp2_frame, nghttp2_session

cdef Wire* open_wire(Thread* thread, int slot) noexcept nogil
cdef void leave(Wire* wire) noexcept nogil
cdef void free_wire(Wire* wire) noexcept nogil
cdef void flush(Wire* wire) noexcept nogil
cdef void on_ready(Wire* wire, uint32_t events) noexcept nogil
cdef int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil
cdef void tidy(Thread* thread, int64_t now) noexcept nogil
