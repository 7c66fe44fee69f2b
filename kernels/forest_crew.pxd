"""What may be cimported of crews: threads that help with one long run at a time."""

from libc.stdint cimport int64_t

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass

# Does `count` things from `first` on; several threads at once do different ones.
ctypedef void (*Work)(void* context, int64_t first, int64_t count) noexcept nogil


cdef class Crew:
    cdef int n_threads               # started, beside those that bring runs
    cdef pthread_t* threads
    cdef void* lock                  # of all that follows but `done`
    cdef int64_t turn                # how many runs were shared so far
    cdef int busy                    # threads that are at the run
    cdef bint engaged                # somebody shares a run
    cdef bint joinable               # and a thread may still join in
    cdef bint closing
    cdef Work work                   # of the run
    cdef void* context
    cdef int64_t n
    cdef int64_t piece
    cdef int64_t taken               # how many of its things are taken; atomic
    cdef void share(self, Work work, void* context, int64_t n, int64_t multiple) noexcept nogil
    cdef void take_pieces(self) noexcept nogil
    cdef void help(self) noexcept nogil
