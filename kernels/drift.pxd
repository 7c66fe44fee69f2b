"""What may be cimported of drift: counting rows into bins, laid out as `bin_counts` has them."""

from libc.stdint cimport int32_t, int64_t

cdef void count_rows(const float* x, Py_ssize_t rows, Py_ssize_t columns, const float* edges, const int32_t* offsets,
                     int64_t* counts) noexcept nogil
