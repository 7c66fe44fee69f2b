"""A connection: opened, read, kept alive, and ended in two steps when its time has come.

Bytes that are read go to nghttp2, which calls `http2_requests`. One timer a connection stands for the earliest of all
that may be due: handshake, keepalive, a peer that takes nothing, idleness, age. Looking too early does no harm.

The two steps: the client is told that the connection is going to end (GOAWAY for the highest stream, and a PING); once
the PING has come back, or a second later, which calls are still answered. So no call is lost that was on its way.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport strlen

from penstock.kernels._http2 cimport (
    PHASE_DEAD, PHASE_LINGER, PHASE_OPEN, PHASE_PREFACE, PHASE_TLS, READ_BYTES, SECOND, TIMER_CONNECTION, WINDOW_BYTES,
    Connection, Limits, Loop, Shared, earlier, to_write,
)
from penstock.kernels._nghttp2 cimport (
    NGHTTP2_ERR_BAD_CLIENT_MAGIC, NGHTTP2_FLAG_NONE, NGHTTP2_NO_ERROR, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
    NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, nghttp2_option, nghttp2_option_new,
    nghttp2_option_set_no_auto_window_update, nghttp2_option_set_no_closed_streams, nghttp2_session_callbacks_new,
    nghttp2_session_del, nghttp2_session_get_last_proc_stream_id, nghttp2_session_mem_recv, nghttp2_session_server_new2,
    nghttp2_session_set_local_window_size, nghttp2_session_terminate_session, nghttp2_settings_entry,
    nghttp2_submit_goaway, nghttp2_submit_ping, nghttp2_submit_settings, nghttp2_submit_shutdown_notice,
)
from penstock.kernels._sockets cimport EPOLL_CTL_ADD, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, poll_set
from penstock.kernels._system cimport lock_acquire, lock_release, tally
from penstock.kernels._timers cimport set_timer
from penstock.kernels.http2_requests cimport hear_requests
from penstock.kernels.http2_sockets cimport flush, forsake, kill, linger, read_some, shake_hands, write_some
from penstock.kernels.tls cimport tls_free, tls_new

cdef enum:
    READS_A_PASS = 4         # of one connection
    CALM_DOWN_BYTES = 17

cdef extern from *:
    """
    /* Resets are counted by ourselves, against the operator's limit; nghttp2's own, where it has one, must not come
       first. */
    static void lift_reset_limit(nghttp2_option *option) {
    #ifdef PENSTOCK_NGHTTP2_RESET_LIMIT
        nghttp2_option_set_stream_reset_rate_limit(option, 1ull << 40, 1ull << 40);
    #else
        (void)option;
    #endif
    }
    """
    void lift_reset_limit(nghttp2_option* option) nogil

cdef const uint8_t* DRAIN_PING = b"drained?"
cdef const uint8_t* ALIVE_PING = b"stillup?"
cdef const uint8_t* CALM_DOWN = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b"   # GOAWAY, ENHANCE_YOUR_CALM
cdef const char* HTTP1_ANSWER = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: 47\r\n\r\nthis port speaks gRPC over HTTP/2, not HTTP/1.1"
)


cdef bint prepare_sessions(Shared* shared) noexcept nogil:
    """Make what all sessions have in common; False where there is no memory."""
    if nghttp2_session_callbacks_new(&shared.callbacks) != 0 or nghttp2_option_new(&shared.option) != 0:
        return False
    hear_requests(shared.callbacks)
    nghttp2_option_set_no_auto_window_update(shared.option, 1)
    nghttp2_option_set_no_closed_streams(shared.option, 1)
    lift_reset_limit(shared.option)
    return True


# The beginning

cdef void open_connection(Loop* loop, int fd) noexcept nogil:
    """Serve a connected socket from now on; it is closed where that cannot be."""
    cdef Connection* connection = <Connection*>calloc(1, sizeof(Connection))
    if connection == NULL:
        forsake(loop, fd)
        return
    connection.fd = fd
    connection.loop = loop
    connection.born = connection.heard = connection.quiet = connection.wrote = loop.now
    connection.age = aged(loop, fd)
    connection.timer.owner = connection
    connection.timer.kind = TIMER_CONNECTION
    if not begin_session(connection):
        if connection.tls != NULL:
            tls_free(connection.tls, False)
        if connection.session != NULL:
            nghttp2_session_del(connection.session)
        free(connection)
        forsake(loop, fd)
        return
    connection.next = loop.connections
    connection.link = &loop.connections
    if connection.next != NULL:
        connection.next.link = &connection.next
    loop.connections = connection
    set_timer(&loop.wheel, &connection.timer, loop.now + loop.shared.limits.handshake)
    if loop.draining:
        begin_drain(connection)


cdef bint begin_session(Connection* connection) noexcept nogil:
    """TLS where it is wanted, HTTP/2 on top, and epoll told; False where any of them fails."""
    cdef Loop* loop = connection.loop
    cdef bint secure
    lock_acquire(loop.mailbox.lock)
    secure = loop.tls != NULL
    connection.tls = tls_new(loop.tls, connection.fd) if secure else NULL
    lock_release(loop.mailbox.lock)
    connection.phase = PHASE_TLS if secure else PHASE_PREFACE
    if secure and connection.tls == NULL:
        return False
    if nghttp2_session_server_new2(&connection.session, loop.shared.callbacks, connection, loop.shared.option) != 0:
        return False
    return greet(connection) and poll_set(loop.poll, EPOLL_CTL_ADD, connection.fd, EPOLLIN, connection) == 0


cdef int64_t aged(const Loop* loop, int fd) noexcept nogil:
    """How old a connection may get: the limit, 10 % more or less, so that they do not all end together."""
    cdef int64_t percent = 90 + ((loop.now >> 10) + 7 * fd) % 21
    return loop.shared.limits.age // 100 * percent


cdef bint greet(Connection* connection) noexcept nogil:
    """Our SETTINGS, sent once the client has said anything, so that one of HTTP/1.1 can be answered in its own way.

    Priorities of RFC 7540 stay on: without any from the client they share a connection fairly among its answers, where
    those of RFC 9218 would send one to its end before the next.
    """
    cdef nghttp2_settings_entry[3] entries
    cdef const Limits* limits = &connection.loop.shared.limits
    entries[0].settings_id, entries[0].value = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, limits.max_streams
    entries[1].settings_id, entries[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_BYTES
    entries[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    entries[2].value = <uint32_t>limits.max_header_bytes
    return (nghttp2_submit_settings(connection.session, NGHTTP2_FLAG_NONE, entries, 3) == 0
            and nghttp2_session_set_local_window_size(connection.session, NGHTTP2_FLAG_NONE, 0, 4 * WINDOW_BYTES) == 0)


# Reading

cdef void on_ready(Connection* connection, uint32_t events) noexcept nogil:
    """The socket can be read or written, or is broken, which reading tells."""
    if connection.phase == PHASE_DEAD:
        return
    if connection.phase == PHASE_TLS and not shake_hands(connection):
        return
    if events & EPOLLOUT:
        to_write(connection)
    if events & (EPOLLIN | EPOLLERR | EPOLLHUP) or connection.reads_on_out:
        connection.reads_on_out = False
        read_connection(connection)


cdef void read_connection(Connection* connection) noexcept nogil:
    cdef Loop* loop = connection.loop
    cdef ssize_t got, used
    cdef int _attempt
    for _attempt in range(READS_A_PASS):
        got = read_some(connection, loop.read_buffer, READ_BYTES)
        if got == 0:
            kill(connection)
        if got <= 0:
            return
        if connection.phase == PHASE_LINGER:
            continue
        connection.heard = loop.now
        used = nghttp2_session_mem_recv(connection.session, loop.read_buffer, <size_t>got)
        to_write(connection)
        if used < 0:
            give_up(connection, used == NGHTTP2_ERR_BAD_CLIENT_MAGIC)
            return
        if connection.draining == 1 and not connection.pinged:
            say_goodbye(connection)
        if got < READ_BYTES and connection.tls == NULL:
            return


cdef void give_up(Connection* connection, bint is_http1) noexcept nogil:
    """The peer broke the protocol beyond what nghttp2 can answer. To HTTP/1.1 it is said what this port is."""
    if connection.pending == NULL:
        if is_http1:
            write_some(connection, <const uint8_t*>HTTP1_ANSWER, strlen(HTTP1_ANSWER))
        else:
            tally(&connection.loop.counters.calmed)
            write_some(connection, CALM_DOWN, CALM_DOWN_BYTES)
    linger(connection)


# Time

cdef void on_connection_timer(Connection* connection) noexcept nogil:
    cdef Loop* loop = connection.loop
    cdef int64_t now = loop.now
    if connection.phase == PHASE_LINGER:
        kill(connection)
        return
    if overdue(connection):
        tally(&loop.counters.timed_out)
        kill(connection)
        return
    if connection.draining == 2 and now >= connection.drain_at + loop.shared.limits.age_grace:
        nghttp2_session_terminate_session(connection.session, NGHTTP2_NO_ERROR)
        flush(connection)
        linger(connection)
        return
    if connection.draining == 1 and now >= connection.drain_at + SECOND:
        say_goodbye(connection)
    elif connection.draining == 0 and has_had_its_time(connection):
        begin_drain(connection)
    if connection.phase == PHASE_DEAD:
        return
    if not connection.pinged and now >= connection.heard + loop.shared.limits.keepalive:
        ping(connection, ALIVE_PING)
    set_timer(&loop.wheel, &connection.timer, next_look(connection))


cdef bint overdue(const Connection* connection) noexcept nogil:
    """Whether the peer has let us wait for too long: for its preface, a PING's return, or to take what we write."""
    cdef const Limits* limits = &connection.loop.shared.limits
    cdef int64_t now = connection.loop.now
    return ((connection.phase < PHASE_OPEN and now >= connection.born + limits.handshake)
            or (connection.pinged and now >= connection.ping_at + limits.keepalive_timeout)
            or (connection.pending != NULL and now >= connection.wrote + limits.body))


