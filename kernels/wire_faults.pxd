"""What may be cimported of faults: the words for one, and the error that says them."""

from penstock.kernels._wire cimport Fault, Request
from penstock.kernels.wire_plan cimport Plan

cdef str explain(Plan plan, const Request* request, const Fault* fault)
cdef object wire_error(Plan plan, const Request* request, const Fault* fault)
