"""What may be cimported of engines: running a batch without the GIL, whatever kind of engine does it."""

from libc.stdint cimport int64_t

from penstock.kernels.calls cimport Call


cdef class Engine:
    cdef int64_t predict(self, int64_t rows) noexcept nogil
    cdef bint fits(self, int64_t rows, int64_t budget_ns) noexcept nogil
    cdef bint run(self, Call* calls, int64_t rows, int64_t taken_ns) noexcept nogil
