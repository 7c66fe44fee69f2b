"""The face of the lanes: what a transport cimports to submit calls and be answered, with or without the GIL.

A transport fills in a `Call` from `new_call`, parses it, asks the lane whether it `takes` it and has it queued by
`enqueue`; it is answered through its `Sink`: a function that gets a list of finished calls, from any thread, without
the GIL. From ADMIT until `deliver` the call belongs to the lane; before and after it belongs to the transport, which
frees it with `free_call`.
"""

from libc.stdint cimport int64_t

from penstock.kernels.calls cimport Call
from penstock.kernels.ledger cimport Ledger
from penstock.kernels.wire cimport Fault, Plan

cdef enum Admission:         # what a lane says to a call
    ADMIT = 0
    QUEUE_FULL = 1
    NEVER_FITS = 2
    DRAINING = 3
    TOO_LATE = 4             # it could not be answered in time; the call has the status and the words

cdef struct Limits:
    int64_t max_batch_rows   # rows taken at once; a larger call runs alone
    int64_t max_queue_rows
    int64_t max_queue_bytes
    int64_t delay_ns         # how long a batch that is not full may wait for company; 0: not at all
    int workers              # that run batches of this lane at once
    bint foresee             # refuse what cannot be answered in time, and size runs by their calls' deadlines


cdef class Lane:
    cdef readonly Plan plan
    cdef Limits limits
    cdef Call* head
    cdef Call* tail
    cdef int64_t rows
    cdef int64_t bytes
    cdef int waiting
    cdef bint draining
    cdef readonly Ledger ledger
    cdef list spare                  # memory of finished batches
    cdef void* lock                  # pthread mutex and condition
    cdef int offer(self, Call* call, int64_t now, bint wake, Fault* fault) noexcept nogil
    cdef bint takes(self, Call* call) noexcept nogil
    cdef bint hopeless(self, Call* call, int64_t now) noexcept nogil
    cdef Admission enqueue(self, Call* call, int64_t now, bint wake) noexcept nogil
    cdef void wake_worker(self) noexcept nogil
    cdef int64_t read(self, const int64_t* value) noexcept nogil
    cdef Call* form(self, int64_t now, Call** dropped, int64_t* rows) noexcept nogil
    cdef void unlink(self) noexcept nogil
    cdef str reason(self, Call* call, Fault* fault, int status)
    cdef int64_t wait_ns(self, int64_t now) noexcept nogil
    cdef Call* wait(self, bint block, int64_t* present, int64_t* rows) noexcept nogil
