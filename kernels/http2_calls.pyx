"""Where a stream's call is answered: in a lane, or by Python through an exchange. The way in, back, and off.

Rules: a call that is in a lane, and an exchange, outlive their stream where they must, and then no longer name it;
bytes change hands together with what the budget was charged for them; where memory or budget are short, the call is
refused here, so that whoever gave it away need not ask. All of it runs in the loop's own thread.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc

from penstock.kernels._grpc cimport ENCODING_IDENTITY, STATUS_OK, STATUS_RESOURCE_EXHAUSTED, STATUS_UNAVAILABLE
from penstock.kernels._http2 cimport KIND_STREAM, MAX_TOUCHED, WINDOW_BYTES, Chunk, Loop, Stream, to_write
from penstock.kernels._nghttp2 cimport nghttp2_session_consume_stream, nghttp2_session_resume_data
from penstock.kernels._sockets cimport socket_peer
from penstock.kernels._system cimport atomic_add, atomic_get, flag_raise, tally
from penstock.kernels._wire cimport OK as FAULT_OK
from penstock.kernels.exchanges cimport (
    BEGAN, CLOSED, CONSUMED, SEND, Command, Exchange, charge, free_command, give_back, new_exchange, post_event,
    release_exchange,
)
from penstock.kernels.http2_answers cimport end_with, refuse, refuse_over_budget, refuse_size, send_chunk
from penstock.kernels.calls cimport Call, cancel_call, deliver, free_call, new_call
from penstock.kernels.lanes cimport (
    ADMIT, DRAINING, INLINE_BUDGET_NS, NEVER_FITS, TOO_LATE, Admission, Lane, Limits as LaneLimits,
)
from penstock.kernels.routes cimport Routes
from penstock.kernels.wire_requests cimport parse_request

cdef enum:
    MESSAGE_BYTES = 1 << 8   # and for a message that Python has not read yet, however small
    EXCHANGE_BYTES = 1 << 13  # what the budget is charged for a call that Python answers


cdef bint into_lane(Stream* stream) noexcept nogil:
    """Queue a ModelInfer; False where Python has to say what is wrong with it, or where it goes."""
    cdef Loop* loop = stream.connection.loop
    cdef void* lane = NULL
    cdef Call* call = new_call()
    cdef Admission admission
    if call == NULL:
        refuse_over_budget(stream)
        return True
    call.body = stream.body
    call.size = stream.length
    if parse_request(call.body, call.size, &call.request) == FAULT_OK and loop.routes != NULL:
        lane = (<Routes>loop.routes).find(call.request.model_name, call.request.model_version)
    if lane == NULL or not (<Lane>lane).takes(call):
        free_call(call)          # the body stays with the stream
        return False
    call.sink = &loop.sink
    call.context = stream
    call.deadline_ns = stream.deadline
    call.owns_body = True
    stream.body = NULL           # the call's now; its bytes stay charged to the stream
    stream.capacity = 0
    stream.call = call
    if (<Lane>lane).recall(call, loop.now):
        tally(&loop.counters.inferences)
        answer_call(stream, call)
        return True
    stream.in_lane = True
    atomic_add(&loop.in_lanes, 1)
    tally(&loop.counters.inferences)
    admission = (<Lane>lane).enqueue(call, loop.now, False)
    if admission == ADMIT:
        touch(loop, lane)
        return True
    atomic_add(&loop.in_lanes, -1)
    stream.in_lane = False
    refuse_admission(stream, admission, call, &(<Lane>lane).limits)
    return True


cdef void refuse_admission(Stream* stream, Admission admission, const Call* call,
                           const LaneLimits* limits) noexcept nogil:
    cdef char[256] message
    cdef int written
    if admission == NEVER_FITS:
        written = snprintf(
            message, sizeof(message), "the request has %lld rows and %zu bytes; the queue never takes more than %lld "
            "rows or %lld bytes: send smaller requests", <long long>call.request.rows, call.size,
            <long long>limits.max_queue_rows, <long long>limits.max_queue_bytes)
        end_with(stream, STATUS_RESOURCE_EXHAUSTED, message, <size_t>written, NULL, 0)
    elif admission == TOO_LATE:
        end_with(stream, call.status, <const char*>call.answer, call.answer_size, NULL, 0)
    elif admission == DRAINING:
        refuse(stream, STATUS_UNAVAILABLE, "the version is draining, try again")
    else:
        refuse(stream, STATUS_UNAVAILABLE, "the queue is full, try again later")


cdef void touch(Loop* loop, void* lane) noexcept nogil:
    """Have the lane seen to at the end of the pass; a worker does it at once where too many are."""
    cdef int i
    for i in range(loop.n_touched):
        if loop.touched[i] == lane:
            return
    if loop.n_touched == MAX_TOUCHED:
        wake_workers(loop)
    loop.touched[loop.n_touched] = lane
    loop.n_touched += 1


cdef void wake_workers(Loop* loop) noexcept nogil:
    cdef int i
    for i in range(loop.n_touched):
        (<Lane>loop.touched[i]).wake_worker()
    loop.n_touched = 0


cdef void run_touched(Loop* loop) noexcept nogil:
    """See to the lanes that got calls in this pass: run what is cheap at once, wake a worker for the rest.

    Routes change only in a later part of the pass, so the lanes are alive.
    """
    cdef int64_t budget = INLINE_BUDGET_NS
    cdef Call* call
    cdef Call* following
    cdef int i
    for i in range(loop.n_touched):
        call = (<Lane>loop.touched[i]).run_inline(&budget)
        while call != NULL:
            if call.status == STATUS_OK:
                tally(&loop.counters.inlined)
            if call.sink == &loop.sink:
                call = deliver_one(loop, call)
            else:                # another thread's, queued there a moment ago
                following = call.next
                call.next = NULL
                deliver(call)
                call = following
    loop.n_touched = 0


cdef Call* deliver_one(Loop* loop, Call* call) noexcept nogil:
    """Answer a finished call; the next one."""
    cdef Call* following = call.next
    cdef Stream* stream = <Stream*>call.context
    atomic_add(&loop.in_lanes, -1)
    if stream == NULL:           # its client has left
        give_back(&loop.shared.budget, <int64_t>call.size)
        free_call(call)
    else:
        stream.in_lane = False
        answer_call(stream, call)
    return following


cdef void answer_call(Stream* stream, Call* call) noexcept nogil:
    """Send what a lane gave: the reply, or a status with its message."""
    cdef Loop* loop = stream.connection.loop
    if call.status != STATUS_OK:
        end_with(stream, call.status, <const char*>call.answer, call.answer_size, NULL, 0)
        return
    if call.answer_size > loop.shared.limits.max_message_bytes:
        refuse_size(stream, "the answer has %zu bytes, the limit is %zu: ask for fewer rows or outputs",
                    call.answer_size)
        return
    if not charge(&loop.shared.budget, <int64_t>call.answer_size):
        refuse_over_budget(stream)
        return
    stream.charged += <int64_t>call.answer_size
    stream.finished = True
    send_chunk(stream, &stream.first, call.answer, call.answer_size, False, ENCODING_IDENTITY)


cdef void begin_exchange(Stream* stream) noexcept nogil:
    """Give a call to Python; that of a unary one takes its message along."""
    cdef Exchange* exchange = new_charged_exchange(stream)
    if exchange == NULL:
        refuse_over_budget(stream)
        return
    tally(&stream.connection.loop.counters.exchanges)
    exchange.stream = stream
    exchange.streaming = stream.kind == KIND_STREAM
    exchange.encoding = stream.encoding
    exchange.accepts = stream.accepts
    exchange.deadline_ns = stream.deadline if stream.timeout else 0
    socket_peer(stream.connection.fd, exchange.peer, sizeof(exchange.peer))
    stream.exchange = exchange
    drop_text(stream)
    hand_over_message(stream, BEGAN)


cdef void drop_text(Stream* stream) noexcept nogil:
    free(stream.text)
    stream.text = NULL
    stream.charged -= <int64_t>stream.text_capacity
    give_back(&stream.connection.loop.shared.budget, <int64_t>stream.text_capacity)
    stream.text_capacity = stream.text_size = 0


cdef Exchange* new_charged_exchange(const Stream* stream) noexcept nogil:
    """An exchange with the stream's path and metadata, between its loop and Python; NULL: no budget or no memory."""
    cdef Loop* loop = stream.connection.loop
    cdef Exchange* exchange
    cdef int64_t size = EXCHANGE_BYTES + <int64_t>stream.text_size
    if atomic_get(&loop.shared.budget.used) > loop.shared.budget.limit // 4 * 3:
        return NULL              # the last quarter is for inference
    if not charge(&loop.shared.budget, size):
        return NULL
    exchange = new_exchange(stream.path.data, stream.path.size, stream.text, stream.text_size)
    if exchange == NULL:
        give_back(&loop.shared.budget, size)
        return NULL
    exchange.mailbox = &loop.mailbox
    exchange.events = &loop.shared.events
    exchange.budget = &loop.shared.budget
    exchange.charged = size
    return exchange


