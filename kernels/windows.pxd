"""What may be cimported of windows: counting rows without the GIL."""

from libc.stdint cimport int32_t, int64_t


cdef class Windows:
    cdef readonly double window_s
    cdef readonly Py_ssize_t columns
    cdef float* edges
    cdef int32_t* offsets
    cdef int64_t* counts             # of the current window
    cdef int64_t* kept               # of the last complete one that saw rows
    cdef Py_ssize_t n_counts
    cdef double start
    cdef int64_t rows
    cdef double kept_start
    cdef int64_t kept_rows           # 0: there is none
    cdef void* lock
    cdef void count(self, const float* x, Py_ssize_t rows, double now) noexcept nogil
    cdef void rotate(self, double now) noexcept nogil
