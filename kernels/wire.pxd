"""The face of the codec: what the lanes (and every transport) cimport.

Life of a request: `parse_request` finds the parts of a body in place, `match_request` holds them against the plan of a
version, `fill_numbers` copies the values of one call into a batch. None of them allocates by a length it has not
checked. Grammar and single values are below, in `_protobuf.pxd` and `_datatypes.pxd`.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from penstock.kernels._datatypes cimport Datatype
from penstock.kernels._protobuf cimport Slice

cdef enum:
    MAX_DIMS = 8             # dimensions of one tensor
    MAX_TENSORS = 1024       # inputs, raw contents or requested outputs of one request
    MAX_PARAMETERS = 64      # parameters of one request, input or requested output
    INLINE_TENSORS = 2       # kept inside the request; more are allocated
    CONTENTS_FIELDS = 9      # InferTensorContents has fields 1 to 8

cdef enum Kind:              # what an input slot of a plan feeds
    KIND_TENSOR = 0          # a buffer of its own
    KIND_MATRIX = 1          # the whole feature matrix [n, k]
    KIND_COLUMN = 2          # one column of the matrix
    KIND_ENTITY = 3          # the ids that features are looked up by

cdef enum FaultCode:
    OK = 0
    MALFORMED = 1
    TOO_MANY_PARTS = 2
    OUT_OF_MEMORY = 3
    UNKNOWN_INPUT = 4
    DUPLICATE_INPUT = 5
    MISSING_INPUT = 6
    WRONG_DATATYPE = 7
    WRONG_SHAPE = 8
    WRONG_RAW_COUNT = 9
    WRONG_RAW_SIZE = 10
    CONTENTS_AND_RAW = 11
    WRONG_CONTENTS_FIELD = 12
    WRONG_CONTENTS_COUNT = 13
    VALUE_OUT_OF_RANGE = 14
    BAD_BYTES_LENGTH = 15
    BATCH_MISMATCH = 16
    NO_ROWS = 17
    UNKNOWN_OUTPUT = 18
    SHARED_MEMORY = 19
    CLASSIFICATION = 20
    MISSING_FEATURES = 21
    TOO_MANY_TEXTS = 22

cdef struct Fault:           # why a request is refused; `explain` turns it into words
    FaultCode code
    int part                 # index of the input, output or slot it is about
    int64_t expected
    int64_t got

cdef struct InputRef:        # one input of a request, where it lies in the body
    Slice name
    Slice datatype
    Slice contents           # InferTensorContents; data is NULL where absent
    int64_t counts[CONTENTS_FIELDS]   # values in each field of the contents
    int64_t dims[MAX_DIMS]
    int n_dims
    bint shared_memory
    # set by match_request
    int slot
    Datatype code
    bint is_raw
    Slice data               # the raw bytes
    int64_t elements         # values in all, rows included

cdef struct Request:
    Slice model_name
    Slice model_version
    Slice id
    int64_t timeout_us       # request parameter `timeout`; 0 when absent
    bint timing              # request parameter `timing`
    int n_inputs
    int n_raws
    int n_outputs
    int cap_inputs
    int cap_raws
    int cap_outputs
    bint classification      # some requested output asks for top-k labels
    bint output_shared_memory
    InputRef* inputs
    Slice* raws
    Slice* outputs
    InputRef inline_inputs[INLINE_TENSORS]
    Slice inline_raws[INLINE_TENSORS]
    Slice inline_outputs[INLINE_TENSORS]
    # set by match_request
    int64_t rows
    uint64_t wanted          # bit i: output i of the plan is to be sent
    bint has_entity

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

cdef struct OutputBlock:     # one output of a batch, ready to be cut into answers
    Slice head               # encoded name and datatype of the InferOutputTensor
    const uint8_t* data
    const int64_t* offsets   # BYTES: where each value begins in data, one more than there are values; else NULL
    int64_t item_bytes       # bytes of one row; for BYTES: values of one row
    int n_dims
    int64_t dims[MAX_DIMS]   # of one row

cdef struct Timing:          # microseconds told to a caller that asks for them
    int64_t batch_rows
    int64_t queue_us
    int64_t lookup_us
    int64_t compute_us


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


cdef class Blocks:
    cdef OutputBlock[64] blocks      # one per output of the plan
    cdef list keep                   # the arrays they point into
    cdef int set(self, Plan plan, int index, array, int64_t rows) except -1


cdef void init_request(Request* request) noexcept nogil
cdef void free_request(Request* request) noexcept nogil
cdef FaultCode parse_request(const uint8_t* data, size_t size, Request* request) noexcept nogil
cdef void match_request(Plan plan, Request* request, Fault* fault) noexcept nogil
cdef bint same_shapes(const Request* a, const Request* b) noexcept nogil
cdef void fill_numbers(Plan plan, const Request* request, int64_t row, uint8_t** buffers,
                       uint8_t* source) noexcept nogil
cdef list read_texts(const InputRef* ref)
cdef str explain(Plan plan, const Request* request, const Fault* fault)
cdef size_t write_response(Plan plan, const Request* request, const OutputBlock* blocks, int64_t row,
                           const Timing* timing, uint8_t* out) noexcept nogil
