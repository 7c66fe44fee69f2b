"""A stream from its first header to its end, and its time.

A stream is made when its headers begin and ended when nghttp2 closes it, or its connection goes; never in between, for
nghttp2 and lanes name it. Ended streams are kept for reuse. Its one timer stands for whatever it waits for now: its
headers, its body, its answer, or the client's reading of that.
"""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from penstock.kernels._grpc cimport STATUS_DEADLINE_EXCEEDED
from penstock.kernels._http2 cimport KIND_STREAM, TIMER_STREAM, Connection, Loop, Stream
from penstock.kernels._nghttp2 cimport NGHTTP2_CANCEL
from penstock.kernels._system cimport tally
from penstock.kernels._timers cimport cancel_timer, set_timer
from penstock.kernels.exchanges cimport charge, free_command, give_back
from penstock.kernels.http2_answers cimport drop_chunk, refuse, reset
from penstock.kernels.http2_calls cimport leave_call

cdef enum:
    MAX_SPARE = 4096         # streams kept for reuse
    NS_A_BYTE = 1 << 16      # an answer is read at 15 kB a second at least, once its patience is over
    STREAM_BYTES = 1 << 10   # what the budget is charged for a stream as such, ours and nghttp2's part of it


cdef Stream* new_stream(Connection* connection, int32_t number) noexcept nogil:
    """A stream in its connection's list, or NULL where there is no memory."""
    cdef Stream* stream = room_for_stream(connection.loop)
    if stream == NULL:
        return NULL
    memset(stream, 0, sizeof(Stream))
    stream.connection = connection
    stream.id = number
    stream.charged = STREAM_BYTES
    stream.timer.owner = stream
    stream.timer.kind = TIMER_STREAM
    stream.next = connection.streams
    stream.link = &connection.streams
    if stream.next != NULL:
        stream.next.link = &stream.next
    connection.streams = stream
    connection.n_streams += 1
    return stream


cdef inline Stream* room_for_stream(Loop* loop) noexcept nogil:
    """Memory for a stream, for which the budget is charged; NULL where one of them has nothing left."""
    cdef Stream* stream = loop.spare
    if not charge(&loop.shared.budget, STREAM_BYTES):
        return NULL
    if stream != NULL:
        loop.spare = stream.next
        loop.n_spare -= 1
        return stream
    stream = <Stream*>malloc(sizeof(Stream))
    if stream == NULL:
        give_back(&loop.shared.budget, STREAM_BYTES)
    return stream


cdef void end_stream(Stream* stream) noexcept nogil:
    """Let go of all that belongs to a stream."""
    cdef Connection* connection = stream.connection
    cdef Loop* loop = connection.loop
    cancel_timer(&loop.wheel, &stream.timer)
    leave_call(stream)
    while stream.out != NULL:
        drop_chunk(stream)
    if stream.finish != NULL:
        free_command(stream.finish)
    free(stream.body)
    free(stream.text)
    give_back(&loop.shared.budget, stream.charged)
    stream.link[0] = stream.next
    if stream.next != NULL:
        stream.next.link = stream.link
    connection.n_streams -= 1
    if connection.n_streams == 0:
        connection.quiet = loop.now
    put_by(loop, stream)


cdef inline void put_by(Loop* loop, Stream* stream) noexcept nogil:
    """Keep a stream's memory for the next one."""
    if loop.n_spare < MAX_SPARE:
        stream.next = loop.spare
        loop.spare = stream
        loop.n_spare += 1
    else:
        free(stream)


cdef void on_stream_timer(Stream* stream) noexcept nogil:
    """A stream's time may be up: for its headers, a message, its answer, or for the client to read that."""
    cdef Loop* loop = stream.connection.loop
    cdef bint expired = stream.deadline and loop.now >= stream.deadline
    if not stream.begun:
        cut_off(stream)
    elif stream.answered:
        if expired and stream.timeout or is_overdue(stream, loop.now):
            cut_off(stream)
        else:
            set_next(stream)
    elif expired or is_overdue(stream, loop.now):
        tally(&loop.counters.timed_out)
        leave_call(stream)
        refuse_late(stream, expired)
    else:
        set_next(stream)


cdef inline bint awaits_message(const Stream* stream) noexcept nogil:
    """Whether the client owes us the rest of a message."""
    if stream.refused:
        return False
    return stream.prefix_size > 0 if stream.kind == KIND_STREAM else not stream.ended


cdef inline bint awaits_reading(const Stream* stream) noexcept nogil:
    """Whether there is something for the client to read; else it is Python that is waited for."""
    return stream.answered and (stream.out != NULL or stream.finished)


cdef bint is_overdue(const Stream* stream, int64_t now) noexcept nogil:
    """Whether the client has taken too long to send or to read."""
    cdef int64_t patience = stream.connection.loop.shared.limits.body
    if awaits_message(stream) and now >= stream.awaited + patience:
        return True
    if not awaits_reading(stream):
        return False
    return now >= stream.progressed + patience or (
        stream.kind != KIND_STREAM and now >= stream.answered_at + patience + stream.taken * NS_A_BYTE)


cdef void set_next(Stream* stream) noexcept nogil:
    """Look again when the next thing may be due; what is over already is not waited for, or it would fire for ever."""
    cdef Loop* loop = stream.connection.loop
    cdef int64_t patience = loop.shared.limits.body
    cdef int64_t due = 0
    if stream.deadline > loop.now:
        due = stream.deadline
    if awaits_message(stream) and (due == 0 or stream.awaited + patience < due):
        due = stream.awaited + patience
    if awaits_reading(stream) and (due == 0 or stream.progressed + patience < due):
        due = stream.progressed + patience
    if due:
        set_timer(&loop.wheel, &stream.timer, due)


cdef void cut_off(Stream* stream) noexcept nogil:
    tally(&stream.connection.loop.counters.timed_out)
    reset(stream, NGHTTP2_CANCEL)


cdef void refuse_late(Stream* stream, bint expired) noexcept nogil:
    if not expired:
        refuse(stream, STATUS_DEADLINE_EXCEEDED, "the request did not arrive in time")
    elif stream.timeout:
        refuse(stream, STATUS_DEADLINE_EXCEEDED, "the deadline passed before there was an answer")
    else:
        refuse(stream, STATUS_DEADLINE_EXCEEDED, "no answer within the server's default deadline")
