"""Connections: each slot of a thread has one that new calls take, and gets another where it is lost or told to leave.

Frames are collected in the thread's buffer and go out with one `send`. What the socket does not take is kept, nothing
more is asked of nghttp2 until it is gone, and epoll tells when to go on. Calls that the server promised not to have
seen are sent again (`load_requests`); the others on a lost connection are counted as such.
"""

from libc.errno cimport EAGAIN, ECONNRESET
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from penstock.kernels._client cimport (
    NGHTTP2_SETTINGS_ENABLE_PUSH, nghttp2_session_client_new2, nghttp2_strerror, socket_connect, strerror,
)
from penstock.kernels._load cimport (
    CONNECTION_WINDOW, FRAME_BYTES, NOT_CONNECTED, READ_BYTES, READS_A_PASS, RETRY_NS, SHORT_READ_BYTES, STREAM_WINDOW,
    WRITE_BYTES, Call, Thread, Wire,
)
from penstock.kernels._nghttp2 cimport (
    NGHTTP2_FLAG_ACK, NGHTTP2_FLAG_NONE, NGHTTP2_GOAWAY, NGHTTP2_SETTINGS, NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE,
    nghttp2_frame, nghttp2_option, nghttp2_session, nghttp2_session_del, nghttp2_session_mem_recv,
    nghttp2_session_mem_send, nghttp2_session_set_local_window_size, nghttp2_session_want_read,
    nghttp2_session_want_write, nghttp2_settings_entry, nghttp2_submit_settings,
)
from penstock.kernels._sockets cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, poll_set, socket_read, socket_write,
    would_block,
)
from penstock.kernels._system cimport close, monotonic_ns, tally
from penstock.kernels.load_calls cimport count, give_back, park, say_text
from penstock.kernels.tls cimport (
    TLS_AGAIN_READ, TLS_AGAIN_WRITE, TLS_DONE, TLS_WANT_READ, TLS_WANT_WRITE, tls_connect, tls_free, tls_handshake,
    tls_read, tls_write,
)


cdef Wire* open_wire(Thread* thread, int slot) noexcept nogil:
    """Begin to connect; NULL, with the reason said, where that fails at once."""
    cdef Wire* wire = <Wire*>calloc(1, sizeof(Wire))
    if wire == NULL:
        return NULL
    wire.thread, wire.slot, wire.waits = thread, slot, True
    wire.fd = socket_connect(thread.shared.host, thread.shared.port)
    if wire.fd < 0:
        say_text(thread, NOT_CONNECTED, strerror(-wire.fd))
        free(wire)
        return NULL
    if thread.shared.tls != NULL:
        wire.shaking = True
        wire.tls = tls_connect(thread.shared.tls, wire.fd, thread.shared.tls_name)
    if (wire.shaking and wire.tls == NULL) or not greet(wire) or poll_set(
            thread.poll, EPOLL_CTL_ADD, wire.fd, EPOLLIN | EPOLLOUT, wire) != 0:
        free_wire(wire)
        return NULL
    wire.next = thread.wires
    thread.wires = wire
    return wire


