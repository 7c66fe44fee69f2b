"""What may be cimported of loops: the life of an I/O thread."""

from penstock.kernels._http2 cimport Loop

cdef void run_loop(Loop* loop) noexcept nogil
