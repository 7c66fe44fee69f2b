"""A call sent, and its end: a body of the pool goes out, and a caller of the closed loop asks again once answered."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from penstock.kernels._client cimport nghttp2_submit_request
from penstock.kernels._load cimport SENDING, Call, Shared, Thread, Wire
from penstock.kernels._nghttp2 cimport (
    NGHTTP2_DATA_FLAG_EOF, NGHTTP2_REFUSED_STREAM, nghttp2_data_provider, nghttp2_data_source, nghttp2_session,
    nghttp2_session_get_stream_user_data,
)
from penstock.kernels._system cimport atomic_add, atomic_get, monotonic_ns, tally
from penstock.kernels.load_calls cimport conclude, give_back, park
from penstock.kernels.load_wires cimport flush, leave


cdef ssize_t read_body(nghttp2_session* session, int32_t number, uint8_t* out, size_t room, uint32_t* flags,
                       nghttp2_data_source* source, void* user_data) noexcept nogil:
    """nghttp2 asks for the next piece of a request."""
    cdef Call* call = <Call*>source.ptr
    cdef size_t part = call.body.size - call.sent
    if part > room:
        part = room
    else:
        flags[0] |= NGHTTP2_DATA_FLAG_EOF
    memcpy(out, call.body.data + call.sent, part)
    call.sent += part
    return <ssize_t>part


cdef bint submit(Wire* wire, Call* call) noexcept nogil:
    """Put a call on a connection; False where the connection takes no more."""
    cdef Shared* shared = wire.thread.shared
    cdef nghttp2_data_provider provider
    provider.source.ptr = call
    provider.read_callback = read_body
    call.sent, call.status, call.http_ok, call.given_up = 0, -1, False, False
    call.answer_size, call.fit, call.messages = 0, -1, 0
    call.stream = nghttp2_submit_request(wire.session, NULL, shared.headers, shared.header_count, &provider, call)
    if call.stream < 0:      # its numbers are used up
        leave(wire)
        return False
    call.wire = wire
    wire.in_flight += 1
    return True


cdef bint ask(Thread* thread, Call* call, int slot, int64_t start) noexcept nogil:
    """Send the pool's next body; False where there is no connection to send it on."""
    cdef Shared* shared = thread.shared
    cdef Wire* wire = thread.slots[slot]
    call.body = &shared.bodies[thread.body_at]
    call.start = start
    if wire == NULL or not submit(wire, call):
        return False
    thread.body_at = thread.body_at + 1 if thread.body_at + 1 < shared.body_count else 0
    thread.in_flight += 1
    tally(&thread.sent)
    return True


cdef inline bint allowed(Thread* thread) noexcept nogil:
    """Whether a caller may ask once more."""
    cdef Shared* shared = thread.shared
    if atomic_get(&shared.phase) != SENDING:
        return False
    return shared.limit == 0 or atomic_add(&shared.asked, 1) <= shared.limit


cdef void ask_again(Thread* thread, Call* call, int slot, int64_t now) noexcept nogil:
    """What a caller of the closed loop does once it was answered."""
    if not allowed(thread):
        give_back(thread, call)
    elif not ask(thread, call, slot, now):
        park(thread, call)


cdef int on_close(nghttp2_session* session, int32_t number, uint32_t error, void* user_data) noexcept nogil:
    """nghttp2 is done with a stream."""
    cdef Wire* wire = <Wire*>user_data
    cdef Thread* thread = wire.thread
    cdef Call* call = <Call*>nghttp2_session_get_stream_user_data(session, number)
    cdef int64_t now
    if call == NULL:
        return 0
    wire.in_flight -= 1
    if wire.in_flight == 0 and wire.leaving:
        thread.untidy = True
    if error == NGHTTP2_REFUSED_STREAM and wire.leaving and not call.given_up:
        if thread.slots[wire.slot] != NULL and submit(thread.slots[wire.slot], call):
            return 0         # the server has not seen it
    now = monotonic_ns()
    if not call.given_up:
        conclude(thread, call, error, now)
    thread.in_flight -= 1
    if thread.shared.offsets == NULL:
        call.wire = NULL
        call.next = wire.answered
        wire.answered = call
    else:
        give_back(thread, call)
    return 0


cdef void ask_next(Wire* wire) noexcept nogil:
    """Callers that were answered ask again. Their time begins here: what was read meanwhile is none of the server's."""
    cdef int64_t now
    cdef Call* call
    if wire.answered == NULL:
        return
    now = monotonic_ns()
    while wire.answered != NULL:
        call = wire.answered
        wire.answered = call.next
        ask_again(wire.thread, call, wire.slot, now)


cdef void go_on(Wire* wire) noexcept nogil:
    """Have callers ask again and write; writing may end calls, too."""
    ask_next(wire)
    flush(wire)
    while wire.answered != NULL:
        ask_next(wire)
        flush(wire)