cdef void hand_over_message(Stream* stream, int kind) noexcept nogil:
    """Tell Python of the message that is complete, if there is one, and give it the bytes."""
    cdef uint8_t* body = stream.body
    cdef size_t size = stream.size
    cdef int64_t charged = <int64_t>stream.capacity
    cdef bint compressed = stream.prefix[0] != 0
    stream.body = NULL
    stream.capacity = 0
    stream.size = stream.length = 0
    stream.charged -= charged
    if stream.kind == KIND_STREAM and kind != BEGAN:
        stream.unread += size + MESSAGE_BYTES
        if charge(&stream.connection.loop.shared.budget, MESSAGE_BYTES):
            charged += MESSAGE_BYTES
        else:
            refuse_over_budget(stream)
    atomic_add(&stream.exchange.charged, charged)
    if not post_event(&stream.connection.loop.shared.events, kind, stream.exchange, body, size, compressed):
        free(body)
        refuse_over_budget(stream)


cdef Command* carry_out(Command* command) noexcept nogil:
    """Do what Python wants of one of its exchanges; the next command."""
    cdef Command* following = command.next
    cdef Stream* stream = <Stream*>command.exchange.stream
    if stream != NULL and not stream.finished:
        if command.kind == SEND:
            send_message(stream, command)
        elif command.kind == CONSUMED:
            consumed(stream, command)
        elif not stream.answered:
            end_with(stream, command.status, <const char*>command.data, command.size, command.data + command.size,
                     command.trailing)
        else:
            finish_with(stream, command)
            return following
    free_command(command)
    return following