cdef bint greet(Wire* wire) noexcept nogil:
    """The session, its settings and wide windows."""
    cdef nghttp2_settings_entry[2] entries
    cdef nghttp2_option* option = NULL
    entries[0].settings_id, entries[0].value = NGHTTP2_SETTINGS_ENABLE_PUSH, 0
    entries[1].settings_id, entries[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW
    if nghttp2_session_client_new2(&wire.session, wire.thread.shared.callbacks, wire, option) != 0:
        return False
    if nghttp2_submit_settings(wire.session, NGHTTP2_FLAG_NONE, entries, 2) != 0:
        return False
    return nghttp2_session_set_local_window_size(wire.session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW) == 0


cdef void free_wire(Wire* wire) noexcept nogil:
    if wire.session != NULL:
        nghttp2_session_del(wire.session)
    tls_free(wire.tls, not wire.lost)
    close(wire.fd)           # which takes it out of epoll
    free(wire.unsent)
    free(wire)


cdef void leave(Wire* wire) noexcept nogil:
    """Give a connection no more calls, and its slot another one."""
    if wire.leaving:
        return
    wire.leaving = True
    wire.thread.untidy = True
    if wire.thread.slots[wire.slot] == wire:
        wire.thread.slots[wire.slot] = open_wire(wire.thread, wire.slot)


cdef void lose(Wire* wire, const char* why) noexcept nogil:
    """The connection is of no use any more; `tidy` ends its calls."""
    if wire.lost:
        return
    wire.lost = True
    wire.thread.untidy = True
    say_text(wire.thread, NOT_CONNECTED, why)
    if wire.thread.slots[wire.slot] == wire:
        wire.thread.slots[wire.slot] = NULL
        wire.thread.retry_at = monotonic_ns() + RETRY_NS


cdef int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef Wire* wire = <Wire*>user_data
    if frame.hd.type == NGHTTP2_SETTINGS and not frame.hd.flags & NGHTTP2_FLAG_ACK and not wire.ready:
        wire.ready = True
        tally(&wire.thread.ready)
    elif frame.hd.type == NGHTTP2_GOAWAY:
        leave(wire)
    return 0


cdef void tidy(Thread* thread, int64_t now) noexcept nogil:
    """Free the connections that are lost or left, and end the calls of those that are lost."""
    cdef Wire** link = &thread.wires
    cdef Wire* wire
    thread.untidy = False
    while link[0] != NULL:
        wire = link[0]
        if not wire.lost and not (wire.leaving and wire.in_flight == 0):
            link = &wire.next
            continue
        link[0] = wire.next
        if wire.in_flight:
            end_calls(thread, wire, now)
        free_wire(wire)


cdef void end_calls(Thread* thread, Wire* wire, int64_t now) noexcept nogil:
    cdef int64_t i
    cdef Call* call
    for i in range(thread.used):
        call = &thread.calls[i]
        if call.wire != wire:
            continue
        if not call.given_up:
            count(thread, NOT_CONNECTED, call, now)
        thread.in_flight -= 1
        if thread.shared.offsets == NULL:
            park(thread, call)
        else:
            give_back(thread, call)


cdef bint shake_hands(Wire* wire) noexcept nogil:
    """Go on with TLS; whether it is done, and what was held back may be written."""
    cdef int result = tls_handshake(wire.tls)
    if result == TLS_DONE:
        wire.shaking = False
    elif result != TLS_WANT_READ and result != TLS_WANT_WRITE:
        lose(wire, b"the TLS handshake failed")
        return False
    poll_set(wire.thread.poll, EPOLL_CTL_MOD, wire.fd, EPOLLIN if result == TLS_WANT_READ else EPOLLIN | EPOLLOUT, wire)
    return result == TLS_DONE


cdef ssize_t read_some(Wire* wire, uint8_t* out, size_t size) noexcept nogil:
    """Bytes read, 0 where the server is done, or -errno."""
    cdef ssize_t got
    if wire.tls == NULL:
        return socket_read(wire.fd, out, size)
    got = tls_read(wire.tls, out, size)
    return got if got >= 0 else error_of(wire, got)


cdef ssize_t write_some(Wire* wire, const uint8_t* data, size_t size) noexcept nogil:
    """Bytes written, or -errno."""
    cdef ssize_t put
    if wire.tls == NULL:
        return socket_write(wire.fd, data, size)
    put = tls_write(wire.tls, data, size)
    return put if put >= 0 else error_of(wire, put)


cdef ssize_t error_of(Wire* wire, ssize_t result) noexcept nogil:
    """-errno of what TLS says; where it wants to write first, epoll tells when it may."""
    if result == TLS_AGAIN_WRITE and not wire.waits:
        wire.waits = True
        poll_set(wire.thread.poll, EPOLL_CTL_MOD, wire.fd, EPOLLIN | EPOLLOUT, wire)
    return -EAGAIN if result == TLS_AGAIN_READ or result == TLS_AGAIN_WRITE else -ECONNRESET


cdef bint write_out(Wire* wire, const uint8_t* data, size_t size) noexcept nogil:
    """Write, and keep what the socket does not take; whether it took all."""
    cdef size_t done = 0
    cdef ssize_t put
    cdef uint8_t* rest
    while done < size:
        put = write_some(wire, data + done, size - done)
        if put < 0:
            if not would_block(put):
                lose(wire, strerror(<int>-put))
                return False
            break
        done += <size_t>put
    if done == size:
        return True
    rest = <uint8_t*>malloc(size - done)
    if rest == NULL:
        lose(wire, b"out of memory")
        return False
    memcpy(rest, data + done, size - done)
    free(wire.unsent)        # after it was copied from, where `data` lies in it
    wire.unsent, wire.unsent_size = rest, size - done
    if not wire.waits:
        wire.waits = True
        poll_set(wire.thread.poll, EPOLL_CTL_MOD, wire.fd, EPOLLIN | EPOLLOUT, wire)
    return False


cdef void flush(Wire* wire) noexcept nogil:
    """Write all that the session has to say, unless the socket is full."""
    cdef uint8_t* buffer = wire.thread.write_buffer
    cdef const uint8_t* frame = NULL
    cdef size_t size
    cdef ssize_t got
    while not wire.waits and not wire.lost:
        size = 0
        while size <= WRITE_BYTES - FRAME_BYTES:
            got = nghttp2_session_mem_send(wire.session, &frame)
            if got <= 0:
                break
            if <size_t>got > WRITE_BYTES - size:
                got = -1
                break
            memcpy(buffer + size, frame, <size_t>got)
            size += <size_t>got
        else:
            got = 1
        if got < 0:
            lose(wire, b"cannot be written to")
            return
        if size and not write_out(wire, buffer, size):
            return
        if got == 0:
            break
    if not wire.waits and not wire.lost and not nghttp2_session_want_read(wire.session) and not (
            nghttp2_session_want_write(wire.session)):
        lose(wire, b"the server ended the connection")


cdef void on_ready(Wire* wire, uint32_t events) noexcept nogil:
    """What epoll says of a connection: what came is read, what was left unsent is written."""
    cdef ssize_t got
    cdef ssize_t used
    cdef size_t room = READ_BYTES
    cdef int reads = READS_A_PASS
    if wire.thread.shared.offsets != NULL:
        room, reads = SHORT_READ_BYTES, 1
    if wire.shaking and not shake_hands(wire):
        return
    if wire.tls != NULL or events & (EPOLLIN | EPOLLERR | EPOLLHUP):
        while reads:
            reads -= 1
            got = read_some(wire, wire.thread.read_buffer, room)
            if got <= 0:
                if got == 0:
                    lose(wire, b"the server closed the connection")
                elif not would_block(got):
                    lose(wire, strerror(<int>-got))
                break
            used = nghttp2_session_mem_recv(wire.session, wire.thread.read_buffer, <size_t>got)
            if used < 0:
                lose(wire, nghttp2_strerror(<int>used))
            if wire.lost or <size_t>got < room:
                break
    if events & EPOLLOUT and wire.waits and not wire.lost:
        if write_out(wire, wire.unsent, wire.unsent_size):
            wire.unsent_size = 0
            wire.waits = False
            poll_set(wire.thread.poll, EPOLL_CTL_MOD, wire.fd, EPOLLIN, wire)