cdef bint has_had_its_time(const Connection* connection) noexcept nogil:
    """Whether a connection is too old, or has had no calls for too long."""
    cdef int64_t now = connection.loop.now
    if connection.age and now >= connection.born + connection.age:
        return True
    return connection.n_streams == 0 and now >= connection.quiet + connection.loop.shared.limits.idle


cdef int64_t next_look(const Connection* connection) noexcept nogil:
    """When the next thing may be due."""
    cdef const Limits* limits = &connection.loop.shared.limits
    cdef int64_t due
    if connection.phase < PHASE_OPEN:
        return connection.born + limits.handshake
    due = connection.ping_at + limits.keepalive_timeout if connection.pinged else connection.heard + limits.keepalive
    if connection.pending != NULL:
        due = earlier(due, connection.wrote + limits.body)
    if connection.draining == 1:
        return earlier(due, connection.drain_at + SECOND)
    if connection.draining == 2:
        return earlier(due, connection.drain_at + limits.age_grace)
    if connection.age:
        due = earlier(due, connection.born + connection.age)
    return earlier(due, (connection.quiet if connection.n_streams == 0 else connection.loop.now) + limits.idle)


cdef void ping(Connection* connection, const uint8_t* opaque) noexcept nogil:
    connection.pinged = True
    connection.ping_at = connection.loop.now
    nghttp2_submit_ping(connection.session, NGHTTP2_FLAG_NONE, opaque)
    to_write(connection)


