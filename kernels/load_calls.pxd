"""What may be cimported of calls: the pool they come from, and how they are counted."""

from libc.stdint cimport int64_t, uint32_t

from penstock.kernels._load cimport Call, Thread

cdef void say(Thread* thread, int outcome, const char* text, size_t size) noexcept nogil
cdef void say_text(Thread* thread, int outcome, const char* text) noexcept nogil
cdef Call* take_call(Thread* thread) noexcept nogil
cdef void give_back(Thread* thread, Call* call) noexcept nogil
cdef void park(Thread* thread, Call* call) noexcept nogil
cdef void count(Thread* thread, int outcome, const Call* call, int64_t now) noexcept nogil
cdef void conclude(Thread* thread, Call* call, uint32_t error, int64_t now) noexcept nogil
