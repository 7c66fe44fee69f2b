"""What may be cimported of masks: a forest's trees as tests for many rows at once. How: `_forest_masks.h`."""

from libc.stdint cimport uint16_t, uint32_t

from penstock.kernels._forest cimport Node, Tree, Weight

cdef extern from "_forest_masks.h":
    ctypedef struct Test:
        float threshold
        uint32_t cleared
        uint16_t column
    ctypedef struct MaskTree:
        const uint32_t* words
        const Test* tests
        const float* leaves
        int n_words
        int n_leaves
        int first_sum
        int n_sums
    ctypedef void (*MaskFunction)(const MaskTree*, const float*, Py_ssize_t, int, float*) noexcept nogil
    MaskFunction mask_function(int lanes)


cdef class Masks:
    cdef int lanes                   # rows of a group
    cdef int n_trees
    cdef Py_ssize_t n_tests
    cdef Py_ssize_t n_leaves
    cdef Py_ssize_t n_values         # a leaf's for each sum that its tree adds to
    cdef Py_ssize_t n_words
    cdef MaskFunction function
    cdef MaskTree* trees
    cdef Test* tests
    cdef float* values
    cdef uint32_t* words
    cdef Py_ssize_t nbytes(self) noexcept
    cdef bint measure(self, const Node* nodes, const Tree* trees, const Weight* weights, int n_sums, int bits,
                      int* below, int* first) noexcept
    cdef void keep(self, int t, const Node* nodes, const Weight* weights, int n, int bits, int* below,
                   int* first) noexcept
    cdef void keep_leaf(self, const MaskTree* mask, float* values, const Node* leaf, const Weight* weights) noexcept
    cdef void run(self, const float* block, Py_ssize_t step, int groups, float* sums) noexcept nogil


cdef Masks masks_of(const Node* nodes, const Tree* trees, const Weight* weights, int n_trees, int n_sums, int bits,
                    int lanes)
