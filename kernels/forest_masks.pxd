"""What may be cimported of masks: a forest's trees as tests for many rows at once. How: `_forest_masks.h`."""

from libc.stdint cimport uint16_t, uint32_t

from penstock.kernels._forest cimport Node, Tree

cdef extern from "_forest_masks.h":
    ctypedef struct Test:
        float threshold
        uint32_t cleared
        uint16_t column
    ctypedef void (*MaskFunction)(
        const uint32_t*, int, const Test*, const float*, const float*, Py_ssize_t, int, float*
    ) noexcept nogil
    MaskFunction mask_function(int lanes)

cdef struct Masked:                  # a tree: where its parts begin
    Py_ssize_t tests
    Py_ssize_t leaves
    Py_ssize_t words
    int n_words
    int target                       # the sum that its leaves add to


cdef class Masks:
    cdef int lanes                   # rows of a group
    cdef int n_trees
    cdef Py_ssize_t n_tests
    cdef Py_ssize_t n_leaves
    cdef Py_ssize_t n_words
    cdef MaskFunction function
    cdef Masked* trees
    cdef Test* tests
    cdef float* leaves
    cdef uint32_t* words
    cdef Py_ssize_t nbytes(self) noexcept
    cdef void lay_out(self, const Node* nodes, const Tree* trees, int bits, int* below, int* first) noexcept
    cdef void keep(self, const Masked* masked, const Node* nodes, int n, int bits, int* below, int* first) noexcept
    cdef void run(self, const float* block, Py_ssize_t step, int groups, float* sums) noexcept nogil


cdef Masks masks_of(const Node* nodes, const Tree* trees, int n_trees, int bits, int lanes)
