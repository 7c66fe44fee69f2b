"""The codec of `ModelInferRequest` and `ModelInferResponse`: bytes to batch buffers and back, without protobuf objects.

Bodies are parsed in place: a request is a set of pointers into the body until its values are copied, once, into the
tensor that the model reads. Every read goes through the checked cursor, every size is checked in 64 bits before it is
used, and memory taken to parse a request is bounded by MAX_TENSORS, never by a number found in it. What fits takes its
values in full: as many bytes as were sent raw, up to 8 times as many sent as varints, up to 20 times as many sent as
short texts, which become Python objects. One row of 30 floats costs about 0.1 microseconds in and as much out.

Parsing accepts what the protobuf library accepts, but for a few things refused on purpose: see `wire.STRICTER`.

Life of a request: `parse_request` finds the parts of a body in place, `match_request` holds them against the plan of a
version, `fill_numbers` copies the values of one call into a batch, `write_response` writes its answer. The modules of
the codec, each of which cimports only from those below it; grammar and single values are further below, in
`_protobuf.pxd` and `_datatypes.pxd`. All but the first may be cimported by every kernel:

    wire                 what Python sees
    wire_blocks          a batch's outputs, ready to be cut      wire_faults    what is wrong, in words
    wire_answers         an answer written
    wire_match           a request against a plan
    wire_values          numbers into buffers, texts into objects
    wire_plan            what a version takes and gives
    wire_requests        where the parts of a request lie

This file has what several of them need: the request itself, its limits, and what may be wrong with it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint64_t

from penstock.kernels._datatypes cimport Datatype
from penstock.kernels._protobuf cimport Slice

cdef extern from *:
    """
    #define PENSTOCK_MAX_ELEMENTS ((int64_t)1 << 40)
    """
    const int64_t MAX_ELEMENTS "PENSTOCK_MAX_ELEMENTS"    # of one tensor; more than an enum holds

cdef enum:
    MAX_DIMS = 8             # dimensions of one tensor
    MAX_TENSORS = 1024       # inputs, raw contents or requested outputs of one request
    MAX_PARAMETERS = 64      # parameters of one request, input or requested output
    INLINE_TENSORS = 2       # kept inside the request; more are allocated
    CONTENTS_FIELDS = 9      # InferTensorContents has fields 1 to 8

cdef enum FaultCode:         # in the order of wire.FAULTS
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


cdef inline Slice slice_of(bytes data):
    """Where a bytes object lies; whoever keeps the slice keeps the object."""
    cdef Slice slice
    slice.data = <const uint8_t*>PyBytes_AS_STRING(data)
    slice.size = PyBytes_GET_SIZE(data)
    return slice
