"""The face of calls: what a transport, a lane and a batch share of one RPC in flight.

A transport makes a `Call`, a lane queues it, a batch answers it, and its `Sink` hands it back: a function that gets a
list of finished calls, from any thread, without the GIL. Whoever holds a call last frees it with `free_call`.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from penstock.kernels._wire cimport Request

cdef enum Status:            # the gRPC status codes that a lane gives
    STATUS_OK = 0
    STATUS_CANCELLED = 1
    STATUS_INVALID_ARGUMENT = 3
    STATUS_DEADLINE_EXCEEDED = 4
    STATUS_RESOURCE_EXHAUSTED = 8
    STATUS_INTERNAL = 13
    STATUS_UNAVAILABLE = 14

cdef enum:
    # Work on more bytes than this is worth handing the GIL over; on fewer, getting it back would cost more than the
    # work. No lock is ever held by a thread that waits for the GIL, so a thread with the GIL may take any of them.
    RELEASE_GIL_BYTES = 1 << 18

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
    uint64_t token           # what the cache keeps its answer under; 0: it is not kept
    int64_t first_row        # in the batch it was taken into
    bint alone               # shares no batch any more, since one it was in failed
    int status               # gRPC status of the answer
    uint8_t* answer          # the reply's bytes, or the message of a status that is not OK
    size_t answer_size


cdef Call* new_call() noexcept nogil
cdef void free_call(Call* call) noexcept nogil
cdef void cancel_call(Call* call) noexcept nogil
cdef void set_answer(Call* call, int status, const char* text, size_t size) noexcept nogil
cdef void fail_all(Call* call, int status, const char* text, size_t size) noexcept nogil
cdef void deliver(Call* calls) noexcept nogil


cdef class EventSink:
    cdef Sink sink
    cdef void* lock
    cdef Call* head
    cdef Call* tail
    cdef int fd


cdef class Ticket:
    cdef Call* call          # NULL once the call was delivered
    cdef object future
    cdef object body         # alive as long as the call points into it
    cdef object sink         # alive as long as the call may be delivered to it
