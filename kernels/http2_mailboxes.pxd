"""What may be cimported of mailboxes: making and freeing a loop, and leaving something for one; from any thread."""

from penstock.kernels._http2 cimport Loop, Shared
from penstock.kernels.calls cimport Call

cdef Loop* new_loop(Shared* shared) noexcept nogil
cdef void orphan_loop(Loop* loop) noexcept nogil
cdef bint hand_to(Loop* loop, int fd) noexcept nogil
cdef void leave_routes(Loop* loop, void* routes) noexcept nogil
cdef void await_routes(Loop* loop) noexcept nogil
cdef void take_routes(Loop* loop) noexcept nogil
cdef void leave_tls(Loop* loop, void* context) noexcept nogil
cdef void ask_to_end(Loop* loop, bint drain) noexcept nogil
