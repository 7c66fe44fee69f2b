"""The face of the lanes: what a transport cimports to submit calls and be answered, with or without the GIL.

A transport fills in a `Call` from `new_call`, parses it, asks the lane whether it `takes` it and has it queued by
`enqueue`; it is answered through its `Sink`: a function that gets a list of finished calls, from any thread, without
the GIL. From ADMIT until `deliver` the call belongs to the lane; before and after it belongs to the transport, which
frees it with `free_call`.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from penstock.kernels.wire cimport Blocks, Fault, Plan, Request

cdef enum:
    BUCKETS = 128            # of a latency histogram, four an octave

cdef enum Admission:         # what a lane says to a call
    ADMIT = 0
    QUEUE_FULL = 1
    NEVER_FITS = 2
    DRAINING = 3

ctypedef void (*deliver_function)(void* owner, Call* finished) noexcept nogil

cdef struct Sink:            # where finished calls go
    deliver_function deliver
    void* owner

cdef struct Call:            # one RPC in flight
    Call* next
    Sink* sink
    void* context            # what the transport knows the call by
    const uint8_t* body      # stays valid until the call is delivered
    size_t size
    bint owns_body           # free(body) with the call
    int cancelled            # set by the transport at any time, through cancel_call
    int64_t arrived_ns       # CLOCK_MONOTONIC
    int64_t deadline_ns      # CLOCK_MONOTONIC; 0: none
    Request request
    int64_t first_row        # in the batch it was taken into
    int status               # gRPC status of the answer
    uint8_t* answer          # the reply's bytes, or the message of a status that is not OK
    size_t answer_size

cdef struct Limits:
    int64_t max_batch_rows   # rows taken at once; a larger call runs alone
    int64_t max_queue_rows
    int64_t max_queue_bytes
    int64_t delay_ns         # how long a batch that is not full may wait for company; 0: not at all

cdef struct Phase:           # durations of one step
    uint64_t count
    uint64_t ns
    uint64_t[BUCKETS] buckets

cdef struct Statistics:
    uint64_t succeeded
    uint64_t failed
    uint64_t refused         # not admitted: queue full or draining
    uint64_t invalid         # not a fitting request
    uint64_t expired         # deadline passed while queued
    uint64_t cancelled       # client gone while queued
    uint64_t rows
    uint64_t batches
    uint64_t failed_ns
    int64_t last_ms          # of the last finished batch, since the epoch
    Phase total              # of calls, from arrival to answer
    Phase queue              # of calls, from arrival to being taken
    Phase lookup             # of batches
    Phase compute            # of batches
    Phase encode             # of batches


cdef Call* new_call() noexcept nogil
cdef void free_call(Call* call) noexcept nogil
cdef void cancel_call(Call* call) noexcept nogil


cdef class Lane:
    cdef readonly Plan plan
    cdef Limits limits
    cdef Call* head
    cdef Call* tail
    cdef int64_t rows
    cdef int64_t bytes
    cdef int waiting
    cdef bint draining
    cdef Statistics statistics
    cdef uint64_t* size_counts       # batches by their rows; the last entry is everything larger
    cdef uint64_t* size_ns
    cdef list spare                  # memory of finished batches
    cdef void* lock                  # pthread mutex and condition
    cdef int offer(self, Call* call, int64_t now, bint wake, Fault* fault) noexcept nogil
    cdef bint takes(self, Call* call) noexcept nogil
    cdef Admission enqueue(self, Call* call, int64_t now, bint wake) noexcept nogil
    cdef void wake_worker(self) noexcept nogil
    cdef int64_t read(self, const int64_t* value) noexcept nogil
    cdef Call* form(self, int64_t now, Call** dropped, int64_t* rows) noexcept nogil
    cdef void unlink(self) noexcept nogil
    cdef str reason(self, Call* call, Fault* fault, int status)
    cdef int64_t wait_ns(self, int64_t now) noexcept nogil
    cdef Call* wait(self, bint block, int64_t* present, int64_t* rows) noexcept nogil
    cdef Batch gather(self, Call* calls, int64_t rows, int64_t now)
    cdef void note_answers(self, Batch batch, int64_t lookup, int64_t compute, int64_t started,
                           int64_t now) noexcept nogil


cdef class Batch:
    cdef readonly Lane lane
    cdef Call* calls                 # owned until answered; in arrival order
    cdef readonly int64_t rows
    cdef readonly int64_t taken_ns
    cdef readonly dict inputs
    cdef readonly object matrix
    cdef readonly object source
    cdef readonly list entities
    cdef object memory
    cdef void give_back(self)
    cdef int check_open(self) except -1
    cdef void write_answers(self, Blocks blocks, int64_t lookup_ns, int64_t compute_ns) noexcept nogil
    cdef int answer(self, Blocks blocks, int64_t lookup_ns, int64_t compute_ns) except -1
