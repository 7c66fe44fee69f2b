"""The socket under a connection: bytes in and out, with TLS or without, and its closing.

Frames are collected in the loop's buffer and go out with one `send` a connection and pass. What the socket does not
take is kept and charged, nothing more is asked of nghttp2 until it is gone, and epoll tells when to go on.

A connection ends in two ways. `linger`: all is said, the peer may read it and is no longer listened to. `kill`: closed
now, its streams with it; the memory lives until `bury` at the end of the pass, for events may still name it.
"""

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from penstock.kernels._http2 cimport (
    GATHER_BYTES, PHASE_DEAD, PHASE_LINGER, PHASE_PREFACE, PHASE_TLS, SECOND, WRITE_BYTES, Connection, Loop,
)
from penstock.kernels._nghttp2 cimport (
    nghttp2_session_del, nghttp2_session_get_outbound_queue_size, nghttp2_session_mem_send,
    nghttp2_session_set_stream_user_data, nghttp2_session_want_read,
    nghttp2_session_want_write,
)
from penstock.kernels._sockets cimport (
    EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, SHUT_WR, poll_set, shutdown, socket_read, socket_write,
    would_block,
)
from penstock.kernels._system cimport atomic_add, close, tally
from penstock.kernels._timers cimport cancel_timer, set_timer
from penstock.kernels.exchanges cimport DRAINED, give_back, post_event
from penstock.kernels.http2_streams cimport end_stream
from penstock.kernels.tls cimport (
    TLS_AGAIN_READ, TLS_AGAIN_WRITE, TLS_DONE, TLS_WANT_READ, TLS_WANT_WRITE, tls_free, tls_handshake, tls_read,
    tls_write,
)

cdef enum:
    MAX_QUEUED = 4096        # frames that wait behind what is pending
    LINGER_NS = SECOND       # how long a peer may take to read the end


# Bytes

cdef bint shake_hands(Connection* connection) noexcept nogil:
    """Go on with TLS; whether it is done."""
    cdef int result = tls_handshake(connection.tls)
    if result == TLS_DONE:
        connection.phase = PHASE_PREFACE
        watch_writing(connection, False)
        return True
    if result == TLS_WANT_READ or result == TLS_WANT_WRITE:
        watch_writing(connection, result == TLS_WANT_WRITE)
    else:
        tally(&connection.loop.counters.handshakes_failed)
        kill(connection)
    return False


cdef ssize_t read_some(Connection* connection, uint8_t* out, size_t size) noexcept nogil:
    """Bytes read; 0 where the peer is done or broken; -1 where there is nothing now."""
    cdef ssize_t got
    if connection.tls == NULL:
        got = socket_read(connection.fd, out, size)
        if got < 0:
            return -1 if would_block(got) else 0
        return got
    got = tls_read(connection.tls, out, size)
    if got == TLS_AGAIN_READ:
        return -1
    if got == TLS_AGAIN_WRITE:
        connection.reads_on_out = True
        watch_writing(connection, True)
        return -1
    return got if got > 0 else 0