# The end

cdef void begin_drain(Connection* connection) noexcept nogil:
    """First step: tell that the connection is going to end. Calls that are on their way are still answered."""
    if connection.draining or connection.phase >= PHASE_LINGER:
        return
    if connection.phase == PHASE_TLS:
        kill(connection)
        return
    connection.draining = 1
    connection.drain_at = connection.loop.now
    nghttp2_submit_shutdown_notice(connection.session)
    ping(connection, DRAIN_PING)
    set_timer(&connection.loop.wheel, &connection.timer, next_look(connection))


cdef void say_goodbye(Connection* connection) noexcept nogil:
    """Second step, once the client knows: which calls are answered. Later ones it may safely send elsewhere."""
    connection.draining = 2
    nghttp2_submit_goaway(connection.session, NGHTTP2_FLAG_NONE,
                          nghttp2_session_get_last_proc_stream_id(connection.session), NGHTTP2_NO_ERROR, NULL, 0)
    to_write(connection)
    set_timer(&connection.loop.wheel, &connection.timer, next_look(connection))


cdef void end_connection(Connection* connection) noexcept nogil:
    """Close a connection now, with a GOAWAY if the socket takes it."""
    nghttp2_session_terminate_session(connection.session, NGHTTP2_NO_ERROR)
    flush(connection)
    kill(connection)
