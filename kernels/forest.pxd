"""What may be cimported of forests: an ensemble of trees whose runs hold no GIL and allocate nothing."""

from libc.stdint cimport int64_t, uint32_t

from penstock.kernels._forest cimport Column, Columns, Node, Tree, Weight
from penstock.kernels.forest_crew cimport Crew
from penstock.kernels.forest_layout cimport Layout
from penstock.kernels.forest_masks cimport Masks

cdef class Forest:
    cdef readonly int n_features
    cdef readonly int n_outputs      # scores of one row
    cdef readonly int n_trees
    cdef readonly Py_ssize_t n_nodes
    cdef readonly int depth          # of the deepest tree
    cdef readonly Py_ssize_t nbytes
    cdef readonly int lanes          # rows of a group of masks; 0 where trees are walked only
    cdef int n_targets               # sums of one row, at most n_outputs
    cdef int kind
    cdef int aggregate
    cdef int post
    cdef int bits                    # of a link that tell the column
    cdef bint positive               # whether no weight is negative
    cdef Columns columns
    cdef Column* column
    cdef Node* nodes
    cdef Tree* trees
    cdef Weight* weights
    cdef Masks masks
    cdef Crew crew
    cdef float* numbers              # base values
    cdef float* steps                # values of each
    cdef int64_t* labels
    cdef void run_rows(
        self, const float* rows, int64_t n, int64_t stride, float* scores, int64_t* labels
    ) noexcept nogil
    cdef void check_kind(self, tuple labels, Py_ssize_t n_base) except *
    cdef void check_sums(self, Layout layout) except *
    cdef void keep_numbers(self, base, labels) except *
    cdef void keep_steps(self, list steps) except *
    cdef void keep_columns(self, Layout layout) except *
    cdef void keep_trees(self, Layout layout) except *
    cdef Py_ssize_t keep_node(self, Layout layout, const Tree* tree, Py_ssize_t at, Py_ssize_t n_weights) noexcept
    cdef void keep_masks(self, int lanes) except *
    cdef int masked_rows(self) noexcept nogil
    cdef int walked_rows(self) noexcept nogil
    cdef void mask_block(
        self, const float* rows, int n, int64_t stride, float* scores, float* block
    ) noexcept nogil
    cdef void walk_block(
        self, const float* rows, int n, int64_t stride, float* scores, float* block
    ) noexcept nogil
    cdef void walk_groups(self, const float* block, int n, float* scores) noexcept nogil
    cdef void walk_one(self, const float* row, float* sums) noexcept nogil
    cdef int finish(self, float* scores) noexcept nogil
