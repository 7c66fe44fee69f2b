"""What may be cimported of layouts: an ensemble checked and put in the order in which it is walked."""

from libc.stdint cimport int32_t, int64_t, uint8_t


cdef class Layout:
    """Positions: trees one after the other, level by level, so that siblings stand together behind their parent."""

    cdef int n_features
    cdef int n_targets
    cdef int n_trees
    cdef Py_ssize_t n_nodes          # of the ensemble as given
    cdef Py_ssize_t n_placed         # as walked, copies among them
    # by node, as given
    cdef const int64_t[::1] features, yes, no
    cdef const float[::1] values
    cdef const uint8_t[::1] modes, missing
    # by node, as walked
    cdef int32_t[::1] column         # which one a branch asks
    cdef float[::1] threshold
    cdef uint8_t[::1] swapped        # whether the false child stands left
    cdef int32_t[::1] first          # of its weights; one entry more than nodes
    # by weight, in the order of nodes
    cdef int32_t[::1] target
    cdef float[::1] weight
    # by tree
    cdef int64_t[::1] root           # its first position
    cdef int32_t[::1] depth
    cdef int32_t[::1] only           # the target that each of its leaves adds to, once; -1 where there is more to it
    # by position
    cdef int32_t[::1] node
    cdef int32_t[::1] left           # counted from the root; a leaf's own
    # by column
    cdef list columns                # (feature, missing, value); value is None of a plain one, and these come first

    cdef void check_nodes(self) except *
    cdef void read_branches(self) except *
    cdef void place(self, const int64_t[::1] roots) except *
    cdef void sort_weights(
        self, const int64_t[::1] nodes, const int64_t[::1] targets, const float[::1] values
    ) except *
    cdef Py_ssize_t end_of(self, int tree) noexcept
    cdef Py_ssize_t n_listed(self) except -1
    cdef int target_of(self, int tree) noexcept
    cdef void require_every_target(self) except *
