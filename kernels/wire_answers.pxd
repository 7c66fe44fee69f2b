"""What may be cimported of answers: an output ready to be cut, and the answer written."""

from libc.stdint cimport int64_t, uint8_t

from penstock.kernels._protobuf cimport Slice
from penstock.kernels._wire cimport MAX_DIMS, Request
from penstock.kernels.wire_plan cimport Plan

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


cdef size_t write_response(Plan plan, const Request* request, const OutputBlock* blocks, int64_t row,
                           const Timing* timing, uint8_t* out) noexcept nogil