cdef ssize_t write_some(Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Bytes written, 0 for none now; -1 where the connection is broken."""
    cdef ssize_t put
    if connection.tls == NULL:
        put = socket_write(connection.fd, data, size)
        if put < 0:
            return 0 if would_block(put) else -1
        return put
    put = tls_write(connection.tls, data, size)
    if put == TLS_AGAIN_READ or put == TLS_AGAIN_WRITE:
        return 0
    return put if put > 0 else -1


cdef void watch_writing(Connection* connection, bint wanted) noexcept nogil:
    if connection.polls_out != wanted:
        connection.polls_out = wanted
        watch(connection)


cdef void stop_reading(Connection* connection, bint wanted) noexcept nogil:
    if connection.deaf != wanted:
        connection.deaf = wanted
        watch(connection)


cdef void watch(Connection* connection) noexcept nogil:
    """Have epoll look for what is wanted of the socket now."""
    if connection.phase != PHASE_DEAD:
        poll_set(connection.loop.poll, EPOLL_CTL_MOD, connection.fd,
                 (0 if connection.deaf else EPOLLIN) | (EPOLLOUT if connection.polls_out else 0), connection)


# Frames

cdef void flush_all(Loop* loop) noexcept nogil:
    cdef Connection* connection
    while loop.dirty != NULL:
        connection = loop.dirty
        loop.dirty = connection.next_dirty
        connection.dirty = False
        flush(connection)


cdef void flush(Connection* connection) noexcept nogil:
    """Write what there is to write, as far as the socket takes it."""
    cdef Loop* loop = connection.loop
    cdef size_t total
    cdef ssize_t put
    if connection.phase >= PHASE_LINGER or connection.phase == PHASE_TLS:
        return
    while flush_pending(connection):
        total = gather(connection)
        if connection.phase >= PHASE_LINGER:
            return
        if total == 0:
            watch_writing(connection, False)
            if not (nghttp2_session_want_read(connection.session) or nghttp2_session_want_write(connection.session)):
                linger(connection)
            return
        put = write_some(connection, loop.write_buffer, total)
        if put < 0:
            kill(connection)
            return
        if put:
            connection.wrote = loop.now
        if <size_t>put < total and not keep_pending(connection, loop.write_buffer + put, total - <size_t>put):
            kill(connection)
            return


cdef size_t gather(Connection* connection) noexcept nogil:
    """Collect frames in the loop's buffer: GATHER_BYTES and the rest of the last one at most."""
    cdef const uint8_t* data
    cdef size_t total = 0
    cdef ssize_t size
    while total < GATHER_BYTES:
        size = nghttp2_session_mem_send(connection.session, &data)
        if size < 0 or <size_t>size > WRITE_BYTES - total:
            kill(connection)
            return 0
        if size == 0:
            break
        memcpy(connection.loop.write_buffer + total, data, <size_t>size)
        total += <size_t>size
    return total


cdef bint flush_pending(Connection* connection) noexcept nogil:
    """Whether nothing is pending any more."""
    cdef ssize_t put
    if connection.pending == NULL:
        return True
    put = write_some(connection, connection.pending + connection.pending_sent,
                     connection.pending_size - connection.pending_sent)
    if put < 0:
        kill(connection)
        return False
    if put:
        connection.wrote = connection.loop.now
    connection.pending_sent += <size_t>put
    if connection.pending_sent < connection.pending_size:
        wait_for_room(connection)
        return False
    drop_pending(connection)
    stop_reading(connection, False)
    return True


cdef void wait_for_room(Connection* connection) noexcept nogil:
    """The socket takes no more. What a client can make us queue that does not read is bounded: it is not heard any more
    either, and one that was told to calm down is not waited for."""
    watch_writing(connection, True)
    if connection.calmed:
        kill(connection)
    elif nghttp2_session_get_outbound_queue_size(connection.session) > MAX_QUEUED:
        stop_reading(connection, True)


cdef bint keep_pending(Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Keep what the socket did not take; the budget is charged even where nothing is left of it."""
    connection.pending = <uint8_t*>malloc(size)
    if connection.pending == NULL:
        return False
    memcpy(connection.pending, data, size)
    connection.pending_size = size
    connection.pending_sent = 0
    atomic_add(&connection.loop.shared.budget.used, <int64_t>size)
    return True


cdef void drop_pending(Connection* connection) noexcept nogil:
    if connection.pending != NULL:
        give_back(&connection.loop.shared.budget, <int64_t>connection.pending_size)
        free(connection.pending)
        connection.pending = NULL


# The end

cdef void linger(Connection* connection) noexcept nogil:
    """All is said. Closing at once would take back what the peer has not read yet, so it may read it first."""
    if connection.phase >= PHASE_LINGER:
        return
    connection.phase = PHASE_LINGER
    end_streams(connection)
    drop_pending(connection)
    connection.deaf = connection.polls_out = False
    watch(connection)
    if connection.tls == NULL:
        shutdown(connection.fd, SHUT_WR)
    set_timer(&connection.loop.wheel, &connection.timer, connection.loop.now + LINGER_NS)


cdef void kill(Connection* connection) noexcept nogil:
    """Close a connection now. Its memory lives until the end of the pass, for events may still name it."""
    cdef Loop* loop = connection.loop
    if connection.phase == PHASE_DEAD:
        return
    end_streams(connection)
    drop_pending(connection)
    cancel_timer(&loop.wheel, &connection.timer)
    if connection.tls != NULL:
        tls_free(connection.tls, connection.phase == PHASE_LINGER)
        connection.tls = NULL
    connection.phase = PHASE_DEAD
    connection.link[0] = connection.next
    if connection.next != NULL:
        connection.next.link = connection.link
    connection.next = loop.dead
    loop.dead = connection
    poll_set(loop.poll, EPOLL_CTL_DEL, connection.fd, 0, NULL)
    forsake(loop, connection.fd)


cdef void end_streams(Connection* connection) noexcept nogil:
    while connection.streams != NULL:
        nghttp2_session_set_stream_user_data(connection.session, connection.streams.id, NULL)
        end_stream(connection.streams)


cdef void forsake(Loop* loop, int fd) noexcept nogil:
    """Close a socket that was counted as a connection; of a loop that drains the last one is told."""
    close(fd)
    atomic_add(&loop.load, -1)
    if atomic_add(&loop.shared.connections, -1) == 0 and loop.draining:
        post_event(&loop.shared.events, DRAINED, NULL, NULL, 0, False)


cdef void bury(Loop* loop) noexcept nogil:
    """Free the connections that were closed in this pass."""
    cdef Connection* connection
    while loop.dead != NULL:
        connection = loop.dead
        loop.dead = connection.next
        nghttp2_session_del(connection.session)
        free(connection)
