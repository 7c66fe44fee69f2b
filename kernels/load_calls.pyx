"""Calls: the pool they are taken from, what became of each, and the words for it.

A thread has as many calls as may be in flight, made once. What is counted is written by its thread only.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from penstock.kernels._client cimport count_more
from penstock.kernels._fitting cimport FIT_BYTES, FIT_DATATYPE, FIT_OUTPUTS, FIT_SHAPE, FITS
from penstock.kernels._load cimport ANSWERED, DOES_NOT_FIT, NOT_HTTP_OK, WAS_RESET, WORDS, Call, Thread
from penstock.kernels._samples cimport bucket_of
from penstock.kernels._system cimport flag_raise, tally


cdef void say(Thread* thread, int outcome, const char* text, size_t size) noexcept nogil:
    """Keep the first words there are about an outcome."""
    if thread.said[outcome] or size == 0:
        return
    size = size if size < WORDS - 1 else WORDS - 1
    memcpy(thread.words[outcome], text, size)
    thread.words[outcome][size] = 0
    flag_raise(&thread.said[outcome])


cdef void say_text(Thread* thread, int outcome, const char* text) noexcept nogil:
    say(thread, outcome, text, strlen(text))


cdef Call* take_call(Thread* thread) noexcept nogil:
    cdef Call* call = thread.spare
    if call != NULL:
        thread.spare = call.next
    elif thread.used < thread.capacity:
        call = &thread.calls[thread.used]
        thread.used += 1
    return call


cdef void give_back(Thread* thread, Call* call) noexcept nogil:
    call.wire = NULL
    call.next = thread.spare
    thread.spare = call


cdef void park(Thread* thread, Call* call) noexcept nogil:
    call.wire = NULL
    call.next = thread.parked
    thread.parked = call


cdef void count(Thread* thread, int outcome, const Call* call, int64_t now) noexcept nogil:
    """Note what became of a call."""
    tally(&thread.outcomes[outcome])
    thread.last = now
    if outcome == ANSWERED:
        tally(&thread.latencies[bucket_of(now - call.start)])
        count_more(&thread.latency_sum, <uint64_t>(now - call.start))
        count_more(&thread.rows, <uint64_t>call.body.rows)


cdef int judge(Call* call, uint32_t error) noexcept nogil:
    """What became of a call whose stream is closed."""
    if call.status < 0:
        return WAS_RESET if error else NOT_HTTP_OK
    if not call.http_ok:
        return NOT_HTTP_OK
    if call.status:
        return call.status
    if call.wire.thread.shared.output_count and (call.fit != FITS or call.messages != 1):
        return DOES_NOT_FIT
    return ANSWERED


cdef void explain(Thread* thread, int outcome, const Call* call) noexcept nogil:
    """Words for an outcome that the server gave none for."""
    if outcome == NOT_HTTP_OK:
        say_text(thread, outcome, b"an HTTP status other than 200, or no grpc-status: no gRPC server?")
    elif outcome == WAS_RESET:
        say_text(thread, outcome, b"the server reset the stream")
    elif outcome == DOES_NOT_FIT and call.messages != 1:
        say_text(thread, outcome, b"status OK without exactly one message that is not compressed")
    elif outcome == DOES_NOT_FIT:
        if call.fit == FIT_OUTPUTS:
            say_text(thread, outcome, b"other outputs than the first answer had")
        elif call.fit == FIT_DATATYPE:
            say_text(thread, outcome, b"an output of another datatype than in the first answer")
        elif call.fit == FIT_SHAPE:
            say_text(thread, outcome, b"an output of another shape than the request's rows and the metadata ask for")
        elif call.fit == FIT_BYTES:
            say_text(thread, outcome, b"an output whose bytes are not as many as its shape says")
        else:
            say_text(thread, outcome, b"not a ModelInferResponse")


cdef void conclude(Thread* thread, Call* call, uint32_t error, int64_t now) noexcept nogil:
    """Judge, explain and count a call whose stream is closed."""
    cdef int outcome = judge(call, error)
    if outcome != ANSWERED:
        explain(thread, outcome, call)
    count(thread, outcome, call, now)
