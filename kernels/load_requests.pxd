"""What may be cimported of requests: sending one, and what nghttp2 calls at its end."""

from libc.stdint cimport int32_t, int64_t, uint32_t

from penstock.kernels._load cimport Call, Thread, Wire
from penstock.kernels._nghttp2 cimport nghttp2_session

cdef bint ask(Thread* thread, Call* call, int slot, int64_t start) noexcept nogil
cdef void ask_again(Thread* thread, Call* call, int slot, int64_t now) noexcept nogil
cdef void go_on(Wire* wire) noexcept nogil
cdef int on_close(nghttp2_session* session, int32_t number, uint32_t error, void* user_data) noexcept nogil
