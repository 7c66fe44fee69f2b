"""Calls in flight and the sinks they are delivered to.

A call is plain memory that threads without the GIL hand to each other: transport, lane, batch, sink. Making one costs
an allocation of about a kilobyte; delivering a batch of them to an event loop costs one lock and one eventfd.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from penstock.kernels._system cimport (
    close, event_clear, event_new, event_raise, flag_raise, lock_acquire, lock_free, lock_new, lock_release,
)
from penstock.kernels.wire_requests cimport free_request, init_request

# The gRPC status codes that a lane gives.
CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 3, 4, 8, 13, 14


class Refused(Exception):
    """A call that gets no answer from the model: a gRPC status code and the line for the caller."""

    def __init__(self, status, message):
        super().__init__(status, message)
        self.status = status
        self.message = message


cdef Call* new_call() noexcept nogil:
    """A blank call, or NULL where there is no memory."""
    cdef Call* call = <Call*>malloc(sizeof(Call))
    if call != NULL:
        memset(call, 0, sizeof(Call))
        init_request(&call.request)
    return call


cdef void free_call(Call* call) noexcept nogil:
    free_request(&call.request)
    if call.owns_body:
        free(<void*>call.body)
    free(call.answer)
    free(call)


cdef void cancel_call(Call* call) noexcept nogil:
    """Tell that nobody waits any more; a call still queued will be dropped. Only before it is delivered."""
    flag_raise(&call.cancelled)


cdef void set_answer(Call* call, int status, const char* text, size_t size) noexcept nogil:
    """A status that is not OK, with its message."""
    free(call.answer)
    call.status = status
    call.answer_size = 0
    call.answer = <uint8_t*>malloc(size) if size else NULL
    if call.answer != NULL:
        memcpy(call.answer, text, size)
        call.answer_size = size


cdef void fail_all(Call* call, int status, const char* text, size_t size) noexcept nogil:
    """A status for every call of a list that has none yet."""
    while call != NULL:
        if call.status == STATUS_OK:
            set_answer(call, status, text, size)
        call = call.next


cdef void deliver(Call* calls) noexcept nogil:
    """Hand finished calls to their sinks, a run of equal sinks at a time."""
    cdef Call* first
    cdef Call* last
    while calls != NULL:
        first = last = calls
        while last.next != NULL and last.next.sink == first.sink:
            last = last.next
        calls = last.next
        last.next = NULL
        first.sink.deliver(first.sink.owner, first)


cdef class Ticket:
    """What the submitter of a call holds: a way to cancel it. Used by the submitting thread only."""

    def cancel(self):
        """Nobody waits for the answer any more. A call still queued is never run."""
        if self.call != NULL:
            cancel_call(self.call)


cdef class EventSink:
    """Answers for one event loop: workers add finished calls without the GIL and raise an eventfd; the loop drains.

    Futures are anything with `done`, `set_result` and `set_exception`; they get the reply's bytes, or `Refused`.
    """

    def __cinit__(self):
        self.fd = -1
        self.lock = lock_new()
        self.fd = event_new()
        self.sink.deliver = collect
        self.sink.owner = <void*>self
        if self.lock == NULL or self.fd < 0:
            raise MemoryError("no memory or file descriptor for an event sink")

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        lock_free(self.lock)

    def fileno(self):
        """The descriptor that turns readable when there is something to drain."""
        return self.fd

    def drain(self):
        """Give every finished call its answer. Call it in the loop's thread when `fileno` is readable.

        A future that raises (its loop was closed, say) keeps no other from its answer; the error is raised at the end.
        """
        cdef Call* call
        cdef Call* following
        error = None
        event_clear(self.fd)
        lock_acquire(self.lock)
        call = self.head
        self.head = self.tail = NULL
        lock_release(self.lock)
        while call != NULL:
            following = call.next
            try:
                settle(call)
            except Exception as raised:
                error = raised
            call = following
        if error is not None:
            raise error


cdef void collect(void* owner, Call* finished) noexcept nogil:
    """The deliver function of an EventSink; every call's ticket keeps the sink alive."""
    cdef Call* last = finished
    cdef void* lock = (<EventSink>owner).lock
    cdef bint was_empty
    while last.next != NULL:
        last = last.next
    lock_acquire(lock)
    was_empty = (<EventSink>owner).head == NULL
    if was_empty:
        (<EventSink>owner).head = finished
    else:
        (<EventSink>owner).tail.next = finished
    (<EventSink>owner).tail = last
    if was_empty:
        event_raise((<EventSink>owner).fd)
    lock_release(lock)


cdef int settle(Call* call) except -1:
    """Resolve the future of one finished call and free the call."""
    cdef Ticket ticket = <Ticket>call.context
    cdef object future = ticket.future
    cdef bytes answer = b"no memory for the answer"
    cdef int status = call.status
    try:
        answer = PyBytes_FromStringAndSize(<const char*>call.answer, <Py_ssize_t>call.answer_size)
    except MemoryError:
        status = STATUS_RESOURCE_EXHAUSTED
    ticket.call = NULL
    ticket.future = ticket.body = None
    free_call(call)
    Py_DECREF(ticket)
    if not future.done():
        if status == STATUS_OK:
            future.set_result(answer)
        else:
            future.set_exception(Refused(status, answer.decode("utf-8", "replace")))
    return 0
