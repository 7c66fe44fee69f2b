"""The face of the lanes: what a transport cimports to submit calls and be answered, with or without the GIL.

A transport fills in a `Call` from `new_call`, parses it, asks the lane whether it `takes` it, and then either has it
answered at once by `recall` or queued by `enqueue`. What was queued is answered through its `Sink`: a function that
gets a list of finished calls, from any thread, without the GIL. From ADMIT until `deliver` the call is the lane's;
before and after it belongs to the transport, which frees it with `free_call`.
"""

from libc.stdint cimport int64_t

from penstock.kernels._wire cimport Fault
from penstock.kernels.cache cimport Cache
from penstock.kernels.calls cimport Call
from penstock.kernels.engines cimport Engine
from penstock.kernels.ledger cimport Ledger
from penstock.kernels.wire_plan cimport Plan

cdef enum Admission:         # what a lane says to a call
    ADMIT = 0
    QUEUE_FULL = 1
    NEVER_FITS = 2
    DRAINING = 3
    TOO_LATE = 4             # it could not be answered in time; the call has the status and the words

cdef enum Inline:            # whether the thread that queued calls may run them itself
    INLINE_OFF = 0
    INLINE_AUTO = 1          # where it is cheap
    INLINE_ON = 2            # whatever it costs

cdef enum:
    INLINE_BUDGET_NS = 200_000   # how long a pass of an I/O thread may run models; the last run may exceed it

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
    cdef int64_t due                 # when the first of what waits for company is to be answered; 0: to be looked for
    cdef int waiting
    cdef bint draining
    cdef bint told                   # what is queued is a worker's business
    cdef int lent                    # batches that are being run inline
    cdef Inline mode
    cdef readonly Engine engine      # what runs batches inline; None where only workers do
    cdef readonly Ledger ledger
    cdef readonly Cache cache        # of answers, or None
    cdef list spare                  # memory of finished batches
    cdef void* lock                  # pthread mutex and condition
    cdef int offer(self, Call* call, int64_t now, bint wake, Fault* fault) noexcept nogil
    cdef bint takes(self, Call* call) noexcept nogil
    cdef bint recall(self, Call* call, int64_t now) noexcept nogil
    cdef bint hopeless(self, Call* call, int64_t now) noexcept nogil
    cdef Admission enqueue(self, Call* call, int64_t now, bint wake) noexcept nogil
    cdef void wake_worker(self) noexcept nogil
    cdef void tell(self) noexcept nogil
    cdef int64_t read(self, const int64_t* value) noexcept nogil
    cdef Call* form(self, int64_t now, int idle, Call** dropped, int64_t* rows) noexcept nogil
    cdef void unlink(self) noexcept nogil
    cdef str reason(self, Call* call, Fault* fault, int status)
    cdef int64_t wait_ns(self, int64_t now) noexcept nogil
    cdef int64_t latest_begin(self) noexcept nogil
    cdef Call* wait(self, bint block, int64_t* present, int64_t* rows) noexcept nogil
    cdef Call* run_inline(self, int64_t* budget_ns) noexcept nogil
    cdef bint runs_inline(self, int64_t budget_ns) noexcept nogil
    cdef bint run_batch(self, Call* calls, int64_t rows, int64_t now) noexcept nogil
    cdef void put_back(self, Call* calls) noexcept nogil
