"""What may be cimported of transforms: running a program over memory, without the GIL."""

cimport cython

from penstock.kernels._transforms cimport Step


@cython.final
cdef class Program:
    cdef readonly Py_ssize_t n_inputs
    cdef readonly Py_ssize_t n_outputs
    cdef readonly bint timed     # whether it reads the clock
    cdef Py_ssize_t n_steps
    cdef Py_ssize_t block        # rows at a time
    cdef Step* steps
    cdef double* pool            # parameters of all steps
    cdef int fill(self, list steps) except -1
    cdef int check(self, const void* x, Py_ssize_t n, Py_ssize_t k, const void* out, Py_ssize_t n_out,
                   Py_ssize_t k_out, Py_ssize_t item, const double[::1] now) except -1
    cdef void run_rows(self, const float* x, float* out, Py_ssize_t n, double now_ms) noexcept nogil