cdef void finish_with(Stream* stream, Command* command) noexcept nogil:
    """End an answer that has begun: the command is kept until the trailers are made of it."""
    stream.finish = command
    stream.finished = True
    nghttp2_session_resume_data(stream.connection.session, stream.id)
    to_write(stream.connection)


cdef void send_message(Stream* stream, Command* command) noexcept nogil:
    cdef Loop* loop = stream.connection.loop
    cdef Chunk* chunk
    if command.size > loop.shared.limits.max_message_bytes:
        refuse_size(stream, "the answer has %zu bytes, the limit is %zu", command.size)
        return
    chunk = <Chunk*>malloc(sizeof(Chunk))
    if chunk == NULL or not charge(&loop.shared.budget, <int64_t>command.size):
        free(chunk)
        refuse_over_budget(stream)
        return
    chunk.owned = True
    send_chunk(stream, chunk, command.data, command.size, command.compressed, command.encoding)
    command.data = NULL


cdef void consumed(Stream* stream, const Command* command) noexcept nogil:
    """Python has read a message: where the client was held back for it, it may send on."""
    cdef int64_t freed = min(<int64_t>stream.unread, <int64_t>command.size + MESSAGE_BYTES)
    stream.unread -= <size_t>freed
    atomic_add(&command.exchange.charged, -freed)
    give_back(&stream.connection.loop.shared.budget, freed)
    if stream.held and stream.unread <= WINDOW_BYTES:
        nghttp2_session_consume_stream(stream.connection.session, stream.id, stream.held)
        stream.held = 0
        to_write(stream.connection)


cdef void leave_call(Stream* stream) noexcept nogil:
    """Let go of the call. One that is in a lane goes on without its stream, and is not run if it can be helped."""
    leave_lane(stream)
    leave_exchange(stream)


cdef void leave_lane(Stream* stream) noexcept nogil:
    cdef Call* call = stream.call
    stream.call = NULL
    if call == NULL:
        return
    if stream.in_lane:
        stream.in_lane = False
        stream.charged -= <int64_t>call.size      # given back when the lane is done with it
        call.context = NULL
        cancel_call(call)
    else:
        free_call(call)


cdef void leave_exchange(Stream* stream) noexcept nogil:
    if stream.exchange != NULL:
        stream.exchange.stream = NULL
        flag_raise(&stream.exchange.closed)
        post_event(&stream.connection.loop.shared.events, CLOSED, stream.exchange, NULL, 0, False)
        release_exchange(stream.exchange)
        stream.exchange = NULL
