"""What may be cimported of the match: a request against a plan, and whether two may share a batch."""

from penstock.kernels._wire cimport Fault, Request
from penstock.kernels.wire_plan cimport Plan

cdef void match_request(Plan plan, Request* request, Fault* fault) noexcept nogil
cdef bint same_shapes(const Request* a, const Request* b) noexcept nogil
