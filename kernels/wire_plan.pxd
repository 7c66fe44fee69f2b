"""What may be cimported of plans: what one version takes and gives."""

from libc.stdint cimport int64_t, uint64_t

from penstock.kernels._datatypes cimport Datatype
from penstock.kernels._protobuf cimport Slice
from penstock.kernels._wire cimport MAX_DIMS

cdef enum Kind:              # what an input slot of a plan feeds
    KIND_TENSOR = 0          # a buffer of its own
    KIND_MATRIX = 1          # the whole feature matrix [n, k]
    KIND_COLUMN = 2          # one column of the matrix
    KIND_ENTITY = 3          # the ids that features are looked up by

cdef struct Slot:            # one input that a version takes
    Slice name
    Datatype code
    Kind kind
    int column               # of the matrix, for KIND_COLUMN
    int buffer               # index among the batch's numeric buffers, or among its texts for BYTES; -1 for a column
    bint optional
    int n_dims               # of one row, the batch dimension left out (all of them where the version has none)
    int64_t dims[MAX_DIMS]   # -1: any size
    int64_t item_elements    # values in one row; -1 where a dimension is free


cdef class Plan:
    cdef Slot* slots
    cdef int n_slots
    cdef readonly int n_columns      # of the matrix; 0 where the version has none
    cdef readonly int matrix_slot    # -1 where the version has none
    cdef readonly int entity_slot    # -1 where no features are looked up
    cdef readonly int n_buffers
    cdef readonly int n_texts
    cdef readonly bint batched
    cdef readonly bint fixed_shapes  # every dimension but the batch is known, so any two calls fit together
    cdef readonly tuple inputs       # of PlanInput
    cdef readonly tuple outputs      # of PlanOutput
    cdef readonly tuple columns
    cdef uint64_t default_outputs
    cdef list keep                   # bytes objects the slots point into
    cdef bytes head_bytes            # model name, version and parameters, encoded
    cdef Slice head
    cdef list output_heads           # name and datatype of each output, encoded
    cdef Slice* output_names
    cdef int n_outputs
    cdef int check_kinds(self) except -1
    cdef int add_input(self, entry) except -1
    cdef Slot* add_slot(self, name, datatype, Kind kind, shape) except NULL
