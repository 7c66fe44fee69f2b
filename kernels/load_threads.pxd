"""What may be cimported of threads: the life of one, from its connections to their end."""

from penstock.kernels._load cimport Thread

cdef bint open_thread(Thread* thread) noexcept nogil
cdef void live(Thread* thread) noexcept nogil
cdef void close_thread(Thread* thread) noexcept nogil
