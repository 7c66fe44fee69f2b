"""What may be cimported of transforms: running a program over memory, without the GIL."""

cimport cython

cdef struct Step:
    int code
    Py_ssize_t count             # parameters
    const double* parameters     # into the program's pool


@cython.final
cdef class Program:
    cdef readonly Py_ssize_t n_inputs
    cdef readonly Py_ssize_t n_outputs
    cdef Step* steps             # grouped by column, in order within it
    cdef Py_ssize_t* starts      # steps of column j: starts[j] up to starts[j + 1]
    cdef double* pool
    cdef int fill(self, list operations) except -1
    cdef int check_shapes(self, Py_ssize_t n, Py_ssize_t k, Py_ssize_t n_out, Py_ssize_t k_out) except -1
    cdef void run_rows(self, const float* x, float* out, Py_ssize_t n) noexcept nogil
