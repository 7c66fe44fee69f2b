"""What may be cimported of ONNX Runtime: a session whose runs hold no GIL, over tensors that lie in memory."""

from libc.stdint cimport int64_t

cdef enum:
    MAX_RANK = 8

cdef struct Tensor:              # numbers in memory, row-major
    void* data
    size_t size                  # bytes
    int n_dims
    int64_t[MAX_RANK] dims
    void* value                  # of a result: what holds the memory, for `release`; else NULL


cdef class Session:
    cdef void* session
    cdef readonly tuple inputs       # names, in the order of the graph
    cdef readonly tuple outputs      # names, in the order asked for
    cdef int n_inputs
    cdef int n_outputs
    cdef int* types                  # ONNX element types of inputs, then of outputs
    cdef const char** names          # likewise
    cdef list keep                   # the bytes that names point into
    cdef int load(self, bytes onnx, int threads) except -1
    cdef list ends(self, int side)
    cdef int choose(self, list given, list asked) except -1
    cdef int set_end(self, int i, end, what) except -1
    cdef void* feed(self, int i, array, list held) except NULL
    cdef void* feed_texts(self, array) except NULL
    cdef object fetch(self, int i, void* value)
    cdef bint run_rows(self, const Tensor* feeds, Tensor* results) noexcept nogil
    cdef bint run_values(self, const Tensor* feeds, void** values, Tensor* results) noexcept nogil


cdef void release(Tensor* results, int n) noexcept nogil
