"""What may be cimported of blocks: the outputs of one batch, ready to be cut into answers."""

from libc.stdint cimport int64_t

from penstock.kernels.wire_answers cimport OutputBlock
from penstock.kernels.wire_plan cimport Plan

cdef class Blocks:
    cdef OutputBlock[64] blocks      # one per output of the plan
    cdef list keep                   # the arrays they point into
    cdef int set(self, Plan plan, int index, array, int64_t rows) except -1
